"""The `distcam` command. Heavy imports happen inside the commands, so `--help` answers at once."""

from .app import main

__all__ = ["main"]
