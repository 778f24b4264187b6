"""Learning and sampling measured on the toy world."""
