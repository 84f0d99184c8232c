"""The `distcam fewshot` commands."""

from .fewshot import app as app
