"""Motion files: format, compression, provenance, merging, converting."""
