"""Readouts: the vector that a network of any library is searched by, as a map whose mean over places is that vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..remarks import remark
from .contribution_rules import RULES
from .contributions import Contribution, Following
from .layers import Tap, closest
from .vectors import features_of, first_key_is_mean, has_attention_pooling, vector_of

READOUTS: Mapping[str, str] = {
    "auto": "the vector that the model's authors rank by",
    "mean": "the mean of the last map, or of the patch tokens",
    "class": "the class token behind the last norm",
    "class+mean": "the class token and the mean of the patch tokens, one behind the other",
    "attention": "the attention pooling that the model ends with",
}


def read_out(model: nn.Module, readout: str = "auto", *, layer: str | None = None) -> nn.Module:
    """A network from images to the map (b, p, rows, columns) whose mean over places is the vector that is searched.

    The mean of a grid or of tokens is the map itself. A class token and an attention pooling are sums, of which those
    terms that come directly from a place are that place's: the values that attentions read there, projected. All else
    (the token's start, MLPs, other tokens, biases) is the same at every place. Norms are held at their spread. Nothing
    in the network is changed.

    Args:
        model: a network of timm, transformers or open_clip, or any other that returns a map, tokens or a vector.
        readout: one of `READOUTS`.
        layer: read the output of this layer in place of the model's own.
    """
    if readout not in READOUTS:
        raise InputError(f"no readout {readout!r}; nearest: {closest(readout, list(READOUTS))}")
    if readout == "attention" and not has_attention_pooling(model):
        raise InputError(f"{type(model).__name__} has no attention pooling; leave readout out, or choose another")
    return ReadOut(model if layer is None else Tap(model, layer), readout)


_MAPS: ContextVar[bool] = ContextVar("makes_maps", default=True)
_CONSTANT: ContextVar[list[Tensor] | None] = ContextVar("constant", default=None)


@contextmanager
def making_maps(is_wanted: bool) -> Iterator[None]:
    """Inside, readouts make maps or, where these are no by-product, return their vector as a map of one place."""
    token = _MAPS.set(is_wanted)
    try:
        yield
    finally:
        _MAPS.reset(token)


@contextmanager
def telling_constants() -> Iterator[list[Tensor]]:
    """Inside, a readout of tokens adds to the list the part (b, p) of its vector that is the same at every place."""
    told: list[Tensor] = []
    token = _CONSTANT.set(told)
    try:
        yield told
    finally:
        _CONSTANT.reset(token)


class ReadOut(nn.Module):
    """A network read out as a map whose mean over places is the vector that is searched.

    Attributes:
        source: the network.
        readout: one of `READOUTS`.
        is_exact: False once a run has shown that an activation behind the pooling is followed to first order only.
        has_places: False once a run has shown that no place can be followed to the vector; the map then has one place.
    """

    def __init__(self, source: nn.Module, readout: str) -> None:
        super().__init__()
        self.source = source
        self.readout = readout
        self.is_exact = self.has_places = True
        self._first_is_mean = first_key_is_mean(source)
        self._starts_in_tail = False  # threads begin behind `features_of`
        self._is_costly = True  # the map is not the mean's own
        self._row: int | None = None  # the token that is read, where its parts come from all blocks
        self._is_known = False
        self._grids: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p rows columns"]:
        """The map; with a remark, once, if it is of first order or there is none."""
        if not self._is_known:
            self._learn(images)
        if not self.has_places or (self._is_costly and not _MAPS.get()):
            return self.vector(images)[:, :, None, None]
        found, seen = self._followed(images, tangent=not self.is_exact, tail_only=self._starts_in_tail)
        return seen.vector[:, :, None, None] if found is None else self._map(seen.vector, found)

    def vector(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """The vector alone, as the library computes it."""
        features = features_of(self.source, images, readout=self.readout)
        return vector_of(self.source, features, images, readout=self.readout)

    def _map(self, vector: Tensor, found: Contribution) -> Tensor:
        """The parts of places, and what is left of the vector at every place alike."""
        if found.map is not None:
            return found.map
        with torch.autocast(vector.device.type, enabled=False):
            vector, parts = vector.float(), found.of_row(0)
            constant = vector - parts.sum(1)
            flat = (parts * parts.shape[1] + constant[:, None]).mT
            feature_map = flat.reshape(*flat.shape[:2], *found.shape)
        if not found.is_whole and (told := _CONSTANT.get()) is not None:
            told.append(constant)
        return feature_map

    def _followed(self, images: Tensor, *, tangent: bool, tail_only: bool) -> tuple[Contribution | None, Following]:
        """The contribution of places in the vector, and the pass with all that it has seen."""
        following = Following(images, RULES, tangent=tangent, first_is_mean=self._first_is_mean, row=self._row)
        following.grids = list(self._grids.get(following.size, []))
        if tail_only:
            features = features_of(self.source, images, readout=self.readout)
            with following:
                vector = vector_of(self.source, features, images, readout=self.readout)
        else:
            with following:
                features = features_of(self.source, images, readout=self.readout)
                vector = vector_of(self.source, features, images, readout=self.readout)
            self._grids[following.size] = following.grids
        following.vector = vector
        return following.of(vector), following

    @torch.no_grad()
    def _learn(self, images: Tensor) -> None:
        """Find out on one image where threads begin, whether they reach the vector, and what remains to be said."""
        image, name, words = images[:1].detach(), type(self.source).__name__, ""
        found, seen = self._followed(image, tangent=False, tail_only=False)
        if found is None:
            self.is_exact = False
            found, seen = self._followed(image, tangent=True, tail_only=False)
            words = "maps are of first order: an activation lies between its places and its vector"
        if self.readout != "class+mean":
            in_tail = self._followed(image, tangent=not self.is_exact, tail_only=True)[0]
            self._starts_in_tail = in_tail is not None
        self._is_costly = not (found is not None and found.is_whole and self.is_exact)
        try:
            if found is not None:
                found.of_row(0)
        except LookupError:
            found = None
        if found is None:
            self.has_places = False
            words = "no map: its vector cannot be followed back to places; it is searched by, and not explained"
        elif 0 < found.n_followed < seen.n_attentions:
            words += f"{'; ' if words else ''}of {seen.n_attentions} attentions {found.n_followed} can be followed"
        if words:
            remark(f"{name}: {words}")
        if found is not None and found.n_followed and len(seen.rows_read) == 1:
            (self._row,) = seen.rows_read
        self._is_known = True

    def extra_repr(self) -> str:
        """The readout, for `print(encoder)`."""
        return f"readout={self.readout}"
