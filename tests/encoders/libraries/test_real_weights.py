"""Published weights of timm's EfficientNet-Lite: distcam ranks real photographs as timm alone does."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distcam.encoders import Encoder, Inference
from distcam.images import read_image

timm = pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")
DATA = Path(os.environ.get("DISTCAM_DATA", "absent"))
PER_CLASS = {"gallery": 15, "query": 10}


def chosen() -> dict[str, list[tuple[Path, str]]]:
    """Some images of every class, in the order of the list."""
    found: dict[str, list[tuple[Path, str]]] = {"gallery": [], "query": []}
    with (DATA / "imagenette" / "images.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            part = found[row["split"]]
            if sum(label == row["label"] for _, label in part) < PER_CLASS[row["split"]]:
                part.append((DATA / "imagenette" / row["path"], row["label"]))
    return found


def recall_at_1(vectors: dict[str, np.ndarray], images: dict[str, list[tuple[Path, str]]]) -> float:
    unit = {part: v / np.linalg.norm(v, axis=1, keepdims=True) for part, v in vectors.items()}
    nearest = (unit["query"] @ unit["gallery"].T).argmax(1)
    labels = {part: np.array([label for _, label in each]) for part, each in images.items()}
    return float((labels["gallery"][nearest] == labels["query"]).mean())


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "imagenette").is_dir(), reason="needs DISTCAM_DATA")
def test_recall_at_1_of_published_weights_is_that_of_timm_alone() -> None:
    (file,) = (DATA / "weights").glob("tf_efficientnet_lite0_timm-*.pth")
    encoder = Encoder.load("timm:tf_efficientnet_lite0", weights=file)
    own = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    own.load_state_dict(torch.load(file, weights_only=True), strict=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own), is_training=False)
    images = chosen()
    inference = Inference(encoder, device="cpu", precision="fp32")
    mine, theirs = {}, {}
    with torch.no_grad():
        for part, each in images.items():
            mine[part] = inference.encode_images([path for path, _ in each]).embedding.numpy()
            theirs[part] = np.concatenate([own(transform(read_image(p))[None]).numpy() for p, _ in each])
    found = recall_at_1(mine, images)
    assert found == recall_at_1(theirs, images)
    assert found > 0.9
