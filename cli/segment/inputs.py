"""Inputs of `distcam segment`: models, images with or without masks, and pairs of masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import InputError
from ..command import refuse_unused

if TYPE_CHECKING:
    from ...images.masks import Mask
    from ...segmentation.data import MaskedImages
    from ...segmentation.pseudo_masks.sources import ClassMapSource
    from ...segmentation.segmenter.inference import InferenceSettings
    from ...segmentation.segmenter.segmenter import Segmenter


DataLayout = Literal["auto", "folder", "voc", "camvid", "table", "scenes"]


def is_model(path: Path) -> bool:
    """True for a file of weights, and for a folder that holds one."""
    return path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors")))


def open_model(
    path: Path,
    *,
    scales: str | None,
    flip: bool | None,
    base: Literal["network", "image"],
    refined: bool,
    of_maps: Iterable[str],
) -> tuple[ClassMapSource | Segmenter, InferenceSettings]:
    """A segmentation network, or a source of class maps, and the views of an image that it is asked about.

    A trained network looks once if nothing is said. `of_maps` are options that only class maps use.
    """
    from ...encoders.checkpoint import read_checkpoint
    from ...segmentation.pseudo_masks.sources import load_source
    from ...segmentation.segmenter.inference import InferenceSettings
    from ...segmentation.segmenter.segmenter import load_segmenter

    whole, weak = path / "segmenter.safetensors" if path.is_dir() else path, path / "weak"
    is_network = whole.is_file() and read_checkpoint(whole)[0].get("kind") == "segmenter"
    model: ClassMapSource | Segmenter
    if is_network:
        model = load_segmenter(whole)
        refuse_unused("by a segmentation network, which knows the classes and the background itself", *of_maps)
    else:
        model = load_source(weak if path.is_dir() and weak.is_dir() else path)
        if refined and not getattr(model, "is_refined", False):
            refuse_unused("by a model without refined maps", "refined")
    chosen = (1.0,) if is_network else InferenceSettings().scales
    if scales is not None:
        try:
            chosen = tuple(float(part) for part in scales.split(","))
        except ValueError:
            raise InputError(f"expected --scales as numbers such as 0.5,1,2; got {scales!r}") from None
    flip = not is_network if flip is None else flip
    return model, InferenceSettings(scales=chosen, flip=flip, base=base, refined=refined)


def _layout_of(source: str) -> DataLayout:
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return "table"
    if (path / "scenes.csv").is_file():
        return "scenes"
    if (path / "ImageSets").is_dir() or (path / "VOCdevkit").is_dir():
        return "voc"
    if any(path.glob("*_masks")) or any(path.glob("*annot")):
        return "camvid"
    return "folder"


def open_data(
    source: str,
    *,
    layout: DataLayout,
    split: str | None,
    masks: Path | None,
    names: Path | None,
    labels: str,
    class_names: Sequence[str] | None,
) -> MaskedImages:
    """The images that the options name."""
    from ...datasets.masked_images import VOC_CLASSES, read_names, splits_of_table
    from ...remarks import remark
    from ...segmentation.data import MaskedImages

    layout = _layout_of(source) if layout == "auto" else layout
    if layout != "folder":
        refuse_unused(f"by the layout {layout}, which has its own", "masks")
        if labels not in ("known", "predicted", "all"):
            raise InputError(f"the layout {layout} says itself which classes an image shows; leave --labels FILE out")
    if layout in ("scenes", "camvid"):
        refuse_unused(f"by the layout {layout}, which has its own", "names")
    own = None if names is None else read_names(names)
    if layout == "scenes":
        from ...synthetic.scene_set import SceneSet

        return MaskedImages.from_scenes(SceneSet.read(source), split or "test")
    if layout == "voc":
        return MaskedImages.from_voc(source, split or "val", class_names=own)
    if layout == "camvid":
        return MaskedImages.from_camvid(source, split or "val")
    if layout == "table":
        if split is None and len(splits := splits_of_table(source)) > 1:
            remark(f"{source}: the images of all its splits are used, {', '.join(splits)}; choose one with --split")
        return MaskedImages.from_table(source, own or class_names, split=split)
    refuse_unused("by a folder of images", "split", remedy="name the folder of the split, or --layout")
    table = None if labels in ("known", "predicted", "all") else labels
    return MaskedImages.from_folder(source, masks, own or class_names or VOC_CLASSES, labels=table)


def mask_pairs(
    found: Path, truth: str, *, layout: DataLayout, split: str | None, masks: Path | None, names: Path | None
) -> tuple[Iterator[tuple[Mask, Mask]], tuple[str, ...]]:
    """True and found masks by name, and the names of the numbers in them."""
    from ...datasets.masked_images import VOC_CLASSES, read_names
    from ...images.masks import read_class_numbers
    from ...segmentation.label_maps import MaskIds

    found, root = (
        folder / "SegmentationClass" if (folder / "SegmentationClass").is_dir() else folder
        for folder in (found, Path(truth))
    )
    if not found.is_dir():
        raise InputError(f"expected a folder of masks or a model, and nothing is at {found}")
    layout = _layout_of(truth) if layout == "auto" else layout
    if layout != "folder" or masks is not None:
        data = open_data(truth, layout=layout, split=split, masks=masks, names=names, labels="known", class_names=None)
        own = data.with_masks(found)
        both = ((data.mask(i), own.mask(i)) for i in range(len(data)))
        return ((true, other) for true, other in both if true is not None and other is not None), data.mask_names
    refuse_unused("by a folder of masks", "split", remedy="name the folder of the split, or --layout")
    listed = names or next((p for p in (found.parent / "classes.txt", found / "classes.txt") if p.is_file()), None)
    class_names = VOC_CLASSES if listed is None else read_names(listed)
    files = sorted(root.rglob("*.png"))
    if not files:
        raise InputError(f"no mask (.png) in {root}")
    ids = MaskIds()

    def read() -> Iterator[tuple[Mask, Mask]]:
        for file in files:
            other = found / file.relative_to(root)
            if not other.is_file():
                raise InputError(f"{file.relative_to(root)} has no counterpart; expected {other}")
            true, guess = (ids.renumbered(read_class_numbers(each), len(class_names), each) for each in (file, other))
            if true.shape != guess.shape:
                (height, width), (rows, columns) = true.shape, guess.shape
                raise InputError(
                    f"{other}: expected a mask of {width} x {height} pixels as {file}; got {columns} x {rows}"
                )
            yield true, guess

    return read(), ("background", *class_names)
