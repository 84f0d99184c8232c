"""The `distcam fewshot` commands."""
