"""Checks before torch is imported, which takes seconds: missing files, missing options."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..encoders.names import OWN_ARCHITECTURES, needs_weights, refuse_weight_file
from ..errors import InputError

_NAMES = ("imagenet", "random", "default")  # of weights that are in no file


def require_encoder(name: str, weights: str | None, layer: str | None = None) -> None:
    """Refuse `--encoder` and `--weights` that can mean no encoder."""
    if name.endswith(".safetensors"):
        if weights is not None or layer is not None:
            raise InputError(
                f"{name} is a checkpoint and brings its own weights and layer; leave --weights and --layer out"
            )
        require_file(name, "--encoder")
        return
    refuse_weight_file(name, options=f": --encoder ARCHITECTURE --weights {name}")
    if weights is None:
        if name not in OWN_ARCHITECTURES:
            raise InputError(needs_weights(name).replace("weights", "--weights", 1))
    elif weights not in _NAMES:
        require_file(weights, "--weights", also=f", `{_NAMES[0]}`, or `{_NAMES[1]}`")


def require_file(path: str | Path | None, option: str, *, also: str = "") -> None:
    """Refuse a file that is not there, by the name of its option; None was not asked for."""
    if path is not None and not Path(path).exists():
        raise InputError(f"{option} {path}: no such file; expected a FILE{also}")


def require_model(path: Path) -> None:
    """Refuse a path at which nothing is."""
    if not path.exists():
        raise InputError(f"{path}: nothing is there; expected a run's folder or a file of weights")


def require_images(sources: Iterable[str | Path]) -> None:
    """Refuse sources that are not there, and patterns that fit no file."""
    from ..images import list_images

    for source in map(str, sources):
        if not Path(source).exists():
            list_images(source, labels="none")
