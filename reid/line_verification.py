"""Answers verified by lines: the first of each query are sorted anew by the places that lie alike on both images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.reid_records import ReidData, ReidImage, ReidProtocol
from ..encoders import Encoder, Inference
from ..errors import InputError
from ..explain.verification import SAMPLE, PlaceReader, count_alike, parse_verify
from ..index import Gallery
from ..metrics.fusion import USUAL_FUSION, Fusion
from .distances import FeatureDistances
from .policies import Matching, labels_of

if TYPE_CHECKING:
    from ..progress import Progress


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
        reader = PlaceReader(Inference(encoder, device=device), plain.metric)
        (queries, gallery), look = images, reader.places_of_files if name == "lines" else list
        spread = np.unique(np.linspace(0, len(gallery) - 1, SAMPLE).round().astype(int))
        reader.measure_files([data.file(gallery[at]) for at in spread])
        matching = Matching(labels_of(queries), labels_of(gallery), protocol=protocol)
        self._first: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        for number, query in enumerate(queries):
            distance = plain.rows(number, number + 1)[0]
            may_meet = np.zeros(len(gallery), bool)
            may_meet[matching.columns] = True
            may_meet[matching.columns[matching.relations(number)[1]]] = False
            allowed = np.flatnonzero(may_meet)
            nearest = allowed[np.argsort(distance[allowed], kind="stable")][:most]
            asked, *others = look([data.file(image) for image in (query, *(gallery[place] for place in nearest))])
            alike = count_alike(name, asked, others, metric=reader.metric)
            similarity = (1.0 if plain.metric == "cosine" else 0.0) - distance[nearest]
            order = np.argsort(-fusion(similarity, alike, reader.scale), kind="stable")
            self._first.append((nearest, nearest[order]))
            if progress is not None:
                progress(number + 1, len(queries))
        null = reader.scale.null
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


def fusion_of(folder: Path, encoder: Encoder) -> Fusion:
    """The calibration that a gallery of the same encoder keeps; InputError if it keeps none."""
    with Gallery.open(folder, verify=False) as gallery:
        gallery.check_encoder(encoder)
        kept = gallery.manifest.verification
    if kept is None:
        raise InputError(f"{folder} keeps no calibration of lines; `distcam index calibrate --verify` makes one")
    return replace(kept.fusion, source=f"{kept.fusion.source} ({folder.name})")
