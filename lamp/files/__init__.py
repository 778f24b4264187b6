"""Files on disk: atomic writes, names, locks, safetensors headers, the latent cache."""
