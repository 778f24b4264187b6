"""A miniature Stable Diffusion 1.x, and the procedural world on which it was trained."""
