"""Decode video and picture files to RGB frames."""
