"""Feature vectors of a data set's images: encoded now, or read from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..datasets.reid_records import ReidData, ReidImage
from ..errors import InputError
from ..files import replacing
from ..progress import Progress
from ..remarks import remark_on_skipped

if TYPE_CHECKING:  # encoding imports torch, which everything else here does without
    from torch import Tensor

    from ..encoders import Encoder

FORMAT, VERSION = "distcam-reid-features", 1
_NOT_WHOLE = "the scores are not those of the whole set"


@dataclass(frozen=True, eq=False)
class Features:
    """One vector per image of a data set.

    Attributes:
        vectors: (images, dimensions), as the encoder gave them.
        paths: of the images, as the data set writes them.
        about: what made them: encoder, flipping, …; goes into reports.
        skipped: images that could not be read, with the reason; they take no part in an assessment.
    """

    vectors: NDArray[np.floating[Any]]
    paths: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.paths):
            raise InputError(f"expected one vector per image, got {self.vectors.shape} for {len(self.paths)} images")
        object.__setattr__(self, "_row", {path: row for row, path in enumerate(self.paths)})

    def of(self, images: Iterable[ReidImage]) -> NDArray[np.floating[Any]]:
        """The vectors of some images, in their order; InputError if an image has none."""
        rows: dict[str, int] = self.__dict__["_row"]
        paths = [image.path for image in images]
        missing = [path for path in paths if path not in rows]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} images have no features, first: {missing[0]}; encode all of them"
            )
        return self.vectors[[rows[path] for path in paths]]


def encode_data(
    images: Iterable[ReidImage],
    data: ReidData,
    encoder: Encoder,
    *,
    flip: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    strict: bool = False,
    progress: Progress | None = None,
) -> Features:
    """The embeddings of some images of a data set.

    Args:
        images: which; usually `data.queries + data.gallery`. An image that is listed twice is encoded once.
        data: the set they belong to.
        encoder: what encodes.
        flip: the mean of each image's embedding and its mirror image's.
        batch_size: images per forward pass.
        workers: decoding threads.
        device: as `Inference` takes it.
        precision: likewise.
        strict: stop at the first image that cannot be read, instead of leaving it out with a remark: a score without it
            is not comparable with one that knows it.
        progress: called with (images encoded, images in all).

    Raises:
        InputError: no image can be read, or, with `strict`, one cannot.
    """
    from ..encoders import Inference

    listed = list({image.path: image for image in images}.values())
    inference = Inference(encoder, device=device, precision=precision, batch_size=batch_size)
    items = [(image, mirrored) for image in listed for mirrored in ((False, True) if flip else (False,))]

    def load(item: tuple[ReidImage, bool]) -> Tensor:
        pixels = inference.read(data.file(item[0]))
        return pixels.flip(-1) if item[1] else pixels

    vectors: list[NDArray[np.float32]] = []
    skipped: dict[str, str] = {}
    done: list[str] = []
    for batch in inference.stream(items, load=load, workers=workers, maps=False):
        for failure in batch.failures:
            if strict:
                raise InputError(f"{failure.error}; a score without this image means nothing, see `reid audit`")
            skipped[failure.item[0].path] = failure.error.reason
        if batch.encoding is not None:
            vectors.append(batch.encoding.embedding.cpu().numpy())
            done += [image.path for image, _ in batch.items]
        if progress is not None:
            progress(len(done) + len(skipped), len(items))
    if not vectors:
        first = next(iter(skipped.items()), ("none",))
        raise InputError(f"expected at least one image to encode, got {': '.join(first)}")
    remark_on_skipped(skipped, len(listed), _NOT_WHOLE)
    kept = [image.path for image in listed if image.path not in skipped]
    found = np.concatenate(vectors)[[path not in skipped for path in done]]
    found = found.reshape(len(kept), -1, found.shape[1]).mean(axis=1)
    about = {**_described(encoder, [image for image in listed if image.path not in skipped], data), "flip": flip}
    about["input"] += f", {inference.precision}"
    return Features(found, tuple(kept), about, skipped)


def _described(encoder: Encoder, images: Sequence[ReidImage], data: ReidData) -> dict[str, Any]:
    """The encoder and its input, and how many of the images and identities asked for it was trained on."""
    from ..encoders.trained_on import say_overlap
    from ..files import file_digests

    about: dict[str, Any] = {
        "encoder": encoder.short_name,
        "fingerprint": encoder.fingerprint,
        "input": f"{encoder.transform.height}x{encoder.transform.width}, {encoder.transform.fit}",
    }
    if encoder.trained_on is not None:
        asked = {str(image.identity) for image in images if image.role != "gallery"}
        digests = file_digests(map(data.file, images))
        overlap = encoder.trained_on.overlap(asked if data.has_common_identities else set(), digests)
        about["trained_on"] = overlap.to_dict()
        say_overlap(overlap)
    return about


def write_features(file: str | PathLike[str], features: Features, *, results: Mapping[str, Any] | None = None) -> Path:
    """An HDF5 file with the vectors, their images, and if given what an evaluation of them found."""
    target = Path(file)
    with replacing(target) as aside, h5py.File(aside, "w") as stream:
        stream.attrs["format"], stream.attrs["version"] = FORMAT, VERSION
        stream.attrs["about"] = json.dumps(dict(features.about))
        stream.attrs["skipped"] = json.dumps(dict(features.skipped))
        stream["features"] = features.vectors
        stream.create_dataset("paths", data=list(features.paths), dtype=h5py.string_dtype())
        if results is not None:
            stream.create_dataset("results", data=json.dumps(results), dtype=h5py.string_dtype())
    return target


def read_features(file: str | PathLike[str], data: ReidData) -> Features:
    """Vectors of a data set's images in a file of `distcam reid evaluate` or `encode`; InputError for other files."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path) as stream:
            if stream.attrs.get("format") == FORMAT:
                about = json.loads(stream.attrs["about"])
                names = tuple(name.decode() for name in stream["paths"][()])
                skipped = json.loads(stream.attrs.get("skipped", "{}"))
                remark_on_skipped(skipped, len(names) + len(skipped), _NOT_WHOLE)
                return Features(stream["features"][()], names, about, skipped)
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected features written by `distcam reid evaluate --out`; {error}") from error
    from ..index.building.encodings import read_encodings

    encodings = read_encodings(path)

    def place(file: Path) -> str:
        return os.path.normpath(file.absolute())  # the two may count their paths from different folders

    rows = {place(encodings.file_of(record)): row for row, record in enumerate(encodings.records)}
    found = [(image.path, row) for image in data.images if (row := rows.get(place(data.file(image)))) is not None]
    if not found:
        example = data.file(data.images[0])
        raise InputError(f"{path} knows none of the images, such as {example}; encode the folder they lie in")
    about = {name: encodings.encoder.get(key, "") for name, key in (("encoder", "short_name"), ("fingerprint",) * 2)}
    return Features(np.asarray(encodings.embeddings)[[row for _, row in found]], tuple(p for p, _ in found), about)
