"""The second look: copies and crops are recognised by their pixels, and the part that is shared is located."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcam.index.inspection.pixel_copies import SIDE, GreyCopies, Overlaps, _shrinking


def noise(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Soft noise, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> GreyCopies:
    folder = tmp_path_factory.mktemp("looks")
    image = noise(0)
    image.resize((64, 48)).save(folder / "1.jpg", quality=40)
    image.crop((48, 30, 148, 105)).save(folder / "2.png")  # 0.3, 0.25 to 0.925, 0.875
    image.crop((0, 0, 80, 120)).save(folder / "3.png")  # higher than wide
    image.save(folder / "0.png")
    noise(1).save(folder / "4.png")
    Image.new("RGB", (60, 60), "white").save(folder / "5.png")
    return GreyCopies.of(
        [*(folder / f"{n}.png" for n in (0,)), folder / "1.jpg", *(folder / f"{n}.png" for n in (2, 3, 4, 5))]
    )


def test_a_small_jpeg_of_an_image_is_the_image_and_another_is_not(looks: GreyCopies) -> None:
    found = Overlaps.of(looks, np.array([[0, 1], [1, 0], [0, 4], [0, 5]]))
    assert (found.whole[:2] > 3).all()
    assert (found.whole[2:] < 0.3).all()


def test_a_crop_is_found_where_it_was_cut_out(looks: GreyCopies) -> None:
    found = Overlaps.of(looks, np.array([[0, 2], [0, 3], [4, 2]]))
    assert found.place[0] == pytest.approx([0.3, 0.25, 0.925, 0.875], abs=0.06)
    assert found.place[1] == pytest.approx([0, 0, 0.5, 1.0], abs=0.12)
    assert found.part[0] > 0.8 > 4 * found.whole[0]
    assert found.part[2] < 0.4


def test_a_flat_image_fits_nothing_and_an_unreadable_one_has_no_proportions(looks: GreyCopies, tmp_path: Path) -> None:
    found = Overlaps.of(looks, np.array([[5, 0], [5, 4]]))
    assert (found.whole == 0).all()
    assert (found.part < 0.3).all()
    assert GreyCopies.of([tmp_path / "gone.jpg"]).aspect.tolist() == [0.0]


def test_the_best_place_is_that_of_a_plain_loop(looks: GreyCopies) -> None:
    size = 30
    whole, small = looks.grey[0].astype(float), _shrinking(size) @ looks.grey[4] @ _shrinking(size).T
    fits = [
        np.corrcoef(whole[top : top + size, left : left + size].ravel(), small.ravel())[0, 1]
        for top in range(SIDE - size + 1)
        for left in range(SIDE - size + 1)
    ]
    from distcam.index.inspection.pixel_copies import _Whole

    correlation, top, left = _Whole.of(looks.grey[:1].astype(np.float32)).best_places(
        looks.grey[4:5].astype(np.float32), (size, size)
    )
    assert correlation[0] == pytest.approx(max(fits), abs=1e-4)
    assert top[0] * (SIDE - size + 1) + left[0] == int(np.argmax(fits))
