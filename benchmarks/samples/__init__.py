"""Small models, clips and sampling runs, shared by the benchmarks and the tests."""
