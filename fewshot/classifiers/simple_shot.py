"""SimpleShot: nearest class mean after centring and unit length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...errors import InputError
from .prototypes import Prototypes
from .transforms import Centre, FeatureTransform, L2Normalise


def simple_shot(variant: Literal["UN", "L2N", "CL2N"] = "CL2N", *, mean: Centre | Tensor | None = None) -> Prototypes:
    """Nearest class mean by squared Euclidean distance after the paper's feature transformation.

    Args:
        variant: UN leaves the features, L2N scales them to unit length, CL2N subtracts the base classes' mean first.
        mean: for CL2N the mean feature of the base classes, or a `Centre` that says what else it is the mean of.

    Raises:
        InputError: CL2N without a mean, or a mean that would not be used.

    Source: Wang et al. 2019, arXiv:1911.04623, §3.
    """
    if variant not in ("UN", "L2N", "CL2N"):
        raise InputError(f"variant must be UN, L2N or CL2N, got {variant!r}")
    if (variant == "CL2N") != (mean is not None):
        raise InputError(
            "CL2N needs `mean`, the mean feature of the base classes (centring by test images is transductive: "
            f"Centre(mean, source='test')); UN and L2N take none; got variant {variant} and mean {type(mean).__name__}"
        )
    steps: list[FeatureTransform] = [] if variant == "UN" else [L2Normalise()]
    if mean is not None:
        steps.insert(0, mean if isinstance(mean, Centre) else Centre(mean))
    return Prototypes("l2", transforms=tuple(steps), name=f"simpleshot-{variant}")
