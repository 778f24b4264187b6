"""Files on disk: atomic writes, names, locks, headers, the latent cache."""
