"""Weights from files and from torchvision: read without running anything, compared before anything is copied.

A weights file is an untrusted file. Reading one never executes code, formats that carry code are refused, and no tensor
is touched before its shape agrees with the model's: a file of a kilobyte can claim 10¹² elements.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.transforms import InterpolationMode

from ..errors import WeightsError
from ..images.transform import Transform

__all__ = ["drawn_from", "fetch_imagenet", "fetch_published", "load_state", "read_state_dict", "uninitialised"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "backbone.")
_CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")
_CODE = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose module)")  # how torch's reader names what it refuses to import
# What torch.save writes beside the pickle: raw storages and a few one-line facts. Anything else may be code.
_PLAIN_RECORD = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/.+)"
)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a weights file, as they are in the file: `.safetensors`, or whatever `torch.save` wrote.

    Raises:
        WeightsError: no such file, unreadable, a format that carries code, or no tensors inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected 'random', 'imagenet', or a file with weights")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except WeightsError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a broken file provokes
        raise WeightsError(f"{path}: cannot be read as weights: {_why_unreadable(error)}") from error
    inner = _unwrapped(content)
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{path}: expected named tensors (a state_dict), got a {type(content).__name__} without any")
    return tensors


def _why_unreadable(error: Exception) -> str:
    """What went wrong in words for the file's owner; the reader's own, such as `KeyError: 174812789`, say nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if refused := _CODE.search(str(error)):
        return f"holds {refused[1]!r}, and what is no tensor may be code; save the state_dict() alone"
    if isinstance(error, Warning):  # where the caller made warnings errors
        return str(error).partition("\n")[0]
    return "damaged, incomplete, or no plain weights as torch.save writes them; fetch or save the file again"


def _unwrapped(content: Any) -> Any:
    """What lies inside the dictionaries that training scripts put around a state_dict."""
    for _ in range(3):  # no endless loop: a file may hold a dictionary that contains itself
        if isinstance(content, Mapping):
            content = next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), content)
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "distcam" in (file.metadata() or {}):
                raise WeightsError(f"{path}: is an encoder checkpoint; load it by itself: Encoder.load({str(path)!r})")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a sound safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if not _PLAIN_RECORD.fullmatch(record.filename):
                    raise WeightsError(
                        f"{path}: holds {record.filename!r}, unlike plain weights (TorchScript and exported programs "
                        "may carry code); save the state_dict() instead"
                    )
                if record.compress_type != zipfile.ZIP_STORED:
                    raise WeightsError(f"{path}: compressed weights are refused; save them with torch.save")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, origin: str, spare: Collection[str] = ()) -> None:
    """Copy named tensors into a module, all or nothing.

    Wrappers' prefixes (`module.`, `backbone.`) are ignored, and so are the weights of a classifier. Counters of
    batches may be missing.

    Args:
        module: what to fill.
        state: the tensors.
        origin: what an error message calls their source.
        spare: names that may be there and are not needed.

    Raises:
        WeightsError: a tensor is missing, superfluous, of another shape or kind, or not finite; nothing was copied.
    """
    expected = module.state_dict()
    matched: dict[str, Tensor] = {}
    superfluous = []
    for given, tensor in state.items():
        name = _plain_name(given, expected)
        if name in expected:
            matched[name] = tensor
        elif name not in spare and not name.startswith(_CLASSIFIERS):
            superfluous.append(given)
    missing = [name for name in expected if name not in matched and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {_kind(tensor)}, expected {_kind(expected[name])}"
        for name, tensor in matched.items()
        if not _fits(tensor, expected[name])
    ]
    _refuse(origin, wrong, "tensors do not fit the architecture")
    _refuse(origin, missing, "tensors are missing; is this another architecture, or another layer?")
    _refuse(origin, superfluous, "tensors have no place in the architecture")
    _refuse(
        origin, [n for n, t in matched.items() if not bool(torch.isfinite(t).all())], "tensors hold NaN or infinity"
    )
    with torch.no_grad():
        for name, tensor in matched.items():
            expected[name].copy_(tensor)


def _plain_name(name: str, expected: Collection[str]) -> str:
    while name not in expected and name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _fits(tensor: Tensor, expected: Tensor) -> bool:
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    same_kind = tensor.is_floating_point() == expected.is_floating_point() and not tensor.is_complex()
    return is_plain and same_kind and tensor.shape == expected.shape


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _refuse(origin: str, names: list[str], reason: str) -> None:
    if names:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise WeightsError(f"{origin}: {len(names)} {reason} ({some})")


def fetch_imagenet(name: str) -> tuple[dict[str, Tensor], Transform]:
    """Torchvision's default weights of an architecture, downloaded or from torch's cache, and their transform.

    Raises:
        WeightsError: there are none, or they cannot be had; the message names the ways without a download.
    """
    if name not in models.list_models(module=models):
        raise WeightsError(f"{name}: there are no ImageNet weights; use weights='random' or a file (--weights FILE)")
    weights = models.get_model_weights(name).DEFAULT
    return _fetched(name, weights), _transform_of(name, weights.transforms())


def fetch_published(name: str, *, otherwise: Transform) -> tuple[dict[str, Tensor], Transform]:
    """Torchvision's default weights of any of its networks, and their transform; `otherwise` where that is no crop.

    Raises:
        WeightsError: there are none, or they cannot be had.
    """
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    state = _fetched(name, weights)
    return state, _transform_of(name, preset) if hasattr(preset, "crop_size") else otherwise


def _fetched(name: str, weights: Any) -> dict[str, Tensor]:
    """The tensors, downloaded or from torch's cache."""
    try:
        with redirect_stdout(sys.stderr):  # torch announces a download on standard output, which is for results
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, UnpicklingError) as error:  # no network, or a damaged download
        raise WeightsError(
            f"{name}: could not download {weights.url} ({error}); pass a file you have (--weights FILE), or "
            "--weights random to try things out"
        ) from error
    return state


def _transform_of(name: str, preset: Any) -> Transform:
    is_inception = name in ("googlenet", "inception_v3")  # torchvision's models re-normalise inside; here they do not
    return Transform(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=(0.5, 0.5, 0.5) if is_inception else tuple(preset.mean),
        std=(0.5, 0.5, 0.5) if is_inception else tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == InterpolationMode.BICUBIC else "bilinear",
    )


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Modules built inside draw their weights from `seed`; torch's global generator is afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def uninitialised() -> Iterator[None]:
    """Modules built inside skip most of drawing their weights, which a file is about to replace."""
    with torch.random.fork_rng(devices=[]), _SkipInitialisation():
        yield


class _SkipInitialisation(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.nn.init` functions return their tensor as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
