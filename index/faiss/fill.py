"""Filling an index with stored vectors: trained on a sample, then a block at a time, so memory holds little else."""

from __future__ import annotations

from typing import Any

import faiss as typed_faiss
import numpy as np

from ...errors import InputError
from ..search import Ids, SearchSpec, Vectors, VectorSource
from .candidates import Stock, row_selector
from .factory import Coarse, train, training_size
from .numpy import searched
from .recall import stored_blocks

faiss: Any = typed_faiss

__all__ = ["check_range", "fill"]

_HALF_MAX = 65504.0


def fill(
    stock: Stock, ids: Ids, source: VectorSource, *, factory: str, seed: int, coarse: Coarse | None = None
) -> None:
    """Trains the index of an empty stock on a sample of what `source` reads, and stores everything.

    Args:
        stock: to be filled.
        ids: what to store, each once.
        source: reads raw vectors.
        factory: what the index was made from, for messages.
        seed: of the sample.
        coarse: lists of an inverted file with as many, over the same ids; others are passed over.

    Raises:
        InputError: too few vectors to train on, or a kind of index that cannot be filled or filtered.
    """
    index = stock.index
    if not (isinstance(index, faiss.IndexIVF) and coarse is not None and len(coarse.centroids) == index.nlist):
        coarse = None
    if not index.is_trained:
        if coarse is not None:
            index.quantizer.add(coarse.centroids)  # FAISS then learns only the codes
        train(index, _sample(stock.spec, ids, source, size=training_size(index, len(ids)), seed=seed))
    try:
        start = 0
        for some, vectors in stored_blocks(stock.spec, ids, source):
            check_range(factory, vectors)
            lists = None if coarse is None else coarse.assignment[start : start + len(some)]
            stock.add(some, vectors, lists=lists)
            start += len(some)
        if not stock.is_exact:
            selector, _bits = row_selector(np.ones(len(ids), np.bool_))
            searched(index, np.zeros((1, stock.spec.dim), np.float32), 1, params=stock.parameters(selector))
    except RuntimeError as error:
        raise InputError(
            f"FAISS index {factory!r} cannot be filled or filtered ({str(error).split('Error: ')[-1]}); "
            "use auto, flat, HNSW or IVF"
        ) from error


def check_range(factory: str, vectors: Vectors) -> None:
    """Refuses numbers that half precision turns into infinity, where that is how an index stores them."""
    if "fp16" in factory and len(vectors) and (largest := float(np.abs(vectors).max())) > _HALF_MAX:
        raise InputError(
            f"half precision holds numbers up to {_HALF_MAX:.0f}, got {largest:.4g}; build with --index flat"
        )


def _sample(spec: SearchSpec, ids: Ids, source: VectorSource, *, size: int, seed: int) -> Vectors:
    """Comparable vectors to train on."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:size])
    sample = np.empty((len(rows), spec.dim), np.float32)
    start = 0
    for some, vectors in stored_blocks(spec, ids[rows], source):
        sample[start : start + len(some)] = vectors
        start += len(some)
    return sample
