from .blueprint import Blueprint, blueprints
from .scene_set import SceneSet, write_scenes
from .walkers import WalkerSet, write_walkers

__all__ = [
    "Blueprint",
    "SceneSet",
    "WalkerSet",
    "blueprints",
    "write_scenes",
    "write_walkers",
]
