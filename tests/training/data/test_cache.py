"""What stays in memory: a number of bytes decides, and images that are decoded when needed are the same ones."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from distcam.errors import InputError
from distcam.fewshot.training import FewShotRecipe
from distcam.images import Transform
from distcam.segmentation import MaskedImages
from distcam.segmentation.data import label_map
from distcam.segmentation.segmenter.losses import dense_training_set
from distcam.synthetic.miniatures import write_miniature
from distcam.training.data.splits import DataSettings
from distcam.training.data.training_set import TrainingSet, stays_in_memory
from distcam.training.recipes.tables import parse


@pytest.mark.parametrize(
    ("cache", "most"), [("auto", 2 * 1024**3), ("memory", None), ("none", -1), (0.5, 512 * 1024**2), (0, 0)]
)
def test_bytes_decide(cache, most) -> None:
    transform = Transform(16)
    fitting = 10**9 if most is None else most // (3 * 16 * 16)
    assert stays_in_memory(max(fitting, 0), transform, cache) == (cache != "none")
    assert stays_in_memory(fitting + 1, transform, cache) == (cache == "memory")


def test_a_size_is_a_setting() -> None:
    assert parse(DataSettings, {"images": "x", "cache": 16}, "data").cache == 16
    with pytest.raises(InputError, match="cache"):
        parse(DataSettings, {"images": "x", "cache": -1}, "data")
    with pytest.raises(InputError, match="cache"):
        parse(DataSettings, {"images": "x", "cache": "much"}, "data")


def test_pixels_come_from_somewhere() -> None:
    labels = ["a", "b"]
    with pytest.raises(InputError, match="expected pixels, or the images"):
        TrainingSet.from_pixels(None, labels, transform=Transform(8))
    images = [Image.new("RGB", (9, 8), colour) for colour in ("red", "blue")]
    lazy = TrainingSet.from_pixels(None, labels, transform=Transform(8), original=images.__getitem__)
    assert torch.equal(lazy.pixels(torch.tensor([1]))[0], Transform(8)(images[1]))


def test_few_shot_images_are_the_same_when_they_are_decoded_on_demand(tmp_path) -> None:
    write_miniature("tieredimagenet", tmp_path)
    table = {
        "data": {"images": "tieredimagenet@tieredimagenet", "size": 16},
        "loss": [{"kind": "cross_entropy"}],
        "test": [{"n_query": 2, "episodes": 3}],
    }
    found = {}
    for cache in ("none", "memory"):
        recipe = FewShotRecipe.from_dict({**table, "data": {**table["data"], "cache": cache}}, folder=tmp_path)
        encoder = recipe.encoder.build(recipe.data, folder=tmp_path, seed=0).eval()
        opened = recipe.open(encoder.transform, cache=tmp_path)
        assert (opened.sets["train"].held is None) == (cache == "none")
        pixels = opened.sets["train"].pixels(torch.arange(24))
        found[cache] = pixels, opened.measure(encoder, None, None)
    assert torch.equal(found["none"][0], found["memory"][0])
    assert found["none"][1] == found["memory"][1]


def test_images_with_masks_are_the_same_when_they_are_decoded_on_demand(tmp_path) -> None:
    write_miniature("voc", tmp_path)
    data, transform = MaskedImages.from_voc(tmp_path, "trainaug"), Transform(16, fit="squash")
    lazy, held = (dense_training_set(data, transform, cache=cache) for cache in ("none", "memory"))
    assert lazy.held is None
    index = torch.tensor([3, 0, 21])
    assert torch.equal(lazy.pixels(index), held.held[index])
    assert torch.equal(lazy.labels, held.labels)
    for one, other in zip(vars(lazy.regions.of(index)).values(), vars(held.regions.of(index)).values(), strict=True):
        assert torch.equal(one, other)
    for i in index.tolist():  # all that is decided, and nothing else
        own = lazy.regions.of(torch.tensor([i]))
        raster = (own.raster * (own.label + 1)[:, None, None]).sum(0) - 1
        assert torch.equal(raster, torch.from_numpy(label_map(data.mask(i), transform)).float())
    assert [len(part.regions.raster) for part in (lazy, held)] == [0, 0]
    assert len(lazy.regions.of(torch.zeros(0, dtype=torch.long)).raster) == 0
