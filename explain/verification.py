"""Pairs of images compared by lines: the scale that a set of images gives, and the number of inliers of a pair."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..encoders.encoding import fold
from ..encoders.inference import Encodes
from ..errors import ImageError, InputError, MissingExtraError
from ..images import image_size, read_image
from ..images.geometry import Box
from ..metrics.distances import SearchSpec, comparable, distances_to
from ..metrics.fusion import NULL_SHARES, USUAL_NULL, LineScale
from .inputs import Metric
from .methods.lines import STRONGEST, Places, find_lines, fit_similarity, lines_to_each
from .places import image_in_view

LEAST_SIMILAR = 3
SAMPLE = 40
"""Images that a scale is measured on."""
KEPT_IMAGES = 500  # places of so many images stay in memory, about 0.4 MB each


class PlaceReader:
    """Images of one gallery or data set as lines see them, and the scale that a sample of them gives.

    Attributes:
        metric: by which shares are divided: the gallery's, of l1 the cosine, as l1 does not divide.
        scale: what lines are measured against, once `measure_files` or its owner has settled it.
    """

    scale: LineScale

    def __init__(self, inference: Encodes, compared: Metric) -> None:
        self._inference, self._compared = inference, compared
        self.metric: Metric = "cosine" if compared == "l1" else compared
        self._kept: OrderedDict[str, Places] = OrderedDict()

    def in_view(self, file: str | PathLike[str]) -> Box | None:
        """The place of an image on its map, from its header; None when it is gone."""
        try:
            return image_in_view(self._inference.encoder.transform, image_size(file))
        except ImageError:
            return None

    def encoded(self, files: Sequence[str | PathLike[str]]) -> tuple[Tensor, Tensor, NDArray[np.float32]]:
        """Fine maps, response maps and vectors of images whose layer is read, from one forward pass each."""
        encoder, encoding = self._inference.encoder, self._inference.encode_images(files)
        assert encoding.fine is not None
        with torch.no_grad():
            response = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map
        return encoding.fine.cpu(), response.cpu(), encoding.embedding.cpu().numpy()

    def measure_files(self, files: Sequence[str | PathLike[str]]) -> None:
        """Settle the layer and the scale on some images."""
        layer = self._inference.fine.read()
        self.scale = self.measure(files, *self.encoded(files), layer=layer)

    def places_of_files(self, files: Sequence[str | PathLike[str]]) -> list[Places]:
        """The places of images, which are encoded unless they were lately."""
        missing = [file for file in dict.fromkeys(files) if str(file) not in self._kept]
        if missing:
            fine, response, _ = self.encoded(missing)
            found = self.places(missing, fine, response, torch.tensor(self.scale.mean))
            self._kept.update(zip(map(str, missing), found, strict=True))
        for file in files:
            self._kept.move_to_end(str(file))
        places = [self._kept[str(file)] for file in files]
        while len(self._kept) > KEPT_IMAGES:
            self._kept.popitem(last=False)
        return places

    def places(
        self,
        files: Sequence[str | PathLike[str]],
        fine: Float[Tensor, "b c h w"],
        response: Float[Tensor, "b d u v"],
        mean: Float[Tensor, " c"],
    ) -> list[Places]:
        """The places of images from their maps, less the channel mean of a scale."""
        each = zip(fine, response, files, strict=True)
        return [Places.of(one, other, mean, image=self.in_view(file)) for one, other, file in each]

    def measure(
        self,
        files: Sequence[str | PathLike[str]],
        fine: Float[Tensor, "b c h w"],
        response: Float[Tensor, "b d u v"],
        vectors: NDArray[np.float32],
        *,
        layer: str,
    ) -> LineScale:
        """The channel mean of fine maps, and the quantiles of inliers between each image and the three least alike."""
        spec = SearchSpec(vectors.shape[1], self._compared)
        ready = comparable(spec, vectors)
        distances = torch.from_numpy(np.stack([distances_to(spec, each, ready) for each in ready]))
        similarity = (1.0 if self._compared == "cosine" else 0.0) - distances
        mean, count = fine.to(torch.float32).mean((0, 2, 3)), len(fine)
        values = similarity[~torch.eye(count, dtype=torch.bool)] if count > 1 else torch.zeros(1, dtype=torch.double)
        spread = float(values.std(correction=0)) or 1.0
        places = self.places(files, fine, response, mean)
        pairs = set()
        for image in range(count if count > 2 * LEAST_SIMILAR else 0):  # of fewer images none is unrelated
            order = similarity[image].argsort(stable=True)[:LEAST_SIMILAR].tolist()
            pairs |= {(min(image, other), max(image, other)) for other in order if other != image}
        inliers = [find_lines(places[a], places[b], metric=self.metric).inliers for a, b in sorted(pairs)]
        null = USUAL_NULL
        if inliers:
            median, high, highest = (int(np.quantile(inliers, share, method="higher")) for share in NULL_SHARES)
            null = (median, high, highest)
        return LineScale(layer, tuple(mean.tolist()), null, len(inliers), (float(values.mean()), spread))


def count_alike(method: str, query: Any, matches: Sequence[Any], *, metric: Metric = "cosine") -> list[int]:
    """The number of places that lie alike on a query and each match: `Places`, or images for kornia's matchers."""
    if method == "lines":
        return [found.inliers for found in lines_to_each(query, matches, metric=metric)]
    return [count_inliers(matcher_of(method), query, match) for match in matches]


def parse_verify(value: int | str) -> tuple[str, int]:
    """Method and number of matches of `verify`: 20, "lines", "lightglue:10".

    >>> parse_verify("lines"), parse_verify(5), parse_verify("loftr:10")
    (('lines', 20), ('lines', 5), ('loftr', 10))
    """
    name, colon, number = ("lines", ":", str(value)) if str(value).isdecimal() else str(value).partition(":")
    if name not in VERIFIERS or (colon and not number.isdecimal()):
        raise InputError(
            f"`verify={value!r}` is not understood; expected how many matches (20), one of {', '.join(VERIFIERS)}, or "
            "both (lines:20)"
        )
    most = int(number) if colon else 20
    if most < 2:
        raise InputError(f"`verify={value!r}` leaves nothing to sort anew; expected 2 matches or more")
    return name, most


VERIFIERS = ("lines", "lightglue", "loftr")


# --- Local matchers of kornia, counted like lines: LoFTR, and LightGlue on DISK features; an extra, `distcam[kornia]` -

LONGEST = 480  # pixels of the longer side
_CELL = 8.0  # pixels that count as one cell: the tolerance is that of lines
_FEATURES = 1024


@torch.no_grad()
def count_inliers(network: Any, query: Any, match: Any) -> int:
    """The number of places, of the hundred surest pairs, that one similarity transform explains.

    A network goes from two images (1, 3, h, w) in [0, 1] to points (n, 2), partners (n, 2) and confidences.
    """
    points, partners, confidence = network(_pixels(query), _pixels(match))
    order = confidence.argsort(descending=True, stable=True)[:STRONGEST]
    found = fit_similarity(points[order] / _CELL, partners[order] / _CELL, confidence[order])
    return 0 if found is None else int(found.is_inlier.sum())


@lru_cache(maxsize=2)
def matcher_of(name: str) -> Any:
    """Kornia's network of this name, made once, with published weights that it downloads once."""
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
    """Kornia's LoFTR as a network of `count_inliers`."""

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
