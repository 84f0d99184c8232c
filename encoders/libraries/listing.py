"""Names of encoders, with what their library's configuration tells of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from ...errors import InputError, MissingExtraError
from ..backbones.registry import available_architectures
from ..layers import closest
from ..names import LIBRARIES
from .models import library

MOST = 40
"""Names of one listing for which networks are laid out, to learn their width."""

_READOUTS = {"token": "class", "tok": "class", "avg": "mean", "map": "attention", "abs_attn": "attention"}


@dataclass(frozen=True)
class Listed:
    """A name for `Encoder.load`."""

    name: str
    width: int | None = None  # of the embedding; None where only the network itself would tell
    size: tuple[int, int] | None = None  # height and width of its images
    readout: str | None = None  # the vector that is searched by default
    licence: str | None = None  # of its published weights, where the library tells it


def listed(word: str | None = None, only: str | None = None) -> tuple[list[Listed], list[str]]:
    """The names that hold a word or fit a pattern, and the extras that would add names."""
    sources: dict[str, Callable[[], Iterator[Listed]]] = {
        "torchvision": lambda: map(Listed, available_architectures()),
        "timm": _timms,
        "hf": _hugging_faces,
        "open_clip": _open_clips,
    }
    names: list[Listed] = []
    absent = []
    for prefix, source in sources.items():
        if only not in (None, prefix):
            continue
        try:
            names += source()
        except MissingExtraError:
            if only is not None:
                raise
            absent.append(LIBRARIES[prefix])
    found = [each for each in names if word is None or fnmatchcase(each.name.lower(), f"*{word.lower()}*")]
    if not found and names:
        near = closest(str(word), [each.name.partition(":")[2] or each.name for each in names])
        raise InputError(f"no encoder's name holds {word!r}; nearest: {near}")
    return ([_laid_out(each) for each in found] if len(found) <= MOST else found), absent


def _timms() -> Iterator[Listed]:
    timm = library("timm")
    tagged = {name.partition(".")[0] for name in timm.list_pretrained()}
    for name in sorted([*timm.list_pretrained(), *(set(timm.list_models()) - tagged)]):
        config = timm.get_pretrained_cfg(name)
        size = getattr(config, "input_size", None)
        yield Listed(f"timm:{name}", size=size and (*size[-2:],), licence=getattr(config, "license", None))


def _open_clips() -> Iterator[Listed]:
    open_clip = library("open_clip")
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        size = vision.get("image_size", 224)
        is_learnt = vision.get("attentional_pool") or isinstance(vision.get("layers"), list)
        pool = vision.get("timm_pool", "avg") if "timm_model_name" in vision else vision.get("pool_type", "tok")
        readout = "attention" if is_learnt else _READOUTS.get(pool, "mean")
        sides = (size, size) if isinstance(size, int) else (size[0], size[1])
        yield Listed(f"open_clip:{name}", config["embed_dim"], sides, readout)


def _hugging_faces() -> Iterator[Listed]:
    library("hf")
    import huggingface_hub

    with suppress(huggingface_hub.errors.CacheNotFound):
        repos = huggingface_hub.scan_cache_dir().repos
        yield from (Listed(f"hf:{repo.repo_id}") for repo in sorted(repos, key=lambda repo: repo.repo_id))


def _laid_out(each: Listed) -> Listed:
    """The same with what a network tells that has no memory for weights; as it is where the library cannot do that."""
    if not each.name.startswith("timm:"):
        return each
    with suppress(Exception), torch.device("meta"):  # some compute on their weights while they are built
        model = library("timm").create_model(each.name.removeprefix("timm:"), num_classes=0)
        readout = _READOUTS.get(str(getattr(model, "global_pool", None)), "mean")
        return replace(each, width=getattr(model, "head_hidden_size", model.num_features), readout=readout)
    return each
