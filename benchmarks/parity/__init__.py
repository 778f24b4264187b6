"""Numbers of the official code against ours."""
