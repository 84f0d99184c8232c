"""Imputation of missing pixels: a blurred image, or a linear estimate from the pixels around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...errors import ShapeError

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # RISE's
DIRECT, DIAGONAL = 1 / 6, 1 / 12  # ROAD's weights of the eight neighbours


def blurred(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The images after an 11×11 Gaussian of sigma 5 (smaller where an image is), edges mirrored."""
    from torchvision.transforms.functional import gaussian_blur

    rows, columns = (2 * min(BLUR_SIZE // 2, side - 1) + 1 for side in images.shape[-2:])
    smooth: Tensor = gaussian_blur(images, [columns, rows], [BLUR_SIGMA, BLUR_SIGMA])
    return smooth


def impute_linearly(
    images: Float[Tensor, "b c h w"],
    removed: Tensor,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-4,
) -> Float[Tensor, "b c h w"]:
    """Removed pixels replaced by the weighted mean of their neighbours, all of them at once, plus noise.

    Each is the mean of the up to eight around it, kept or removed, with weights 1/6 beside and 1/12 diagonally (scaled
    up at the image's edge): sparse linear equations, symmetric and positive definite, which conjugate gradients solve.
    Where nothing of an image is kept, it becomes 0, the mean colour of normalised images.

    Source: Rong et al. 2022, §4 and appendix (noisy linear imputation).

    >>> impute_linearly(torch.tensor([[[[1.0, 9.0, 3.0]]]]), torch.tensor([[[False, True, False]]]))
    tensor([[[[1., 2., 3.]]]])
    """
    if removed.dtype != torch.bool or removed.shape != (len(images), *images.shape[-2:]):
        raise ShapeError(
            f"images {tuple(images.shape)} need a boolean mask (b, h, w); got {removed.dtype} {tuple(removed.shape)}"
        )
    values = images.detach().double()
    hole = removed[:, None].to(values)
    total = _neighbours(torch.ones_like(values[:1, :1]))
    known = _neighbours(values * (1 - hole)) * hole

    def system(x: Tensor) -> Tensor:
        return (total * x - _neighbours(x)) * hole

    solvable = ~removed.flatten(1).all(1)[:, None, None, None]
    solution = _conjugate_gradients(system, known * solvable, total, tolerance)
    if noise:
        drawn = torch.randn(values.shape, dtype=torch.float64, generator=generator)
        solution = solution + noise * drawn.to(solution.device) * hole
    return torch.where(removed[:, None], solution, values).to(images)


def _neighbours(x: Tensor) -> Tensor:
    """The weighted sum over the eight neighbours; beyond the edge there is nothing."""
    d, s = DIAGONAL, DIRECT
    kernel = x.new_tensor([[d, s, d], [s, 0.0, s], [d, s, d]]).expand(1, 1, 3, 3)
    return functional.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).reshape(x.shape)


def _conjugate_gradients(
    system: Callable[[Tensor], Tensor], known: Tensor, diagonal: Tensor, tolerance: float
) -> Tensor:
    """The x with system(x) = known, separately for each image and channel; preconditioned by the diagonal."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)

    x = torch.zeros_like(known)
    residual = known
    direction = scaled = residual / diagonal
    energy = dot(residual, scaled)
    enough = tolerance**2 * dot(known, known)
    for _ in range(known.shape[-2] * known.shape[-1]):
        if bool((dot(residual, residual) <= enough).all()):
            break
        product = system(direction)
        step = ratio(energy, dot(direction, product))
        x, residual = x + step * direction, residual - step * product
        scaled = residual / diagonal
        energy, before = dot(residual, scaled), energy
        direction = scaled + ratio(energy, before) * direction
    return x
