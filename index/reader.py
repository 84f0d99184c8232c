"""A gallery open for reading: its images, its encoder, and search.

Opening costs memory for ids and for the columns that are asked for, never for vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import FingerprintMismatchError, InputError
from ..files import after_commit
from ..images.items import KEPT_NAME, item_of, split_item, widened
from ..metrics.distances import Metric
from ..remarks import Skipped, counted
from .backends import newest_snapshot, opened_for_writing, require_rows_in_folder, verify_gallery
from .filters.matching import hints
from .filters.tree import Filter, tree_of
from .prototypes import PrototypeStore, unit_rows
from .reports import VerifyReport, describe, gallery_html, read_skipped
from .search import Hits, Searcher
from .storage.background import MapChoice
from .storage.cache import GalleryCache
from .storage.hdf5 import Array
from .storage.manifest import FileEntry, Manifest, Spec
from .storage.segments import Record, located
from .storage.snapshot import Ids, Snapshot, Verify, require_file
from .storage.writer import GalleryWriter

if TYPE_CHECKING:  # what encodes images imports torch, which searching does without
    from ..encoders import Encoder
    from ..images.masks import MaskFolder


class GalleryReader:
    """A gallery on disk, open at one generation; `refresh` moves it to the newest.

    Attributes:
        folder: where it lies.
        root: the folder that relative image paths refer to.
    """

    def __init__(self, snapshot: Snapshot, *, root: Path | None = None, verify: Verify = "auto") -> None:
        self.folder = snapshot.folder
        self.root = _recorded_root(snapshot) if root is None else root
        self._cache = GalleryCache(snapshot)
        self._verify: Verify = verify
        self._checked_copy: FileEntry | None = None

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, verify: Verify = "auto"
    ) -> Self:
        """Open an existing gallery at its newest generation.

        Args:
            path: the gallery's folder.
            root: where the images lie now, if they were moved.
            verify: compare every file's checksum; `"auto"` does so up to 1 GiB.
        """
        if root is not None and not os.path.isdir(root):  # noqa: PTH112 - never raises
            raise InputError(f"root {os.fspath(root)!r} is no folder; expected the one that the images now lie in")
        snapshot = newest_snapshot(Path(path).absolute(), verify=verify)  # the process may change its folder
        return cls(snapshot, root=None if root is None else Path(root).absolute(), verify=verify)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as the folder and the way it was opened; the copy opens the newest generation there."""
        root = None if self.root == Path(self.manifest.root) else self.root.absolute()
        return partial(type(self).open, root=root, verify=self._verify), (self.folder,)

    def close(self) -> None:
        """Release the search index; files are closed with the last array that was read from them."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Images alive."""
        return len(self.snapshot)

    def __repr__(self) -> str:
        images = counted(len(self), "image")
        return f"{type(self).__name__}({str(self.folder)!r}, {images}, {self.manifest.encoder.short_name})"

    def _repr_html_(self) -> str:
        """HTML for a notebook: some images, spread evenly, and a summary of the gallery."""
        return gallery_html(self)

    def refresh(self) -> bool:
        """Move to the newest generation on the disk; says whether there was another. No search may run beside it."""
        after = newest_snapshot(self.folder, verify=False)
        if after.manifest == self.manifest:
            return False
        self._cache.refresh(after)
        return True

    # --- Its contents ------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The generation this gallery is open at; it stays as it is when the gallery moves on."""
        return self._cache.snapshot

    @property
    def manifest(self) -> Manifest:
        """The generation this gallery is open at."""
        return self.snapshot.manifest

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
        return self.snapshot.ids

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns that a filter may name: path, label, and the user's."""
        return self.snapshot.column_names

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in alphabetical order."""
        if self.snapshot.is_remote:  # the classes have prototypes
            return self.prototypes.labels
        column = self.snapshot.column("label")
        present = np.unique(column.codes)
        return tuple(column.values[code] for code in present if code >= 0)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The images that the last build or add could not use."""
        entry = self.manifest.skipped
        if entry is None:
            return ()
        return read_skipped(require_file(self.folder, entry, checksum=True))

    def records(self, ids: Iterable[int] | Array) -> list[Record]:
        """Path, label and columns of these images; InputError for an id that is not there."""
        return self.snapshot.records(ids)

    def file(self, image: Record | int) -> Path:
        """The place of an image's file, or that at the time of encoding."""
        record = image if isinstance(image, Record) else self.records([image])[0]
        return located(split_item(record.path)[0], self.root)

    def item(self, image: Record | int) -> Path:
        """The item that `read_image` takes: an image's file, or the crop of a box with the gallery's margin."""
        record = image if isinstance(image, Record) else self.records([image])[0]
        return widened(item_of(self.file(record), split_item(record.path)[1]), self.manifest.box_margin)

    def pooled(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw pooled vectors, (n, K): what Dist-CAM compares."""
        return self.snapshot.pooled(ids)

    def embeddings(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Raw embeddings, (n, d)."""
        return self.snapshot.embeddings(ids)

    def ranking_vectors(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Embeddings in the space that ranks, (n, d): unit vectors with the cosine metric, else raw."""
        raw = self.snapshot.embeddings(ids)
        return unit_rows(raw).astype(np.float32) if self.metric == "cosine" else raw

    def maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Feature maps, (n, K, h, w), within half precision; InputError when the gallery keeps none."""
        return self.snapshot.maps(ids)

    def fine_maps(self, ids: Iterable[int] | Array) -> NDArray[np.float32]:
        """Fine maps, (n, c, u, v), that lines are drawn from; InputError when the gallery keeps none."""
        return self.snapshot.fine_maps(ids)

    def ids_where(self, where: str | Filter) -> Ids:
        """The ids of the images that a filter keeps, ascending."""
        return self.snapshot.ids_where(tree_of(where))

    def filter_hints(self, where: str | Filter) -> list[str]:
        """One sentence for each value that a filter asks for and no image has; see `filters.hints`."""
        return hints(where, self.snapshot)

    @property
    def prototypes(self) -> PrototypeStore:
        """The classes' prototypes and the gallery's mean; read from the cache, or computed on first use."""
        return self._cache.prototypes

    @property
    def background(self) -> NDArray[np.float32] | None:
        """Mean border of the images' response maps in the space that ranks, (d,); None in a gallery made without.

        Images that left took the mean with them, so it is exact as long as none did.
        """
        entry = self.manifest.background
        return None if entry is None else entry.vector

    @property
    def map_choice(self) -> MapChoice | None:
        """The weighting that explains matches here, chosen by measuring; None: distcam's default."""
        return self.manifest.map_choice

    @property
    def masks(self) -> MaskFolder | None:
        """The folder of masks that vectors are pooled under; None when whole images are pooled."""
        from ..images.masks import MaskFolder

        entry = self.manifest.masks
        return None if entry is None else MaskFolder(Path(entry.folder), entry.category)

    def info(self) -> dict[str, Any]:
        """The summary that `distcam index info` shows, for JSON."""
        return describe(self.snapshot, root=self.root, classes=len(self.labels))

    # --- Its encoder --------------------------------------------------------------------------------------------------

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that vectors of this encoder can be compared with the gallery's."""
        from ..encoders.inference import whole_encoder

        mine = self.manifest.encoder
        if not hasattr(encoder, "fingerprint"):  # a wrapper has none; what stands in for an encoder has
            encoder = whole_encoder(encoder)
        if encoder.fingerprint != mine.fingerprint:
            if "imported" in mine.description:
                raise FingerprintMismatchError(
                    f"{self.folder} holds imported vectors, and which encoder made them is not known: stored images "
                    "and vectors can be queried, other images cannot; if you know it, import again with --encoder"
                )
            decoded, stored = getattr(encoder, "transform", None), mine.description.get("transform", {})
            remedy = ""
            if getattr(decoded, "decoding", "full") != stored.get("decoding", "full"):
                remedy = "give the encoder Transform(…, decoding='full'), as version 0.1 decoded images, "
            raise FingerprintMismatchError(
                f"{self.folder} was built with {mine.short_name}, the encoder given is {encoder.short_name}; "
                f"{remedy}leave --encoder out to use the gallery's own, or build the gallery again"
            )

    @property
    def encoder_path(self) -> Path | None:
        """The gallery's own copy of its encoder's checkpoint; None when the encoder could not be saved."""
        entry = self.manifest.encoder.file
        if entry is None:
            return None
        if entry != self._checked_copy:
            require_file(self.folder, entry, checksum=self._verify is not False)
            self._checked_copy = entry
        return self.folder / entry.name

    # --- Searching ----------------------------------------------------------------------------------------------------

    def search(self, embeddings: Array, k: int, *, where: str | Filter | None = None) -> list[Hits]:
        """The k nearest images to each raw embedding (q, d), nearest first; fewer when fewer are there.

        Args:
            embeddings: raw; the gallery's metric is applied here.
            k: at least 1.
            where: only among the images that this filter keeps.
        """
        if where is None:
            return self._cache.answer(embeddings, k)
        return self._cache.answer(embeddings, k, **self.snapshot.search_limits(tree_of(where)))

    @property
    def searcher(self) -> Searcher:
        """The search index; read from its file when this user made it, else built on first use; or Milvus."""
        return self._cache.search

    @property
    def is_tuning_due(self) -> bool:
        """True when the gallery has grown or shrunk so much that it should be tuned again."""
        return self.manifest.tuning is not None and self.manifest.tuning.is_due(len(self))

    # --- Looking after it ---------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Merge all segments and reclaim the space of removed images; readers go on undisturbed."""
        with self._writing() as writer:
            writer.compact()

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check everything: checksums, structure, vectors, counts, caches; see `verify_gallery`."""
        report = verify_gallery(self.folder, repair=repair)
        if repair:  # what was damaged may be in what is in memory
            self._cache.clear()
            self.refresh()
        return report

    def save_caches(self, writer: GalleryWriter | None = None) -> None:
        """Store what the next reader would otherwise compute: prototypes, and an index that is slow to build.

        Args:
            writer: of whoever holds the gallery's lock already; what fails is then a remark, for it follows a change
                that is done.
        """
        failing = nullcontext() if writer is None else after_commit(self.folder, "what makes the next search quick")
        with failing, opened_for_writing(self.folder) if writer is None else nullcontext(writer) as opened:
            self.refresh()
            self._cache.store(opened)
            self.refresh()

    @contextmanager
    def _writing(self, *, patience: float = 0.0) -> Iterator[GalleryWriter]:
        """The lock, with the gallery at its newest generation before and after, and its caches stored at the end."""
        with opened_for_writing(self.folder, patience=patience) as writer:
            self.refresh()
            self._cache.hold()
            try:
                yield writer
            except BaseException:
                with after_commit(self.folder, "this open gallery"):
                    self.refresh()
                raise
            self.save_caches(writer)

    def _require_same_gallery(self, before: Snapshot) -> None:
        """InputError when another gallery lies here: measurements on one say nothing of the other."""
        if self.manifest.gallery_id != before.manifest.gallery_id:
            raise InputError(f"{self.folder} was built anew meanwhile, and is left as it is; try again")

    def require_segments(self, command: str) -> None:
        """InputError for what is not done where the rows lie in Milvus."""
        remedy = f"`{command}` is not for them: use `add` and `remove`, and choose the index with `build --index`"
        require_rows_in_folder(self.folder, self.manifest, remedy)


def _recorded_root(snapshot: Snapshot) -> Path:
    """The root that a gallery records; of one that was moved with its own images, where these are now."""
    root, kept = Path(snapshot.manifest.root), snapshot.folder / KEPT_NAME
    return kept if root.name == KEPT_NAME and not root.is_dir() and kept.is_dir() else root
