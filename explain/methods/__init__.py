"""Methods that make a map, one paper per file."""
