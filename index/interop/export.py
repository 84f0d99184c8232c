"""A gallery for other tools: vectors as NumPy arrays, records as Parquet tables, an index that plain FAISS reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import GalleryError, GalleryExistsError, InputError
from ...files import Storage
from ...progress import Progress
from ...remarks import counted, remark
from ..storage.snapshot import Ids
from .tables import BLOCK_ROWS, ENCODER_FILE, EXPORT_FILE, parquet

if TYPE_CHECKING:
    from ..gallery import Gallery

ROWS_PER_FILE = 250_000
_MARKER = ".distcam-export"
_OWN_COLUMNS = ("image_path", "path", "label", "id", "sha256", "size", "mtime_ns")


@dataclass(frozen=True)
class GalleryExport:
    """The folder written: rows, files, their bytes, the FAISS factory string or None, and if the encoder lies in it."""

    folder: str
    images: int
    files: int
    bytes: int
    index: str | None
    encoder: bool = False


def export_gallery(
    gallery: Gallery,
    out: str | os.PathLike[str],
    *,
    index: str = "flat",
    rows_per_file: int = ROWS_PER_FILE,
    half: bool = False,
    encoder: bool = True,
    progress: Progress | None = None,
) -> GalleryExport:
    """Write a gallery's vectors and records for other tools; `import_gallery` reads them back.

    Memory holds a block of rows, and the FAISS index, which FAISS writes in one piece.

    Args:
        gallery: what to export.
        out: a new folder.
        index: `"flat"`, `"auto"` (the kind that the gallery's size asks for), `"none"`, or a FAISS factory string.
        rows_per_file: images in each pair of files.
        half: vectors in half precision, as clip-retrieval's own; reading them back is then not exact.
        encoder: also the gallery's copy of its encoder, so that the import can be queried with new images.
        progress: called with images done and images in all.

    Raises:
        GalleryExistsError: something is at `out`.
        InputError: the gallery is empty, or FAISS cannot make the index.
        MissingExtraError: pyarrow is not installed.
    """
    gallery.require_segments("export")
    parquet()  # before anything is written
    if rows_per_file < 1:
        raise InputError(f"expected at least 1 row per file, got {rows_per_file}")
    if not len(gallery):
        raise InputError(f"{gallery.folder} holds no image to export")
    target = Path(out)
    with written_aside(target) as folder:
        writing = _Writing(gallery, folder, half=half)
        factory = writing.index(index) if index != "none" else None
        starts = range(0, len(gallery), rows_per_file)
        for number, start in enumerate(starts):
            name = f"{number:0{len(str(len(starts) - 1))}d}"
            for rows in writing.shard(name, gallery.ids[start : start + rows_per_file]):
                if progress is not None:
                    progress(start + rows, len(gallery))
        has_encoder = encoder and writing.encoder()
        writing.describe(factory, has_encoder=has_encoder)
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return GalleryExport(str(target), len(gallery), len(files), size, factory, has_encoder)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target`, durably, when everything is in it."""
    if target.exists() or target.is_symlink():
        raise GalleryExistsError(f"{target}: is there already; choose another --out")
    folder, storage = target.with_name(f"{target.name}.partial"), Storage()
    if folder.exists() and not (folder / _MARKER).exists():
        raise GalleryExistsError(f"{folder}: is in the way and not ours; move it, or choose another --out")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted export left
        storage.make_folder(folder)
        (folder / _MARKER).touch()
        yield folder
        for path in sorted(folder.rglob("*")):
            (storage.sync_folder if path.is_dir() else storage.sync)(path)
        (folder / _MARKER).unlink()
        storage.sync_folder(folder)
        storage.rename(folder, target)
        storage.sync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise GalleryError(f"{target}: cannot be written ({reason}); is the disk full or write-protected?") from error


def own_columns(gallery: Gallery, *, taken: Collection[str]) -> dict[str, str]:
    """The gallery's other columns by their names in an export: `column_…` where a name is taken there."""
    names = [name for name in gallery.column_names if name not in ("path", "label")]
    return {f"column_{name}" if name in taken else name: name for name in names}


def record_columns(gallery: Gallery, ids: Ids, names: Mapping[str, str]) -> dict[str, list[Any]]:
    """Some images as columns; `image_path` is where the file lies, for tools that know no root, or its address."""
    records = gallery.records(ids)
    return {
        "id": [record.id for record in records],
        "path": [record.path for record in records],
        "image_path": [record.path if "://" in record.path else str(gallery.file(record)) for record in records],
        "label": [record.label for record in records],
        **{name: [record.columns.get(own) for record in records] for name, own in names.items()},
    }


class _Writing:
    def __init__(self, gallery: Gallery, folder: Path, *, half: bool) -> None:
        self._gallery = gallery
        self._folder = folder
        self._dtype = "<f2" if half else "<f4"
        self._columns = own_columns(gallery, taken=_OWN_COLUMNS)
        self._snapshot = gallery.snapshot
        for name in ("img_emb", "metadata", *(() if gallery.spec.embedding_is_pooled else ("pooled",))):
            (folder / name).mkdir()

    def index(self, wanted: str) -> str:
        """Write the FAISS index; returns its factory string."""
        import faiss

        from ..faiss.factory import choose_factory, new_index
        from ..faiss.index_store import IndexStore

        gallery = self._gallery
        spec = self._snapshot.search_spec
        own = gallery.manifest.index
        factory = own if wanted == "auto" and own not in ("auto", "flat") else wanted
        factory = {"flat": "Flat", "auto": choose_factory(spec, len(gallery))}.get(factory, factory)
        store = IndexStore(spec, new_index(spec, factory))
        store.fill(gallery.ids, gallery.embeddings, factory=factory, seed=0)
        try:
            faiss.write_index(store.index, str(self._folder / "image.index"))
        except RuntimeError as error:  # FAISS's word for a full disk
            reason = str(error).split("Error: ")[-1].strip()
            raise GalleryError(
                f"{self._folder}: FAISS cannot write the index ({reason}); is the disk full or write-protected?"
            ) from error
        return factory

    def shard(self, name: str, ids: Ids) -> Iterator[int]:
        """Write one pair (or triple) of files; yields the number of rows done."""
        pa, pq = parquet()
        spec = self._gallery.spec
        arrays = {"img_emb": (spec.embedding_dim, self._gallery.embeddings)}
        if not spec.embedding_is_pooled:
            arrays["pooled"] = (spec.pooled_dim, self._gallery.pooled)
        files = {
            kind: np.lib.format.open_memmap(
                self._folder / kind / f"{kind}_{name}.npy", mode="w+", dtype=self._dtype, shape=(len(ids), dim)
            )
            for kind, (dim, _) in arrays.items()
        }
        fields = [(column, pa.string()) for column in ("image_path", "path", "label", *self._columns)]
        fields += [("id", pa.int64()), ("sha256", pa.string()), ("size", pa.uint64()), ("mtime_ns", pa.int64())]
        schema = pa.schema(fields)
        with pq.ParquetWriter(self._folder / "metadata" / f"metadata_{name}.parquet", schema) as writer:
            for start in range(0, len(ids), BLOCK_ROWS):
                some = ids[start : start + BLOCK_ROWS]
                stop = start + len(some)
                for kind, (_, read) in arrays.items():
                    files[kind][start:stop] = read(some)
                writer.write_table(pa.table(self._table(some), schema=schema))
                yield stop
        for file in files.values():
            file.flush()

    def _table(self, ids: Ids) -> dict[str, list[Any]]:
        states = [self._snapshot.file_state(place) for place in self._snapshot.places(ids).tolist()]
        return {
            **record_columns(self._gallery, ids, self._columns),
            "sha256": [sha256.hex() for sha256, _, _ in states],
            "size": [size for _, size, _ in states],
            "mtime_ns": [mtime_ns for _, _, mtime_ns in states],
        }

    def encoder(self) -> bool:
        """Write the gallery's copy of its encoder; False where it keeps none."""
        copy = self._gallery.encoder_path
        if copy is None or not copy.is_file():
            remark(
                f"{self._gallery.folder} keeps no copy of its encoder {self._gallery.manifest.encoder.short_name}, so "
                "none is exported; an import needs the encoder to be given for queries with new images"
            )
            return False
        shutil.copyfile(copy, self._folder / ENCODER_FILE)
        return True

    def describe(self, factory: str | None, *, has_encoder: bool) -> None:
        """Write what a reader has to know, for machines and for people."""
        gallery, encoder = self._gallery, self._gallery.manifest.encoder
        about = {
            "format": "distcam-export",
            "version": 1,
            "images": len(gallery),
            "metric": gallery.metric,
            "embedding_dim": gallery.spec.embedding_dim,
            "pooled_dim": gallery.spec.pooled_dim,
            "dtype": np.dtype(self._dtype).name,
            "root": str(gallery.root),
            "columns": self._columns,
            "masks": None if (masks := gallery.manifest.masks) is None else asdict(masks),
            "background": None if (edges := gallery.manifest.background) is None else asdict(edges),
            "encoder": asdict(encoder) | {"file": ENCODER_FILE if has_encoder else None},
            "box_margin": gallery.manifest.box_margin,
            "index": None if factory is None else {"file": "image.index", "factory": factory, "ids": "row numbers"},
        }
        (self._folder / EXPORT_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (self._folder / "README.md").write_text(_readme(gallery, factory, has_encoder=has_encoder), encoding="utf-8")


def _readme(gallery: Gallery, factory: str | None, *, has_encoder: bool) -> str:
    told = {
        "cosine": "Inner products of unit vectors: normalise a query; distance = 1 - score.",
        "dot": "Inner products of raw vectors: distance = -score.",
        "l2": "Squared Euclidean distances of raw vectors: distance = sqrt(score).",
        "l1": "Sums of absolute differences of raw vectors where FAISS has them (Flat, HNSW), else squared Euclidean.",
    }
    also = ""
    if factory is not None:
        also += f"""
- `image.index`: FAISS `{factory}`, read with `faiss.read_index`. Its ids are row numbers over all files in order, from
  0. {told[gallery.metric]}"""
    if has_encoder:
        also += f"\n- `{ENCODER_FILE}`: the encoder, a checkpoint of distcam."
    return f"""# {counted(len(gallery), "image")} of {gallery.folder.name}

- `img_emb/img_emb_<n>.npy`: raw embeddings, one row per image, {gallery.spec.embedding_dim} numbers each.
- `pooled/pooled_<n>.npy`: pooled vectors in the same order, where they differ from the embeddings.
- `metadata/metadata_<n>.parquet`: the same rows: `image_path` (where it lay), `path` (relative to `root` in
  `{EXPORT_FILE}`), `label`, the gallery's columns, its `id`, and `sha256`, `size`, `mtime_ns` of the file.{also}

Encoded by {gallery.manifest.encoder.short_name}; the metric is {gallery.metric}. Read it back with
`distcam index import`.
"""
