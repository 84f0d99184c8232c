"""Folding: the mean of the response map is what pooling and head make of the feature map."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn

from distcam.encoders import encoding
from distcam.encoders.heads import GAP, BNNeck, GeM, IdentityHead, Linear, Pooling, Sequential
from distcam.errors import InputError
from distcam.explain import dist_cam, fold


def features(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.relu()


def used_neck(dim: int) -> BNNeck:
    """A batch-norm neck after some training, in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    neck = BNNeck(dim).double()
    with torch.no_grad():
        for values in (*neck.parameters(), *neck.buffers()):
            if values.is_floating_point():
                values.copy_(torch.rand(values.shape, generator=generator, dtype=torch.float64) + 0.5)
    return neck.eval()


def linear(in_dim: int, out_dim: int, *, bias: bool = True) -> Linear:
    head = Linear(in_dim, out_dim, bias=bias).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return head.eval()


AFFINE_HEADS = {
    "identity": IdentityHead(),
    "linear": linear(6, 4),
    "linear without bias": linear(6, 4, bias=False),
    "neck": used_neck(6),
    "neck then linear": Sequential(used_neck(6), linear(6, 3)),
    "linear then neck": Sequential(linear(6, 3), used_neck(3)),
    "torch's linear": nn.Linear(6, 2).double().eval(),
}


@pytest.mark.parametrize("head", AFFINE_HEADS.values(), ids=AFFINE_HEADS.keys())
@pytest.mark.parametrize("pooling", [GAP(), GeM(3.0), GeM(1.0), GeM(6.5)], ids=["gap", "gem3", "gem1", "gem6.5"])
def test_the_mean_of_the_map_is_the_embedding(pooling: Pooling, head: nn.Module) -> None:
    feature_map = features(3, 6, 5, 4)
    feature_map[0, 2] = 0
    response = fold(feature_map, pooling=pooling.double(), head=head)
    assert response.is_exact
    torch.testing.assert_close(response.map.mean((-2, -1)), head(pooling(feature_map)))


def test_without_head_and_with_the_mean_the_feature_map_stays_as_it_is() -> None:
    feature_map = features(2, 3, 4, 4)
    assert torch.equal(fold(feature_map, pooling=GAP(), head=IdentityHead()).map, feature_map)


def test_gem_by_hand() -> None:
    feature_map = torch.tensor([[[[1.0, 7.0]]]])  # p = 2: q = sqrt((1 + 49) / 2) = 5, R = (1, 49) / 5
    response = fold(feature_map, pooling=GeM(2.0), head=IdentityHead()).map
    torch.testing.assert_close(response, torch.tensor([[[[0.2, 9.8]]]]))


def test_gem_with_large_features_and_exponents_stays_finite() -> None:
    feature_map = features(1, 4, 3, 3).float() * 1e4
    response = fold(feature_map, pooling=GeM(8.0), head=IdentityHead()).map
    assert response.isfinite().all()
    torch.testing.assert_close(response.mean((-2, -1)), GeM(8.0)(feature_map), rtol=1e-4, atol=1e-3)


def test_a_head_that_is_not_affine_is_folded_to_first_order() -> None:
    head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    feature_map = features(2, 6, 3, 4)
    response = fold(feature_map, pooling=GAP(), head=head)
    assert not response.is_exact
    pooled = feature_map.mean((-2, -1))
    torch.testing.assert_close(response.map.mean((-2, -1)), head(pooled))
    for b in range(2):  # the slow way: the whole Jacobian
        jacobian = torch.autograd.functional.jacobian(lambda x: head(x[None])[0], pooled[b])
        expected = torch.einsum("dk,khw->dhw", jacobian, feature_map[b] - pooled[b, :, None, None])
        torch.testing.assert_close(response.map[b], expected + head(pooled[b : b + 1])[0][:, None, None])


def test_the_tangent_of_a_piecewise_linear_head_is_exact_on_its_piece() -> None:
    relu = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double().eval()
    with torch.no_grad():
        relu[0].weight.copy_(torch.eye(3))
        relu[0].bias.fill_(1.0)
    feature_map = features(1, 3, 4, 4)  # non-negative, so every position is on the piece of the pooled vector
    torch.testing.assert_close(fold(feature_map, pooling=GAP(), head=relu).map, feature_map + 1)


def test_a_linear_head_explains_the_space_that_is_searched() -> None:
    head, feature_map = linear(6, 4), features(1, 6, 5, 5)
    reference = head(features(1, 6, seed=1))
    response = fold(feature_map, pooling=GAP(), head=head).map
    heat = dist_cam(response, reference[:, None], weighting="dot")
    cosine = torch.nn.functional.cosine_similarity(head(feature_map.mean((-2, -1))), reference)
    torch.testing.assert_close(heat.sum((-2, -1))[:, 0], cosine)


def test_a_pooling_that_is_no_mean_is_refused() -> None:
    class Maximum(Pooling):
        def forward(self, feature_map):
            return feature_map.amax((-2, -1))

        def to_dict(self):
            return {}

    with pytest.raises(InputError, match="Maximum cannot be folded into a map; only GAP and GeM can"):
        fold(features(1, 2, 3, 3), pooling=Maximum(), head=IdentityHead())


def test_a_non_affine_head_in_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"training mode and not affine; call .eval\(\)"):
        fold(features(1, 2, 3, 3).float(), pooling=GAP(), head=nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_folding_leaves_head_and_gradients_alone() -> None:
    head = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).eval()
    before = [parameter.clone() for parameter in head.parameters()]
    fold(features(1, 2, 3, 3).float(), pooling=GAP(), head=head)
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in head.parameters())
    assert not head.training


def test_the_doctests_are_right() -> None:
    assert doctest.testmod(encoding).failed == 0
