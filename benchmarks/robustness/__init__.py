"""Damaged files, kills, hostile input, load."""
