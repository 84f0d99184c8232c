"""Names and options as a recipe spells them: what is unknown is an error that names the nearest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import Any

from ...errors import InputError

__all__ = ["check_name", "check_options", "keyword_options"]


def check_name(what: str, name: object, known: Collection[str]) -> None:
    """Nothing, or an error that names the nearest of the known names.

    Raises:
        InputError: `name` is not one of `known`.
    """
    if name in known:
        return
    nearest = get_close_matches(str(name), known, n=1, cutoff=0.0)
    hint = f", nearest is {nearest[0]!r}" if nearest else ""
    raise InputError(f"unknown {what} {name!r}{hint}; there are {', '.join(sorted(known)) or 'none'}")


def check_options(what: str, options: Iterable[str], known: Collection[str]) -> None:
    """Nothing, or an error that names the nearest of the known options.

    Raises:
        InputError: an option of `what` is not one of `known`.
    """
    for option in options:
        check_name(f"option of {what}", option, known)


def keyword_options(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the keyword-only parameters of a function or of a class's constructor."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
