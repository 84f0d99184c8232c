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
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptGalleryError, DistcamError, FingerprintMismatchError, InputError
from . import caches
from .filters import Filter, parse_filter
from .ingest import MASK_COLUMN, NO_MASK
from .manifest import CacheEntry, Manifest, Spec
from .prototypes import PrototypeStore, unit_rows
from .rejection import Rejection, choose_threshold
from .reports import AddReport, Skipped, VerifyReport, counted, read_skipped
from .rows import Array, Record, located, stored_path
from .search import Hits, Metric, Search, SearchSpec
from .snapshot import Ids, Snapshot, Verify, check_file
from .writer import GalleryWriter, opened_for_writing

if TYPE_CHECKING:  # what encodes images imports torch, which searching does without
    from ..encoders import Encoder
    from ..images.masks import MaskFolder
    from .build import ImageFiles, Precision
    from .faiss_search import FaissSearch
    from .milvus_search import MilvusSearch
    from .ray_engine import RayEngine
    from .sync import LazyEncoder, SyncReport
    from .tuning import TuningReport

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
        self._search: FaissSearch | MilvusSearch | None = None
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
        masks: MaskFolder | str | os.PathLike[str] | None = None,
        mask_class: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        index: str = "auto",
        backend: str | None = None,
        strict: bool = False,
        overwrite: bool = False,
        engine: Literal["local", "ray"] | RayEngine = "local",
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
            masks: a folder with a PNG for each image under the same path: vectors are pooled under the masks, of images
                without one over the whole image. The folder is remembered, for what is added later too; the column
                `mask` says under which mask an image was pooled, and a changed mask counts as a changed image.
            mask_class: the number that marks the object in the masks; by default everything that is not black.
            batch_size: images per forward pass; see `Inference` for this and the next three.
            workers: threads that decode images.
            device: `"auto"`, `"cpu"` or `"cuda"`.
            precision: of the arithmetic; remembered, so that what is added and queries are encoded alike.
            index: `"auto"`, `"flat"`, or a FAISS factory string.
            backend: where the rows lie instead of in the folder: `"milvus://HOST:19530/COLLECTION"`, see
                `milvus_address.py`; from then on the gallery is used as any other.
            strict: stop at the first file that cannot be used, or that has no mask where masks are given.
            overwrite: start anew over an existing gallery, which stays readable until the first commit.
            engine: `"ray"`, or a `RayEngine` that says where, encodes on many machines; the writer stays here, and all
                else is as it is locally.
            progress: called with the number of images done and the number in all.

        Raises:
            GalleryExistsError: `out` holds a complete gallery, or something else.
            FingerprintMismatchError: `out` holds an unfinished gallery of another encoder.
            ImageError: with `strict`, the first file that cannot be used.
        """
        from .build import InferenceSettings, add_images, given_masks, listing_of, opened_for_building

        if engine != "local":
            from .ray_engine import adding_with

            add_images = adding_with(engine)
        folder, listing = Path(out), listing_of(source, labels)
        settings = InferenceSettings(batch_size, workers, device, precision)
        with opened_for_building(
            folder,
            listing,
            encoder,
            metric=metric,
            index=index,
            store_maps=store_maps,
            masks=given_masks(masks, mask_class),
            backend=backend,
            overwrite=overwrite,
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
        if self.manifest.backend is not None:  # reading every row takes long; the classes have prototypes
            return self.prototypes.labels
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
        return self._snapshot.ids_where(tree)

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
            "backend": None if manifest.backend is None else manifest.backend.address,
            "removed_rows": snapshot.removed_rows,
            "skipped": 0 if manifest.skipped is None else manifest.skipped.count,
            "masks": None if manifest.masks is None else {**asdict(manifest.masks), "images": self._under_masks()},
            "rejection": None if manifest.rejection is None else asdict(manifest.rejection),
            "index": manifest.index,
            "tuning": None if manifest.tuning is None else {**asdict(manifest.tuning), "is_due": self.is_tuning_due},
            "index_cached": _is_fresh(manifest.index_cache, manifest),
            "prototypes_cached": _is_fresh(manifest.prototype_cache, manifest),
            "bytes": sum(entry.bytes for entry in manifest.files()),
        }

    @property
    def masks(self) -> MaskFolder | None:
        """The folder of masks that vectors are pooled under; None when whole images are pooled."""
        from ..images.masks import MaskFolder

        entry = self.manifest.masks
        return None if entry is None else MaskFolder(Path(entry.folder), entry.category)

    def _under_masks(self) -> int:
        """How many images have a mask file; one without a pixel counts, though it pools the whole image."""
        codes = self._snapshot.column(MASK_COLUMN) if MASK_COLUMN in self.column_names else None
        if codes is None:
            return 0
        without = [number for number, value in enumerate(codes.values) if value == NO_MASK]
        return int(((codes.codes >= 0) & ~np.isin(codes.codes, without)).sum())

    # --- Its encoder -------------------------------------------------------------------------------------------------

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that vectors of this encoder can be compared with the gallery's.

        Raises:
            FingerprintMismatchError: they cannot; the message names both.
        """
        mine = self.manifest.encoder
        if encoder.fingerprint != mine.fingerprint:
            if "imported" in mine.description:
                raise FingerprintMismatchError(
                    f"{self.folder} holds imported vectors, and which encoder made them is not known: stored images "
                    "and vectors can be queried, other images cannot; if you know it, import again with --encoder"
                )
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
        if where is None:
            return self.searcher.search(embeddings, k)
        tree = parse_filter(where) if isinstance(where, str) else where
        return self.searcher.search(embeddings, k, **self._snapshot.search_limits(tree))

    @property
    def searcher(self) -> FaissSearch | MilvusSearch:
        """The search index; read from the cache when this user made it, else built on first use; or Milvus."""
        if self._search is None and self.manifest.backend is not None:
            from .milvus_gallery import MilvusSnapshot

            assert isinstance(self._snapshot, MilvusSnapshot)
            self._search = self._snapshot.search()
        if self._search is None:
            self._search = self._cached_search() or self._new_search()
        return self._search

    def _new_search(self) -> FaissSearch:
        from .faiss_search import FaissSearch
        from .tuning import settings_of

        tuning = self.manifest.tuning
        return FaissSearch.from_source(
            self._search_spec,
            self.ids,
            self.embeddings,
            factory=self.manifest.index,
            seed=0 if tuning is None else tuning.seed,
            calibration=settings_of(tuning),
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
    def is_tuning_due(self) -> bool:
        """Whether the gallery has grown or shrunk so much since it was tuned that its index should be chosen anew."""
        return self.manifest.tuning is not None and self.manifest.tuning.is_due(len(self))

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

    def tune(
        self,
        *,
        recall: float = 0.97,
        memory: int | None = None,
        latency_ms: float | None = None,
        candidates: Sequence[str] | None = None,
        queries: int = 500,
        seed: int = 0,
        device: str = "auto",
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> TuningReport:
        """Choose the index by measuring on the gallery's own vectors, and keep it, what was measured, and its settings.

        Other processes may read and change the gallery meanwhile.

        Args:
            recall: share of the true ten neighbours that have to be found, in (0, 1].
            memory: bytes that index and ids may take; by default half of what the machine has.
            latency_ms: what a single query may take (median); by default the quickest index is taken.
            candidates: FAISS factory strings; by default a choice for this many vectors.
            queries: how many stored vectors ask, each without itself.
            seed: of their draw and of the training.
            device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"cuda:all"`.
            dry_run: measure only.
            progress: called with the number of candidates done and the number in all.

        Raises:
            InputError: no candidate keeps within the budgets; the message holds the best that was found.
            GalleryLockedError: another process is writing when the choice is to be stored.
        """
        from .tuning import Budget, tune

        self._require_segments("tune")
        known, budget = self.ids, Budget.of(recall=recall, memory=memory, latency_ms=latency_ms)
        snapshot = self._snapshot  # others may change the gallery while this goes on
        report, search = tune(
            self._search_spec,
            known,
            snapshot.embeddings,
            budget=budget,
            candidates=candidates,
            queries=queries,
            seed=seed,
            device=device,
            progress=progress,
        )
        if not dry_run:
            with self._writing() as writer:
                before, now = snapshot.manifest, writer.manifest
                if now.encoder.fingerprint != before.encoder.fingerprint or now.generation < before.generation:
                    raise InputError(f"{self.folder} was built anew meanwhile; tune it again")
                writer.commit(index=report.index, tuning=report.tuning, index_cache=None)
                self._refresh()
                search.read_from(self.embeddings)
                self._bring_up_to_date(search, known)
                self._search = search
            self.close()  # the next search maps the index that was stored
        return report

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

    def sync(
        self,
        folder: str | os.PathLike[str],
        encoder: Encoder | LazyEncoder | str | os.PathLike[str] | None = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        checksum: bool = False,
        keep_missing: bool = False,
        max_vanishing: float = 0.5,
        force: bool = False,
        settle: float = 0.0,
        strict: bool = False,
        dry_run: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> SyncReport:
        """Make the gallery hold what a folder holds; images of other folders are none of its business.

        Contents decide: a file that was renamed or copied is not encoded again. Files that cannot be used are listed,
        and what the gallery had under their paths is kept.

        Args:
            folder: where the images lie.
            encoder: needed only when there are new images and the gallery keeps no encoder: one, or its checkpoint.
            labels: `"folder"`, `"none"`, or a CSV, for all images; None: images keep their labels, new ones are called
                after their folders if the gallery has labels.
            checksum: read every file instead of trusting size and time of change.
            keep_missing: images whose files are gone stay.
            max_vanishing: the share of the folder's images that may leave at once, 0 … 1.
            force: let any number leave, and all if the folder is empty.
            settle: seconds that a file must have been left alone; younger ones are counted as `busy`.
            strict: stop at the first file that cannot be used.
            dry_run: only say what would happen.
            batch_size: images per forward pass; see `Inference` for this and the next two.
            workers: threads that decode images.
            device: `"auto"`, `"cpu"` or `"cuda"`.
            progress: called with files looked at, and then with files encoded.

        Raises:
            InputError: no such folder, too many images would leave, or there is no encoder for new ones.
            FingerprintMismatchError: another encoder built the gallery.
            GalleryLockedError: another process is writing to it.
        """
        from .sync import LazyEncoder, SyncSettings, inference_settings, plan_sync, sync_folder
        from .sync_plan import Place

        self._require_segments("sync")
        settings = SyncSettings(labels, checksum, keep_missing, max_vanishing, force, settle, strict)
        place = Place(Path(folder), self.root)
        load = encoder if isinstance(encoder, LazyEncoder) else LazyEncoder(self, encoder)
        if dry_run:
            return plan_sync(Snapshot.open(self.folder, verify=False), place, settings, progress=progress)
        inference = inference_settings(batch_size, workers, device)
        with self._writing() as writer:
            return sync_folder(writer, place, load, settings=settings, inference=inference, progress=progress)

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
        stored = [stored_path(path, self.root) for path in paths]
        known = self._snapshot.known_files(among=[*(os.fspath(path) for path in paths), *stored])
        places = [known.get(os.fspath(path), known.get(other)) for path, other in zip(paths, stored, strict=True)]
        missing = [os.fspath(path) for path, place in zip(paths, places, strict=True) if place is None]
        if missing:
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise InputError(f"not in {self.folder}: {shown}; nothing was removed")
        return np.unique(self.ids[[place for place in places if place is not None]])

    def refresh(self) -> bool:
        """Move to the newest generation on the disk; says whether there was another. No search may run beside it."""
        before = self.manifest
        self._refresh()
        return self.manifest != before

    def save_caches(self) -> None:
        """Store what the next reader would otherwise compute: prototypes, and an index that is slow to build."""
        with self._writing():
            pass  # they are renewed at the end of every change

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
        if (before.manifest.index, before.manifest.tuning) != (after.manifest.index, after.manifest.tuning):
            self.close()
        if after.manifest.backend is not None:
            self.close()  # Milvus has what came, and the new generation says what of it counts
        if self._prototypes is not None:
            try:
                caches.update_prototypes(self._prototypes, before=before, after=after)
            except CorruptGalleryError:
                if after.manifest.backend is None:
                    raise
                self._prototypes = None  # another writer has deleted the rows of what left; the cache knows the outcome
        self._snapshot = after
        if self._search is not None:
            self._bring_up_to_date(self._search, before.ids)

    def _bring_up_to_date(self, search: Search, known: Ids) -> None:
        """Take what left out of a search index over the ids in `known`, and put in what came."""
        search.delete(np.setdiff1d(known, self.ids, assume_unique=True))
        for ids, vectors in self._snapshot.blocks(np.flatnonzero(~np.isin(self.ids, known))):
            search.upsert(ids, vectors.embedding)

    def _renew_caches(self, writer: GalleryWriter) -> None:
        """Store prototypes, and the search index if it costs more to build than to read."""
        if not _is_fresh(self.manifest.prototype_cache, self.manifest):
            writer.store_cache("prototypes", self.prototypes.save, count=len(self.prototypes))
        if not _is_fresh(self.manifest.index_cache, self.manifest) and self._has_slow_index():
            from .faiss_search import FaissSearch

            search = self.searcher
            assert isinstance(search, FaissSearch)
            writer.store_cache(
                "index",
                search.save,
                count=len(self),
                tag=lambda file: caches.index_tag(self._snapshot, file.sha256),
            )
        self._refresh()

    def _require_segments(self, command: str) -> None:
        if self.manifest.backend is not None:
            raise InputError(
                f"`{command}` is for galleries whose rows are in their folder; {self.folder} has them in Milvus: "
                "use `add` and `remove`, and choose the index with `build --index`"
            )

    def _has_slow_index(self) -> bool:
        if self.manifest.backend is not None:
            return False
        if self.manifest.index in ("flat", "SQfp16") or (self.manifest.index == "auto" and len(self) < _FAST_INDEX):
            return False
        return self.searcher.is_worth_saving


def _is_fresh(cache: CacheEntry | None, manifest: Manifest) -> bool:
    return cache is not None and cache.generation == manifest.generation
