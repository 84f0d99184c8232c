"""Published test cases: what other codes say about the same distances, and the exact sum behind a neck's cosine.

Where another code is right we agree to the last digit; where it is not, the test says what it reports.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distcam.encoders import GAP, BNNeck
from distcam.errors import InputError
from distcam.explain import fold
from distcam.reid import Labels, ReidProtocol, evaluate_distances


def test_the_usual_python_evaluation_agrees_to_the_last_digit() -> None:
    """Recorded from torchreid 0.2.5's `eval_market1501` on these distances, which have no ties."""
    random = np.random.default_rng(1501)
    query, gallery = random.integers(0, 8, 40), random.integers(0, 12, 300)
    query_cameras, gallery_cameras = random.integers(0, 4, 40), random.integers(0, 4, 300)
    distances = random.random((40, 300)) - 0.25 * (query[:, None] == gallery)
    found = evaluate_distances(
        distances, query=Labels(query, query_cameras), gallery=Labels(gallery, gallery_cameras), protocol=ReidProtocol()
    )
    assert found.map_step == pytest.approx(0.36264180272736696, abs=1e-15)
    np.testing.assert_allclose(found.cmc[:8], [0.975] * 6 + [1, 1], atol=1e-7)  # theirs is in single precision


@pytest.mark.parametrize(
    ("distances", "identities", "cameras", "theirs", "ours"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], [9, 1, 1, 8, 1], [1, 1, 2, 1, 3], 53 / 90, 53 / 90),
        ([0.1, 0.2, 0.3], [-1, 1, 9], [1, 1, 1], 0.5, 1.0),  # junk counts as wrong unless the loader drops it
        ([0.5, 0.5, 0.5], [1, 9, 8], [1, 1, 1], 1.0, 1 / 3),  # ties go to whoever is first in the gallery
        ([0.5, 0.5, 0.5], [9, 1, 8], [1, 1, 1], 0.5, 1 / 3),
    ],
)
def test_where_the_usual_evaluation_depends_on_order_or_loader_ours_does_not(
    distances: list[float], identities: list[int], cameras: list[int], theirs: float, ours: float
) -> None:
    found = evaluate_distances([distances], query=Labels([1], [0]), gallery=Labels(identities, cameras))
    assert found.map_step == pytest.approx(ours)
    order = np.argsort(distances, kind="stable")
    right = np.array(identities)[order] == 1
    by_order = np.mean([(i + 1) / (place + 1) for i, place in enumerate(np.flatnonzero(right))])
    assert by_order == pytest.approx(theirs)


def test_distances_that_are_not_numbers_are_refused_where_the_usual_evaluation_reports_a_perfect_score() -> None:
    nothing = [[np.nan] * 3]
    with pytest.raises(InputError, match="nan"):
        evaluate_distances(nothing, query=Labels([1], [0]), gallery=Labels([1, 9, 8], [1, 1, 1]))


@pytest.mark.parametrize("size", [(16, 8), (4, 2)])
def test_the_cosine_behind_a_neck_is_a_sum_over_the_positions_of_both_images(size: tuple[int, int]) -> None:
    """With a = γ/σ and b = −aµ, the mean over positions of ⟨a·F_q(u) + b, f_g⟩ / (|f_q||f_g|) is cos(f_q, f_g)."""
    generator = torch.Generator().manual_seed(0)
    neck = BNNeck(32).double().eval()
    neck.norm.running_mean = torch.rand(32, generator=generator, dtype=torch.float64)
    neck.norm.running_var = torch.rand(32, generator=generator, dtype=torch.float64) + 0.1
    neck.norm.weight.data = torch.rand(32, generator=generator, dtype=torch.float64) + 0.5
    maps = torch.rand(2, 32, *size, generator=generator, dtype=torch.float64)
    response = fold(maps, pooling=GAP(), head=neck)
    assert response.is_exact
    query, gallery = neck(maps.mean(dim=(2, 3)))
    cosine = torch.nn.functional.cosine_similarity(query, gallery, dim=0)
    lengths = query.norm() * gallery.norm()
    on_query = torch.einsum("dhw,d->hw", response.map[0], gallery) / lengths
    assert on_query.mean().item() == pytest.approx(cosine.item(), abs=1e-12)
    pairs = torch.einsum("dhw,dij->hwij", *response.map) / lengths  # every position of one with every one of the other
    assert pairs.mean().item() == pytest.approx(cosine.item(), abs=1e-12)
