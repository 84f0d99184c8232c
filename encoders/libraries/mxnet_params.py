"""Weights in MXNet's `.params` files, as ResNet-38's published ImageNet weights are; read without MXNet.

A file is arrays and their names, little-endian: u64 0x112, u64 0, u64 count, the arrays, u64 count, the names (u64
length, text). An array is u32 magic (and i32 storage, 0 for dense, behind the second magic), u32 dimensions, each
i64, i32 device, i32 its number, i32 kind of numbers, the numbers. Before the magics, u32 dimensions, each u32.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import WeightsError

_BEGIN = struct.pack("<Q", 0x112)
_SHAPED, _STORED = 0xF993FAC8, 0xF993FAC9
_KINDS = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
_MOST_DIMENSIONS = 32
_BLOCK = re.compile(r"(?:res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)")
_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def is_params(path: Path) -> bool:
    """True for a file of MXNet's that begins as a list of arrays."""
    with path.open("rb") as file:
        return file.read(len(_BEGIN)) == _BEGIN


class _ParamsFile:
    def __init__(self, path: Path) -> None:
        self.path, self.content, self.place = path, path.read_bytes(), 0

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self.content) - self.place:
            raise WeightsError(f"{self.path}: ends too early, or is damaged; fetch the file again")
        self.place += length
        return self.content[self.place - length : self.place]

    def numbers(self, kinds: str) -> tuple[int, ...]:
        return struct.unpack(f"<{kinds}", self.take(struct.calcsize(f"<{kinds}")))

    def array(self) -> NDArray[Any]:
        [first] = self.numbers("I")
        if first == _STORED and self.numbers("i") != (0,):
            raise WeightsError(f"{self.path}: holds a sparse array; expected dense weights")
        is_new = first in (_SHAPED, _STORED)
        dimensions = self.numbers("I")[0] if is_new else first
        if dimensions > _MOST_DIMENSIONS:
            raise WeightsError(f"{self.path}: an array begins with {first:#x}, which no known version of MXNet writes")
        shape = self.numbers(f"{dimensions}{'q' if is_new else 'I'}")
        if not shape:
            return np.zeros(0, np.float32)
        *_, kind = self.numbers("iii")
        if not 0 <= kind < len(_KINDS) or min(shape) < 0:
            raise WeightsError(f"{self.path}: holds an array of shape {shape} and the unknown kind {kind}")
        dtype = np.dtype(_KINDS[kind])
        return np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()


def read_params(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name, ResNet-38's under the names of `ResNet38`; WeightsError for a damaged file."""
    reader = _ParamsFile(path)
    reader.take(2 * len(_BEGIN))
    arrays = [reader.array() for _ in range(*reader.numbers("Q"))]
    names = [reader.take(*reader.numbers("Q")).decode("utf-8", "replace") for _ in range(*reader.numbers("Q"))]
    if len(names) != len(arrays):
        raise WeightsError(f"{path}: {len(arrays)} arrays have {len(names)} names")
    found = {_renamed(name): torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
    if len(found) < len(arrays):
        raise WeightsError(f"{path}: {len(arrays) - len(found)} arrays share the name of another")
    norms = [name.removesuffix("running_mean") for name in found if name.endswith("running_mean")]
    return found | {f"{name}num_batches_tracked": torch.zeros((), dtype=torch.long) for name in norms}


def _renamed(name: str) -> str:
    """`arg:res4b2_branch2a_weight` becomes `b4_2.conv_branch2a.weight`, `aux:bn7_moving_mean` `bn7.running_mean`."""
    plain = name.partition(":")[2] if name.startswith(("arg:", "aux:")) else name
    if (block := _BLOCK.fullmatch(plain)) is not None:
        stage, number, branch, part = block.groups()
        kind = "conv" if part == "weight" else "bn"
        return f"b{stage}{f'_{number}' if number else ''}.{kind}_{branch}.{_PARTS.get(part, part)}"
    owner, _, part = plain.partition("_")
    return f"{owner}.{_PARTS.get(part, part)}"
