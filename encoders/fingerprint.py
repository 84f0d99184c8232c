"""Identity of an encoder: one hash over what it computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from .weights.wrapping import plain_name


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

    Change is seen by torch's version counters, which every in-place operation moves; writing through `tensor.data`
    escapes them. The tensors seen last are held, or a new one might come to lie at an old one's address. Copies of the
    owner start without a memory.
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

    def __deepcopy__(self, memo: dict[int, Any]) -> FingerprintCache:
        return FingerprintCache()

    def __reduce__(self) -> tuple[type[FingerprintCache], tuple[()]]:
        return FingerprintCache, ()
