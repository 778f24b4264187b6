"""A real ComfyUI: found, started, asked, and seen in a browser."""
