"""Few-shot tuning (paper sec. 3.3 and 4.1): the loop and what surrounds it."""
