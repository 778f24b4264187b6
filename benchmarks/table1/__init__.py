"""The paper's Table 1 on a toy world: see `__main__.py`."""
