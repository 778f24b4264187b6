"""Benchmarks on toy clips, where the true motion is known."""
