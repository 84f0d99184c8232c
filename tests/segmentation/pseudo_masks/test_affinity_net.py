"""The random walk, and affinities: of colours, and learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distcam.encoders import Encoder
from distcam.errors import InputError, ShapeError
from distcam.images import Transform
from distcam.segmentation.data import MaskedImages
from distcam.segmentation.pseudo_masks.make import pseudo_mask
from distcam.segmentation.pseudo_masks.refining import (
    AffinitySettings,
    WalkSettings,
    affinities,
    affinity_loss,
    neighbours,
    random_walk,
    refine_by_walk,
    shifted,
    train_affinity,
)
from distcam.synthetic.blueprint import blueprints
from distcam.synthetic.scene_set import write_scenes


def matrix_of(affinity, offsets):
    """The affinity matrix written out, position by position."""
    _, height, width = affinity.shape
    matrix = np.zeros((height * width, height * width))
    for number, (down, across) in enumerate(offsets):
        for row in range(height):
            for column in range(width):
                if 0 <= row + down < height and 0 <= column + across < width:
                    there = (row + down) * width + column + across
                    matrix[row * width + column, there] = affinity[number, row, column]
    return matrix


def test_a_walk_by_hand() -> None:
    # two positions, affinity ½ to each other: T = [[⅔, ⅓], [⅓, ⅔]] with power 1, [[⅘, ⅕], [⅕, ⅘]] with power 2
    features = torch.tensor([[[0.0, np.log(2)]]]).float()
    offsets = neighbours(1)
    affinity = affinities(features, offsets)
    scores = torch.tensor([[[1.0, 0.0]]])
    once = random_walk(scores, affinity, offsets, power=1, steps=1)
    assert once.flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    stricter = random_walk(scores, affinity, offsets, power=2, steps=1)
    assert stricter.flatten().tolist() == pytest.approx([0.8, 0.2])
    assert random_walk(scores, affinity, offsets, steps=0) is scores


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(0, 4))
def test_the_walk_is_a_product_with_the_matrix_written_out(seed, radius, steps) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, scores = torch.randn(3, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)
    offsets = neighbours(radius)
    affinity = affinities(features, offsets)
    matrix = matrix_of(affinity.numpy(), offsets) ** 8.0
    transition = np.linalg.matrix_power(matrix / matrix.sum(1, keepdims=True), steps)
    slow = (transition @ scores.flatten(1).numpy().T).T.reshape(2, 4, 5)
    fast = random_walk(scores, affinity, offsets, power=8, steps=steps)
    assert np.allclose(fast.numpy(), slow, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_affinities_are_symmetric_and_at_most_one(seed) -> None:
    features = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed))
    offsets = neighbours(2)
    matrix = matrix_of(affinities(features, offsets).numpy(), offsets)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert matrix.max() <= 1


def test_a_walk_never_leaves_the_range_of_the_scores_and_a_constant_stays() -> None:
    features = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(3))
    offsets = neighbours(3)
    affinity = affinities(features, offsets)
    scores = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(4))
    walked = random_walk(scores, affinity, offsets, steps=20)
    assert float(walked.max()) <= float(scores.max())
    assert float(walked.min()) >= float(scores.min())
    assert torch.allclose(random_walk(torch.ones(1, 6, 6), affinity, offsets, steps=9), torch.ones(1, 6, 6), atol=1e-5)


def test_shifting_looks_at_the_neighbour() -> None:
    grid = torch.arange(6.0).view(2, 3)
    assert shifted(grid, (1, -1)).tolist() == [[0, 3, 4], [0, 0, 0]]
    assert shifted(grid, (0, 5), fill=9).tolist() == [[9] * 3] * 2
    with pytest.raises(ShapeError, match=r"expected affinities \(1, 2, 3\)"):
        random_walk(grid[None], torch.ones(2, 2, 3), [(0, 0)])


def test_scores_spread_over_one_colour_and_stop_at_the_next() -> None:
    values = np.full((32, 32, 3), 30, np.uint8)
    values[:, :16] = (220, 60, 60)
    scores = np.zeros((1, 32, 32), np.float32)
    scores[0, 12:20, 4:10] = 1.0  # a part of the left half
    refined = refine_by_walk(scores, Image.fromarray(values), settings=WalkSettings(side=32, background=4, steps=40))
    assert refined.shape == (2, 32, 32)
    assert refined[1, :, 17:].max() < 0.01
    assert refined[1, 16, 1] > 0.1
    before = (pseudo_mask(scores, beta=0.05) == 1).sum()
    assert (refined[1] > 0.05).sum() > 2 * before


def test_a_class_that_is_not_shown_stays_out() -> None:
    scores = np.zeros((2, 16, 16), np.float32)
    scores[0, 4:8, 4:8] = 1
    refined = refine_by_walk(scores, Image.new("RGB", (16, 16)), settings=WalkSettings(steps=5))
    assert (refined[2] == 0).all()


# --- learnt affinities ------------------------------------------------------------------------------------------------


def test_the_loss_is_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(1, 2, 3, 3, generator=generator)
    cues = torch.tensor([[[0, 0, 255], [1, 1, 0], [2, 255, 1]]])
    offsets = [(0, 1), (1, 0), (1, 1)]
    pairs = {"background": [], "foreground": [], "unlike": []}
    for down, across in offsets:
        for row in range(3 - down):
            for column in range(3 - across):
                one, other = cues[0, row, column], cues[0, row + down, column + across]
                if 255 in (int(one), int(other)):
                    continue
                distance = (embedded[0, :, row, column] - embedded[0, :, row + down, column + across]).abs().mean()
                if one != other:
                    pairs["unlike"].append(-torch.log(1 + 1e-5 - torch.exp(-distance)))
                else:
                    pairs["background" if one == 0 else "foreground"].append(distance)
    means = {kind: torch.stack(values).mean() for kind, values in pairs.items()}
    slow = (means["background"] + means["foreground"] + 2 * means["unlike"]) / 4
    assert float(affinity_loss(embedded, cues, offsets)) == pytest.approx(float(slow), rel=1e-5)
    undecided = torch.full_like(cues, 255)
    assert float(affinity_loss(embedded, undecided, offsets)) == 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    written = write_scenes(folder, classes=blueprints(2), splits={"train": 3}, size=48, masks=True, two_object_share=0)
    return MaskedImages.from_scenes(written)


def test_training_tells_things_apart_and_repeats(scenes) -> None:
    encoder = Encoder.load(
        "conv4", weights="random", transform=Transform(48, fit="squash"), options={"width": 8, "last_pool": False}
    )
    before = encoder.fingerprint
    masks = [scenes.mask(i) for i in range(len(scenes))]
    steps = []
    options = AffinitySettings(dim=8, radius=2, epochs=6, batch_size=3, side=6)
    net = train_affinity(encoder, scenes, masks, settings=options, progress=lambda *step: steps.append(step))
    assert steps[-1] == (12, 12)
    assert encoder.fingerprint == before
    again = train_affinity(encoder, scenes, masks, settings=options)
    assert torch.equal(net.features(scenes.image(0)), again.features(scenes.image(0)))
    untrained = train_affinity(
        encoder, scenes, masks, settings=AffinitySettings(dim=8, side=6, epochs=1, learning_rate=1e-9)
    )
    offsets = [(0, 1), (1, 0)]
    small = torch.from_numpy(np.stack([mask[4::8, 4::8] for mask in masks]).astype(np.int64))
    losses = [
        float(affinity_loss(torch.stack([each.features(scenes.image(i)) for i in range(6)]), small, offsets))
        for each in (net, untrained)
    ]
    assert losses[0] < losses[1]


def test_without_cues_there_is_nothing_to_learn(scenes) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=Transform(48, fit="squash"), options={"width": 8})
    with pytest.raises(InputError, match="expected cues for each of the 6 images, got 1"):
        train_affinity(encoder, scenes, [np.zeros((48, 48), np.uint8)])
    with pytest.raises(InputError, match="no image has a cue of a class"):
        train_affinity(encoder, scenes, [np.zeros((48, 48), np.uint8)] * 6)
    with pytest.raises(InputError, match="radius: expected a whole number from 1 on, got 0"):
        WalkSettings(radius=0)


def test_scores_of_another_size_than_the_picture_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected scores of 5 x 4 pixels"):
        refine_by_walk(np.zeros((1, 4, 5)), Image.new("RGB", (4, 5)))


@pytest.mark.parametrize(("power", "left"), [(1, 0.75), (2, 0.5625)])
def test_one_grey_pixel_walks_nowhere_and_a_larger_power_leaves_less_to_the_background(power, left) -> None:
    refined = refine_by_walk(np.full((1, 1, 1), 0.25), Image.new("L", (1, 1)), settings=WalkSettings(background=power))
    assert refined.tolist() == [[[left]], [[0.25]]]


def test_the_small_examples_come_out_as_by_hand() -> None:
    assert neighbours(1) == [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
    alike = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])  # to itself, and to the right
    walked = random_walk(torch.tensor([[[0.0, 1.0]]]), alike, [(0, 0), (0, 1)], steps=1)
    assert walked.tolist() == [[[0.5, 1.0]]]
