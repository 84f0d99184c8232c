from .app import create_app as create_app
from .app import run as run
from .settings import ServerSettings as ServerSettings

# names until 0.2
Settings = ServerSettings
