"""The `distcam segment` commands."""
