"""The questions that a gallery answers about its own data, as methods of the gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .findings import COPIES_RATE, LABELS_RATE, MOST, OUTLIERS_RATE

if TYPE_CHECKING:
    from ...progress import Progress
    from ..atlas import Atlas, Method
    from ..reader import GalleryReader
    from .findings import Findings
    from .inspection import Inspection


class Inspectable:
    """A gallery that can be asked about its data; `inspect` spares several questions the search of one another."""

    def inspect(self, *, look: bool = True, progress: Progress | None = None) -> Inspection:
        """The gallery under inspection; see `Inspection` for the options and questions."""
        from .inspection import Inspection

        return Inspection(cast("GalleryReader", self), look=look, progress=progress)

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
        self, method: Method = "pca", *, outliers: bool = True, seed: int = 0, progress: Progress | None = None
    ) -> Atlas:
        """The images in two dimensions, (n, 2), by `"pca"` or `"umap"`; see `atlas.atlas_of`."""
        from ..atlas import atlas_of

        return atlas_of(cast("GalleryReader", self), method, outliers=outliers, seed=seed, progress=progress)
