"""The `distcam index` commands."""
