"""Grad-CAM, and what weighs its gradients otherwise: Grad-CAM++ and XGrad-CAM."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .cam import weighted_sum


def grad_cam(
    activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"], *, relu: bool = True
) -> Float[Tensor, "*b h w"]:
    """Grad-CAM, `ReLU(Σ_k α_k A_k)` with α_k the mean of g_k over its positions; Seg-Grad-CAM for a set of pixels.

    Source: Selvaraju et al., Grad-CAM, 2017, Eq. 1-2; [Seg-HiRes] Eq. 5.
    """
    return weighted_sum(activations, gradients.mean((-2, -1)), relu=relu)


def grad_cam_plus_plus(
    activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"], *, relu: bool = True
) -> Float[Tensor, "*b h w"]:
    """Grad-CAM++, `ReLU(Σ_k α_k A_k)` with α_k = `Σ_ij a_kij ReLU(g_kij)`, a = g² / (2g² + (Σ_ij A_k) g³), 0/0 = 0.

    Not linear in y: another scale of the score gives another image. a is computed as 1 / (2 + (Σ A) g), which does
    not underflow for small gradients; peers add 1e-6 or 1e-8 to the denominator, which takes over for such.

    Source: Chattopadhay et al., Grad-CAM++, 2018, Eq. 5, 19.
    """
    denominator = 2 + activations.sum((-2, -1), keepdim=True) * gradients
    share = torch.where(denominator == 0, 0.0, 1 / denominator)
    return weighted_sum(activations, (share * gradients.clamp(min=0)).sum((-2, -1)), relu=relu)


def xgrad_cam(
    activations: Float[Tensor, "*b k h w"], gradients: Float[Tensor, "*b k h w"], *, relu: bool = True
) -> Float[Tensor, "*b h w"]:
    """XGrad-CAM, `ReLU(Σ_k α_k A_k)` with α_k the mean of g_k weighted by A_k; 0 for a channel that sums to 0.

    Its signed map has the same total as that of HiResCAM. Made for activations that are not negative.

    Source: Fu et al., Axiom-based Grad-CAM, 2020, Eq. 8.
    """
    total = activations.sum((-2, -1))
    weights = (gradients * activations).sum((-2, -1)) / torch.where(total == 0, 1.0, total)
    return weighted_sum(activations, weights.masked_fill(total == 0, 0), relu=relu)
