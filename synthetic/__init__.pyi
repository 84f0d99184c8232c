from .blueprint import Blueprint as Blueprint
from .blueprint import blueprints as blueprints
from .scene_set import SceneSet as SceneSet
from .scene_set import write_scenes as write_scenes
from .walkers import WalkerSet as WalkerSet
from .walkers import write_walkers as write_walkers
