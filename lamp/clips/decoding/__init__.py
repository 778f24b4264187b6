"""Video and picture files to RGB frames."""
