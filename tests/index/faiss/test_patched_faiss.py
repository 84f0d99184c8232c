"""Searching in a process in which somebody imported faiss.contrib.torch_utils, which patches every FAISS index."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import faiss.contrib.torch_utils  # as pytorch-metric-learning imports it
import numpy as np
from distcam.index import FaissSearch, SearchSpec

rng = np.random.default_rng(0)
vectors, ids = rng.standard_normal((3000, 16)).astype(np.float32), np.arange(3000, dtype=np.uint64)
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
expected = np.argsort(-(unit[:3] @ unit.T), axis=1)[:, :5].tolist()
for factory in ("flat", "SQfp16", "IVF16,Flat"):
    search = FaissSearch.build(SearchSpec(16, "cosine"), [(ids, vectors)], count=3000, factory=factory,
                               source=lambda wanted: vectors[wanted])
    found = [hit.ids.tolist() for hit in search.search(vectors[:3], 5)]
    assert found == expected or factory == "IVF16,Flat", (factory, found)  # an approximate index may miss one
    even = search.search(vectors[:3], 5, allowed=ids[::2].copy())
    assert all(isinstance(hit.ids, np.ndarray) and (hit.ids % 2 == 0).all() and len(hit.ids) == 5 for hit in even)
    search.upsert(np.array([5000], np.uint64), vectors[:1])
    print(factory, search.count())
"""


def test_a_patched_faiss_answers_as_a_plain_one() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["flat 3001", "SQfp16 3001", "IVF16,Flat 3001"], run.stderr
