"""A network of another library by its name: `timm:NAME`, `hf:NAME` or folder, `open_clip:NAME`.

All of it comes through the library's own functions, without code from a repository and without pickles of more than
tensors. What a name alone does not determine is kept in the encoder's options, so that a gallery opens offline.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from ...errors import InputError, MissingExtraError, WeightsError
from ...images.transform import Transform
from ...remarks import DistcamWarning
from ..layers import closest
from ..names import LIBRARIES


@dataclass(frozen=True)
class LibraryModel:
    """A network as its library builds it."""

    model: nn.Module  # from images to whatever it gives
    name: str  # with the library's prefix; of a folder the architecture alone, wherever the folder lies
    options: Mapping[str, Any]  # what builds it again without the network, as JSON can hold it
    transform: Transform  # of its own configuration
    spare: frozenset[str] = frozenset()  # names in a weights file that an encoder does not need, as a classifier's
    assumed: str = ""  # the part of the transform that no configuration says
    whole: nn.Module | None = field(default=None, repr=False)  # that `model` is a part of, if it has a text tower too


def library(prefix: str) -> Any:
    """The library that names with this prefix belong to."""
    name = LIBRARIES[prefix]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own dependencies
            return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{prefix}:NAME is a network of {name}, which is not here: pip install 'distcam[{name}]'"
        ) from error


def require_known(prefix: str, name: str, names: list[str]) -> None:
    """Refuse a name that the library does not know, with the three nearest."""
    if name not in names:
        raise InputError(
            f"{LIBRARIES[prefix]} knows no {name!r}, nearest: {closest(name, names)}; "
            "`distcam encoders WORD` lists more"
        )


@contextmanager
def without_hub() -> Iterator[None]:
    """Inside, libraries fetch nothing: what a file says of a network must be all that builds it again."""
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ImportError:  # then there is none of the libraries either
        yield
        return
    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


def require_options(prefix: str, options: Mapping[str, Any], refused: str) -> None:
    """Refuse options that name files or places: a checkpoint's header may hold anything."""
    for key in filter(re.compile(refused).search, options):
        raise InputError(f"{LIBRARIES[prefix]}: {key} is refused: files and permissions are no options")


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """While a library may download: without a network it looks into its cache at once, and what fails is one line."""
    from huggingface_hub import constants

    was, was_disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = was or not _is_in_reach(constants.ENDPOINT)
    logging.disable(logging.ERROR)  # the error that follows says it
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(timm|transformers|open_clip|huggingface_hub|torch)(\.|$)")
            yield
    except (InputError, WeightsError, DistcamWarning):
        raise
    except Exception as error:  # each library has its own for what cannot be fetched
        why = " ".join(str(error).split()).partition(". ")[0]
        if not (isinstance(error, OSError) or re.search(r"download|hub", str(error), re.IGNORECASE)):
            raise InputError(f"{name} cannot be built: {why or type(error).__name__}") from error
        prefix = name.partition(":")[0] + ":"
        offline = " without a network" if constants.HF_HUB_OFFLINE else ""
        raise WeightsError(
            f"{name}: not to be had{offline} ({why}); name a folder or file that you have ({prefix}FOLDER, --weights "
            "FILE), try things out with --weights random, or fill the cache of huggingface_hub (HF_HOME) where there "
            "is a network: it is used without one, too"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was
        logging.disable(was_disabled)


def _is_in_reach(endpoint: str) -> bool:
    """False where the name of the hub's host does not even resolve; its retries would take a minute."""
    with suppress(OSError):
        is_behind = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
        return is_behind or bool(socket.getaddrinfo(urlsplit(endpoint).hostname, 443))
    return False
