"""Filters on a gallery's metadata: their text, their tree, and matching rows."""
