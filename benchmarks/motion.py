"""`python -m benchmarks.motion`: see benchmarks/toy/motion.py."""

from .toy.motion import main

if __name__ == "__main__":
    raise SystemExit(main())
