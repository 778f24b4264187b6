"""`python -m benchmarks.recipe`: see benchmarks/toy/recipe.py."""

from .toy.recipe import main

if __name__ == "__main__":
    raise SystemExit(main())
