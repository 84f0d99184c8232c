"""The `distcam explain` command."""
