"""A real ComfyUI: find it, start it, run graphs on it, and open it in a browser."""
