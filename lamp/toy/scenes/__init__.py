"""The second toy world: the paper's eight motions on landscapes, 64x64 pixels, with known truth."""
