"""GPU memory and kernels of a motion, simulated on a CPU: see `benchmarks/simulate/__main__.py`."""
