"""The generator of episodes: from a split and a seed to the same list on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..datasets.episodes import EpisodeManifest, Names, Numbers, as_names, check_items
from ..errors import InputError

GENERATOR = "pcg64-sequential/1"  # a new number whenever the same seed would give other episodes

Unit = NDArray[np.float64]  # uniform in [0, 1)


def sample_episodes(
    labels: ArrayLike | Sequence[object],
    *,
    n_way: int = 5,
    n_shot: int = 1,
    n_query: int = 15,
    n_episodes: int = 10_000,
    seed: int = 0,
    names: ArrayLike | Sequence[object] | None = None,
    dirichlet: int | None = None,
) -> EpisodeManifest:
    """Episodes drawn uniformly: N classes without replacement, then K + Q images of each without replacement.

    The same seed and split give the same episodes on every machine: the draws are raw 64-bit words of PCG64 turned into
    numbers here, and items are visited in the order of their names, not of their rows. The first 600 of 10,000 episodes
    are the 600 of the same seed.

    Args:
        labels: class of each item, any values; they need not be 0…C−1.
        n_way: classes per episode, N.
        n_shot: support images per class, K.
        n_query: query images per class, Q.
        n_episodes: number of episodes, E.
        seed: which of the lists.
        names: unique names of the items, for instance paths; row numbers by default.
        dirichlet: concentration α of the class proportions among the N·Q queries of an episode, a whole number; 2 is
            usual. Balanced queries, which flatter transductive methods, by default.

    Raises:
        InputError: fewer classes, or fewer images in a class, than the episodes need.

    Source: Veilleux et al. 2021, arXiv:2204.11181, §3 (Dirichlet queries).

    >>> episodes = sample_episodes(list("aaabbbccc"), n_way=2, n_query=2, n_episodes=4)
    >>> episodes.support.shape, episodes.query.shape
    ((4, 2, 1), (4, 4))
    """
    settings = {"n_way": n_way, "n_shot": n_shot, "n_query": n_query, "n_episodes": n_episodes}
    at_least = {**dict.fromkeys(settings, 1), "n_way": 2, "seed": 0, "dirichlet": 1}
    for name, value in {**settings, "seed": seed, "dirichlet": 1 if dirichlet is None else dirichlet}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < at_least[name]:
            raise InputError(f"{name} must be a whole number of at least {at_least[name]}, got {value!r}")
    label_names = as_names(labels, "labels")
    width = len(str(len(label_names)))
    numbered = [f"{row:0{width}d}" for row in range(len(label_names))]
    item_names = as_names(numbered if names is None else names, "names")
    check_items(item_names, label_names)
    # Items grouped by class and sorted by name within it, so that the order of the rows does not matter.
    by_class = np.lexsort((item_names, label_names))
    class_names, start, size = np.unique(label_names[by_class], return_index=True, return_counts=True)
    most_queries = n_query if dirichlet is None else n_way * n_query
    _check_counts(class_names, size, n_way=n_way, needed=n_shot + most_queries, is_dirichlet=dirichlet is not None)

    per_way = n_shot + most_queries
    n_draws = [n_way, n_way * per_way, n_way * (dirichlet or 0)]
    words = np.random.PCG64(seed).random_raw(n_episodes * sum(n_draws)).reshape(n_episodes, -1)
    unit = (words >> np.uint64(11)) * 2.0**-53
    for_ways, for_items, for_sizes = np.split(unit, np.cumsum(n_draws)[:-1], axis=1)

    n_queries = np.full((n_episodes, n_way), n_query)
    if dirichlet is not None:
        n_queries = _dirichlet_sizes(for_sizes.reshape(n_episodes, n_way, dirichlet), n_way * n_query)
    ways = _distinct(for_ways, np.full(n_episodes, len(class_names)), np.full(n_episodes, n_way))
    picks = _distinct(for_items.reshape(-1, per_way), size[ways.ravel()], n_shot + n_queries.ravel())
    items = by_class[start[ways][:, :, None] + picks.reshape(n_episodes, n_way, per_way)]
    query = items[:, :, n_shot:][np.arange(most_queries) < n_queries[:, :, None]]
    queries = "balanced" if dirichlet is None else f"dirichlet({dirichlet})"
    return EpisodeManifest(
        item_names,
        label_names,
        items[:, :, :n_shot].astype(np.int32),
        query.reshape(n_episodes, -1).astype(np.int32),
        {"generator": GENERATOR, "seed": int(seed), "queries": queries},
    )


def _distinct(unit: Unit, n: Numbers, needed: Numbers) -> Numbers:
    """Row r: `needed[r]` distinct numbers below n[r], every ordered choice equally likely; zeros after them."""
    # The i-th number is the ⌊u·(n−i)⌋-th of those not yet taken: each taken one at or below it moves it up by one.
    # Floyd's method is not exchangeable: its first number, a one-shot episode's support, is never among the last ones.
    longest_first = np.argsort(-needed, kind="stable")  # so that the rows still at work are always the first ones
    unit, n, needed = np.ascontiguousarray(unit[longest_first].T), n[longest_first], needed[longest_first]
    columns = np.zeros(unit.shape, dtype=np.int64)
    taken = np.empty_like(columns)  # its first i rows are sorted
    for i in range(needed[0]):
        active = np.count_nonzero(needed > i)
        pick = (unit[i, :active] * (n[:active] - i)).astype(np.int64)
        for j in range(i):
            pick += pick >= taken[j, :active]
        columns[i, :active] = pick
        for j in range(i):
            pick, taken[j, :active] = np.maximum(pick, taken[j, :active]), np.minimum(pick, taken[j, :active])
        taken[i, :active] = pick
    distinct = np.empty_like(columns.T)
    distinct[longest_first] = columns.T
    return distinct


def _dirichlet_sizes(unit: Unit, total: int) -> Numbers:
    """Class sizes (E, N) with proportions from Dirichlet(α, …, α), rounded by largest remainder to sum to `total`."""
    gamma = -np.log1p(-unit).sum(-1)  # a sum of α exponentials is Gamma(α)
    share = gamma / gamma.sum(-1, keepdims=True) * total
    sizes: Numbers = np.floor(share).astype(np.int64)
    missing = total - sizes.sum(-1, keepdims=True)
    order = np.argsort(np.argsort(sizes - share, axis=-1, kind="stable"), axis=-1)
    sizes += order < missing
    return sizes


def _check_counts(class_names: Names, size: Numbers, *, n_way: int, needed: int, is_dirichlet: bool) -> None:
    if len(class_names) < n_way:
        raise InputError(f"{n_way}-way episodes need {n_way} classes, the labels hold {len(class_names)}; lower n_way")
    if size.min() < needed:
        small = class_names[size < needed]
        reason = " (Dirichlet queries may all fall on one class)" if is_dirichlet else ""
        raise InputError(
            f"every class needs {needed} images{reason}, {len(small)} of {len(class_names)} have fewer, "
            f"the first is {str(small[0])!r} with {size[size < needed][0]}; lower n_query or leave the class out"
        )
