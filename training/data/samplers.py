"""Samplers: every epoch is a list of index batches, of all processes together, and follows from (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError
from ..recipes.tables import Count, Table

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The batches of every epoch as `listed` gives them: the same whenever an epoch is asked for."""

    listed: Callable[[int], Sequence[Sequence[int] | Indices]]
    steps_per_epoch: int

    def batches(self, epoch: int) -> list[Indices]:
        """The index batches of an epoch."""
        batches = [np.asarray(batch, dtype=np.int64) for batch in self.listed(epoch)]
        if len(batches) != self.steps_per_epoch or not all(batch.size for batch in batches):
            sizes = sorted({batch.size for batch in batches})
            raise InputError(
                f"expected {self.steps_per_epoch} batches of one image or more in epoch {epoch}, "
                f"got {len(batches)} of the sizes {sizes}"
            )
        return batches


class SamplerSettings(Table):
    """The sampler and its batches."""

    only_for: ClassVar = {"per_class": ("kind", "pk", "pk_full"), "drop_last": ("kind", "shuffled")}

    # "shuffled": every image once an epoch. "balanced": as many images an epoch, of every class equally many. "pk":
    # every batch shows P classes with K images each. "pk_full": the same, and every image comes at least once an epoch.
    kind: Literal["shuffled", "balanced", "pk", "pk_full"] = "shuffled"
    batch_size: Count = 64  # images per step of each process
    per_class: int = 4  # K; P is the batch size divided by it. PK only.
    drop_last: bool = False  # "shuffled": leave out the last batch if it is smaller than the others
    # places of a batch that are kept for images with a mask or box, which take turns in them (GAIN-ext)
    outlined: int = 0

    def _check(self) -> None:
        if not 0 <= self.outlined < self.batch_size:
            raise InputError(f"expected fewer outlined images than batch_size = {self.batch_size}, got {self.outlined}")


def make_sampler(
    settings: SamplerSettings,
    labels: Int[Tensor, " n"] | Sequence[int],
    *,
    seed: int = 0,
    world_size: int = 1,
    class_names: Sequence[str] = (),
    outlined: Int[Tensor, " m"] | Sequence[int] = (),
) -> Sampler:
    """The sampler that the settings describe; its batches are for all processes together.

    `outlined` are the images that have a mask or a box; names of classes are for messages.
    """
    array, kept = np.asarray(labels), settings.outlined * world_size
    common = {"batch_size": settings.batch_size * world_size - kept, "seed": seed}
    if settings.kind == "shuffled":
        sampler = shuffled(len(array), **common, drop_last=settings.drop_last)
    elif array.ndim != 1:
        raise InputError(f'{settings.kind!r} batches need one class per image, got several; use kind = "shuffled"')
    elif settings.kind == "balanced":
        sampler = balanced(array, **common, class_names=class_names)
    else:
        is_full = settings.kind == "pk_full"
        sampler = pk(array, **common, per_class=settings.per_class, is_full=is_full, class_names=class_names)
    return with_outlined(sampler, np.asarray(outlined, dtype=np.int64), count=kept, seed=seed) if kept else sampler


def share_of_rank(batch: Indices, *, rank: int, world_size: int) -> Indices:
    """The stretch of a batch that one of `world_size` processes works on; all are equally long."""
    size = -(-len(batch) // world_size)
    return np.resize(batch, size * world_size)[rank * size : (rank + 1) * size]


def shuffled(count: int, batch_size: int, *, seed: int = 0, drop_last: bool = False) -> Sampler:
    """Every image once an epoch, in a new order; a last batch of one, which no batch norm takes, joins another."""
    if count < 1 or (drop_last and count < batch_size):
        raise InputError(f"expected {batch_size if drop_last else 1} images or more, got {count}")
    whole, rest = divmod(count, batch_size)
    is_joined = batch_size > 1 and whole > 0 and rest == 1
    steps = whole + (rest > 0 and not drop_last and not is_joined)
    ends = [*range(batch_size, batch_size * steps, batch_size), batch_size * steps if drop_last else count]

    def listed(epoch: int) -> list[Indices]:
        order = _generator(seed, epoch).permutation(count)
        return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    return Sampler(listed, steps)


def balanced(labels: Indices, *, batch_size: int, seed: int = 0, class_names: Sequence[str] = ()) -> Sampler:
    """Batches in which every class is equally likely; an epoch has as many images as the data set."""
    members = _members(labels, class_names)
    shape = shuffled(len(labels), batch_size)
    ends = np.cumsum([len(batch) for batch in shape.batches(0)])[:-1]

    def listed(epoch: int) -> list[Indices]:
        generator = _generator(seed, epoch)
        decks = [_Deck(own, generator) for own in members]
        turns = _Deck(np.arange(len(decks)), generator)
        order = np.concatenate([decks[number].draw(1) for number in turns.draw(len(labels))])
        return np.split(order, ends)

    return Sampler(listed, shape.steps_per_epoch)


def pk(
    labels: Indices, *, batch_size: int, per_class: int, is_full: bool, seed: int = 0, class_names: Sequence[str] = ()
) -> Sampler:
    """Batches of P classes with K images each; with `is_full` every image comes at least once an epoch.

    Otherwise P classes are drawn anew for every batch, and K repeats only in classes of fewer. Full, each class is
    dealt into groups of K, the last filled up; a batch takes those of the classes that have most left (after Luo et
    al., Bag of Tricks for Person Re-ID, 2019, §3, where what fills no batch is dropped).
    """
    if per_class < 2:
        raise InputError(f"PK batches show every class with 2 images or more; got per_class = {per_class}")
    if batch_size % per_class:
        raise InputError(
            f"PK batches hold whole classes: expected a batch size that {per_class} images a class divide, "
            f"got {batch_size}"
        )
    members, n_way = _members(labels, class_names), batch_size // per_class
    alone = [number for number, own in enumerate(members) if len(own) < 2]
    if alone:
        raise InputError(
            f"PK batches need two images or more of every class, but there is one of {_named(alone, class_names)}: "
            'leave these classes out, or use kind = "shuffled"'
        )
    if n_way > len(members):
        raise InputError(
            f"a batch of {batch_size} with {per_class} images a class shows {n_way} classes, but there are "
            f"{len(members)}; make the batch smaller or per_class larger"
        )
    groups = np.array([-(-len(own) // per_class) for own in members])
    full_steps = max(int(groups.max()), -(-int(groups.sum()) // n_way))
    steps = full_steps if is_full else max(len(labels) // batch_size, 1)

    def listed(epoch: int) -> list[Indices]:
        generator, left, batches = _generator(seed, epoch), groups.copy(), []
        decks = [_Deck(own, generator) for own in members]
        for _ in range(steps):
            order = generator.permutation(len(members))
            chosen = (order[np.argsort(-left[order], kind="stable")] if is_full else order)[:n_way]
            hands = decks if is_full else [_Deck(own, generator) for own in members]
            batches.append(np.concatenate([hands[number].draw(per_class) for number in chosen]))
            left[chosen] = np.maximum(left[chosen] - 1, 0)
        return batches

    return Sampler(listed, steps)


def with_outlined(sampler: Sampler, outlined: Indices, *, count: int, seed: int = 0) -> Sampler:
    """Batches of another sampler, each with `count` of the `outlined` images more, which take turns in random order."""
    if not len(outlined):
        raise InputError("sampler.outlined keeps places for images with a mask or box, but no image has any")

    def listed(epoch: int) -> list[Indices]:
        deck = _Deck(np.unique(outlined), np.random.default_rng([0x0D7, seed, epoch]))
        return [np.concatenate([batch, deck.draw(count)]) for batch in sampler.batches(epoch)]

    return Sampler(listed, sampler.steps_per_epoch)


class _Deck:
    """Draws from a set without repeating any until all have come; then shuffles again."""

    def __init__(self, cards: Indices, generator: np.random.Generator) -> None:
        self._cards, self._generator = cards, generator
        self._left: Indices = cards[:0]

    def draw(self, count: int) -> Indices:
        """That many cards; among them none twice unless there are fewer."""
        while len(self._left) < count:
            fresh = self._generator.permutation(self._cards)
            again = np.isin(fresh, self._left)
            self._left = np.concatenate([self._left, fresh[~again], fresh[again]])
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn


def _members(labels: Indices, class_names: Sequence[str]) -> list[Indices]:
    """The images of every class, in the order of the class indices; no class may be empty."""
    if len(labels) == 0:
        raise InputError("expected one image or more, got none")
    count = np.bincount(labels, minlength=len(class_names))
    if not count.all():
        empty = np.flatnonzero(count == 0).tolist()
        raise InputError(f"expected images of every class, but there are none of {_named(empty, class_names)}")
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(count)[:-1])


def _named(numbers: Sequence[int], class_names: Sequence[str]) -> str:
    """Some classes in a message, the first five by name."""
    shown = ", ".join(repr(class_names[number]) if class_names else str(number) for number in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"class{'es' * (len(numbers) > 1)} {shown}{more}"


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([0x5A3, seed, epoch])
