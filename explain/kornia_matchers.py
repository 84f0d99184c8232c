"""Local matchers of kornia, counted like lines: LoFTR, and LightGlue on DISK features. An extra: `distcam[kornia]`."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import InputError, MissingExtraError
from ..images import read_image
from .methods.geometry import fit_similarity
from .methods.lines import STRONGEST

LONGEST = 480  # pixels of the longer side
_CELL = 8.0  # pixels that count as one cell: the tolerance is that of lines
_FEATURES = 1024


class KorniaMatcher:
    """The number of places, of the hundred surest pairs, that one similarity transform explains.

    Args:
        name: "loftr" or "lightglue".
        network: from two images (1, 3, h, w) in [0, 1] to points (n, 2), partners (n, 2) and confidences; by default
            kornia's with its published weights, which it downloads once.

    Raises:
        MissingExtraError: kornia is not installed.
        InputError: its weights are neither at hand nor to be had.
    """

    def __init__(self, name: str, network: Any = None) -> None:
        self.name = name
        self._match = network or _published(name)

    @torch.no_grad()
    def __call__(self, query: Any, match: Any) -> int:
        """The count for two files or Pillow images."""
        points, partners, confidence = self._match(_pixels(query), _pixels(match))
        order = confidence.argsort(descending=True, stable=True)[:STRONGEST]
        found = fit_similarity(points[order] / _CELL, partners[order] / _CELL, confidence[order])
        return 0 if found is None else int(found.is_inlier.sum())


@lru_cache(maxsize=2)
def matcher_of(name: str) -> KorniaMatcher:
    """The matcher of this name, made once."""
    return KorniaMatcher(name)


def _published(name: str) -> Any:
    try:
        import kornia.feature as features
    except ImportError as error:
        raise MissingExtraError(f"--verify {name} needs kornia: pip install 'distcam[kornia]'") from error
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # of every address that was tried
            warnings.simplefilter("ignore")
            return loftr(features.LoFTR("outdoor").eval()) if name == "loftr" else lightglue(features)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torch.hub refuses a damaged file
        raise InputError(
            f"the weights of {name} cannot be downloaded ({str(error).splitlines()[0]}); fetch them where there is a "
            "network: kornia keeps them in ~/.cache/torch/hub/checkpoints, or use --verify lines, which needs none"
        ) from error


def loftr(network: Any) -> Any:
    """Kornia's LoFTR as a network of `KorniaMatcher`."""

    def match(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = network({"image0": one.mean(1, keepdim=True), "image1": other.mean(1, keepdim=True)})
        return found["keypoints0"], found["keypoints1"], found["confidence"]

    return match


def lightglue(features: Any) -> Any:
    """Kornia's LightGlue on DISK features, likewise."""
    disk, glue = features.DISK.from_pretrained("depth").eval(), features.LightGlueMatcher("disk").eval()

    def match(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sides = [disk(image, _FEATURES, pad_if_not_divisible=True)[0] for image in (one, other)]
        frames = [features.laf_from_center_scale_ori(side.keypoints[None]) for side in sides]
        sizes = [tuple(image.shape[-2:]) for image in (one, other)]
        surely, pairs = glue(sides[0].descriptors, sides[1].descriptors, *frames, hw1=sizes[0], hw2=sizes[1])
        return sides[0].keypoints[pairs[:, 0]], sides[1].keypoints[pairs[:, 1]], surely.flatten()

    return match


def _pixels(source: Any) -> Float[Tensor, "1 3 h w"]:
    """An image in [0, 1], no longer than `LONGEST`, its sides multiples of 8."""
    image = source if isinstance(source, Image.Image) else read_image(source)
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(8, int(side * scale) // 8 * 8) for side in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(height, width, 3)
    return pixels.permute(2, 0, 1)[None].to(torch.float32) / 255
