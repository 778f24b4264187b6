"""Pictures and locale files, made from the nodes."""
