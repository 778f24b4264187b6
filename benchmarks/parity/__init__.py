"""Numerical parity with the official code."""
