"""Training clips: found, decoded, sized, captioned, and reported on."""
