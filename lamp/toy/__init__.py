"""A small model of Stable Diffusion 1.x's shape, and the procedural world that it was taught."""
