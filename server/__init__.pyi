from .app import create_app as create_app
from .app import run as run
from .settings import Settings as Settings
