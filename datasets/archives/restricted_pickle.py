"""Reading the pickles in which few-shot benchmarks were handed around, without running anything that is in them.

A pickle is a program. This reader lets it build dictionaries, lists, tuples, strings, numbers and bytes; the few names
that an array needs stand for inert objects of ours, and every other name ends the reading. NumPy's own reconstruction
trusts its arguments, so arrays are made afterwards from their bytes, for plain number types only.

Before it is run, the program is read through: nine bytes can name a place in memory that costs gigabytes, tuples nested
a hundred thousand times end the process, and hashing shared tuples, or many keys of one hash, never ends.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_MAX_REASON = 200
_NUMBERS = re.compile(r"[|<>=]?(b1|[iu][1248]|f[248])")
_ARRAY_MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}
_BUFFER_MODULES = {"numpy.core.numeric", "numpy._core.numeric"}


class _Dtype:
    """A number type in a pickle."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subarray, field names, fields, …): anything but a plain number type is refused.
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("only arrays of plain numbers are read")
        self.order = str(state[1])

    def resolve(self) -> np.dtype[Any]:
        code = self.code if isinstance(self.code, str) else ""
        if not _NUMBERS.fullmatch(code) or self.order not in ("<", ">", "=", "|"):
            raise InputError(f"an array of type {code!r}; only plain numbers are read")
        return np.dtype(code) if self.order == "|" else np.dtype(code).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """An array in a pickle: shape, type and bytes."""

    __slots__ = ("state",)

    def __init__(self, state: object = None) -> None:
        self.state = state

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array's state has five entries")
        self.state = state[1:]

    def resolve(self) -> NDArray[Any]:
        match self.state:
            case (tuple(shape), _Dtype() as dtype, bool() | int() as is_fortran, bytes() | bytearray() | str() as data):
                pass
            case _:
                raise InputError("an array without shape, type or bytes")
        kind = dtype.resolve()
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote strings
        is_shape = all(isinstance(side, int) and side >= 0 for side in shape)
        if not is_shape or math.prod(shape) * kind.itemsize != len(raw):
            raise InputError(f"an array of shape {shape} with {len(raw)} bytes of {kind}")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if is_fortran else "C")


class _Call:
    """A function that a pickle may call, and whose state it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a pickle may not change this object")


def _only_an_argument(*_: object) -> NoReturn:
    """Stands for `numpy.ndarray`."""
    raise pickle.UnpicklingError("an array is made of its bytes alone")


class _Value(NamedTuple):
    """A value before it is made: the depth of tuples nested in it, and the parts that hashing it visits."""

    depth: int = 0
    weight: int = 1


_PLAIN, _MARK = _Value(), _Value(-1, 0)
_MAX_DEPTH = 100  # of tuples in tuples; an array has three
_MAX_HASHED = 10_000  # visited for all keys that are tuples; they may share parts, and all have one hash
_MAX_BITS = 64  # of a whole number; larger ones can have all one hash
_MEMORY_WRITES = {"PUT", "BINPUT", "LONG_BINPUT"}
_MEMORY_READS = {"GET", "BINGET", "LONG_BINGET"}
_NESTING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}  # what Python hashes by what is inside, without end
_KEYS = {"SETITEM": slice(-2, -1), "SETITEMS": slice(0, None, 2), "DICT": slice(0, None, 2)}
_KEYS |= {"FROZENSET": slice(None), "ADDITEMS": slice(None)}  # which of the values that an operation takes are hashed


def _require_bounded(data: bytes) -> None:
    """Read the program without running it: it ends, and asks for no more than a pickle of its length needs."""
    stack: list[_Value] = []
    memory: dict[int, _Value] = {}
    hashed = 0
    for number, (op, argument, _) in enumerate(pickletools.genops(data)):
        name = op.name
        if name in _MEMORY_WRITES or name == "MEMOIZE":
            place = len(memory) if name == "MEMOIZE" else int(argument or 0)
            if not 0 <= place <= number + 1:
                raise pickle.UnpicklingError(f"it names the place {place:,} of its memory after {number:,} steps")
            memory[place] = stack[-1] if stack else _PLAIN
        elif name == "FRAME" and int(argument or 0) > len(data):
            raise pickle.UnpicklingError("it is cut off")
        elif isinstance(argument, int) and argument.bit_length() > _MAX_BITS and name != "FRAME":
            raise pickle.UnpicklingError(f"it holds a whole number of more than {_MAX_BITS} bits")
        elif name in _MEMORY_READS:
            stack.append(memory.get(int(argument or 0), _PLAIN))
        elif name == "DUP":
            stack.append(stack[-1] if stack else _PLAIN)
        else:
            taken = _taken(stack, op)
            hashed += sum(key.weight for key in taken[_KEYS.get(name, slice(0))] if key.depth > 0)
            if hashed > _MAX_HASHED:
                raise pickle.UnpicklingError(f"its keys are tuples of more than {_MAX_HASHED:,} parts together")
            made = _PLAIN
            if name in _NESTING:
                made = _Value(1 + max((part.depth for part in taken), default=0), 1 + sum(p.weight for p in taken))
                if made.depth > _MAX_DEPTH:
                    raise pickle.UnpicklingError(f"it nests tuples more than {_MAX_DEPTH} deep")
            stack += [_MARK if what.name == "mark" else made for what in op.stack_after]


def _taken(stack: list[_Value], op: pickletools.OpcodeInfo) -> list[_Value]:
    """Take from the stack what an operation takes; the values above its mark, or all where it needs none."""
    names = [what.name for what in op.stack_before]
    if "mark" not in names:
        start = max(0, len(stack) - len(names))
        taken = stack[start:]
        del stack[start:]
        return taken
    above = []
    while stack and (value := stack.pop()) is not _MARK:
        above.append(value)
    del stack[max(0, len(stack) - names.index("mark")) :]
    return above[::-1]


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = 2 * len(data) + 1024  # bytes that it may still make out of others

    def _spend(self, value: object) -> None:
        self._left -= len(value) if isinstance(value, str | bytes | bytearray) else 0
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more of its bytes than it has")

    def _encoded(self, text: object, encoding: object = "latin1") -> bytes:
        self._spend(text)
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("only latin1 text is turned into bytes")
        return text.encode("latin1")

    def _of_buffer(self, buffer: object, dtype: object, shape: object, order: object) -> _Array:
        self._spend(buffer)
        return _Array((shape, dtype, order == "F", bytes(buffer) if isinstance(buffer, bytes | bytearray) else None))

    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name == "_reconstruct":
            return _Call(lambda *_: _Array())
        if module in _BUFFER_MODULES and name == "_frombuffer":
            return _Call(self._of_buffer)
        if module in _ARRAY_MODULES and name == "scalar":
            return _Call(lambda dtype, data: _Array(((), dtype, False, data)))
        if (module, name) == ("numpy", "ndarray"):
            return _Call(_only_an_argument)
        if (module, name) == ("numpy", "dtype"):
            return _Call(lambda code, *_: _Dtype(code))
        if (module, name) == ("_codecs", "encode"):
            return _Call(self._encoded)
        if (module, name) in (("builtins", "bytes"), ("__builtin__", "bytes")):
            return _Call(lambda: b"")  # how protocol 2 writes an empty one
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Contents of a pickle of plain containers and arrays; arrays are turned into NumPy's by `array_of`."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        _require_bounded(data)
        return _Reader(data).load()
    except Exception as error:  # a hostile program can fail in any way
        reason = str(error)[:_MAX_REASON]  # Python quotes a number however long it is
        raise InputError(
            f"{file} is no pickle of plain arrays, lists and dictionaries ({reason}); nothing of it was run. If you "
            "trust it, convert it where it was made: numpy.savez(FILE, images=…, labels=…), or one folder per class"
        ) from error


def array_of(value: object, what: str) -> NDArray[Any]:
    """A NumPy array from what `read_pickle` found: an array, or a list of numbers."""
    try:
        if isinstance(value, _Array):
            return value.resolve()
        if isinstance(value, list) and value:
            numbers = [each.resolve().item() if isinstance(each, _Array) else each for each in value]
            if all(isinstance(number, int | float) for number in numbers):
                return np.array(numbers)
    except (InputError, ValueError) as error:
        raise InputError(f"{what}: {error}") from error
    raise InputError(f"{what}: expected an array of numbers, got {type(value).__name__.strip('_')}")
