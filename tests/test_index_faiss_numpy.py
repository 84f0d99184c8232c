"""Searching in a process in which somebody imported faiss.contrib.torch_utils, which patches every FAISS index."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import faiss.contrib.torch_utils  # as pytorch-metric-learning imports it
import numpy as np
from distcam.index import SearchSpec, FaissSearch

rng = np.random.default_rng(0)
vectors, ids = rng.standard_normal((3000, 16)).astype(np.float32), np.arange(3000, dtype=np.uint64)
search = FaissSearch.build(SearchSpec(16, "cosine"), [(ids, vectors)], count=3000, factory="{factory}",
                           source=lambda wanted: vectors[wanted])
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
expected = np.argsort(-(unit[:3] @ unit.T), axis=1)[:, :5]
for allowed in (None, ids[::2].copy()):
    hits = search.search(vectors[:3], 5, allowed=allowed)
    assert all(isinstance(hit.ids, np.ndarray) for hit in hits)
    if allowed is None:
        assert not {exact} or [hit.ids.tolist() for hit in hits] == expected.tolist()
    else:
        assert all((hit.ids % 2 == 0).all() and len(hit.ids) == 5 for hit in hits)
search.upsert(np.array([5000], np.uint64), vectors[:1])
print("found", search.count())
"""


@pytest.mark.parametrize("factory", ["flat", "SQfp16", "IVF16,Flat"])
def test_a_patched_faiss_answers_as_a_plain_one(factory: str) -> None:
    script = SCRIPT.replace("{factory}", factory).replace("{exact}", str(not factory.startswith("IVF")))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "found 3001", run.stderr
