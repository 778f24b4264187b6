"""diffusers as host: its UNets, and models from folders and single files."""
