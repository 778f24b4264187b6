"""The hosts of a motion. The only door to ComfyUI and diffusers."""
