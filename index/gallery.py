"""The gallery: a folder of encoded images that can be searched, filtered, changed, and that explains its matches.

    gallery = Gallery.build("photos/", encoder, out="photos.gallery")
    gallery = Gallery.open("photos.gallery")
    hits = gallery.search(embeddings, k=10, where="label in cat,dog")

The folder holds `manifest.json` and the files it names; everything else is a leftover or a stranger. Opening costs
memory for ids and for the columns that are asked for, never for vectors. `rows.py`, `segments.py` and `manifest.py`
describe the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DistcamError, FingerprintMismatchError, InputError
from . import caches
from .filters import Filter, matching, parse_filter
from .manifest import CacheEntry, Manifest, Spec
from .prototypes import PrototypeStore, unit_rows
from .rejection import Rejection, choose_threshold
from .reports import AddReport, Skipped, VerifyReport, counted, read_skipped
from .rows import Array, Record, located, stored_path
from .search import Hits, Metric, SearchSpec
from .snapshot import Ids, Snapshot, Verify, check_file
from .writer import GalleryWriter, opened_for_writing

if TYPE_CHECKING:  # what encodes images imports torch, which searching does without
    from ..encoders import Encoder
    from .build import ImageFiles, Precision
    from .faiss_search import FaissSearch

__all__ = ["Gallery"]

Progress = Callable[[int, int], None]  # images done, images in all
_FAST_INDEX = 100_000  # images; below, "auto" always means an index that is built as quickly as read


class Gallery:
    """A gallery on disk, open at one generation; `build`, `open`, and the methods that change it move it to the newest.

    Attributes:
        folder: where it lies.
        root: the folder that relative image paths refer to.
        report: what the build or add that this object was used for did; None before.
    """

    def __init__(self, snapshot: Snapshot, *, root: Path | None = None, verify: Verify = "auto") -> None:
        self.folder = snapshot.folder
        self.root = Path(snapshot.manifest.root) if root is None else root
        self._snapshot = snapshot
        self._verify: Verify = verify
        self._prototypes: PrototypeStore | None = None
        self._search: FaissSearch | None = None
        self._encoder_checked = False
        self.report: AddReport | None = None

    @classmethod
    def build(
        cls,
        source: ImageFiles,
        encoder: Encoder,
        *,
        out: str | os.PathLike[str],
        metric: Metric = "cosine",
        labels: str | os.PathLike[str] | None = None,
        store_maps: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        index: str = "auto",
        strict: bool = False,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Encode images into a new gallery, or go on with a build that was interrupted.

        Ctrl-C keeps what is encoded; the same call goes on from there. Files that cannot be used are listed in
        `skipped`.

        Args:
            source: a folder, a CSV, a pattern, files, or a `Listing`.
            encoder: a copy of its checkpoint goes into the gallery when it can be saved.
            out: the gallery's folder.
            metric: `"cosine"`, `"l2"`, `"l1"` or `"dot"`.
            labels: `"folder"`, `"none"`, or a CSV; see `list_images`.
            store_maps: keep the feature maps, to explain the gallery's side of a match without the image.
            batch_size: images per forward pass; see `Inference` for this and the next three.
            workers: threads that decode images.
            device: `"auto"`, `"cpu"` or `"cuda"`.
            precision: of the arithmetic; remembered, so that what is added and queries are encoded alike.
            index: `"auto"`, `"flat"`, or a FAISS factory string.
            strict: stop at the first file that cannot be used.
            overwrite: start anew over an existing gallery, which stays readable until the first commit.
            progress: called with the number of images done and the number in all.

        Raises:
            GalleryExistsError: `out` holds a complete gallery, or something else.
            FingerprintMismatchError: `out` holds an unfinished gallery of another encoder.
            ImageError: with `strict`, the first file that cannot be used.
        """
        from .build import InferenceSettings, add_images, listing_of, opened_for_building

        folder, listing = Path(out), listing_of(source, labels)
        settings = InferenceSettings(batch_size, workers, device, precision)
        with opened_for_building(
            folder, listing, encoder, metric=metric, index=index, store_maps=store_maps, overwrite=overwrite
        ) as writer:
            report = add_images(
                writer,
                listing,
                encoder,
                settings=settings,
                store_maps=store_maps,
                complete=True,
                strict=strict,
                progress=progress,
            )
            gallery = cls.open(folder)
            gallery.report = report
            gallery._renew_caches(writer)
        return gallery

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, verify: Verify = "auto"
    ) -> Self:
        """Open an existing gallery at its newest generation.

        Args:
            path: the gallery's folder.
            root: where the images lie now, if they were moved.
            verify: compare every file's checksum; `"auto"` does so up to 1 GiB.

        Raises:
            InputError: `root` is no folder.
            NotAGalleryError: there is no gallery.
            CorruptGalleryError: a file is missing, damaged, or holds what no gallery may hold.
        """
        if root is not None and not Path(root).is_dir():
            raise InputError(f"root {os.fspath(root)!r} is no folder; expected the one that the images now lie in")
        snapshot = Snapshot.open(Path(path), verify=verify)
        return cls(snapshot, root=None if root is None else Path(root).absolute(), verify=verify)

    def close(self) -> None:
        """Let go of the search index; files are let go with the last array that was read from them."""
        if self._search is not None:
            self._search.close()
            self._search = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Images alive."""
        return len(self._snapshot)

    def __repr__(self) -> str:
        return f"Gallery({str(self.folder)!r}, {counted(len(self), 'image')}, {self.manifest.encoder.short_name})"

    # --- What is in it -----------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The generation this gallery is open at."""
        return self._snapshot.manifest

    @property
    def spec(self) -> Spec:
        """Metric and dimensions."""
        return self.manifest.spec

    @property
    def metric(self) -> Metric:
        """`"cosine"`, `"l2"`, `"l1"` or `"dot"`."""
        return self.spec.metric

    @property
    def ids(self) -> Ids:
        """All ids, ascending."""
        return self._snapshot.ids

    @property
    def column_names(self) -> tuple[str, ...]:
        """What a filter may name: path, label, and the user's columns."""
        return self._snapshot.column_names

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in alphabetical order."""
        column = self._snapshot.column("label")
        present = np.unique(column.codes)
        return tuple(column.values[code] for code in present if code >= 0)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The images that the last build or add could not use."""
        entry = self.manifest.skipped
        if entry is None:
            return ()
        check_file(self.folder, entry, checksum=True)
        return read_skipped(self.folder / entry.name)

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        """Path, label and columns of these images; InputError for an id that is not there."""
        return self._snapshot.records(ids)

    def file(self, image: Record | int) -> Path:
        """Where an image's file lies, or lay when it was encoded."""
        record = image if isinstance(image, Record) else self.records([image])[0]
        return located(record.path, self.root)

    def pooled(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw pooled vectors, (n, K): what Dist-CAM compares."""
        return self._snapshot.pooled(ids)

    def embeddings(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw embeddings, (n, d)."""
        return self._snapshot.embeddings(ids)

    def ranking_vectors(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Embeddings in the space that ranks, (n, d): unit vectors with the cosine metric, else raw."""
        raw = self._snapshot.embeddings(ids)
        return unit_rows(raw).astype(np.float32) if self.metric == "cosine" else raw

    def maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Feature maps, (n, K, h, w), within half precision; InputError when the gallery keeps none."""
        return self._snapshot.maps(ids)

    def ids_where(self, where: str | Filter) -> Ids:
        """The ids of the images that a filter keeps, ascending."""
        tree = parse_filter(where) if isinstance(where, str) else where
        return self.ids[matching(tree, self._snapshot)]

    @property
    def prototypes(self) -> PrototypeStore:
        """The classes' prototypes and the gallery's mean; read from the cache, or computed on first use."""
        if self._prototypes is None:
            self._prototypes = caches.load_prototypes(self._snapshot)
        if self._prototypes is None:
            self._prototypes = caches.new_store(self._snapshot)
            caches.update_prototypes(self._prototypes, before=None, after=self._snapshot)
        return self._prototypes

    def info(self) -> dict[str, Any]:
        """What `distcam index info` shows, for JSON."""
        manifest, snapshot = self.manifest, self._snapshot
        return {
            "path": str(self.folder),
            "images": len(self),
            "classes": len(self.labels),
            "columns": list(self.column_names),
            "complete": manifest.complete,
            "generation": manifest.generation,
            "metric": self.metric,
            "embedding_dim": self.spec.embedding_dim,
            "pooled_dim": self.spec.pooled_dim,
            "maps": None if self.spec.map_shape is None else list(self.spec.map_shape),
            "encoder": manifest.encoder.short_name,
            "fingerprint": manifest.encoder.fingerprint,
            "precision": manifest.encoder.precision,
            "encoder_copied": manifest.encoder.file is not None,
            "root": str(self.root),
            "segments": len(manifest.segments),
            "removed_rows": sum(len(segment) for segment in snapshot.segments) - len(self),
            "skipped": 0 if manifest.skipped is None else manifest.skipped.count,
            "rejection": None if manifest.rejection is None else asdict(manifest.rejection),
            "index": manifest.index,
            "index_cached": _is_fresh(manifest.index_cache, manifest),
            "prototypes_cached": _is_fresh(manifest.prototype_cache, manifest),
            "bytes": sum(entry.bytes for entry in manifest.files()),
        }

    # --- Its encoder -------------------------------------------------------------------------------------------------

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that vectors of this encoder can be compared with the gallery's.

        Raises:
            FingerprintMismatchError: they cannot; the message names both.
        """
        mine = self.manifest.encoder
        if encoder.fingerprint != mine.fingerprint:
            raise FingerprintMismatchError(
                f"{self.folder} was built with {mine.short_name}, the encoder given is {encoder.short_name}; "
                "leave --encoder out to use the gallery's own, or build the gallery again"
            )

    @property
    def encoder_path(self) -> Path | None:
        """The gallery's own copy of its encoder's checkpoint; None when the encoder could not be saved.

        Raises:
            CorruptGalleryError: the copy is missing or damaged.
        """
        entry = self.manifest.encoder.file
        if entry is None:
            return None
        if not self._encoder_checked:
            check_file(self.folder, entry, checksum=self._verify is not False)
            self._encoder_checked = True
        return self.folder / entry.name

    # --- Searching ---------------------------------------------------------------------------------------------------

    def search(self, embeddings: Array, k: int, *, where: str | Filter | None = None) -> list[Hits]:
        """The k nearest images to each raw embedding (q, d), nearest first; fewer when fewer are there.

        Args:
            embeddings: raw; the gallery's metric is applied here.
            k: at least 1.
            where: only among the images that this filter keeps.
        """
        allowed = None if where is None else self.ids_where(where)
        return self.searcher.search(embeddings, k, allowed=allowed)

    @property
    def searcher(self) -> FaissSearch:
        """The search index; read from the cache when this user made it, else built on first use."""
        if self._search is None:
            self._search = self._cached_search() or self._new_search()
        return self._search

    def _new_search(self) -> FaissSearch:
        from .faiss_search import FaissSearch

        batches = ((ids, vectors.embedding) for ids, vectors in self._snapshot.blocks())
        return FaissSearch.build(
            self._search_spec, batches, count=len(self), factory=self.manifest.index, source=self.embeddings
        )

    def _cached_search(self) -> FaissSearch | None:
        data = caches.load_index_bytes(self._snapshot)
        if data is None:
            return None
        from .faiss_search import FaissSearch

        with suppress(DistcamError):
            return FaissSearch.deserialise(data, spec=self._search_spec, source=self.embeddings)
        return None

    @property
    def _search_spec(self) -> SearchSpec:
        return SearchSpec(self.spec.embedding_dim, self.spec.metric)

    # --- Changing ----------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        embeddings: Array | None = None,
        labels: Sequence[str | None] = (),
        *,
        false_alarm_rate: float = 0.01,
        exclude_same: str | None = None,
        groups: Sequence[str | None] | None = None,
        source: str = "",
        most: int = 2000,
        seed: int = 0,
    ) -> Rejection:
        """Choose from which distance on nothing is a match, and keep it in the gallery.

        Without probes the gallery's own labelled images ask, each without itself. Neighbours within a gallery are often
        nearer than those of new photographs will be: probes of your own are the better measure.

        Args:
            embeddings: raw vectors (p, d) of labelled probes that are not in the gallery.
            labels: their classes; those that the gallery does not have make unknown probes only.
            false_alarm_rate: the share of unknown probes that may pass.
            exclude_same: a column such as `camera`: images of a probe's class that share its value are passed over.
            groups: the probes' values of that column.
            source: what the probes are, kept with the threshold.
            most: how many of the gallery's own images ask when there are no probes.
            seed: of their draw.

        Raises:
            InputError: no labels, a column that is not there, or a rate that no threshold reaches.
        """
        from .calibration import nearest_of_both_kinds, own_probes, probes_of

        snapshot = self._snapshot
        if embeddings is None:
            probes = own_probes(snapshot, most=most, seed=seed, column=exclude_same)
            source = source or f"{len(probes.labels)} of its own {len(self)} images, each without itself"
        else:
            probes = probes_of(snapshot, embeddings, labels, column=exclude_same, groups=groups)
        nearest = nearest_of_both_kinds(snapshot, probes, column=exclude_same)
        generation = snapshot.manifest.generation
        rejection = choose_threshold(nearest, target=false_alarm_rate, source=source, generation=generation)
        with self._writing() as writer:
            writer.commit(rejection=rejection)
        return rejection

    def add(
        self,
        source: ImageFiles,
        encoder: Encoder,
        *,
        labels: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        strict: bool = False,
        progress: Progress | None = None,
    ) -> AddReport:
        """Encode more images into the gallery; a path that is there already is replaced if its file or label changed.

        Raises:
            FingerprintMismatchError: another encoder built the gallery.
            GalleryLockedError: another process is writing to it.
        """
        from .build import InferenceSettings, add_images, listing_of

        self.check_encoder(encoder)
        listing = listing_of(source, labels)
        settings = InferenceSettings(batch_size, workers, device, precision)
        with self._writing() as writer:
            report = add_images(writer, listing, encoder, settings=settings, strict=strict, progress=progress)
        self.report = report
        return report

    def remove(
        self, *, paths: Iterable[str | os.PathLike[str]] | None = None, where: str | Filter | None = None
    ) -> int:
        """Let images leave, given by path or by a filter; returns how many left. Their files are not touched.

        Args:
            paths: as stored (relative to the root), or where the files lie.
            where: a filter.

        Raises:
            InputError: neither or both are given, or a path is not in the gallery; nothing is removed then.
        """
        if (paths is None) == (where is None):
            raise InputError("expected either paths or a filter; give one of them")
        with self._writing() as writer:
            ids = self.ids_where(where) if where is not None else self._ids_of(list(paths or ()))
            if len(ids):
                writer.remove(ids.tolist())
                writer.commit()
                writer.tidy()
        return len(ids)

    def _ids_of(self, paths: Sequence[str | os.PathLike[str]]) -> Ids:
        known = self._snapshot.known_files()
        places = [known.get(os.fspath(path), known.get(stored_path(path, self.root))) for path in paths]
        missing = [os.fspath(path) for path, place in zip(paths, places, strict=True) if place is None]
        if missing:
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise InputError(f"not in {self.folder}: {shown}; nothing was removed")
        return np.unique(self.ids[[place for place in places if place is not None]])

    def compact(self) -> None:
        """Merge all segments and give the room of removed images back; readers go on undisturbed."""
        with self._writing() as writer:
            writer.compact()

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check everything: checksums, structure, vectors, counts, caches; see `verify_gallery`."""
        from .checks import verify_gallery

        report = verify_gallery(self.folder, repair=repair)
        if repair:  # what was damaged may be in what is in memory
            self.close()
            self._prototypes = None
            self._refresh()
        return report

    @contextmanager
    def _writing(self) -> Iterator[GalleryWriter]:
        """The lock, with the gallery at its newest generation before and after, and its caches renewed at the end."""
        with opened_for_writing(self.folder) as writer:
            self._refresh()
            try:
                yield writer
            finally:
                self._refresh()
            self._renew_caches(writer)

    def _refresh(self) -> None:
        """Move to the newest generation, taking prototypes and search along by what came and went."""
        before, after = self._snapshot, Snapshot.open(self.folder, verify=False)
        if before.manifest == after.manifest:
            return
        if before.spec != after.spec or before.manifest.encoder.fingerprint != after.manifest.encoder.fingerprint:
            self.close()  # somebody built it anew
            self._prototypes = None
        if self._prototypes is not None:
            caches.update_prototypes(self._prototypes, before=before, after=after)
        self._snapshot = after
        if self._search is not None:
            self._search.delete(np.setdiff1d(before.ids, after.ids, assume_unique=True))
            for ids, vectors in after.blocks(np.flatnonzero(~np.isin(after.ids, before.ids))):
                self._search.upsert(ids, vectors.embedding)

    def _renew_caches(self, writer: GalleryWriter) -> None:
        """Store prototypes, and the search index if it costs more to build than to read."""
        if not _is_fresh(self.manifest.prototype_cache, self.manifest):
            writer.store_cache("prototypes", self.prototypes.save, count=len(self.prototypes))
        if not _is_fresh(self.manifest.index_cache, self.manifest) and self._has_slow_index():
            data = self.searcher.serialise()
            writer.store_cache(
                "index",
                lambda path: _write(path, data),
                count=len(self),
                tag=lambda file: caches.index_tag(self._snapshot, file.sha256),
            )
        self._refresh()

    def _has_slow_index(self) -> bool:
        if self.manifest.index == "flat" or (self.manifest.index == "auto" and len(self) < _FAST_INDEX):
            return False
        return self.searcher.is_worth_saving


def _is_fresh(cache: CacheEntry | None, manifest: Manifest) -> bool:
    return cache is not None and cache.generation == manifest.generation


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
