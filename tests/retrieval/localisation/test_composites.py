"""Composites: how photographs share an image, where maps point, and what is held out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distcam.encoders import Encoder, Inference
from distcam.errors import InputError, ShapeError
from distcam.images import Transform
from distcam.retrieval.localisation.composites import (
    FOUR,
    TWO,
    Canvas,
    composed,
    draw_composites,
    pointing,
    split_off,
)
from distcam.retrieval.localisation.references import ObjectImage


def photographs(**counts: int) -> list[ObjectImage]:
    return [ObjectImage(Path(f"{label}{n}"), label) for label, count in counts.items() for n in range(count)]


def test_photographs_are_composed_in_reading_order() -> None:
    tiles = torch.arange(4).reshape(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert composed(tiles, FOUR)[0, ::2, ::2].tolist() == [[0, 1], [2, 3]]
    assert composed(tiles[:2], TWO).shape == (3, 2, 4)


def test_a_map_on_the_right_half_prefers_the_right_photograph_by_hand() -> None:
    halves = composed(torch.eye(2)[:, :, None, None], TWO)  # one pixel a photograph
    maps = torch.tensor([[[[0.0, 1.0]], [[1.0, 3.0]]]])  # asked for the left: on the right; asked for the right: there
    found = pointing(maps, halves)
    assert found.preference.tolist() == [[0.0, 1.0]]
    assert found.energy.tolist() == [[0.0, 1.0]]
    blind = pointing(torch.ones(1, 4, 2, 2), Canvas((2, 2), (0, 0, 0), is_reduced=False).cells(FOUR))
    assert blind.preference.tolist() == [[0.5] * 4]
    assert blind.energy.tolist() == [[0.25] * 4]
    with pytest.raises(ShapeError, match="2 photographs need as many maps"):
        pointing(torch.ones(1, 3, 2, 2), halves)


def test_composites_are_of_different_classes_taken_in_turn() -> None:
    images = photographs(a=3, b=3, c=3, d=3)
    pairs = draw_composites(images, 6, TWO, generator=torch.Generator().manual_seed(0))
    assert all(len({photograph.label for photograph in pair}) == 2 for pair in pairs)
    used = [photograph for pair in pairs for photograph in pair]
    assert len(set(used)) == 12  # every image once before any comes again
    assert draw_composites(photographs(a=2, b=2), 3, FOUR, generator=torch.Generator()) == []


def test_at_most_half_of_a_class_is_held_out() -> None:
    images = photographs(a=2, b=5, c=1)
    drawn, kept = split_off(images, 10, generator=torch.Generator().manual_seed(0))
    assert sorted(photograph.label for photograph in drawn) == ["a", "b", "b"]
    assert sorted([*drawn, *kept]) == sorted(images)
    with pytest.raises(InputError, match="two classes of two images"):
        split_off(photographs(a=4, b=1), 4, generator=torch.Generator())


class Square(nn.Module):
    """A network that takes 32×32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (32, 32):
            raise ShapeError("built for 32×32")
        maps: Tensor = self.convolution(images)
        return maps


def test_a_network_of_one_size_gets_smaller_photographs() -> None:
    encoder = Encoder.load(Square(), transform=Transform(32))
    canvas = Canvas.of(Inference(encoder, device="cpu"))
    assert canvas.is_reduced
    halves = canvas.cells(TWO)
    assert halves.shape == (2, 32, 32)
    assert halves.sum((1, 2)).tolist() == [256, 256]  # 16×16 each, in the middle rows
    assert halves[0, 8:24, :15].min() == 1  # but for the edge, which is smoothed
    pixels = canvas.pixels(torch.full((4, 3, 32, 32), 7, dtype=torch.uint8), FOUR)
    assert pixels.shape == (3, 32, 32)
    assert pixels.unique().tolist() == [7]
