"""A gallery for vector stores and tables: LanceDB, Qdrant, Hugging Face data sets, FiftyOne, a CSV; each an extra."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import GalleryExistsError, InputError, MissingExtraError
from ...files import replacing
from ...images import image_size
from ...images.items import split_item
from ...progress import Progress
from ...remarks import counted, remark
from ..storage.hdf5 import Array
from .export import own_columns, record_columns, written_aside
from .tables import BLOCK_ROWS

if TYPE_CHECKING:
    from ..gallery import Gallery

_Blocks = Iterator[tuple[dict[str, list[Any]], Array]]
_OWN = ("id", "path", "image_path", "label", "vector")


def export_rows(
    gallery: Gallery, out: str | os.PathLike[str], *, to: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Write a gallery's images, labels and columns, with their vectors, for another tool; what was written, for JSON.

    Of each image: `id`, `path` (as the gallery has it), `image_path` (where it lies), `label`, the gallery's columns
    (`column_…` where a name is taken), and the raw embedding, except in a CSV.

    Args:
        gallery: what to export.
        out: a new folder, or for `csv` a new file; for `qdrant` also the address of a server.
        to: `"lancedb"` (a table `images`), `"qdrant"` (a collection of the gallery's name and metric), `"datasets"` (a
            Hugging Face data set with the image files), `"fiftyone"` (of type `LegacyFiftyOneDataset`: one sample per
            file, its boxes as detections), or `"csv"`, which `--labels` reads.
        progress: called with images done and images in all.

    Raises:
        GalleryExistsError: something is at `out`.
        InputError: an empty gallery, or a tool that is not known.
        MissingExtraError: the tool's library is not installed.
    """
    if to not in ("csv", *STORES):
        raise InputError(f"to={to!r} is not known; choose one of csv, {', '.join(STORES)}")
    if not len(gallery):
        raise InputError(f"{gallery.folder} holds no image to export")
    names = own_columns(gallery, taken=_OWN)
    blocks = _blocks(gallery, names, progress)
    try:
        if "://" in str(out) and to == "qdrant":
            _to_qdrant(gallery, str(out), blocks)
        elif to == "csv":
            _to_csv(Path(out), blocks)
        else:
            with written_aside(Path(out)) as folder:
                STORES[to](gallery, str(folder), blocks)
    except ImportError as error:
        raise MissingExtraError(f"--to {to} needs its library: pip install 'distcam[{to}]' ({error})") from error
    return {"to": to, "out": str(out), "images": len(gallery), "columns": list(names)}


def _blocks(gallery: Gallery, names: Mapping[str, str], progress: Progress | None) -> _Blocks:
    """Some rows at a time, as columns, with their vectors."""
    for start in range(0, len(gallery), BLOCK_ROWS):
        ids = gallery.ids[start : start + BLOCK_ROWS]
        yield record_columns(gallery, ids, names), gallery.embeddings(ids)
        if progress is not None:
            progress(start + len(ids), len(gallery))


def _to_csv(out: Path, blocks: _Blocks) -> None:
    if os.path.lexists(out):
        raise GalleryExistsError(f"{out}: is there already; choose another --out")
    with replacing(out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for columns, _ in blocks:
            del columns["id"], columns["image_path"]
            if writer is None:
                writer = csv.writer(file)
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _to_lancedb(gallery: Gallery, out: str, blocks: _Blocks) -> None:
    import lancedb
    import pyarrow as pa

    dim = gallery.spec.embedding_dim
    names = ("path", "image_path", "label", *own_columns(gallery, taken=_OWN))
    fields = [("id", pa.uint64()), *((name, pa.string()) for name in names)]
    schema = pa.schema([*fields, ("vector", pa.list_(pa.float32(), dim))])

    def batches() -> Iterator[Any]:
        for columns, vectors in blocks:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            yield pa.RecordBatch.from_pydict({**columns, "vector": flat}, schema=schema)

    lancedb.connect(out).create_table("images", batches(), schema=schema)


def _to_qdrant(gallery: Gallery, out: str, blocks: _Blocks) -> None:
    from qdrant_client import QdrantClient, models

    kinds = {"cosine": "COSINE", "dot": "DOT", "l2": "EUCLID", "l1": "MANHATTAN"}
    client = QdrantClient(url=out) if "://" in out else QdrantClient(path=out)
    try:
        name, distance = gallery.folder.stem, models.Distance[kinds[gallery.metric]]
        if client.collection_exists(name):
            raise GalleryExistsError(f"{out}: has a collection {name} already; delete it there, or give another --out")
        client.create_collection(name, models.VectorParams(size=gallery.spec.embedding_dim, distance=distance))
        for columns, vectors in blocks:
            numbers = columns.pop("id")
            payload = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            client.upload_collection(name, vectors, payload=payload, ids=numbers, wait=True)
    finally:
        client.close()


def _to_datasets(_gallery: Gallery, out: str, blocks: _Blocks) -> None:
    import datasets

    parts, gone = [], []
    for columns, vectors in blocks:
        files = [path if os.path.isfile(path) else None for path in columns["image_path"]]  # noqa: PTH113 - plain text
        gone += [path for path, file in zip(columns["path"], files, strict=True) if file is None]
        features = datasets.Features(
            {
                **{name: datasets.Value("uint64" if name == "id" else "string") for name in columns},
                "image": datasets.Image(),
                "vector": datasets.Sequence(datasets.Value("float32"), length=vectors.shape[1]),
            }
        )
        whole = {**columns, "image": files, "vector": list(vectors)}
        parts.append(datasets.Dataset.from_dict(whole, features=features))
    datasets.concatenate_datasets(parts).save_to_disk(out)
    if gone:
        remark(f"{counted(len(gone), 'image')} not found, such as {gone[0]}: exported with everything but the image")


def _to_fiftyone(gallery: Gallery, out: str, blocks: _Blocks) -> None:
    import fiftyone as fo

    samples: dict[str, Any] = {}
    for columns, vectors in blocks:
        for *values, vector in zip(*columns.values(), vectors, strict=True):
            row = dict(zip(columns, values, strict=True))
            box, label = split_item(row.pop("path"))[1], row.pop("label")
            file = row.pop("image_path")
            sample = samples.setdefault(file, fo.Sample(filepath=file))
            about = {("gallery_id" if name == "id" else name): each for name, each in row.items() if each is not None}
            if box is None:
                sample.update_fields({**about, "embedding": vector})
                sample["ground_truth"] = None if label is None else fo.Classification(label=label)
                continue
            width, height = image_size(file)
            edges = [box.left / width, box.top / height, box.width / width, box.height / height]
            found = fo.Detection(label=label, bounding_box=edges, embedding=vector, **about)
            detections = sample["detections"].detections if sample.has_field("detections") else []
            sample["detections"] = fo.Detections(detections=[*detections, found])
    told = {"name": gallery.folder.stem, "media_type": "image", "info": {"metric": gallery.metric}}
    Path(out, "metadata.json").write_text(json.dumps(told), encoding="utf-8")
    with Path(out, "samples.json").open("w", encoding="utf-8") as file_out:
        file_out.write('{"samples": [')
        for number, sample in enumerate(samples.values()):
            file_out.write(", " * bool(number) + json.dumps(sample.to_dict()))
        file_out.write("]}")


STORES: dict[str, Callable[[Gallery, str, _Blocks], None]] = {
    "lancedb": _to_lancedb,
    "qdrant": _to_qdrant,
    "datasets": _to_datasets,
    "fiftyone": _to_fiftyone,
}
