"""The images with masks that the options of `distcam segment` name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from .command import refuse_unused
from .options import option

if TYPE_CHECKING:
    from ..images.masks import Mask
    from ..segmentation.data import MaskedImages

DataLayout = Literal["auto", "folder", "voc", "camvid", "cityscapes", "table", "scenes"]


def _settled(layout: DataLayout, source: str) -> DataLayout:
    path = Path(source)
    if layout != "auto":
        return layout
    if path.suffix.lower() == ".csv":
        return "table"
    if (path / "scenes.csv").is_file():
        return "scenes"
    if (path / "ImageSets").is_dir() or (path / "VOCdevkit").is_dir():
        return "voc"
    if (path / "leftImg8bit").is_dir():
        return "cityscapes"
    if any(path.glob("*_masks")) or any(path.glob("*annot")):
        return "camvid"
    return "folder"


@dataclass(frozen=True)
class DataOptions:
    """Options of a data set with masks: its layout, and the part to use."""

    layout: DataLayout = option(
        "auto", "VOC's layout, CamVid's, Cityscapes', a CSV, drawn scenes, or a folder of images."
    )
    split: str | None = option(None, "Which split of the data. Default: val, or test of drawn scenes.")
    names: Path | None = option(
        None, "A FILE with the names of the classes, one per line. Default: the model's or VOC's."
    )

    def open(
        self, source: str, *, masks: Path | None, labels: str = "known", class_names: Sequence[str] | None = None
    ) -> MaskedImages:
        """The images that the options name."""
        from ..datasets.mask_benchmarks import VOC_CLASSES
        from ..datasets.masked_images import read_names, splits_of_table
        from ..remarks import remark
        from ..segmentation.data import BENCHMARKS, MaskedImages

        layout = _settled(self.layout, source)
        if layout != "folder":
            refuse_unused(f"by the layout {layout}, which has its own", "masks")
            if labels not in ("known", "predicted", "all"):
                raise InputError(
                    f"the layout {layout} says itself which classes an image shows; leave --labels FILE out"
                )
        if layout in ("scenes", "camvid", "cityscapes"):
            refuse_unused(f"by the layout {layout}, which has its own", "names")
        own = None if self.names is None else read_names(self.names)
        if layout == "scenes":
            from ..synthetic.scene_set import SceneSet

            return MaskedImages.from_scenes(SceneSet.read(source), self.split or "test")
        if layout == "voc":
            return MaskedImages.from_voc(source, self.split or "val", class_names=own)
        if layout in BENCHMARKS:
            return BENCHMARKS[layout](source, self.split or "val")
        if layout == "table":
            if self.split is None and len(splits := splits_of_table(source)) > 1:
                remark(f"{source}: the images of all its splits are used, {', '.join(splits)}; choose one with --split")
            return MaskedImages.from_table(source, own or class_names, split=self.split)
        refuse_unused("by a folder of images", "split", remedy="name the folder of the split, or --layout")
        table = None if labels in ("known", "predicted", "all") else labels
        return MaskedImages.from_folder(source, masks, own or class_names or VOC_CLASSES, labels=table)

    def pairs(
        self, found: Path, truth: str, *, masks: Path | None
    ) -> tuple[Iterator[tuple[Mask, Mask]], tuple[str, ...]]:
        """True and found masks by name, and the names of the numbers in them."""
        from ..datasets.mask_benchmarks import VOC_CLASSES
        from ..datasets.masked_images import Entry, read_names
        from ..segmentation.data import MaskedImages

        found, root = (
            folder / "SegmentationClass" if (folder / "SegmentationClass").is_dir() else folder
            for folder in (found, Path(truth))
        )
        if not found.is_dir():
            raise InputError(f"expected a folder of masks or a model, and nothing is at {found}")
        layout = _settled(self.layout, truth)
        if layout != "folder" or masks is not None:
            data = self.open(truth, masks=masks)
        else:
            refuse_unused("by a folder of masks", "split", remedy="name the folder of the split, or --layout")
            listed = self.names or next(
                (p for p in (found.parent / "classes.txt", found / "classes.txt") if p.is_file()), None
            )
            files = sorted(root.rglob("*.png"))
            if not files:
                raise InputError(f"no mask (.png) in {root}")
            entries = [Entry(file.relative_to(root).with_suffix("").as_posix(), file, file) for file in files]
            data = MaskedImages(entries, VOC_CLASSES if listed is None else read_names(listed))
        own = data.with_masks(found)
        both = ((data.mask(i), own.mask(i)) for i in range(len(data)))
        return ((true, other) for true, other in both if true is not None and other is not None), data.mask_names
