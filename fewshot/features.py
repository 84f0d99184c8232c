"""Features of a split, made once and kept in the gallery's HDF5 format: what every episode is answered from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets import Split
from ..encoders import Encoder, Inference, Overlap
from ..errors import FingerprintMismatchError, ImageError, InputError
from ..index import Encodings, read_encodings
from ..index.building.build import InferenceOptions, spec_of, to_vectors
from ..index.building.encodings import write_encodings
from ..index.storage.manifest import Spec
from ..index.storage.segments import Entries, RowVectors
from ..progress import Progress
from ..remarks import remark_on_skipped

_OTHERS = "the episodes are drawn from the others"


def cached_features(
    split: Split,
    encoder: Encoder,
    file: str | os.PathLike[str],
    *,
    settings: InferenceOptions | None = None,
    overwrite: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Encodings:
    """The features in `file` if they are of this encoder and hold the split's items; else they are made and written.

    A file that `distcam encode` wrote serves as well, if its paths are the split's names.
    """
    path = Path(file)
    if overwrite or not path.exists():
        return encode_split(split, encoder, path, settings=settings, strict=strict, progress=progress)
    found = read_encodings(path)
    if found.encoder.get("fingerprint") != encoder.fingerprint:
        raise FingerprintMismatchError(
            f"{path} holds features of {found.encoder.get('short_name')}, the encoder given is {encoder.short_name}; "
            "choose another file, or --overwrite"
        )
    label_of = {record.path: record.label for record in found.records}
    remark_on_skipped(found.skipped, len(split), _OTHERS, strict=strict)
    absent = [name for name in split.names.tolist() if name not in label_of and name not in found.skipped]
    if absent:
        raise InputError(
            f"{path} lacks {len(absent)} of the {len(split)} images of {split.name}, the first is {absent[0]!r}; "
            "choose another file, or --overwrite"
        )
    for name, label in zip(split.names.tolist(), split.labels.tolist(), strict=True):
        if label_of.get(name, label) != label:
            raise InputError(f"{path} says that {name!r} is {label_of[name]!r}, {split.name} that it is {label!r}")
    return found


def encode_split(
    split: Split,
    encoder: Encoder,
    out: str | os.PathLike[str],
    *,
    settings: InferenceOptions | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Encodings:
    """Encode all images of a split into one file, as `distcam.index.encode_to_file` does for image files.

    The file appears when it is whole. An image that cannot be read is left out with a remark, and is in
    `Encodings.skipped`: episodes have to be drawn from the others, see `Split.without`. With `strict` it ends the work.
    """
    if encoder.training:
        raise InputError("the encoder is in training mode; call encoder.eval() before its features are taken")
    for name, part in encoder.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise InputError(
                f"the batch norm {name!r} uses the statistics of each batch, which makes every result transductive; "
                "call eval(), or train with track_running_stats=True"
            )
    path, settings = Path(out), settings or InferenceOptions()
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; create it first")
    inference = Inference(encoder, device=settings.device, precision=settings.precision, batch_size=settings.batch_size)
    spec = spec_of(encoder, "dot")
    blocks, skipped = _blocks(split, inference, spec, workers=settings.workers, strict=strict, progress=progress)
    remark_on_skipped(skipped, len(split), _OTHERS, strict=strict)
    used = split.without(skipped)
    digests, size = np.empty((len(used), 32), np.uint8), np.empty(len(used), np.uint64)
    for row in range(len(used)):
        content = used.images.content(row)
        digests[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        size[row] = len(content)
    ids, times = np.arange(len(used), dtype=np.uint64), np.zeros(len(used), np.int64)
    write_encodings(
        path,
        Entries(ids, used.names.tolist(), digests, size, times, {"label": list(used.labels.tolist())}),
        blocks,
        spec=spec,
        root=split.images.root.absolute(),
        encoder=encoder,
        precision=inference.precision,
        skipped=skipped,
    )
    return read_encodings(path)


def overlap_of(encodings: Encodings, split: Split, encoder: Encoder | None) -> Overlap | None:
    """Overlap of a split with the encoder's training set, in classes and images; None where it is not known.

    The encodings may be of other images too, and know the overlap themselves where the encoder is not at hand.
    """
    if encoder is None:
        return Overlap.from_dict(encodings.encoder.get("trained_on"))
    if encoder.trained_on is None:
        return None
    names = set(split.names.tolist())
    rows = [row for row, record in enumerate(encodings.records) if record.path in names]
    return encoder.trained_on.overlap(split.labels.tolist(), encoder.trained_on.short(encodings.sha256[rows]))


def _blocks(
    split: Split, inference: Inference, spec: Spec, *, workers: int | None, strict: bool, progress: Progress | None
) -> tuple[list[RowVectors], dict[str, str]]:
    """Vectors in the order of the items, batch by batch, and the items without one; `read_encodings` holds as much."""
    blocks: list[RowVectors] = []
    skipped: dict[str, str] = {}
    done = 0
    for batch in inference.stream(
        range(len(split)), load=lambda row: inference.read(split.images[row]), workers=workers, maps=False
    ):
        for failure in batch.failures:
            name = str(split.names[failure.item])
            if strict:
                raise ImageError(name, failure.error.reason)
            skipped[name] = failure.error.reason
        done += len(batch.items) + len(batch.failures)
        if batch.encoding is not None:
            vectors = to_vectors(batch.encoding, spec)
            finite = np.isfinite(vectors.pooled).all(1) & np.isfinite(vectors.embedding).all(1)
            if not finite.all():
                name = str(split.names[batch.items[int(np.argmin(finite))]])
                raise InputError(f"the features of {name!r} are not finite; check the encoder's weights")
            blocks.append(vectors)
        if progress is not None:
            progress(done, len(split))
    if not blocks:
        raise ImageError(*next(iter(skipped.items())))
    return blocks, skipped
