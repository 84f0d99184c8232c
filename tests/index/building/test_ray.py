"""The Ray engine gives the local engine's gallery; what happens on a cluster is tested on one of this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import fails
from PIL import Image
from torch import nn

from distcam.encoders import Encoder, Linear
from distcam.errors import ImageError, InputError, MissingExtraError
from distcam.images import Transform, list_images
from distcam.index import Gallery
from distcam.index.backends import opened_for_writing
from distcam.index.building import ray as ray_engine
from distcam.index.building.build import InferenceOptions, add_images
from distcam.index.building.ingest import Encoded, Offer
from distcam.index.building.ray import RayEngine
from distcam.index.storage.manifest import Spec


def _encoder() -> Encoder:
    return Encoder.load("conv4", weights="random", transform=Transform(32, fit="squash"), head=Linear(64, 8))


def _paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(60):
        _paint(tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png", number)
    (tmp_path / "photos" / "b" / "broken.png").write_bytes(b"<html>")
    return tmp_path / "photos"


# --- Without Ray ------------------------------------------------------------------------------------------------------


def test_a_worker_answers_with_the_local_engines_bits(tmp_path: Path, photos: Path) -> None:
    encoder = _encoder()
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g", store_maps=True, batch_size=4)
    offers = [
        Offer(gallery.file(record), record.path, record.label, {"camera": "7"})
        for record in gallery.records(gallery.ids[:40])
    ]
    unchanged = offers[3]
    unchanged.known_sha256 = gallery.snapshot.file_state(3)[0]
    offers.insert(5, Offer(photos / "b" / "broken.png", "b/broken.png", replaces=12))
    spec = Spec("cosine", 8, 64)
    settings = ray_engine._settled(InferenceOptions(batch_size=4, precision="auto"))
    assert settings.precision == gallery.manifest.encoder.precision
    work = ray_engine._Work(settings, spec, maps=True)
    worker = ray_engine._Worker(ray_engine._checkpoint(encoder), work)
    found = []
    for start in range(0, len(offers), 16):
        for encoded, vectors, failures in worker.encode(offers[start : start + 16]):
            refused = [(offer, ray_engine._failure(offer, reason)) for offer, reason in failures]
            found.append(Encoded(encoded, vectors, refused))
    taken = [offer for encoded in found for offer in encoded.offers]
    assert [offer.path for offer in taken] == [
        offer.path for offer in offers if offer.path not in ("a/06.png", "b/broken.png")
    ]
    ids = [int(gallery.ids_where(f"path={offer.path}")[0]) for offer in taken]
    vectors = [encoded.vectors for encoded in found if encoded.vectors is not None]
    np.testing.assert_allclose(
        np.concatenate([v.embedding for v in vectors]), gallery.embeddings(ids), rtol=1e-5, atol=1e-6
    )
    assert vectors[0].maps is not None
    assert vectors[0].maps.dtype == np.float16
    assert [(offer.label, offer.columns) for offer in taken[:1]] == [("a", {"camera": "7"})]
    assert taken[0].sha256 == gallery.snapshot.file_state(0)[0]
    (unchanged_now, error), (broken, reason) = [failure for encoded in found for failure in encoded.failures]
    assert (unchanged_now.path, type(error).__name__) == ("a/06.png", "_Unchanged")
    assert (broken.path, broken.replaces, type(reason)) == ("b/broken.png", 12, ImageError)


def test_without_ray_the_message_says_what_to_install(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'distcam\[ray\]'"):
        Gallery.build(photos, _encoder(), out=tmp_path / "g", engine="ray")


def test_ray_is_not_started_when_there_is_nothing_to_encode(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _encoder()
    Gallery.build(photos, encoder, out=tmp_path / "g")
    (photos / "b" / "broken.png").unlink()
    monkeypatch.setitem(sys.modules, "ray", None)
    with opened_for_writing(tmp_path / "g") as writer:
        report = add_images(
            writer, list_images(photos), encoder, settings=InferenceOptions(), encode=RayEngine().stream
        )
    assert (report.added, report.unchanged) == (0, 60)


def test_what_the_engine_cannot_do_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="a network of your own"):
        Gallery.build(photos, Encoder(nn.Conv2d(3, 4, 1)), out=tmp_path / "g", engine="ray")
    with pytest.raises(InputError, match="expected the engine local or ray, got 'dask'"):
        Gallery.build(photos, _encoder(), out=tmp_path / "g", engine="dask")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 Ray worker"):
        RayEngine(workers=0)
    assert "not used by the local engine; add --engine ray" in fails(
        monkeypatch, capsys, "index", "build", photos, "--out", tmp_path / "g", "--ray-workers", 2
    )


@pytest.mark.parametrize(("resources", "asked", "pool"), [
    ({"CPU": 4.0}, None, 3), ({"CPU": 1.0}, None, 1), ({"CPU": 4.0}, 2, 2), ({"CPU": 8.0, "GPU": 2.0}, None, 2),
])  # fmt: skip
def test_one_cpu_stays_free(resources: dict[str, float], asked: int | None, pool: int) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: resources)
    gpus = int(resources.get("GPU", 0))
    assert ray_engine._pool_size(ray, RayEngine(workers=asked), gpus=gpus, tasks=100) == pool
    assert ray_engine._pool_size(ray, RayEngine(workers=asked), gpus=gpus, tasks=1) == 1
    with pytest.raises(InputError, match="expected at most"):
        ray_engine._pool_size(ray, RayEngine(workers=9), gpus=gpus, tasks=100)


# --- With Ray ---------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from distcam.encoders import Encoder
from distcam.images import list_images
from distcam.index.building.build import InferenceOptions, add_images, opened_for_building
from distcam.index.building.ray import RayEngine
from distcam.index.storage.writer import CommitLimits

photos, out, job = sys.argv[1:]
encoder = Encoder.load(Path(out).parent / "encoder.safetensors")
listing = list_images(photos)
killed = []

def workers():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_Worker"):
            yield int(folder.name)

def progress(done, total):
    print("done", done, flush=True)
    if job == "kill a worker" and not killed:
        killed.append(min(workers()))
        os.kill(killed[0], signal.SIGKILL)
    if job == "be killed" and done >= 16:
        time.sleep(60)

with opened_for_building(
    Path(out), listing, encoder, metric="cosine", store_maps=True, limits=CommitLimits(images=8)
) as writer:
    report = add_images(
        writer, listing, encoder, encode=RayEngine(workers=2).stream, settings=InferenceOptions(batch_size=1),
        store_maps=True, complete=True, progress=progress,
    )
print(report, len(killed), flush=True)
"""


def _start(photos: Path, out: Path, job: str) -> subprocess.Popen[str]:
    """A process whose network is its own loopback, if this user may make one: Ray listens on all interfaces."""
    command = [sys.executable, "-c", CHILD, str(photos), str(out), job]
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip"):
        command = ["unshare", "-n", "bash", "-c", 'ip link set lo up; exec "$@"', "bash", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _no_ray_is_left(seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        titles = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                titles.append((folder / "cmdline").read_bytes())
            except OSError:
                continue
        if not any(b"raylet" in title.split(b"\0")[0] or title.startswith(b"ray::_Worker") for title in titles):
            return True
        time.sleep(0.5)
    return False


def _is_the_local_gallery(ray: Gallery, local: Gallery) -> None:
    assert [record.to_dict() for record in ray.records(ray.ids)] == [
        record.to_dict() for record in local.records(local.ids)
    ]
    np.testing.assert_array_equal(ray.pooled(ray.ids), local.pooled(local.ids))
    np.testing.assert_array_equal(ray.embeddings(ray.ids), local.embeddings(local.ids))
    np.testing.assert_array_equal(ray.maps(ray.ids), local.maps(local.ids))
    assert ray.spec == local.spec
    assert ray.manifest.encoder.fingerprint == local.manifest.encoder.fingerprint
    assert ray.manifest.encoder.precision == local.manifest.encoder.precision
    assert ray.skipped == local.skipped
    assert ray.manifest.complete
    assert ray.verify().is_sound
    assert ray.encoder_path is not None
    assert Encoder.load(ray.encoder_path).fingerprint == local.manifest.encoder.fingerprint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
@pytest.mark.parametrize("job", ["build", "kill a worker", "be killed"])
def test_two_workers_build_the_local_gallery_whatever_is_killed(tmp_path: Path, photos: Path, job: str) -> None:
    pytest.importorskip("ray", reason="needs pip install 'distcam[ray]'")
    encoder = _encoder()
    encoder.save(tmp_path / "encoder.safetensors")
    child = _start(photos, tmp_path / "ray", job)
    if job == "be killed":
        assert child.stdout is not None
        while int(child.stdout.readline().removeprefix("done ")) < 16:
            pass
        time.sleep(1)
        child.kill()
        child.communicate()
        assert _no_ray_is_left()
        half = Gallery.open(tmp_path / "ray", verify=True)
        assert 0 < len(half) < 60
        assert not half.manifest.complete
        child = _start(photos, tmp_path / "ray", "build")
    out, errors = child.communicate(timeout=200)
    assert child.returncode == 0, errors
    added, killed = out.splitlines()[-1].split(" ", 1)[0], out.split()[-1]
    assert int(added) == 60 if job != "be killed" else 0 < int(added) < 60
    assert int(killed) == (job == "kill a worker")
    assert _no_ray_is_left()
    local = Gallery.build(photos, encoder, out=tmp_path / "local", store_maps=True, batch_size=1)
    _is_the_local_gallery(Gallery.open(tmp_path / "ray"), local)
