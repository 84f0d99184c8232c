"""Building a gallery: ingesting images, encoding them here or with Ray, writing what was encoded."""
