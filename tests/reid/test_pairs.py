"""Pairs: shares that add up to the similarity, behind a batch-norm neck, over stripes and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distcam.encoders import BNNeck, Encoder, Inference, Linear, Sequential
from distcam.encoders.readouts import read_out
from distcam.errors import InputError
from distcam.images import Box, Transform, list_images
from distcam.reid import explain_pair, pairs_panel
from distcam.reid.pairs import BODY_PARTS, part_weights
from distcam.remarks import DistcamWarning


def tall_encoder(head=None) -> Encoder:
    """A Conv-4 for pictures of 64×32 pixels, with a neck that has seen data."""
    encoder = Encoder.load("conv4", weights="random", transform=Transform((64, 32), fit="squash"), head=head)
    encoder.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            encoder(torch.randn(8, 3, 64, 32, generator=generator))
    return encoder.eval()


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Path]:
    listing = list_images(photos)
    return [listing.file(record) for record in listing][:12:5]


@pytest.mark.parametrize("head", [None, BNNeck(64), Sequential(BNNeck(64), Linear(64, 16))])
def test_shares_add_up_to_the_cosine_of_the_embeddings(pictures: list[Path], head) -> None:
    inference = Inference(tall_encoder(head), precision="fp32")
    pair = explain_pair(inference, pictures[0], pictures[1])
    vectors = inference.encode_images(pictures[:2]).embedding
    expected = float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))
    assert pair.similarity == pytest.approx(expected, abs=1e-5)
    assert float(pair.probe_shares.sum()) == pytest.approx(expected, abs=1e-5)
    assert float(pair.match_shares.sum()) == pytest.approx(expected, abs=1e-5)
    assert sum(part.on_probe for part in pair.parts) == pytest.approx(expected, abs=1e-5)
    assert abs(pair.residual) < 1e-5
    assert pair.is_exact
    assert [part.name for part in pair.parts] == ["top", "upper", "lower", "bottom"]


def test_a_pair_is_of_first_order_where_the_readout_is(pictures: list[Path]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Tanh()]
    encoder = Encoder(read_out(nn.Sequential(*layers)), transform=Transform((64, 32), fit="squash")).eval()
    with pytest.warns(DistcamWarning, match="maps are of first order"):
        pair = explain_pair(Inference(encoder, precision="fp32"), *pictures[:2])
    assert not pair.is_exact
    assert pair.to_dict()["is_exact"] is False


def test_a_neck_by_hand() -> None:
    """Two positions, two channels: f = a·F + b with a = g/s, b = -a·mu, divided among the positions."""
    from distcam.explain.methods.correspondence import correspondence

    a, b = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.5])
    query, match = torch.tensor([[[3.0, 1.0]], [[0.0, 2.0]]]), torch.tensor([[[1.0, 1.0]], [[4.0, 0.0]]])
    folded = [maps * a[:, None, None] + b[:, None, None] for maps in (query, match)]
    f, g = (a * maps.mean((1, 2)) + b for maps in (query, match))
    found = correspondence(*folded, metric="cosine")
    assert found.total == pytest.approx(float(torch.cosine_similarity(f, g, dim=0)))
    left = float((folded[0][:, 0, 0] / 2) @ g / (f.norm() * g.norm()))
    assert float(found.on_query()[0, 0]) == pytest.approx(left)


def test_exchanging_the_pictures_exchanges_the_maps(pictures: list[Path]) -> None:
    inference = Inference(tall_encoder(BNNeck(64)), precision="fp32")
    pair, back = explain_pair(inference, *pictures[:2]), explain_pair(inference, *reversed(pictures[:2]))
    torch.testing.assert_close(pair.probe_shares, back.match_shares)
    torch.testing.assert_close(pair.match_dist_map, back.probe_dist_map)


def test_stripes_cover_the_rows_that_the_encoder_saw() -> None:
    weights = part_weights(BODY_PARTS, rows=8, columns=4, view=Box(0, 0, 64, 128), height=128)
    assert list(weights) == ["head", "torso", "legs", "feet"]
    torch.testing.assert_close(sum(weights.values()), torch.ones(8, 4, dtype=torch.float64))
    assert weights["head"][:, 0].tolist() == pytest.approx([1, 0.36, 0, 0, 0, 0, 0, 0])
    cropped = part_weights({"upper": (0, 0.5)}, rows=2, columns=1, view=Box(0, 50, 10, 100), height=100)
    assert cropped["upper"].tolist() == [[0.0], [0.0]]
    assert cropped["elsewhere"].tolist() == [[1.0], [1.0]]


def test_masks_are_averaged_over_the_positions_and_what_is_left_is_elsewhere() -> None:
    mask = np.zeros((4, 4))
    mask[:2, :2] = 1
    weights = part_weights({"bag": mask}, rows=2, columns=2, view=Box(0, 0, 4, 4), height=4)
    assert weights["bag"].tolist() == [[1, 0], [0, 0]]
    assert weights["elsewhere"].tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "at least one part"),
        ({"elsewhere": (0, 1)}, "none of them called"),
        ({"a": (0.5, 0.5)}, "from top to bottom"),
        ({"a": (0.0, 1.5)}, "from top to bottom"),
        ({"a": (0.0, 0.6), "b": (0.5, 1.0)}, "overlap"),
        ({"a": np.full((2, 2), 3.0)}, r"values in \[0, 1\]"),
    ],
)
def test_parts_that_cannot_add_up_are_refused(parts, message: str) -> None:
    with pytest.raises(InputError, match=message):
        part_weights(parts, rows=4, columns=2, view=Box(0, 0, 4, 8), height=8)


def test_a_panel_shows_same_and_different_side_by_side(pictures: list[Path]) -> None:
    inference = Inference(tall_encoder(), precision="fp32")
    pairs = {
        "same": explain_pair(inference, pictures[0], pictures[1]),
        "different": explain_pair(inference, pictures[0], Image.open(pictures[2])),
    }
    panel = pairs_panel(pairs, tile_size=80)
    assert panel.width > 6 * 80
    assert panel.height > 2 * 80
    assert pairs["same"].to_dict()["parts"][0]["name"] == "top"
    assert set(pairs["same"].to_arrays()) == {"probe_shares", "match_shares", "probe_dist_map", "match_dist_map"}
    assert "the parts' sums differ from it by" in pairs["same"].table()
