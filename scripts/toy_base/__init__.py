"""Training of the toy bases; the command is scripts/train_toy_base.py."""
