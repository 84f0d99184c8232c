"""Answers verified by lines: the first of each query are sorted anew by the places that lie alike on both images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.reid_records import ReidData, ReidImage, ReidProtocol
from ..encoders import Encoder, Inference
from ..encoders.encoding import fold
from ..explain.methods.lines import Places
from ..explain.verification import SAMPLE, PlaceReader, count_alike, parse_verify
from ..metrics import Metric
from ..metrics.fusion import USUAL_FUSION, Fusion
from .distances import FeatureDistances
from .policies import Matching, labels_of

if TYPE_CHECKING:
    from ..progress import Progress

_KEPT_IMAGES = 500  # places of so many images stay in memory, about 0.4 MB each


class VerifiedDistances:
    """Distances whose smallest K of each query are handed out anew, in the order of two fused probabilities.

    Images that the protocol keeps from a query are passed over, and everything behind the first K stays as it is.
    """

    def __init__(
        self,
        plain: FeatureDistances,
        images: tuple[Sequence[ReidImage], Sequence[ReidImage]],
        data: ReidData,
        *,
        encoder: Encoder,
        protocol: ReidProtocol,
        verify: int | str = 20,
        fusion: Fusion = USUAL_FUSION,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self._plain = plain
        self.shape, self.dtype, self.bounds = plain.shape, plain.dtype, plain.bounds
        name, most = parse_verify(verify)
        eye = _LineReader(data, Inference(encoder, device=device), plain.metric)
        queries, gallery = images
        eye.measure([gallery[at] for at in np.unique(np.linspace(0, len(gallery) - 1, SAMPLE).round().astype(int))])
        matching = Matching(labels_of(queries), labels_of(gallery), protocol=protocol)
        self._first: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        for number, query in enumerate(queries):
            distance = plain.rows(number, number + 1)[0]
            may_meet = np.zeros(len(gallery), bool)
            may_meet[matching.columns] = True
            may_meet[matching.columns[matching.relations(number)[1]]] = False
            allowed = np.flatnonzero(may_meet)
            nearest = allowed[np.argsort(distance[allowed], kind="stable")][:most]
            alike = eye.alike(query, [gallery[place] for place in nearest], name)
            similarity = (1.0 if plain.metric == "cosine" else 0.0) - distance[nearest]
            order = np.argsort(-fusion(similarity, alike, eye.scale), kind="stable")
            self._first.append((nearest, nearest[order]))
            if progress is not None:
                progress(number + 1, len(queries))
        null = eye.scale.null
        self.summary = (
            f"the first {most} of each query sorted anew by {name}, fused with the similarity by calibration on "
            f"{fusion.source}; places alike on unrelated images: median {null[0]}, 99 % {null[2]}"
        )

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """See `DistanceSource.rows`."""
        rows = self._plain.rows(start, stop).copy()
        for row, (before, after) in zip(rows, self._first[start:stop], strict=True):
            row[after] = row[before]
        return rows


def verifier(
    encoder: Encoder, verify: int | str, *, device: str = "auto", progress: Progress | None = None
) -> Callable[..., VerifiedDistances]:
    """`VerifiedDistances` of this encoder, for `assess`; InputError if `verify` is not understood."""
    parse_verify(verify)
    return partial(VerifiedDistances, encoder=encoder, verify=verify, device=device, progress=progress)


class _LineReader:
    """The places of a data set's images; those seen last are kept."""

    def __init__(self, data: ReidData, inference: Inference, metric: Metric) -> None:
        self._data, self._inference, self._reader = data, inference, PlaceReader(inference.transform, metric)
        self._layer = inference.fine.read()
        self._kept: OrderedDict[str, Places] = OrderedDict()

    def measure(self, images: Sequence[ReidImage]) -> None:
        """Settle the scale on some images."""
        files, fine, response, vectors = self._encoded(images)
        self.scale = self._reader.measure(files, fine, response, vectors.numpy(), layer=self._layer)

    def alike(self, query: ReidImage, answers: Sequence[ReidImage], name: str) -> list[int]:
        """The number of places that lie alike on a query and each of its answers."""
        if name != "lines":
            return count_alike(name, self._data.file(query), [self._data.file(image) for image in answers])
        missing = {image.path: image for image in (query, *answers) if image.path not in self._kept}
        if missing:
            files, fine, response, _ = self._encoded(list(missing.values()))
            found = self._reader.places(files, fine, response, torch.tensor(self.scale.mean))
            self._kept.update(zip(missing, found, strict=True))
        places = [self._kept[image.path] for image in (query, *answers)]
        for image in (query, *answers):
            self._kept.move_to_end(image.path)
        while len(self._kept) > _KEPT_IMAGES:
            self._kept.popitem(last=False)
        return count_alike("lines", places[0], places[1:], metric=self._reader.metric)

    def _encoded(self, images: Sequence[ReidImage]) -> tuple[list[Path], Tensor, Tensor, Tensor]:
        """The files, fine maps, response maps and vectors of images."""
        files, encoder = [self._data.file(image) for image in images], self._inference.encoder
        encoding = self._inference.encode_images(files)
        assert encoding.fine is not None
        with torch.no_grad():
            response = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map
        return files, encoding.fine.cpu(), response.cpu(), encoding.embedding.cpu()
