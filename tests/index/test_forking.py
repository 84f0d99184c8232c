"""Galleries and retrievers in other processes and threads: forked, spawned, sent; and copied."""

from __future__ import annotations

import copy
import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch

from distcam.errors import GalleryError, InputError
from distcam.forking import ForkSafeLock
from distcam.index import Gallery, Hits, encode_to_file, read_encodings
from distcam.retrieval import Retriever

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def _plain(found: list[Hits]) -> list[tuple[list[int], list[float]]]:
    return [(hits.ids.tolist(), hits.distances.tolist()) for hits in found]


def _answers(gallery: Gallery, queries: np.ndarray) -> list[tuple[list[int], list[float]]]:
    return _plain(gallery.search(queries, 3))


def _found(retriever: Retriever, images: list[str]) -> list[list[tuple[int, float]]]:
    return [[(match.id, match.distance) for match in matches] for matches in retriever.query(images, k=3)]


@pytest.fixture(scope="module")
def images(photos: Path) -> list[str]:
    return [str(path) for path in sorted(photos.rglob("*.jpg"))[:8]]


# --- Forked -----------------------------------------------------------------------------------------------------------

# In a process of its own with two threads, which is what makes a fork dangerous; a child that hangs is killed.
FORKED = """
import json, multiprocessing, sys, threading, traceback
import faiss, numpy as np, torch
from distcam import Encoder, Gallery, Retriever
from distcam.errors import GalleryError
from distcam.index.backends import opened_for_writing

torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
folder, jobs, images = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
gallery = Gallery.open(folder)
retriever = Retriever(gallery, precision="fp32")
vectors = np.repeat(gallery.embeddings(gallery.ids), 30, 0)

def search():
    return [hits.ids.tolist() for hits in gallery.search(vectors, 5)]

def query():
    return [[match.id for match in matches] for matches in retriever.query(images, k=3)]

class Searching(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, number):
        gallery.search(vectors, 5)
        return retriever.query(images[number], k=1)[0].id

truth = {"search": search(), "query": query()}

def in_child(work):
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=lambda: there.send(work()))
    child.start()
    answered = here.poll(60)
    result = here.recv() if answered else None
    child.kill()
    child.join()
    assert answered, "no answer: deadlock"
    return result

for name, job in jobs.items():
    try:
        exec(job, globals())
        print(json.dumps([name, "done"]), flush=True)
    except BaseException:
        print(json.dumps([name, traceback.format_exc()]), flush=True)
"""

JOBS = {
    "search": "assert in_child(search) == truth['search']",
    "query": "assert in_child(query) == truth['query']",
    "query in a thread of the child": """
def threaded():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(search), pool.submit(search)]]
assert in_child(threaded) == [truth["search"]] * 2
""",
    "grandchild": "assert in_child(lambda: in_child(search)) == truth['search']",
    "pool": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.apply_async(search).get(60) == truth["search"]
    assert pool.apply_async(query).get(60) == truth["query"]
""",
    "data loader": """
import warnings
warnings.simplefilter("ignore")
options = {"batch_size": 2, "num_workers": 2, "timeout": 60, "multiprocessing_context": "fork"}
loader = torch.utils.data.DataLoader(Searching(), **options)
assert torch.cat(list(loader)).tolist() == [found[0] for found in truth["query"]]
""",
    "while a thread searches": """
stopped = threading.Event()
def keep_on():
    while not stopped.is_set():
        search()
other = threading.Thread(target=keep_on, daemon=True)
other.start()
for _ in range(3):
    assert in_child(search) == truth["search"]
stopped.set()
other.join()
""",
    "writer": """
from pathlib import Path
with opened_for_writing(Path(folder)) as writer:
    def write():
        try:
            writer.remove([0])
            writer.commit()
        except GalleryError as error:
            return str(error)
    assert "was opened for writing before this process was forked" in in_child(write)
    def held():
        try:
            Gallery.open(folder).remove(paths=["x"])
        except GalleryError as error:
            return type(error).__name__
    assert in_child(held) == "GalleryLockedError"  # the child's end has not let go of it
    assert in_child(held) == "GalleryLockedError"
    started, ended = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()
    lingering = multiprocessing.get_context("fork").Process(target=lambda: (started.set(), ended.wait(60)))
    lingering.start()
    assert started.wait(60)
with opened_for_writing(Path(folder)):  # nor does a child that lives on hold it
    pass
ended.set()
lingering.join(60)
""",
}


@pytest.fixture(scope="module")
def outcomes(small_gallery, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each job, all done in one process."""
    folder = tmp_path_factory.mktemp("forked") / "g"
    shutil.copytree(small_gallery.folder, folder)
    command = [sys.executable, "-W", "ignore", "-c", FORKED, folder, json.dumps(JOBS), *images]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert child.returncode == 0, child.stderr
    return dict(map(json.loads, child.stdout.splitlines()))


@needs_fork
@pytest.mark.parametrize("job", JOBS)
def test_a_forked_process_answers_or_says_why_not(outcomes: dict[str, str], job: str) -> None:
    assert outcomes[job] == "done"


@needs_fork
def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    lock = ForkSafeLock()
    with lock:
        child = os.fork()
        if not child:
            with lock:  # else the alarm ends this process
                os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    with lock:
        pass


class _SlowFinder:
    """Looks for the module for half a second, while importlib holds its lock and `sys.modules` does not know it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "slowly_imported":
            time.sleep(0.5)


@needs_fork
@pytest.mark.parametrize("slow", ["to find", "to run"])
def test_a_module_that_another_thread_is_importing_can_be_imported_in_the_child(
    slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import time\ntime.sleep(0.5)\n" if slow == "to run" else ""
    (tmp_path / "slowly_imported.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    if slow == "to find":
        monkeypatch.setattr(sys, "meta_path", [_SlowFinder(), *sys.meta_path])
    importing = threading.Thread(target=importlib.import_module, args=["slowly_imported"])
    importing.start()
    time.sleep(0.1)
    child = os.fork()
    if not child:
        signal.alarm(10)  # ends this process if it hangs
        importlib.import_module("slowly_imported")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    importing.join()
    del sys.modules["slowly_imported"]
    assert status == 0


# --- Sent and copied --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy, copy.copy])
def test_what_is_sent_or_copied_gives_equal_answers(small_gallery, small_encoder, images: list[str], change) -> None:
    queries = small_gallery.embeddings(small_gallery.ids[:4])
    gallery = change(small_gallery)
    assert isinstance(gallery, Gallery)
    assert _answers(gallery, queries) == _answers(small_gallery, queries)
    for retriever in (Retriever(small_gallery), Retriever(small_gallery, small_encoder, precision="fp32")):
        assert _found(change(retriever), images) == _found(retriever, images)
    stored = change(retriever.query_stored(3, k=3))
    assert [match.id for match in stored] == [match.id for match in retriever.query_stored(3, k=3)]
    (matches,) = retriever.query(images[:1], k=3)
    torch.testing.assert_close(change(matches).explain().query_maps, matches.explain().query_maps)
    assert change(small_gallery.prototypes).labels == small_gallery.prototypes.labels


def test_a_gallery_keeps_the_root_that_it_was_opened_with(small_gallery, tmp_path: Path) -> None:
    gallery = Gallery.open(small_gallery.folder, root=tmp_path)
    assert pickle.loads(pickle.dumps(gallery)).root == tmp_path
    assert pickle.loads(pickle.dumps(small_gallery)).root == small_gallery.root


def test_encodings_are_sent_as_their_file(photos: Path, small_encoder, tmp_path: Path) -> None:
    encode_to_file(photos, small_encoder, tmp_path / "e.h5")
    encodings = read_encodings(tmp_path / "e.h5")
    again = pickle.loads(pickle.dumps(encodings))
    np.testing.assert_array_equal(again.embeddings, encodings.embeddings)


def test_what_cannot_be_sent_says_what_to_do(small_gallery) -> None:
    retriever = Retriever(small_gallery)
    own = Retriever(small_gallery, inference=retriever.inference)
    with pytest.raises(GalleryError, match=r"Retriever\(Gallery\.open\("):
        pickle.dumps(own)
    small_gallery.search(small_gallery.embeddings([0]), 1)
    with pytest.raises(InputError, match="send the Gallery"):
        pickle.dumps(small_gallery.searcher)


@pytest.mark.slow
def test_a_spawned_pool_answers(small_gallery, images: list[str]) -> None:
    queries = small_gallery.embeddings(small_gallery.ids[:4])
    retriever = Retriever(small_gallery)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(small_gallery.search, (queries, 3))
        found = pool.apply_async(retriever.query, (images,), {"k": 3})
        assert _plain(there.get(120)) == _answers(small_gallery, queries)
        assert [[match.id for match in matches] for matches in found.get(120)] == [
            [id_ for id_, _ in hits] for hits in _found(retriever, images)
        ]


def test_a_pool_of_threads_answers(small_gallery, images: list[str]) -> None:
    queries = small_gallery.embeddings(small_gallery.ids[:4])
    truth = _answers(small_gallery, queries)
    with ThreadPool(4) as pool:
        assert pool.map(lambda _: _answers(small_gallery, queries), range(16)) == [truth] * 16
