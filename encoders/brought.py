"""Pooling and head that a file of weights brings beside a backbone: GeM's exponent, and the batch-norm neck."""

from __future__ import annotations

from torch import Tensor, nn

from ..remarks import remark
from .heads import GAP, BNNeck, GeM, Pooling
from .state_dicts import exponent_among, load_state, neck_among


def brought_pooling(pooling: Pooling, left: dict[str, Tensor], *, origin: str) -> Pooling:
    """The pooling with the exponent that is left over, taken out of `left`; a mean becomes GeM, and says so."""
    name = exponent_among(left)
    if not name or type(pooling) not in (GAP, GeM):
        return pooling
    exponent = float(left.pop(name))
    if isinstance(pooling, GAP):
        remark(
            f"{origin}: its {name!r} makes the pooling a generalised mean, p={exponent:.3g}; "
            "encoder.pooling = GAP() takes the mean",
            stacklevel=5,
        )
    return GeM(exponent)


def brought_head(head: nn.Module, left: dict[str, Tensor], *, width: int, is_free: bool, origin: str) -> nn.Module:
    """The head with the neck that is left over, which is taken out of `left`; a free one becomes it, and says so."""
    place = neck_among(left)
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
