"""Lines between two images: against a slow loop, on a map and its moved copy, and where there is nothing to join."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import interpolate

from distcam.errors import ShapeError
from distcam.explain.methods.correspondence import pairwise_shares
from distcam.explain.methods.lines import LARGEST_GRID, Places, find_lines, lines_to_each
from distcam.images import Box


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow(fine, other_fine, response, other_response, tau=0.05):
    """Every line by its definition, strongest first: (row, column), (row, column), strength."""
    f = torch.nn.functional.normalize(fine.flatten(1).T.double(), dim=1)
    g = torch.nn.functional.normalize(other_fine.flatten(1).T.double(), dim=1)
    likeness = f @ g.T / tau
    sharp = likeness.softmax(1) * likeness.softmax(0)
    shares = pairwise_shares(response, other_response).double()
    h, w, u, v = shares.shape
    on_match = interpolate(shares.reshape(1, h * w, u, v), other_fine.shape[1:], mode="bilinear")[0]
    back = on_match.flatten(1).T.reshape(1, -1, h, w)
    gate = interpolate(back, fine.shape[1:], mode="bilinear")[0].flatten(1).T.clamp(min=0)
    lines = []
    for i in range(len(f)):
        j = int(sharp[i].argmax())
        strength = float(sharp[i, j] * gate[i, j])
        if int(sharp[:, j].argmax()) == i and strength > 0:
            lines.append((divmod(i, fine.shape[2]), divmod(j, other_fine.shape[2]), strength))
    return sorted(lines, key=lambda line: -line[2])


def test_every_line_is_what_the_definition_says():
    maps = drawn(6, 8, 10), drawn(6, 9, 7, seed=1), drawn(5, 3, 4, seed=2).relu(), drawn(5, 2, 3, seed=3).relu()
    found = find_lines(Places.of(maps[0], maps[2]), Places.of(maps[1], maps[3]))
    expected = slow(*maps)
    assert len(found) == len(expected) > 5
    assert [tuple(cell) for cell in found.query.tolist()] == [line[0] for line in expected]
    assert [tuple(cell) for cell in found.match.tolist()] == [line[1] for line in expected]
    assert found.strength.tolist() == pytest.approx([line[2] for line in expected], rel=1e-5)


@pytest.mark.parametrize(
    "boxes", [(Box(0, 0.3, 1, 0.7), None), (None, Box(0.2, 0, 0.8, 1)), (Box(0, 0.3, 1, 0.7),) * 2]
)
def test_margins_answer_nothing_and_keep_their_part_in_what_others_get(boxes):
    """By the definition on all cells, those of margins 0; what they answer is left out."""
    maps = drawn(6, 8, 10), drawn(6, 9, 7, seed=1), drawn(5, 3, 4, seed=2).relu(), drawn(5, 2, 3, seed=3).relu()
    one, other = (Places.of(maps[i], maps[i + 2], image=boxes[i]) for i in range(2))
    fine = [side.cells.T.reshape(6, *side.shape) for side in (one, other)]
    expected = [
        line
        for line in slow(*fine, *maps[2:])
        if one.is_seen[line[0][0] * 10 + line[0][1]] and other.is_seen[line[1][0] * 7 + line[1][1]]
    ]
    found = find_lines(one, other)
    assert [tuple(cell) for cell in found.query.tolist()] == [line[0] for line in expected]
    assert [tuple(cell) for cell in found.match.tolist()] == [line[1] for line in expected]
    assert found.strength.tolist() == pytest.approx([line[2] for line in expected], rel=1e-5)
    assert 0 < len(found) < len(find_lines(Places.of(maps[0], maps[2]), Places.of(maps[1], maps[3])))


def test_an_image_so_thin_that_no_place_is_on_it_has_no_lines():
    query, match = Places.of(drawn(6, 8, 8), drawn(5, 2, 2).relu()), Places.of(drawn(6, 8, 8), drawn(5, 2, 2).relu())
    thin = Places.of(drawn(6, 8, 8), drawn(5, 2, 2).relu(), image=Box(0, 0.49, 1, 0.51))
    assert [len(found) for found in lines_to_each(query, [thin, match])] == [0, len(find_lines(query, match))]
    assert len(find_lines(thin, match)) == 0


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_many_matches_at_once_are_one_after_the_other(metric):
    fine, response = drawn(6, 12, 8, 10), drawn(6, 5, 3, 4, seed=1).relu()
    query, *matches = (Places.of(fine[0] + one, other) for one, other in zip(fine, response, strict=True))
    matches[2] = Places.of(drawn(12, 5, 6, seed=3), response[3])  # a grid of its own
    together = list(lines_to_each(query, matches, metric=metric))
    assert len(together) == 5
    assert list(lines_to_each(query, [])) == []
    for match, found in zip(matches, together, strict=True):
        alone = find_lines(query, match, metric=metric)
        assert found.query.equal(alone.query)
        assert found.match.equal(alone.match)
        assert found.strength.tolist() == pytest.approx(alone.strength.tolist(), rel=1e-5)
        assert found.is_inlier.equal(alone.is_inlier)


def test_an_image_answers_itself_place_by_place():
    fine, response = drawn(16, 14, 14), torch.ones(4, 4, 4)
    found = find_lines(Places.of(fine, response), Places.of(fine, response))
    assert len(found) == found.inliers == 100
    assert found.query.equal(found.match)


@pytest.mark.parametrize(("scale", "degrees", "shift"), [(1.0, 0, (4, -3)), (1.4, 0, (0, 2)), (1.0, 25, (2, 1))])
def test_a_known_similarity_transform_of_a_map_is_recovered(scale, degrees, shift):
    fine = interpolate(drawn(1, 24, 10, 10), (28, 28), mode="bicubic")  # smooth, so that it can be resampled
    angle = math.radians(degrees)
    inverse = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    offset = -inverse @ (torch.tensor(shift, dtype=torch.float32) / 14)
    grid = torch.nn.functional.affine_grid(
        torch.cat([inverse, offset[:, None]], 1)[None], [1, 24, 28, 28], align_corners=False
    )
    other = torch.nn.functional.grid_sample(fine, grid, align_corners=False)
    response = torch.ones(4, 7, 7)
    found = find_lines(Places.of(fine[0], response), Places.of(other[0], response))
    assert found.transform is not None
    assert found.transform.scale == pytest.approx(scale, abs=0.12)
    assert found.transform.degrees == pytest.approx(degrees, abs=6)
    assert found.inliers > 70


def test_unrelated_maps_have_few_lines_that_agree():
    response = torch.ones(4, 4, 4)
    found = find_lines(Places.of(drawn(16, 14, 14), response), Places.of(drawn(16, 14, 14, seed=1), response))
    assert found.inliers < 25


def test_two_runs_find_the_same_and_channels_may_be_permuted():
    fine, other, response = drawn(16, 14, 14), drawn(16, 14, 14, seed=1), drawn(6, 4, 4, seed=2).relu()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    first = find_lines(Places.of(fine, response), Places.of(other, response))
    again = find_lines(Places.of(fine, response), Places.of(other, response))
    permuted = find_lines(Places.of(fine[order], response), Places.of(other[order], response))
    assert first.query.equal(again.query)
    assert first.strength.equal(again.strength)
    assert first.query.equal(permuted.query)
    assert first.is_inlier.equal(permuted.is_inlier)


def test_places_without_a_share_have_no_lines():
    fine, response = drawn(16, 8, 8), torch.ones(3, 2, 2)
    response[:, :, 1] = 0  # the right half speaks for nothing
    found = find_lines(Places.of(fine, response), Places.of(fine, response))
    assert len(found)
    assert int(found.query[:, 1].max()) < 6  # bilinear: a quarter of the map's width reaches over the middle


def test_a_constant_map_has_at_most_one_line_and_no_transform():
    flat, response = torch.ones(4, 6, 6), torch.ones(3, 3, 3)
    found = find_lines(Places.of(flat, response), Places.of(flat, response))
    assert len(found) <= 1
    assert found.transform is None
    assert found.inliers == 0
    assert len(found.strongest(20)) == 0


def test_the_mean_is_taken_off_before_directions_are_compared():
    fine, mean = drawn(8, 6, 6), 5 * torch.ones(8)
    assert Places.of(fine + 5, torch.ones(2, 2, 2), mean).cells.allclose(
        Places.of(fine, torch.ones(2, 2, 2)).cells, atol=1e-5
    )


def test_maps_beyond_the_largest_grid_are_averaged():
    shape = Places.of(drawn(3, 128, 130), torch.ones(2, 4, 4)).shape
    assert shape[0] * shape[1] <= LARGEST_GRID


def test_fine_maps_of_two_layers_are_refused():
    with pytest.raises(ShapeError, match="same channels, got 3 and 4"):
        find_lines(Places.of(drawn(3, 4, 4), torch.ones(2, 2, 2)), Places.of(drawn(4, 4, 4), torch.ones(2, 2, 2)))


def test_padding_answers_nothing():
    fine, response = drawn(8, 8, 8), torch.ones(3, 4, 4)
    places = Places.of(fine, response, image=Box(0, 0.25, 1, 0.75))
    found = find_lines(places, places)
    assert 0 < len(found) <= 32
    assert found.query[:, 0].min() >= 2
    assert found.query[:, 0].max() <= 5
