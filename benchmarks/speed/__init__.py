"""Speed and memory, relative to the image UNet and to the official layout."""
