"""ComfyUI as host: a motion in its models and samplers, its VAE and text encoders for training."""
