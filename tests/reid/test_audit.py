"""The audit: every kind of finding, planted and found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam.errors import InputError
from distcam.reid import Audit, audit, read_data
from distcam.reid.auditing import difference_hash


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def market(tmp_path: Path) -> Path:
    names = [
        "bounding_box_train/0007_c1s1_000001_01.jpg",
        "bounding_box_train/0007_c2s1_000002_01.jpg",
        "query/0001_c1s1_000003_00.jpg",
        "query/0002_c1s1_000004_00.jpg",
        "bounding_box_test/0001_c2s1_000005_01.jpg",
        "bounding_box_test/0002_c1s1_000006_01.jpg",
        "bounding_box_test/0000_c3s1_000007_01.jpg",
        "bounding_box_test/-1_c3s1_000008_01.jpg",
    ]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(seed).save(tmp_path / name, quality=95)
    return tmp_path


def looked(root: Path, **options: object) -> Audit:
    return audit(read_data(root), **options)  # type: ignore[arg-type]


def test_counts_stand_beside_the_published_ones(market: Path) -> None:
    found = looked(market)
    assert found.counts["gallery images"] == 3  # junk is no gallery image, distractors are
    assert (found.counts["gallery junk"], found.counts["gallery distractors"]) == (1, 1)
    assert found.counts["gallery identities"] == 2
    assert ("train images", 2, 12_936) in found.known
    assert "train images: 2, published 12,936" in found.problems
    assert "DIFFERS" in str(found)
    assert found.cameras == {
        "0": {"train": 1, "query": 2, "gallery": 1},
        "1": {"train": 1, "gallery": 1},
        "2": {"gallery": 2},
    }


def test_identities_with_few_images_and_queries_without_a_match_are_listed(market: Path) -> None:
    found = looked(market)
    assert found.few_images == {"7": 2}
    assert looked(market, least_images=2).few_images == {}
    assert found.without_match == ("query/0002_c1s1_000004_00.jpg",)  # its only match is from the same camera


def test_an_identity_in_train_and_test_is_a_problem(market: Path) -> None:
    picture(20).save(market / "bounding_box_train" / "0001_c1s1_000009_01.jpg")
    found = looked(market)
    assert found.in_train_and_test == ("1",)
    assert "1 identities in train and in test" in found.problems


def test_identical_files_are_found_with_what_they_break(market: Path) -> None:
    source = market / "query" / "0001_c1s1_000003_00.jpg"
    (market / "bounding_box_train" / "0009_c1s1_000009_01.jpg").write_bytes(source.read_bytes())
    found = looked(market)
    assert [set(group.paths) for group in found.duplicates] == [
        {"query/0001_c1s1_000003_00.jpg", "bounding_box_train/0009_c1s1_000009_01.jpg"}
    ]
    assert (found.duplicates[0].has_several_identities, found.duplicates[0].has_train_and_test) == (True, True)


def test_a_recompressed_copy_under_another_identity_is_a_near_duplicate(market: Path) -> None:
    copy = market / "bounding_box_train" / "0009_c1s1_000009_01.jpg"
    with Image.open(market / "query" / "0001_c1s1_000003_00.jpg") as image:
        image.save(copy, quality=70)
    found = looked(market, near_bits=3)
    assert not found.duplicates
    assert [set(pair.paths) for pair in found.near_duplicates] == [
        {"query/0001_c1s1_000003_00.jpg", "bounding_box_train/0009_c1s1_000009_01.jpg"}
    ]
    assert looked(market).near_duplicates == ()


def test_unreadable_and_missing_files_are_listed_with_the_reason(market: Path) -> None:
    (market / "query" / "0001_c2s1_000010_00.jpg").write_bytes(b"no image")
    (market / "query" / "Thumbs.db").write_bytes(b"")
    found = looked(market)
    assert list(found.unreadable) == ["query/0001_c2s1_000010_00.jpg"]
    assert found.ignored == ("query/Thumbs.db",)
    data = read_data(market)
    data.file(data.images[0]).unlink()
    assert "No such file" in audit(data).unreadable[data.images[0].path]


def test_a_quick_audit_opens_no_file(market: Path) -> None:
    (market / "query" / "0001_c2s1_000010_00.jpg").write_bytes(b"no image")
    found = looked(market, open_files=False)
    assert (found.n_opened, found.unreadable) == (0, {})
    assert "no file was opened" in str(found)


def test_everything_is_ready_for_json(market: Path) -> None:
    found = json.loads(json.dumps(looked(market, near_bits=0).to_dict()))
    assert found["counts"]["query images"] == 2
    assert found["known"][0] == {"name": "train images", "found": 2, "published": 12_936}


def test_options_out_of_range_are_refused(market: Path) -> None:
    with pytest.raises(InputError, match="near_bits must be from 0 to 3"):
        looked(market, near_bits=4)
    with pytest.raises(InputError, match="least_images must be at least 1"):
        looked(market, least_images=0)


def test_the_difference_hash_survives_size_and_brightness() -> None:
    image = picture(1)
    changed = image.resize((64, 128)).point(lambda level: level * 0.8)
    assert (difference_hash(image) ^ difference_hash(changed)).bit_count() <= 3
    assert (difference_hash(image) ^ difference_hash(picture(2))).bit_count() > 15
