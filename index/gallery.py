"""The gallery: a folder of encoded images with its manifest; reading is in `reader.py`, changing here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from ..errors import InputError
from ..images.items import KEPT_NAME
from ..lazy import from_face
from ..metrics.distances import Metric
from .backends import existing_gallery, newest_snapshot
from .filters.tree import Filter
from .measured import MeasuredGallery
from .reports import AddReport, SyncReport

if TYPE_CHECKING:  # what encodes images imports torch, which searching does without
    from ..encoders import Encoder
    from ..images.boxes.cutting import GivenBoxes
    from ..images.listing import GivenLabels
    from ..images.masks import MaskFolder
    from ..progress import Progress
    from ..retrieval import Prediction, Retriever
    from ..retrieval.classification import Classed
    from .building.build import Precision
    from .building.ray import RayEngine
    from .sync.sync import LazyEncoder


class Gallery(MeasuredGallery):
    """A gallery on disk, open at one generation; `build` and `open` make one, every change moves it to the newest."""

    report: AddReport | None = None  # of the last build or add through this object
    _retriever: tuple[tuple[Encoder | None, str], Retriever] | None = None  # that answered `classify`

    @classmethod
    def build(
        cls,
        source: Any,
        encoder: Encoder,
        *,
        out: str | os.PathLike[str],
        metric: Metric = "cosine",
        labels: GivenLabels = None,
        store_maps: bool = False,
        store_lines: bool | str = False,
        masks: MaskFolder | str | os.PathLike[str] | None = None,
        mask_class: int | None = None,
        boxes: GivenBoxes = None,
        box_margin: float = 0.0,
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

        Ctrl-C keeps what is encoded; the same call goes on. Files that cannot be used are listed in `skipped`.

        Args:
            source: what `list_images` takes (files, tables, data sets, arrays, URLs), or a `Listing`. Images that are
                no files are written once into the gallery's own folder `images`, and so are those behind URLs.
            encoder: a copy of its checkpoint goes into the gallery when it can be saved.
            out: the gallery's folder.
            metric: `"cosine"`, `"l2"`, `"l1"` or `"dot"`.
            labels: `"folder"`, `"split"`, `"none"`, a CSV, or a sequence with one for each image; see `list_images`.
            store_maps: keep the feature maps, to explain the gallery's side of a match without the image.
            store_lines: keep maps and fine maps, for lines and `verify`: True, or the name of a layer with stride 8.
            masks: a folder with a PNG for each image under the same path: vectors are pooled under the masks, of images
                without one over the whole image. The folder is remembered, for what is added later too; the column
                `mask` says under which mask an image was pooled, and a changed mask counts as a changed image.
            mask_class: the number that marks the object in the masks; by default everything that is not black.
            boxes: a file or folder of boxes, or a `BoxSource` that says more about it: each box is an image of the
                gallery, called `photo.jpg#xywh=x,y,w,h`. Left out: the columns of a table that hold boxes, if any do;
                `"none"` takes whole images all the same.
            box_margin: share of a box's width and height by which it is cut out wider on every side; kept.
            batch_size: images per forward pass; see `Inference` for this and the next three.
            workers: threads that decode images.
            device: `"auto"`, `"cpu"` or `"cuda"`.
            precision: of the arithmetic; remembered, so that what is added and queries are encoded alike.
            index: `"auto"`, `"flat"`, or a FAISS factory string.
            backend: where the rows lie instead of in the folder: `"milvus://HOST:19530/COLLECTION"`, see
                `milvus/connection.py`; from then on the gallery is used as any other.
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
        from .building.build import InferenceOptions, add_images, given_masks, listing_of, opened_for_building

        encode = None
        if engine != "local":
            from .building.ray import RayEngine

            encode = RayEngine.named(engine).stream
        existing_gallery(Path(out), overwrite=overwrite)  # before images that are no files are written there
        listing = listing_of(source, labels, keep=Path(out) / KEPT_NAME, boxes=boxes, strict=strict)
        store_maps, layer = store_maps or bool(store_lines), "auto" if store_lines is True else store_lines or None
        with opened_for_building(
            Path(out),
            listing,
            encoder,
            metric=metric,
            index=index,
            store_maps=store_maps,
            store_lines=bool(store_lines),
            masks=given_masks(masks, mask_class),
            box_margin=box_margin,
            backend=backend,
            overwrite=overwrite,
        ) as writer:
            report = add_images(
                writer,
                listing,
                encoder,
                settings=InferenceOptions(batch_size, workers, device, precision, layer),
                store_maps=store_maps,
                complete=True,
                strict=strict,
                progress=progress,
                encode=encode,
            )
            gallery = cls.open(out)
            gallery.report = report
            gallery.save_caches(writer)
        return gallery

    def add(
        self,
        source: Any,
        encoder: Encoder,
        *,
        labels: GivenLabels = None,
        boxes: GivenBoxes = None,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        strict: bool = False,
        progress: Progress | None = None,
    ) -> AddReport:
        """Encode more images into the gallery; a path that is there already is replaced if its file or label changed.

        `boxes` are those of `build`, and get the margin that the gallery was built with.

        Raises:
            FingerprintMismatchError: another encoder built the gallery.
            GalleryLockedError: another process is writing to it.
        """
        from .building.build import InferenceOptions, add_images, listing_of

        self.check_encoder(encoder)
        listing = listing_of(source, labels, keep=self.folder / KEPT_NAME, boxes=boxes, strict=strict)
        settings = InferenceOptions(batch_size, workers, device, precision)
        with self._writing() as writer:
            self.check_encoder(encoder)  # again: somebody may have built the gallery anew since it was opened
            self.report = add_images(writer, listing, encoder, settings=settings, strict=strict, progress=progress)
        return self.report

    def sync(
        self,
        folder: str | os.PathLike[str],
        encoder: Encoder | LazyEncoder | str | os.PathLike[str] | None = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        boxes: GivenBoxes = None,
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
        """Make the gallery hold what a folder holds; images of other folders are left alone.

        Contents decide: a file that was renamed or copied is not encoded again. Files that cannot be used are listed,
        and what the gallery had under their paths is kept.

        Args:
            folder: where the images lie.
            encoder: needed only when there are new images and the gallery keeps no encoder: one, or its checkpoint.
            labels: `"folder"`, `"none"`, or a CSV, for all images; None: images keep their labels, new ones are called
                after their folders if the gallery has labels.
            boxes: a file of the boxes that there should be, see `build`: new ones are encoded, others leave. Without it
                the boxes that the gallery has follow their files, and a gallery of boxes takes in no other files.
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
        from .sync.plan import SyncFolder, SyncSettings
        from .sync.sync import LazyEncoder, plan_sync, sync_folder

        self.require_segments("sync")
        settings = SyncSettings(
            labels, checksum, keep_missing, max_vanishing, force, settle, strict, batch_size, workers, device, boxes
        )
        place = SyncFolder(Path(folder), self.root)
        load = encoder if isinstance(encoder, LazyEncoder) else LazyEncoder(self, encoder)
        if dry_run:
            return plan_sync(newest_snapshot(self.folder, verify=False), place, settings, progress=progress)
        with self._writing() as writer:
            return sync_folder(writer, place, load, settings=settings, progress=progress)

    def classify(
        self,
        images: Any,
        encoder: Encoder | None = None,
        *,
        device: str = "auto",
        **options: Unpack[Classed],
    ) -> list[Prediction]:
        """The class of each image by its neighbours, class means, or both, with calibrated confidence and its map.

        Args:
            images: what `Retriever.query` takes, or a folder, pattern, table or data set.
            encoder: the one that built the gallery; by default the copy that it keeps, which stays loaded.
            device: `"auto"`, `"cpu"` or `"cuda"`.
            options: `k`, `by`, `weighting`, `reject`, … of `Retriever.classify`, which answers.

        Raises:
            GalleryError: the gallery keeps no encoder and none was given.
            InputError: what `Retriever.classify` refuses.
        """
        if self._retriever is None or (encoder, device) != self._retriever[0]:
            self._retriever = (encoder, device), from_face("Retriever")(self, encoder, device=device)
        return self._retriever[1].classify(images, **options)

    def remove(
        self, *, paths: Iterable[str | os.PathLike[str]] | None = None, where: str | Filter | None = None
    ) -> int:
        """Remove images, given by path or by a filter; returns how many. Their files are not touched.

        Args:
            paths: as stored (relative to the root), or where the files lie.
            where: a filter.

        Raises:
            InputError: neither or both are given, or a path is not in the gallery; nothing is removed then.
        """
        if (paths is None) == (where is None):
            raise InputError("expected either paths or a filter; give one of them")
        with self._writing() as writer:
            ids = self.snapshot.ids_of(list(paths or ()), self.root) if where is None else self.ids_where(where)
            if len(ids):
                writer.remove(ids.tolist())
                writer.commit()
                writer.merge_small()
        return len(ids)
