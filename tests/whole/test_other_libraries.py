"""Galleries of the libraries' networks in a second process without a network: queried, added to, synced, served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import distcam
from foreign import folder_of_open_clip, folder_of_transformers, photograph

SECOND = """
import io, socket, sys
from pathlib import Path
from PIL import Image

def refuse(*_args, **_options):
    raise OSError("no network")

socket.getaddrinfo = socket.create_connection = refuse

from distcam import Encoder, Gallery, Retriever
from distcam.index.building import ray
from distcam.index.building.build import InferenceOptions
from foreign import photograph

for folder in map(Path, sys.argv[2:]):
    photos = Path(sys.argv[1])
    gallery = Gallery.open(folder)
    before = len(gallery)
    retriever = Retriever(gallery)
    matches = retriever.query(photos / "a" / "0.jpg", k=3)
    assert matches[0].path.endswith("a/0.jpg") and matches[0].similarity > 0.999
    explanation = matches.explain()
    explanation.save(folder.with_suffix(".html"))
    settings = ray._settled(InferenceOptions(batch_size=4))
    work = ray._Work(settings, gallery.manifest.spec, maps=False)
    assert ray._Worker(ray._checkpoint(retriever.encoder), work)
    from commands import distcam
    new = photograph(photos / "b" / f"new-{folder.name}.jpg", seed=77)
    distcam("index", "add", folder, photos / "b" / f"new-{folder.name}.jpg")
    distcam("index", "sync", folder, photos)
    assert len(Gallery.open(folder)) > before
    from serving import image_bytes, served, upload
    with served(folder) as client:
        answer = client.post("/api/v1/search", files=upload(image_bytes()))
        assert answer.status_code == 200, answer.text
print("done")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_galleries_of_the_three_libraries_live_on_without_them_being_reachable(tmp_path: Path) -> None:
    for library in ("timm", "transformers", "open_clip", "fastapi"):
        pytest.importorskip(library, reason="needs pip install 'distcam[models,serve]'")
    photos = tmp_path / "photos"
    for label in ("a", "b"):
        (photos / label).mkdir(parents=True)
        for number in range(3):
            photograph(photos / label / f"{number}.jpg", seed=number + 10 * (label == "b"))
    names = {
        "timm": "timm:test_vit",
        "hf": f"hf:{folder_of_transformers('dinov2', tmp_path / 'hf-model')}",
        "clip": f"open_clip:{folder_of_open_clip(tmp_path / 'clip-model')}",
    }
    for short, name in names.items():
        distcam("index", "build", photos, "--out", tmp_path / short, "--encoder", name, "--weights", "random")
    for model in ("hf-model", "clip-model"):
        (tmp_path / model).rename(tmp_path / f"{model}-gone")
    shared = Path(__file__).parent.parent / "shared"
    paths = os.pathsep.join([str(shared), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "PYTHONPATH": paths}
    command = [sys.executable, "-c", SECOND, photos, *(tmp_path / short for short in names)]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
