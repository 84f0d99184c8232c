"""Tables of a recipe: from TOML to frozen models and back; every key is known and every value has its field's type."""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from ...errors import InputError

T = TypeVar("T", bound="Table")

_IN_A_RECIPE = "in a recipe"  # where a key without use is a mistake; in Python a default may be given anywhere


def check_name(what: str, name: object, known: Collection[str]) -> None:
    """Nothing, or an error that names the nearest of the known names."""
    if name not in known:
        raise InputError(unknown_name(what, name, known))


def unknown_name(what: str, name: object, known: Collection[str]) -> str:
    """The message for a name that is none of the known ones."""
    nearest = get_close_matches(str(name), known, n=1, cutoff=0.0)
    hint = f", nearest is {nearest[0]!r}" if nearest else ""
    return f"unknown {what} {name!r}{hint}; there are {', '.join(sorted(known)) or 'none'}"


def check_options(what: str, options: Iterable[str], known: Collection[str]) -> None:
    """As `check_name`, for every option of `what`."""
    for option in options:
        check_name(f"option of {what}", option, known)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, or of the constructors of a class and its bases."""
    made = getattr(function, "func", function)
    bases = made.__mro__ if isinstance(made, type) else ()
    makers = [vars(base)["__init__"] for base in bases if "__init__" in vars(base) and base is not object] or [made]
    return [p for each in makers for p in inspect.signature(each).parameters.values()]


def keyword_options(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the keyword-only parameters among these."""
    return frozenset(p.name for p in parameters_of(function) if p.kind is inspect.Parameter.KEYWORD_ONLY)


def limited(accepts: Callable[[float], bool], expected: str) -> AfterValidator:
    """The check of a number; `expected` says in words what it accepts."""

    def check(value: Any) -> Any:
        if value is not None and not accepts(value):
            raise InputError(f"expected {expected}, got {value!r}")
        return value

    return AfterValidator(check)


Count = Annotated[int, limited(lambda value: value >= 1, "a whole number from 1 on")]
Natural = Annotated[int, limited(lambda value: value >= 0, "a whole number from 0 on")]
Positive = Annotated[float, limited(lambda value: 0 < value < math.inf, "a number above 0")]
NotNegative = Annotated[float, limited(lambda value: 0 <= value < math.inf, "0 or more")]
BelowOne = Annotated[float, limited(lambda value: 0 <= value < 1, "a number from 0 to below 1")]
Share = Annotated[float, limited(lambda value: 0 <= value <= 1, "a number from 0 to 1")]


class Table(BaseModel):
    """A table of a recipe: frozen, without unknown keys, checked whenever it is made.

    Raises:
        InputError: an unknown key (the nearest is named), or a value of another type or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    only_for: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by key, the choice that it goes with, and for what of it

    def __init__(self, *positional: Any, **values: Any) -> None:
        values |= dict(zip(type(self).model_fields, positional, strict=False))
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise InputError(_sentence(error, type(self), given, type(self).__name__)) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # or reading a table inside a table calls it

    def changed(self, **values: Any) -> Self:
        """The same table with some other values, checked as a new one."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **values})

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON and TOML hold it: tables, lists, strings, numbers, with every default filled in."""
        return self.model_dump(mode="json")

    def _check(self) -> None:
        """Raise InputError for values that do not fit together."""

    def _unused(self) -> Mapping[str, str]:
        """Keys that the table's own choices leave without use, and what does not use them; refused in a recipe."""
        chosen = {key: getattr(self, choice) for key, (choice, *_) in self.only_for.items()}
        return {key: f"{by[0]} {chosen[key]!r}" for key, by in self.only_for.items() if chosen[key] not in by[1:]}

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        self._check()
        for key, whom in self._unused().items() if info.context == _IN_A_RECIPE else ():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if key in self.model_fields_set and getattr(self, key) != default:
                raise InputError(f"{key} is not used by {whom}; leave it out")
        return self


def parse(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """The model that a table of TOML or JSON fills; `where` is its name in messages, empty for the whole recipe."""
    try:
        return cls.model_validate_json(json.dumps(table), context=_IN_A_RECIPE)
    except TypeError as error:
        raise InputError(f"a recipe holds numbers, strings, lists and tables: {error}") from None
    except ValidationError as error:
        raise InputError(_sentence(error, cls, table, where)) from None


def checked_table(value: Any, where: str) -> Mapping[str, Any]:
    """The value, if it is a table."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a table, got {value!r}")
    return value


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "a string",
    "bool": "true or false",
    "tuple": "a list",
    **dict.fromkeys(("model", "dict", "mapping"), "a table"),
}


def _sentence(error: ValidationError, cls: type[Table], table: Mapping[str, Any], where: str) -> str:
    """The first thing that is wrong; of a field with alternatives, what is wrong with the one that was meant."""

    def rank(problem: Any) -> int:
        kind: str = problem["type"]
        return (kind != "extra_forbidden") + kind.endswith("_type") + (kind == "model_type")

    problem = min(error.errors(include_url=False), key=rank)
    kind, key = problem["type"], problem["loc"][-1] if problem["loc"] else ""
    is_of_table = kind in ("extra_forbidden", "missing")
    path, hint, value = _place(problem["loc"][:-1] if is_of_table else problem["loc"], cls, table)
    path = where + path if where else path.lstrip(".")
    if kind == "extra_forbidden":
        return unknown_name(f"key in [{path}]" if path else "table or key of the recipe", key, _fields(hint))
    if kind in ("missing", "too_long") and not isinstance(value, Mapping):
        return f"{path}: expected {len(get_args(hint))} values, got {len(value)}"
    if kind == "missing":
        return f"[{path}] lacks a key: {key}" if path else f"the recipe lacks the key {key}"
    if kind == "value_error":
        said = str(problem["ctx"]["error"])
        if not isinstance(value, Mapping | BaseModel):
            return f"{path}: {said}"
        return f"[{path}] {said}" if path and not said.startswith(path) else said
    if kind == "literal_error":
        return f"{path}: expected one of {problem['ctx']['expected'].replace(' or ', ', ')}; got {value!r}"
    expected = _EXPECTED.get(kind.removesuffix("_type"))
    return f"{path}: {f'expected {expected}' if expected else problem['msg']}, got {value!r}"


def _place(loc: tuple[int | str, ...], cls: type[Table], table: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """A place as a recipe spells it, its type, and its value; the names of alternatives, which pydantic adds, go."""
    path = ""
    hint: Any = cls
    value: Any = table
    for step in loc:
        if isinstance(value, Mapping) and step in value:
            path += f".{step}"
        elif isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            path += f"[{step}]"
        else:
            continue
        hint, value = _inside(hint, str(step)), value[step]
    return path, hint, value


def _inside(hint: Any, step: str) -> Any:
    """The type of what a table, mapping or list of that type holds there."""
    for option in sorted(_alternatives(hint), key=lambda option: not _fields(option)):
        if fields := _fields(option):
            return get_type_hints(option)[step] if step in fields else Any
        if get_args(option) and get_origin(option) is not Literal:
            return get_args(option)[0 if get_origin(option) is tuple else 1]
    return Any


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fields(hint: Any) -> tuple[str, ...]:
    """The names of the fields of a model; none of anything else."""
    for option in _alternatives(hint):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return tuple(option.model_fields)
    return ()


def as_toml(table: Mapping[str, Any], heading: str = "") -> str:
    """A plain table as TOML that reads back equal; what is None, for which TOML has no word, is left out."""
    simple = {key: value for key, value in table.items() if not _is_tables(value) and value is not None}
    text = "".join(f"{_key(key)} = {_value(value)}\n" for key, value in simple.items())
    for key, value in table.items():
        if _is_tables(value):
            name = f"{heading}.{_key(key)}".lstrip(".")
            opening, closing = ("[[", "]]") if isinstance(value, list) else ("[", "]")
            for each in value if isinstance(value, list) else [value]:
                text += f"\n{opening}{name}{closing}\n{as_toml(each, name)}"
    return text


def _is_tables(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)
    )


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if is_bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items() if each is not None)} }}"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
            entries = result[key] = list(old)
            names = [entry.get("name", entry.get("kind")) if isinstance(entry, Mapping) else None for entry in old]
            places = {name: names.index(name) for name in names} | {str(place): place for place in range(len(old))}
            for name, change in value.items():
                if not isinstance(change, Mapping):
                    raise InputError(f"{key}.{name}: expected a table with what changes, got {change!r}")
                if name in places:
                    entries[places[name]] = merged(old[places[name]], change)
                elif "kind" in change:
                    entries.append({**change, "name": name})
                else:
                    check_name(f"entry of [[{key}]]", name, [known for known in names if known])
        else:
            result[key] = value
    return result
