"""`python -m benchmarks.scenes`: see benchmarks/toy/scenes.py."""

from .toy.scenes import main

if __name__ == "__main__":
    raise SystemExit(main())
