"""The `distcam reid` commands."""
