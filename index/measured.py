"""Measurements on a gallery: the threshold of a match, the scale of lines, the index; questions about its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..remarks import counted
from .inspection.findings import COPIES_RATE, LABELS_RATE, MOST, OUTLIERS_RATE
from .reader import GalleryReader
from .rejection import Rejection, choose_threshold, class_threshold, nearest_of_both_kinds, own_probes, probes_of
from .storage.background import MapChoice
from .storage.hdf5 import Array

if TYPE_CHECKING:
    from ..metrics.fusion import LineScale, VerifyGain
    from ..progress import Progress
    from .atlas import Atlas, Projection
    from .faiss.tuning import TuningReport
    from .inspection.findings import Findings
    from .inspection.inspection import Inspection


class MeasuredGallery(GalleryReader):
    """A gallery on disk that is measured, keeps what was found, and can be asked about its data."""

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
        """Choose the distance from which on nothing is a match, and keep it in the gallery.

        Without probes the gallery's own labelled images ask, each without itself. Neighbours within a gallery are often
        nearer than those of new photographs will be: give probes of your own where there are some.

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
        snapshot = self.snapshot
        if embeddings is None:
            probes = own_probes(snapshot, most=most, seed=seed, column=exclude_same)
            source = source or f"{len(probes.labels)} of its own {counted(len(self), 'image')}, each without itself"
        else:
            probes = probes_of(snapshot, embeddings, labels, column=exclude_same, groups=groups)
        nearest = nearest_of_both_kinds(snapshot, probes, column=exclude_same)
        now = snapshot.manifest.generation
        rejection = choose_threshold(nearest, target=false_alarm_rate, source=source, generation=now)
        classes = snapshot.column("label").values
        by_classes = class_threshold(self.prototypes, probes, classes, target=false_alarm_rate)
        rejection = replace(rejection, class_threshold=by_classes)
        with self._writing() as writer:
            self._require_same_gallery(snapshot)
            writer.commit(rejection=rejection)
        return rejection

    def keep_lines(self, scale: LineScale, verification: VerifyGain | None = None) -> None:
        """Keep what lines of this gallery are measured against, and whether verified matches are better."""
        with self._writing() as writer:
            self._require_same_gallery(self.snapshot)
            writer.commit(lines=scale, verification=verification or self.manifest.verification)

    def choose_maps(self, choice: MapChoice | None) -> None:
        """Keep a weighting as the one that explains matches of this gallery; None goes back to distcam's default."""
        with self._writing() as writer:
            writer.commit(map_choice=choice)

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
        """Choose the index by measuring on the gallery's own vectors, which others may change meanwhile, and keep it.

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
            GalleryLockedError: another process goes on writing for a minute when the choice is to be stored.
        """
        from .faiss.tuning import Budget, tune

        self.require_segments("tune")
        before = self.snapshot
        report, search = tune(
            before.search_spec,
            before.ids,
            before.embeddings,
            budget=Budget.of(recall=recall, memory=memory, latency_ms=latency_ms),
            candidates=candidates,
            queries=queries,
            seed=seed,
            device=device,
            progress=progress,
        )
        if not dry_run:
            with self._writing(patience=60.0) as writer:  # seconds that it waits for another
                self._require_same_gallery(before)
                writer.commit(index=report.index, tuning=report.tuning, index_cache=None)
                self.refresh()
                self._cache.attach(search)
            self.close()  # the next search maps the index that was stored
        return report

    # --- Questions about its data; `inspect` spares several of them the search of one another -------------------------

    def inspect(self, *, look: bool = True, progress: Progress | None = None) -> Inspection:
        """The gallery under inspection; see `Inspection` for the options and questions."""
        from .inspection.inspection import Inspection

        return Inspection(self, look=look, progress=progress)

    def duplicates(self, *, rate: float = COPIES_RATE, look: bool = True, progress: Progress | None = None) -> Findings:
        """Equal files, images that are the same but for size and compression, and crops of one another.

        Args:
            rate: expected share of wrong ones among the findings, in (0, 1).
            look: open the images of pairs that may be copies; without, vectors decide, which find fewer and no crops.
            progress: called with the number of images done and in all, once for each pass.
        """
        return self.inspect(look=look, progress=progress).duplicates(rate=rate)

    def leaks(
        self, other: GalleryReader, *, rate: float = COPIES_RATE, look: bool = True, progress: Progress | None = None
    ) -> Findings:
        """Images of another gallery, such as a test set, that this one shows too; options as of `duplicates`."""
        return self.inspect(look=look, progress=progress).leaks(other, rate=rate)

    def outliers(self, *, rate: float = OUTLIERS_RATE, progress: Progress | None = None) -> Findings:
        """Images far from all of their class that no other class claims."""
        return self.inspect(progress=progress).outliers(rate=rate)

    def mislabels(self, *, rate: float = LABELS_RATE, progress: Progress | None = None) -> Findings:
        """Labels that the neighbours outvote, the clearest first; `rate` is the expected share of right ones."""
        return self.inspect(progress=progress).mislabels(rate=rate)

    def hard_negatives(self, *, most: int = MOST, progress: Progress | None = None) -> Findings:
        """The nearest pairs of two classes, where neighbours do not outvote the labels."""
        return self.inspect(progress=progress).hard_negatives(most=most)

    def confusions(self, *, most: int = MOST, progress: Progress | None = None) -> Findings:
        """Pairs of classes by the share of neighbours that are of the other."""
        return self.inspect(progress=progress).confusions(most=most)

    def atlas(
        self, method: Projection = "pca", *, outliers: bool = True, seed: int = 0, progress: Progress | None = None
    ) -> Atlas:
        """The images in two dimensions, (n, 2), by `"pca"` or `"umap"`; see `atlas.atlas_of`."""
        from .atlas import atlas_of

        return atlas_of(self, method, outliers=outliers, seed=seed, progress=progress)
