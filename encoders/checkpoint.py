"""One file per encoder: safetensors with the configuration as JSON in its header; and its identity as one hash."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._version import __version__
from ..errors import InputError, WeightsError
from ..files import is_file, replacing
from .layers import plain_name


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Sha256, in hexadecimal, of a configuration and named tensors.

    Two encoders that compute the same get the same: floating-point tensors count as float32 whatever they are stored
    as; what DataParallel and torch.compile put into names and the counters of batches do not count at all.
    """
    digest = sha256(canonical_json(config).encode())
    named = sorted((plain_name(name), name) for name in tensors if not name.endswith("num_batches_tracked"))
    for plain, name in named:
        tensor = tensors[name].detach()
        values = tensor.to("cpu", torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()
        digest.update(f"\n{plain}{list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).numpy().data)
    return digest.hexdigest()


class FingerprintCache:
    """The last fingerprint, recomputed when the configuration or a tensor has changed.

    Change is seen by torch's version counters, which every in-place operation moves (writing through `tensor.data` does
    not). The tensors seen last are held, or a new one might lie at an old one's address. Copies start without a memory.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._held: list[Tensor] = []
        self._value = ""

    def get(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
        """The fingerprint of this configuration and these tensors."""
        if any(tensor.is_inference() for tensor in tensors.values()):  # they have no version counter
            return fingerprint(config, tensors)
        states = [(name, t.data_ptr(), t.dtype, t.shape, t._version) for name, t in tensors.items()]
        key = (canonical_json(config), *states)
        if key != self._key:
            self._value, self._key = fingerprint(config, tensors), key
            self._held = [tensor.detach() for tensor in tensors.values()]
        return self._value

    def __reduce__(self) -> tuple[type[FingerprintCache], tuple[()]]:
        return FingerprintCache, ()


_KEY = "distcam"
_FORMAT = 1
_TYPES: Mapping[str, tuple[type, ...]] = {  # of what headers hold at their top, where they hold it
    "architecture": (str,),
    "class_names": (list,),
    "encoder": (str, dict),
    "head": (dict, str),
    "kind": (str,),
    "layer": (str, type(None)),
    "metadata": (dict,),
    "options": (dict,),
    "pooling": (dict, str),
    "transform": (dict,),
}


def write_checkpoint(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint beside its place, then move it there; an old file survives until the new one is complete."""
    path = Path(path)
    created_with = {"distcam": __version__, "torch": str(torch.__version__)}
    try:
        header = {_KEY: json.dumps({"format": _FORMAT, "created_with": created_with, **config}, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise InputError(f"a checkpoint keeps options and metadata as JSON, which these are not: {error}") from error
    # A copy per tensor: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: cannot be written (there is no folder {path.parent})")
    try:
        with replacing(path) as aside:
            aside.touch()
            mode = stat.S_IMODE(aside.stat().st_mode)  # what the umask leaves of 0666
            save_file(own, aside, metadata=header)
            aside.chmod(mode)  # safetensors has put a file there that only its owner may read
            with aside.open("rb") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WeightsError(f"{path}: cannot be written ({reason}); is the disk full or write-protected?") from error


def read_checkpoint(
    path: str | os.PathLike[str], *, only: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a checkpoint; with `only` no tensor but that one is read."""
    path = Path(path)
    if not is_file(path):
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = [name for name in file.keys() if only in (None, name)]  # noqa: SIM118 - no mapping
            tensors = {name: file.get_tensor(name) for name in names if _KEY in header}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a sound safetensors file ({error})") from error
    if _KEY not in header:
        raise WeightsError(
            f"{path}: no encoder checkpoint of distcam (its header has no {_KEY!r}); plain weights are loaded with "
            f"Encoder.load(ARCHITECTURE, weights={str(path)!r})"
        )
    try:
        config = json.loads(header[_KEY])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the configuration in its header is no JSON ({error})") from error
    version = config.get("format") if isinstance(config, dict) else None
    if version != _FORMAT:
        raise WeightsError(f"{path}: checkpoint format {version!r}, this distcam reads {_FORMAT}; upgrade distcam")
    for name in config.keys() & _TYPES.keys():
        if not isinstance(config[name], _TYPES[name]):
            expected = " or ".join(_NAMES[kind] for kind in _TYPES[name])
            got = _NAMES.get(type(config[name]), type(config[name]).__name__)
            raise WeightsError(f"{path}: expected {expected} as {name} in its header, got {got}")
    return config, tensors


_NAMES = {str: "a text", dict: "an object", list: "a list", type(None): "nothing", int: "a number", float: "a number"}


@contextmanager
def built_from_header(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """While something is built from what a header says: whatever fails then is the header's fault."""
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # a header can hold anything in the place of anything
        raise WeightsError(f"{path}: its header does not describe {what} ({error or type(error).__name__})") from error
