"""Training re-identification encoders on the one training loop, and measuring them the same way every time.

The strong baseline is `recipes/reid_walkers.toml`: batch-norm neck, last stride 1, label smoothing, batch-hard triplet
and center loss on the features before the neck, random erasing, warm-up, and full epochs of P × K batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..datasets.registry import read_data
from ..datasets.reid_records import ReidData
from ..encoders import Encoder, Inference
from ..errors import InputError
from ..images import Transform, list_images
from ..images.opening import unreadable
from ..metrics import Metric
from ..progress import Progress
from ..remarks import Skipped
from ..synthetic.walkers import WalkerSet, write_walkers
from ..training.data.batches import DataPart, RunData
from ..training.data.training_set import TrainingSet, say_left_out
from ..training.engine.step import Objective
from ..training.recipes.recipe import Recipe
from ..training.recipes.runs import run_recipe as train
from ..training.recipes.tables import Table
from .assessment import assess
from .features import Features
from .pairs import pair_energy
from .refinement import Refinement

__all__ = ["ReidRecipe", "TestSettings", "WalkerSettings", "train"]

CLOTHES = ("top", "bottom", "shoes")


class WalkerSettings(Table):
    """The synthetic set that a recipe draws for itself; see `write_walkers`."""

    identities: int = 100
    cameras: int = 4
    images_per_camera: int = 3
    look_alikes: float = 0.4
    distractors: float = 0.2
    junk: float = 0.2
    seed: int = 0


class TestSettings(Table):
    """Measures of queries and gallery after training.

    Attributes:
        format: of the data set, or "auto".
        options: of the format: `{ camera = "photo_id" }` for a table, for example.
        metric: that ranks.
        rerank: k1, k2, and the original distance's share of a second measurement; empty for none.
        before_neck: measure the features before the head as well.
        parts: walkers only: groups of a walker's parts whose share of the pair maps' energy is measured.
    """

    __test__ = False  # for pytest

    format: str = "auto"
    options: Mapping[str, str] = {}
    metric: Metric = "cosine"
    rerank: tuple[float, ...] = ()
    before_neck: bool = False
    parts: Mapping[str, tuple[str, ...]] = {"clothes": CLOTHES, "bag": ("bag",)}

    def _check(self) -> None:
        if len(self.rerank) not in (0, 3):
            raise InputError(f"rerank takes k1, k2 and a share such as [20, 6, 0.3], got {list(self.rerank)}")


class ReidRecipe(Recipe):
    """A re-identification run, resolved; `[data]` names a data set as `distcam reid evaluate` reads it."""

    walkers: WalkerSettings | None = None  # drawn first; left out, the data set has to be there
    test: TestSettings = TestSettings()

    def open(self, transform: Transform, *, cache: Path, progress: Progress | None = None) -> RunData:
        """The training identities; queries and gallery are measured in the end.

        Images that cannot be read, of any part, are left out.
        """
        data, skipped = readable(self.open_data(cache=cache), progress=progress)
        say_left_out(skipped, of=len(data) + len(skipped), strict=self.data.strict)
        least = 2 if self.sampler.kind.startswith("pk") else 1

        def measure(encoder: Encoder, _objective: Objective, _folder: Path | None) -> dict[str, float]:
            return measured(encoder, data, self.test)

        parts = {}  # where train and test number identities alike, those in both show
        for name, images in (("train", data.of("train")), ("query", data.queries), ("gallery", data.gallery)):
            space = "" if data.has_common_identities or name == "train" else "test "
            parts[name] = DataPart(len(images), frozenset(f"{space}{image.identity}" for image in images))
        train_set = training_set(data, transform, least=least)
        return RunData({"train": train_set}, parts=parts, left_out=skipped, measure=measure)

    def open_data(self, *, cache: Path) -> ReidData:
        """The data set that `[data]` names, drawn into `cache` if it is one of walkers."""
        if self.walkers is not None:
            folder = cache / f"walkers-{hashlib.sha256(repr(self.walkers).encode()).hexdigest()[:8]}"
            if not (folder / "walkers.csv").is_file():
                cache.mkdir(parents=True, exist_ok=True)
                write_walkers(folder, **self.walkers.model_dump())
            return WalkerSet.read(folder).data
        name, base = self.data.source(self.folder)
        return read_data(base / name, format=self.test.format, **self.test.options)


def readable(data: ReidData, *, progress: Progress | None = None) -> tuple[ReidData, tuple[Skipped, ...]]:
    """The data set without the images that cannot be read, and these; every file is decoded once."""
    found = unreadable([data.file(image) for image in data.images], progress=progress)
    skipped = tuple(Skipped(data.images[i].path, reason) for i, reason in found.items())
    return data.without({item.path for item in skipped}), skipped


def training_set(data: ReidData, transform: Transform, *, least: int = 1) -> TrainingSet:
    """The training images of a data set, labelled by identity; identities with fewer than `least` are left out."""
    count = Counter(image.identity for image in data.of("train"))
    images = [image for image in data.of("train") if count[image.identity] >= least]
    if not images:
        raise InputError(f"{data.root}: no training images" + (f" of identities with {least} or more" if count else ""))
    listing = list_images([data.file(image) for image in images])
    records = [record._replace(label=str(image.identity)) for record, image in zip(listing, images, strict=True)]
    return TrainingSet.from_listing(listing, transform, records=records)


def measured(encoder: Encoder, data: ReidData, test: TestSettings) -> dict[str, float]:
    """Rank-1, mAP (step) and mINP of the embeddings, re-ranked and before the head if asked for; and pair maps."""
    device = next(encoder.parameters()).device
    inference = Inference(encoder, device=str(device), batch_size=64)
    images = list({image.path: image for image in (*data.queries, *data.gallery)}.values())
    encoding, paths = inference.encode_images([data.file(image) for image in images]), tuple(i.path for i in images)
    wanted: list[tuple[str, Tensor, Refinement | None]] = [("", encoding.embedding, None)]
    if test.before_neck:
        wanted.append(("before neck ", encoding.pooled, None))
    if test.rerank:
        k1, k2, share = test.rerank
        wanted.append(("re-ranked ", encoding.embedding, Refinement(reranking=(int(k1), int(k2), share))))
    found: dict[str, float] = {}
    for name, rows, refinement in wanted:
        features = Features(rows.float().cpu().numpy(), paths)
        scores = assess(data, features, metric=test.metric, refinement=refinement).evaluation
        found |= {f"{name}rank-1": scores.rank(1), f"{name}mAP": scores.map_step, f"{name}mINP": scores.minp}
    if (data.root / "walkers.csv").is_file():
        found |= pair_energy(inference.encoder, WalkerSet(data.root), encoding, paths, parts=test.parts)
    return found
