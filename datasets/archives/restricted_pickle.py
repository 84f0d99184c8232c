"""Reading the pickles in which few-shot benchmarks were handed around, without running anything that is in them.

A pickle is a program. This reader lets it build dictionaries, lists, tuples, strings, numbers and bytes; the few names
that an array needs stand for inert objects of ours, and every other name ends the reading. NumPy's own reconstruction
trusts its arguments, so arrays are made afterwards from their bytes, for plain number types only.

It is Python's own reader in Python: the one in C takes gigabytes for nine bytes that name a place in its memory.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_MAX_REASON = 200
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
_MAX_DEPTH = 100  # of tuples in a key
_MAX_HASHED = 10_000  # parts of all keys that are tuples; they may share parts, and all have one hash
_MAX_BITS = 64  # of a whole number as a key; larger ones can have all one hash
_KEYS = {  # which of the values that an operation finds are hashed
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.FROZENSET: slice(None),
    pickle.ADDITEMS: slice(None),
}


class _Inert:
    """An array or number type, as a pickle tells it: what it is made of, and its state, which nobody has looked at."""

    def __init__(self, code: object = None, state: object = None) -> None:
        self.code, self.state = code, state


class _RestrictedUnpickler(pickle._Unpickler):
    read: Callable[[int], bytes]
    stack: list[Any]
    memo: dict[int, Any]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._length = len(data)
        self._left = 2 * len(data) + 1024  # bytes that it may still make out of others
        self._hashed = 0

    def require_plain(self, keys: Iterable[object]) -> None:
        """Refuse keys that take long to be hashed: tuples nested deep, or sharing parts, and keys of one hash."""
        level = list(keys)
        for _ in range(_MAX_DEPTH):
            if any(isinstance(key, int) and key.bit_length() > _MAX_BITS for key in level):
                raise pickle.UnpicklingError(f"a key is a whole number of more than {_MAX_BITS} bits")
            nested = [key for key in level if isinstance(key, tuple | frozenset)]
            self._hashed += sum(1 + len(key) for key in nested)
            if self._hashed > _MAX_HASHED:
                raise pickle.UnpicklingError(f"its keys are tuples of more than {_MAX_HASHED:,} parts together")
            if not (level := [part for key in nested for part in key]):
                return
        raise pickle.UnpicklingError(f"it nests tuples more than {_MAX_DEPTH} deep in a key")

    def spent(self, value: object) -> object:
        """The value, whose bytes are made into others."""
        self._left -= len(value) if isinstance(value, str | bytes) else 0
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more of its bytes than it has")
        return value

    def encoded(self, text: str, encoding: str = "latin1") -> bytes:
        """The bytes that a text stands for."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("only latin1 text is turned into bytes")
        return str(self.spent(text)).encode("latin1")

    def load_frame(self) -> None:
        """A frame's length, which must be there; its content is read on as it comes."""
        if struct.unpack("<Q", self.read(8))[0] > self._length:
            raise pickle.UnpicklingError("it is cut off")

    def load_build(self) -> None:
        """The state of an array or number type; nothing else has one."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Inert):
            raise pickle.UnpicklingError("a pickle may not change this object")
        self.stack[-1].state = state

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a function that makes arrays; anything else is refused."""
        match module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins"), name:
            case "numpy.core.multiarray", "_reconstruct":
                return lambda *_: _Inert()
            case "numpy.core.numeric", "_frombuffer":
                return lambda data, kind, shape, order: _Inert(None, (1, shape, kind, order == "F", self.spent(data)))
            case "numpy.core.multiarray", "scalar":
                return lambda kind, data: _Inert(None, (1, (), kind, False, data))
            case "numpy", "dtype":
                return lambda code, *_: _Inert(code)
            case "numpy", "ndarray":
                return "numpy.ndarray"  # an argument, which cannot be called
            case "_codecs", "encode":
                return self.encoded
            case "builtins", "bytes":
                return lambda: b""  # how protocol 2 writes an empty one
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _with_keys(load: Callable[[Any], None], keys: slice) -> Callable[[_RestrictedUnpickler], None]:
    """An operation that looks before at what it hashes."""

    def checked(reader: _RestrictedUnpickler) -> None:
        reader.require_plain(reader.stack[keys])
        load(reader)

    return checked


_KNOWN = pickle._Unpickler.dispatch
_OWN: dict[int, Any] = {
    **{code[0]: _with_keys(_KNOWN[code[0]], keys) for code, keys in _KEYS.items()},
    pickle.BYTEARRAY8[0]: _KNOWN[pickle.BINBYTES8[0]],
    pickle.FRAME[0]: _RestrictedUnpickler.load_frame,
    pickle.BUILD[0]: _RestrictedUnpickler.load_build,
}
_RestrictedUnpickler.dispatch = {**_KNOWN, **_OWN}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Contents of a pickle of plain containers and arrays; arrays are turned into NumPy's by `array_of`."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        reader = _RestrictedUnpickler(data)
        content = reader.load()
        if (place := max(reader.memo, default=0)) > len(data):
            raise pickle.UnpicklingError(f"it names the place {place:,} of its memory")
        return content
    except Exception as error:  # a hostile program can fail in any way
        reason = str(error)[:_MAX_REASON]  # Python quotes a number however long it is
        raise InputError(
            f"{file} is no pickle of plain arrays, lists and dictionaries ({reason}); nothing of it was run. If you "
            "trust it, convert it where it was made: numpy.savez(FILE, images=…, labels=…), or one folder per class"
        ) from error


def array_of(value: object, what: str) -> NDArray[Any]:
    """A NumPy array from what `read_pickle` found: an array, or a list of numbers."""
    try:
        if isinstance(value, _Inert):
            return _array(value)
        if isinstance(value, list) and value:
            numbers = [_array(each).item() if isinstance(each, _Inert) else each for each in value]
            if all(isinstance(number, int | float) for number in numbers):
                return np.array(numbers)
    except (InputError, ValueError) as error:
        raise InputError(f"{what}: {error}") from error
    raise InputError(f"{what}: expected an array of numbers, got {type(value).__name__.strip('_')}")


def _array(made: _Inert) -> NDArray[Any]:
    match made.state:
        case (_, tuple(shape), _Inert() as of, int() as is_fortran, bytes() | str() as data) if all(
            isinstance(side, int) and side >= 0 for side in shape
        ):
            kind = _number_type(of)
        case _:
            raise InputError("an array without shape, type or bytes")
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote strings
    if math.prod(shape) * kind.itemsize != len(raw):
        raise InputError(f"an array of shape {shape} with {len(raw)} bytes of {kind}")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if is_fortran else "C")


def _number_type(made: _Inert) -> np.dtype[Any]:
    code = made.code if isinstance(made.code, str) else ""
    match made.state:
        case None if _NUMBERS.fullmatch(code):
            return np.dtype(code)
        case (_, ("<" | ">" | "=" | "|") as order, None, None, None, *_) if _NUMBERS.fullmatch(code):
            return np.dtype(code) if order == "|" else np.dtype(code).newbyteorder(order)
    raise InputError(f"an array of type {code!r}; only plain numbers are read")
