"""Pooling and head that a file of weights brings beside a backbone: GeM's exponent, and the batch-norm neck."""

from __future__ import annotations

import re

from torch import Tensor, nn

from ..remarks import remark
from .heads import GAP, BNNeck, GeM, Pooling
from .state_dicts import load_state

_NECK = re.compile(r"(^|[._])(bottleneck|bn_?neck|feat_bn)[._]|^bn\.")  # fast-reid's, the strong baseline's, MiewID's
_NORM = ("weight", "bias", "running_mean", "running_var")
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
    """The head with the neck that is left over, which is taken out of `left`; a free one becomes it, and says so."""
    places = [name.removesuffix("running_mean") for name in left if name.endswith(".running_mean")]
    necks = [
        place
        for place in places
        if _NECK.search(place) and all(f"{place}{name}" in left and left[f"{place}{name}"].ndim == 1 for name in _NORM)
    ]
    place = necks[0] if len(necks) == 1 else ""
    if not place or not (is_free or isinstance(head, BNNeck)) or width != len(left[f"{place}running_mean"]):
        return head
    neck = head if isinstance(head, BNNeck) else BNNeck(width)
    own = {f"norm.{name.removeprefix(place)}": left.pop(name) for name in list(left) if name.startswith(place)}
    load_state(neck, own, origin=f"{origin}, {place}*", exact=True)
    remark(
        f"{origin}: its {place.rstrip('.')!r} is the head (BNNeck); head=Identity() takes the pooled vector",
        stacklevel=5,
    )
    return neck
