"""The one place where the version is written; it imports nothing, so that anything may import it."""

__version__ = "0.2.0.dev0"
