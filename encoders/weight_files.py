"""Weights from untrusted files, of which no code is run and formats with code are refused, and from torchvision."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, WeightsError
from ..files import is_file
from ..images.transform import Transform
from ..remarks import remark
from .backbones.registry import available_architectures, require_architecture
from .backbones.torchvisions import models, transforms
from .heads import GAP, BNNeck, GeM, Pooling
from .libraries.builders import transform_of_open_clip, transform_of_timm
from .libraries.mxnet_params import is_params, read_params
from .names import CHECKPOINT_SUFFIX, OWN_ARCHITECTURES, library_of, needs_weights, program_in, refuse_weight_file
from .state_dicts import StateDict, load_state

# Where training scripts keep a network, in the order in which one of several that fit is taken.
_PLACES = (
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "encoder",
    "backbone",
    "teacher",
    "student",
    "ema",
)
_HALF = (0.5, 0.5, 0.5)
_MOST_PLACES = 32  # of named tensors in one file
_CODE = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose module)")  # how torch's reader names what it refuses to import
# What torch.save writes beside the pickle: raw storages and a few one-line facts. Anything else may be code.
_PLAIN_RECORD = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/.+)"
)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The named tensors of a weights file; of several dictionaries the first by name, its `others` are the rest."""
    if not isinstance(path, str | os.PathLike):
        got = f"a {type(path).__name__}" if isinstance(path, Mapping) else repr(path)
        raise InputError(f"expected weights as 'random', 'imagenet', or a file's path, got {got}")
    path = Path(path)
    if not is_file(path):
        raise WeightsError(f"{path}: no such file; expected 'random', 'imagenet', or a file with weights")
    if program := program_in(path):
        raise WeightsError(
            f"{path}: is {program}, and no plain weights as torch.save writes them, and may carry code; save the "
            "state_dict() of the network it was made from"
        )
    try:
        read = read_params if is_params(path) else _read_safetensors if path.suffix == ".safetensors" else _read_torch
        content: Any = read(path)
    except WeightsError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a broken file provokes
        # The fault in words for the file's owner; the reader's own, such as `KeyError: 174812789`, say nothing.
        why = "damaged, incomplete, or no plain weights as torch.save writes them; fetch or save the file again"
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        elif refused := _CODE.search(str(error)):
            why = f"holds {refused[1]!r}, as pickled modules do, which may be code; save the state_dict() alone"
        elif isinstance(error, Warning):  # where the caller made warnings errors
            why = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: cannot be read as weights: {why}") from error

    def rank(state: StateDict) -> tuple[int, bool]:
        """Shallower places first only among names that nobody gives to networks."""
        last = state.place.rpartition(".")[2]
        return (_PLACES.index(last) if last in _PLACES else len(_PLACES), state.place.startswith("optim"))

    places = sorted(_places(content), key=rank)
    if not places:
        raise WeightsError(f"{path}: expected named tensors (a state_dict), got a {type(content).__name__} without any")
    if any(each.is_quantized for each in places[0].values()) or any(n.endswith("zero_point") for n in places[0]):
        raise WeightsError(f"{path}: holds quantised weights; save the state_dict() of the network before quantisation")
    places[0].others = tuple(places[1:])
    return places[0]


def _places(content: Any) -> list[StateDict]:
    """Every dictionary of tensors within the dictionaries that training scripts put around one."""
    found: list[StateDict] = []
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while pending and len(found) < _MOST_PLACES:
        keys, part = pending.pop(0)
        if not isinstance(part, Mapping):
            continue
        if tensors := {str(k): v for k, v in part.items() if isinstance(v, Tensor)}:
            state = StateDict(tensors)
            state.place, versions = ".".join(keys), getattr(part, "_metadata", None)
            state.versions = versions if isinstance(versions, Mapping) else {}
            found.append(state)
        if len(keys) < 3:  # no endless loop: a file may hold a dictionary that contains itself
            pending += [((*keys, k), v) for k, v in part.items() if isinstance(k, str) and isinstance(v, Mapping)]
    return found


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


def fetch_imagenet(name: str, *, otherwise: Transform | None = None) -> tuple[dict[str, Tensor], Transform]:
    """Torchvision's default weights of a network, downloaded or from torch's cache, and their transform.

    With a transform for what is no crop, `otherwise`, segmentation networks have weights too.
    """
    if otherwise is None and name not in models.list_models(module=models):
        raise WeightsError(f"{name}: there are no ImageNet weights; use weights='random' or a file (--weights FILE)")
    weights = models.get_model_weights(name).DEFAULT
    try:
        with redirect_stdout(sys.stderr):  # torch announces a download on standard output, which is for results
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, UnpicklingError) as error:  # no network, or a damaged download
        raise WeightsError(
            f"{name}: could not download {weights.url} ({error}); pass a file you have (--weights FILE), or "
            "--weights random to try things out"
        ) from error
    preset, usual = weights.transforms(), usual_transform(name)
    if not hasattr(preset, "crop_size"):
        return state, otherwise or usual
    return state, Transform(  # their crop is not taken over: one fit for all encoders
        size=preset.crop_size[0],
        mean=usual.mean if usual.mean == _HALF else tuple(preset.mean),
        std=usual.std if usual.std == _HALF else tuple(preset.std),
        interpolation="bicubic" if preset.interpolation == transforms.InterpolationMode.BICUBIC else "bilinear",
    )


def usual_transform(name: str) -> Transform:
    """The usual transform of an architecture's weights where nothing says it: ImageNet's mean and deviation."""
    if name in ("conv4", "resnet12", "wrn28_10"):
        return Transform(84)
    if name.startswith("osnet_"):
        return Transform((256, 128), fit="squash")  # as torchreid resizes
    # Torchvision's GoogLeNet and Inception re-normalise inside, here they do not.
    return Transform(mean=_HALF, std=_HALF) if name in ("googlenet", "inception_v3") else Transform()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Modules built inside draw their weights from `seed`; torch's global generator is afterwards as before."""
    if not isinstance(seed, int):
        raise InputError(f"expected seed as a whole number, got {seed!r}")
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


def is_checkpoint(source: str | os.PathLike[str]) -> bool:
    """True for a checkpoint's path, False for an architecture's name."""
    if not isinstance(source, str | os.PathLike):
        got = _shown(source) + "; call it, to have a module" * callable(source)
        raise InputError(f"expected an architecture's name, a checkpoint's path or a module, got {got}")
    if isinstance(source, str) and (library_of(source) is not None or source in available_architectures()):
        return False
    name = os.fspath(source)
    refuse_weight_file(name)
    return not isinstance(source, str) or name.endswith(CHECKPOINT_SUFFIX) or is_file(name)


def require_parts(*, head: object = None, transform: object = None, options: object = None) -> None:
    """Refuse parts of an encoder that are of another kind than they should be."""
    for value, kind, expected in (
        (head, nn.Module, "a module as head, such as Linear(64, 128)"),
        (transform, Transform, "a Transform as transform, such as Transform(224)"),
        (options, Mapping, "options as a dictionary, such as {'last_stride': 1}"),
    ):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"expected {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value in one short line of an error message."""
    text = repr(value).partition("\n")[0]
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def published(name: str, weights: str | os.PathLike[str] | None) -> tuple[StateDict | None, Transform]:
    """Weights from outside, None for random ones, and the transform that goes with them."""
    is_elsewhere = library_of(name) is not None
    if not is_elsewhere:
        require_architecture(name)
    if weights == ("imagenet" if is_elsewhere else "pretrained"):
        other = "'pretrained'" if is_elsewhere else "'imagenet', or name a library's, such as timm:NAME"
        raise InputError(f"there are no weights {weights!r} of {name}: say {other}")
    if weights is None:
        if name not in OWN_ARCHITECTURES:
            raise InputError(needs_weights(name))
        remark(
            f"there are no weights of {name} to download, so they are drawn at random, which is for trials; say "
            "weights='random' if that is meant, or name a file of weights",
            stacklevel=5,
        )
        weights = "random"
    if weights == "imagenet":
        fetched, transform = fetch_imagenet(name)
        return StateDict(fetched), transform
    return None if weights in ("random", "pretrained") else read_state_dict(weights), usual_transform(name)


def transform_for(module: nn.Module, *, is_told: bool) -> Transform:
    """The transform that a module of the user's own asks for; without one, ImageNet's with a remark."""
    timms = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    transform = None if timms is None else transform_of_timm(timms)
    own = getattr(getattr(module, "visual", module), "preprocess_cfg", None)  # of open_clip
    if timms is None and own is not None:
        transform = transform_of_open_clip(own)
    if transform is None and not is_told:
        remark(
            f"what mean and std {type(module).__name__} wants is not known, so ImageNet's are taken; say them with "
            "mean= and std=, or with transform=",
            stacklevel=5,
        )
    return transform or Transform()


# --- Pooling and head that a file of weights brings beside a backbone --------------------------------------------

# Fast-reid's and the strong baseline's, MiewID's, torchreid's.
_NECK = re.compile(r"(^|[._])(bottleneck|bn_?neck|feat_bn)[._]|^bn\.|^fc\.1\.")
_PROJECTOR = re.compile(r"(^|\.)fc\.[2-9]\.")  # of self-supervised training (SimSiam), which is no head
_WITH_LAST_STRIDE = re.compile(r"(^|\.)(bottleneck\.([01]\.)?|bn_?neck\.|fc\.1\.)running_mean$")
_NORM = ("weight", "bias", "running_mean", "running_var")
_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_GEM = re.compile(r"(^|\.)(pool\w*|gem\w*|gap|global_pool)\.p$")  # a learnt exponent of generalised-mean pooling


def brought_pooling(pooling: Pooling, left: dict[str, Tensor], *, origin: str) -> Pooling:
    """The pooling with the exponent that is left over, taken out of `left`; a mean becomes GeM, and says so."""
    found = [name for name, tensor in left.items() if _GEM.search(name) and tensor.numel() == 1]
    if len(found) != 1 or float(left[found[0]]) <= 0 or type(pooling) not in (GAP, GeM):
        return pooling
    name, exponent = found[0], float(left.pop(found[0]))
    if isinstance(pooling, GAP):
        remark(
            f"{origin}: its {name!r} makes the pooling a generalised mean, p={exponent:.3g}; "
            "encoder.pooling = GAP() takes the mean",
            stacklevel=5,
        )
    return GeM(exponent)


def brought_head(head: nn.Module, left: dict[str, Tensor], *, width: int, is_free: bool, origin: str) -> nn.Module:
    """The head with the neck that is left over, which is taken out of `left`; a free one becomes it, and says so.

    A neck is a batch norm, or a projection (torchreid's `fc.0`, fast-reid's `bottleneck.0`) and a batch norm, which
    torchreid ends with a ReLU.
    """
    places = [name.removesuffix("running_mean") for name in left if name.endswith(".running_mean")]
    necks = [
        place
        for place in places
        if _NECK.search(place) and all(f"{place}{name}" in left and left[f"{place}{name}"].ndim == 1 for name in _NORM)
    ]
    place = necks[0] if len(necks) == 1 and not any(map(_PROJECTOR.search, left)) else ""
    if not place or not (is_free or isinstance(head, BNNeck)):
        return head
    within, dim = place.removesuffix("1."), len(left[f"{place}running_mean"])
    projection = left.get(f"{within}0.weight") if within != place and is_free else None
    if projection is not None and projection.shape[:2].numel() == projection.numel() == dim * width:
        left[f"{within}0.weight"] = projection.flatten(1)  # of a 1×1 convolution
        linear, norm = nn.Linear(width, dim, bias=f"{within}0.bias" in left), nn.BatchNorm1d(dim)
        neck: nn.Module = nn.Sequential(linear, norm, *([nn.ReLU()] if within == "fc." else []))
        place, own_place, words = within, "", f"projection to {dim} and batch norm{', ReLU' * (within == 'fc.')}"
    elif width == dim:
        neck, own_place, words = head if isinstance(head, BNNeck) else BNNeck(width), "norm.", "BNNeck"
    else:
        return head
    own = {f"{own_place}{name.removeprefix(place)}": left.pop(name) for name in list(left) if name.startswith(place)}
    load_state(neck, own, origin=f"{origin}, {place}*", exact=True)
    remark(
        f"{origin}: its {place.rstrip('.')!r} is the head ({words}); head=Identity() takes the pooled vector",
        stacklevel=5,
    )
    return neck


def with_last_stride(options: Mapping[str, Any], name: str, state: StateDict | None) -> Mapping[str, Any]:
    """The options of a ResNet, with a last stride of 1 if its file has the neck of re-identification, and says so.

    Fast-reid, the strong baseline and torchreid's `resnet50_fc512` train with it, and weights do not tell a stride.
    """
    names = [] if state is None else [each for one in (state, *state.others) for each in one]
    is_re_id = any(map(_WITH_LAST_STRIDE.search, names)) and not any(map(_PROJECTOR.search, names))
    if name not in _RESNETS or "last_stride" in options or not is_re_id:
        return options
    remark(
        f"{name}: its file has the neck of re-identification networks, so the last stride is taken as 1, as they are "
        "trained; options={'last_stride': 2} says otherwise",
        stacklevel=4,
    )
    return {**options, "last_stride": 1}
