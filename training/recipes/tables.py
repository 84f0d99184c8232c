"""From TOML tables to frozen dataclasses and back: every key is known, every value has the type its field asks for."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ...errors import InputError
from .options import check_name

__all__ = ["merged", "parse", "plain"]

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def parse(cls: type[T], table: Mapping[str, Any], where: str, *, is_root: bool = False) -> T:
    """The dataclass that a table fills; what is left out takes its default.

    Args:
        cls: a dataclass.
        table: keys are names of its fields; a field that is a dataclass too takes a table.
        where: what to call the table in messages.
        is_root: the names of its fields need no prefix in messages.

    Raises:
        InputError: an unknown key (the nearest is named), a value of another type, or one the dataclass refuses.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in table:
        check_name(f"key in [{where}]", key, known)
    values = {key: _converted(value, hints[key], key if is_root else f"{where}.{key}") for key, value in table.items()}
    try:
        filled = cls(**values)
        _refuse_unused(filled, values)
        return filled
    except TypeError as error:
        raise InputError(f"[{where}] lacks a key: {error}") from None
    except InputError as error:
        message = str(error)
        raise InputError(message if is_root or message.startswith(where) else f"[{where}] {message}") from None


def _refuse_unused(filled: Any, given: Mapping[str, Any]) -> None:
    """InputError for a key that the table's own choices leave without use; a default that is written out may stay.

    Which they are, a dataclass says by a method `unused()`: names of fields, and what does not use them.
    """
    unused: Mapping[str, str] = filled.unused() if hasattr(filled, "unused") else {}
    fields = {field.name: field for field in dataclasses.fields(filled)}
    for key, whom in unused.items():
        field = fields[key]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if key in given and getattr(filled, key) != default:
            raise InputError(f"{key} is not used by {whom}; leave it out")


def _converted(value: Any, hint: Any, where: str) -> Any:
    """The value as its field wants it: lists become tuples, whole numbers may stand for others."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, options, where)
    if origin is Literal:
        if value not in options:
            raise InputError(f"{where}: expected one of {', '.join(map(repr, options))}; got {value!r}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else parse(hint, _table(value, where), where)
    if hint is Path:
        return Path(value)
    if origin is tuple:
        return _tuple(value, options, where)
    if origin is not None and issubclass(origin, Mapping):
        return {key: _converted(each, options[1], f"{where}.{key}") for key, each in _table(value, where).items()}
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: expected {_NAMES.get(hint, hint)}, got {value!r}")
    return float(value) if hint is float else value


def _one_of(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    wanted = [option for option in options if dataclasses.is_dataclass(option) == isinstance(value, Mapping)]
    errors = []
    for option in wanted or options:
        try:
            return _converted(value, option, where)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _tuple(value: Any, options: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, got {value!r}")
    kinds = options[:1] * len(value) if options[-1] is Ellipsis else options
    if len(kinds) != len(value):
        raise InputError(f"{where}: expected {len(kinds)} values, got {len(value)}")
    return tuple(
        _converted(each, kind, f"{where}[{i}]") for i, (each, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a table, got {value!r}")
    return value


def plain(value: Any) -> Any:
    """The value as JSON and TOML hold it: tables, lists, strings, numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with changes: tables are merged key by key, everything else is replaced, lists as a whole.

    A table that meets a list of tables (`[[loss]]`) changes the list's entries by their `name`, or `kind` if they have
    no name; an entry the list does not have is added.

    >>> merged({"run": {"epochs": 9, "seed": 1}}, {"run": {"epochs": 2}})
    {'run': {'epochs': 2, 'seed': 1}}
    >>> merged({"loss": [{"kind": "triplet"}]}, {"loss": {"triplet": {"weight": 2}, "center": {"kind": "center"}}})
    {'loss': [{'kind': 'triplet', 'weight': 2}, {'kind': 'center', 'name': 'center'}]}
    """
    result = dict(table)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merged(old, value)
        elif isinstance(value, Mapping) and isinstance(old, list):
            result[key] = _merged_by_name(key, old, value)
        else:
            result[key] = value
    return result


def _merged_by_name(key: str, entries: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    result = list(entries)
    names = [entry.get("name", entry.get("kind")) if isinstance(entry, Mapping) else None for entry in entries]
    for name, change in changes.items():
        if not isinstance(change, Mapping):
            raise InputError(f"{key}.{name}: expected a table with what changes, got {change!r}")
        if name.isdecimal() and int(name) < len(entries):
            result[int(name)] = merged(entries[int(name)], change)
        elif name in names:
            result[names.index(name)] = merged(entries[names.index(name)], change)
        elif "kind" in change:
            result.append({**change, "name": name})
        else:
            check_name(f"entry of [[{key}]]", name, [known for known in names if known])
    return result
