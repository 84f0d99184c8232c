"""The `distcam explain` command."""

from .explain import app as app
