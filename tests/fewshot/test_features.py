"""Features that are made once: the gallery's format, reuse, and encoders that cannot be evaluated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from distcam.datasets import ArrayImages, FileImages, Split, open_data
from distcam.encoders import Encoder
from distcam.errors import FingerprintMismatchError, ImageError, InputError
from distcam.fewshot import evaluate, sample_episodes
from distcam.fewshot.features import cached_features, encode_split
from distcam.images import Transform
from distcam.index import encode_to_file, read_encodings
from distcam.remarks import DistcamWarning


@pytest.fixture(scope="module")
def split(photos):
    return open_data(str(photos))["novel"]


@pytest.fixture(scope="module")
def encoded(split, small_encoder, tmp_path_factory):
    return encode_split(split, small_encoder, tmp_path_factory.mktemp("features") / "novel.h5")


def test_the_file_equals_that_of_distcam_encode(photos, split, small_encoder, encoded, tmp_path) -> None:
    encode_to_file(photos, small_encoder, tmp_path / "photos.h5")
    other = read_encodings(tmp_path / "photos.h5")
    assert [record.path for record in other.records] == [record.path for record in encoded.records]
    assert other.labels == encoded.labels == split.labels.tolist()
    np.testing.assert_array_equal(other.embeddings, encoded.embeddings)
    assert cached_features(split, small_encoder, tmp_path / "photos.h5").embeddings.shape == other.embeddings.shape


def test_cached_features_need_no_encoder(split, small_encoder, encoded, monkeypatch) -> None:
    monkeypatch.setattr(Encoder, "forward", None)
    again = cached_features(split, small_encoder, encoded.file)
    names = [record.path for record in again.records]
    episodes = sample_episodes(split.labels, names=split.names, n_way=3, n_query=4, n_episodes=50)
    assert evaluate(again.embeddings, episodes, names=names).accuracy.shape == (50,)


def test_features_of_another_encoder_or_split_are_refused(split, small_encoder, encoded) -> None:
    other = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"), seed=1)
    with pytest.raises(FingerprintMismatchError, match=r"holds features of conv4/.*, the encoder given is conv4/"):
        cached_features(split, other, encoded.file)
    more = Split("x/novel", [*split.names, "new.jpg"], [*split.labels, "new"], split.images)
    with pytest.raises(InputError, match=r"lacks 1 of the 25 images of x/novel, the first is 'new.jpg'"):
        cached_features(more, small_encoder, encoded.file)
    renamed = Split("x/novel", split.names, ["?", *split.labels[1:]], split.images)
    with pytest.raises(InputError, match=r"says that .* is .*, x/novel that it is '\?'"):
        cached_features(renamed, small_encoder, encoded.file)


def test_an_encoder_in_training_mode_is_refused(split, tmp_path) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"))
    encoder.train()
    with pytest.raises(InputError, match=r"in training mode; call encoder.eval"):
        encode_split(split, encoder, tmp_path / "x.h5")
    encoder.eval()
    norm = next(part for part in encoder.modules() if isinstance(part, torch.nn.BatchNorm2d))
    norm.train()
    with pytest.raises(InputError, match="uses the statistics of each batch, which makes every result transductive"):
        encode_split(split, encoder, tmp_path / "x.h5")
    norm.eval()
    norm.running_mean = norm.running_var = None
    with pytest.raises(InputError, match="uses the statistics of each batch"):
        encode_split(split, encoder, tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_name_the_image(split, tmp_path) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"))
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(InputError, match=r"the features of .*jpg' are not finite"):
        encode_split(split, encoder, tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_read_is_left_out_and_named(small_encoder, tmp_path) -> None:
    names = ("a.png", "b.png", "c.png")
    for name in ("a.png", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    split = Split("x/novel", list(names), ["a", "b", "c"], FileImages(tmp_path, names))
    with pytest.raises(ImageError, match=r"b.png"):
        encode_split(split, small_encoder, tmp_path / "x.h5", strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == list(names)
    with pytest.warns(DistcamWarning, match=r"1 of 3 images cannot be used and are left out, the first: b.png: "):
        found = encode_split(split, small_encoder, tmp_path / "x.h5")
    assert ([record.path for record in found.records], list(found.skipped)) == (["a.png", "c.png"], ["b.png"])
    rest = split.without(found.skipped)
    assert (rest.names.tolist(), rest.labels.tolist(), rest.images[1].size) == (["a.png", "c.png"], ["a", "c"], (9, 9))
    with pytest.warns(DistcamWarning, match="1 of 3 images cannot be used"):
        again = cached_features(split, small_encoder, tmp_path / "x.h5")
    np.testing.assert_array_equal(again.embeddings, found.embeddings)
    with pytest.raises(InputError, match="1 of 3 images cannot be used"):
        cached_features(split, small_encoder, tmp_path / "x.h5", strict=True)
    with pytest.raises(InputError, match="is not a folder"):
        encode_split(split, small_encoder, tmp_path / "nowhere" / "x.h5")
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.png").unlink()
    with pytest.raises(ImageError, match=r"a.png"):
        encode_split(split, small_encoder, tmp_path / "y.h5")


def test_images_of_an_archive_are_encoded_like_files(small_encoder, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(pixels[number]).save(tmp_path / f"{number}.png")
    names = ["0.png", "1.png"]
    splits = [Split("x/novel", names, ["a", "b"], images) for images in (
        ArrayImages(tmp_path, pixels.__getitem__), FileImages(tmp_path, names))]  # fmt: skip
    a, b = (encode_split(each, small_encoder, tmp_path / f"{i}.h5") for i, each in enumerate(splits))
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
