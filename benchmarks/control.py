"""`python -m benchmarks.control`: see benchmarks/toy/control.py."""

from .toy.control import main

if __name__ == "__main__":
    raise SystemExit(main())
