from .app import create_app
from .running import run
from .settings import Settings

__all__ = ["Settings", "create_app", "run"]
