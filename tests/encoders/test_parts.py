"""Encoding, pooling, and heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distcam.encoders import (
    GAP,
    Affine,
    BNNeck,
    Encoding,
    GeM,
    IdentityHead,
    Linear,
    Sequential,
    affine_of,
)
from distcam.encoders.heads import head_from_dict, pooling_from
from distcam.errors import InputError, ShapeError


def encoding(n: int, *, seed: int = 0) -> Encoding:
    generator = torch.Generator().manual_seed(seed)
    feature_map = torch.rand(n, 4, 3, 2, generator=generator)
    return Encoding(feature_map, feature_map.mean((2, 3)), torch.rand(n, 5, generator=generator))


def warm(neck: nn.Module, k: int) -> None:
    """Give batch norms a history that is neither 0 nor 1."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        neck(2 * torch.randn(16, k, generator=generator) + 1)
    neck.eval()


def test_one_image_of_an_encoding_is_a_batch_of_one() -> None:
    three = encoding(3)
    assert len(three) == 3
    for index in (0, 2, -1, -3):
        one = three[index]
        assert len(one) == 1
        assert torch.equal(one.pooled[0], three.pooled[index])
        assert one.feature_map.shape == (1, 4, 3, 2)


def test_an_encoding_has_an_end() -> None:
    with pytest.raises(IndexError, match="image 3 of an encoding of 3"):
        encoding(3)[3]
    assert len(list(encoding(3))) == 3


def test_joining_the_parts_of_an_encoding_gives_the_whole() -> None:
    three = encoding(3)
    again = Encoding.cat([three[:1], three[1:]])
    assert torch.equal(again.feature_map, three.feature_map)
    assert torch.equal(again.embedding, three.embedding)


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        Encoding.cat([])


def test_gap_is_the_mean_over_rows_and_columns() -> None:
    assert GAP()(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])).item() == 3.0


def test_gem_with_exponent_one_is_the_mean_and_with_a_large_one_nearly_the_maximum() -> None:
    feature_map = encoding(2).feature_map
    torch.testing.assert_close(GeM(p=1.0)(feature_map), GAP()(feature_map))
    torch.testing.assert_close(GeM(p=200.0)(feature_map), feature_map.amax((2, 3)), rtol=0.02, atol=0)


def test_gem_by_hand() -> None:
    # ((1² + 7²) / 2)^½ = 5
    assert GeM(p=2.0)(torch.tensor([[[[1.0, 7.0]]]])).item() == pytest.approx(5.0)


def test_the_exponent_of_gem_is_learnt_even_where_the_map_is_zero() -> None:
    gem = GeM()
    gem(torch.zeros(1, 2, 3, 3)).sum().backward()
    assert gem.p.grad is not None
    assert torch.isfinite(gem.p.grad)


@pytest.mark.parametrize("options", [{"p": 0.0}, {"eps": 0.0}])
def test_gem_refuses_what_is_no_mean(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="p > 0 and eps > 0"):
        GeM(**options)


def test_an_unknown_pooling_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown pooling 'max': expected 'gap', 'gem'"):
        pooling_from("max")


@pytest.mark.parametrize(
    "head",
    [
        Linear(4, 3),
        Linear(4, 3, bias=False),
        BNNeck(4),
        Sequential(BNNeck(4), Linear(4, 3)),
        Sequential(Linear(4, 3), BNNeck(3)),
        Sequential(Linear(4, 3), Linear(3, 6, bias=False), BNNeck(6), IdentityHead()),
        Sequential(BNNeck(4), IdentityHead(), BNNeck(4)),
        IdentityHead(),
        nn.Linear(4, 2),
        nn.BatchNorm1d(4),
        nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
    ],
    ids=lambda head: type(head).__name__,
)
def test_the_affine_form_of_a_head_computes_what_the_head_computes(head: nn.Module) -> None:
    warm(head, 4)
    pooled = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    affine = affine_of(head)
    assert affine is not None
    with torch.no_grad():
        torch.testing.assert_close(affine(pooled), head(pooled))
    assert not affine(pooled).requires_grad


def test_a_non_linear_head_has_no_affine_form() -> None:
    assert affine_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) is None
    assert affine_of(Sequential(Linear(4, 4), nn.ReLU())) is None


def test_a_subclass_of_linear_is_not_taken_for_linear() -> None:
    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    assert affine_of(Squared(4, 4)) is None


def test_an_affine_map_has_one_factor() -> None:
    with pytest.raises(InputError, match="not both"):
        Affine(weight=torch.eye(2), diagonal=torch.ones(2))


def test_the_neck_has_no_shift_to_learn() -> None:
    neck = BNNeck(4)
    assert [name for name, p in neck.named_parameters() if p.requires_grad] == ["norm.weight"]


def test_a_head_comes_back_from_its_description() -> None:
    head = Sequential(BNNeck(4), Linear(4, 3, bias=False), IdentityHead())
    again = head_from_dict(head.to_dict())
    assert again.to_dict() == head.to_dict()
    again.load_state_dict(head.state_dict())


def test_a_module_of_the_user_inside_a_head_makes_it_custom() -> None:
    assert Sequential(Linear(4, 3), nn.ReLU()).to_dict()["type"] == "custom"
    with pytest.raises(InputError, match="unknown head 'custom'"):
        head_from_dict({"type": "custom"})


def test_parts_of_different_lengths_are_no_encoding() -> None:
    two, three = encoding(2), encoding(3)
    # jaxtyping's check fires first in the test run; without it the class's own does.
    with pytest.raises((ShapeError, TypeError)):
        Encoding(two.feature_map, three.pooled, two.embedding)
