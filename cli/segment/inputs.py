"""What `distcam segment` works on: models, pictures with or without masks, and pairs of masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import InputError
from ..command import refuse_unused

if TYPE_CHECKING:
    from ...segmentation.data import Mask, MaskedImages
    from ...segmentation.pseudo_masks.sources import ClassMapSource
    from ...segmentation.segmenter.inference import InferenceSettings
    from ...segmentation.segmenter.segmenter import Segmenter

__all__ = ["Layout", "inference_settings", "is_model", "mask_pairs", "open_data", "open_model"]

Layout = Literal["auto", "folder", "voc", "camvid", "table", "scenes"]


def is_model(path: Path) -> bool:
    """Whether the path is a file of weights, or a folder that holds one."""
    return path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors")))


def open_model(path: Path) -> ClassMapSource | Segmenter:
    """A segmentation network, or what gives class maps."""
    from ...encoders.checkpoint import read_checkpoint
    from ...segmentation.pseudo_masks.sources import load_source
    from ...segmentation.segmenter.segmenter import load_segmenter

    whole = path / "segmenter.safetensors" if path.is_dir() else path
    if whole.is_file() and read_checkpoint(whole)[0].get("kind") == "segmenter":
        return load_segmenter(whole)
    weak = path / "weak"
    return load_source(weak if path.is_dir() and weak.is_dir() else path)


def inference_settings(
    scales: str | None, flip: bool | None, *, base: Literal["network", "image"], refined: bool, is_network: bool
) -> InferenceSettings:
    """How pictures are looked at; a trained network looks once if nothing is said."""
    from ...segmentation.segmenter.inference import InferenceSettings

    chosen = (1.0,) if is_network else InferenceSettings().scales
    if scales is not None:
        try:
            chosen = tuple(float(part) for part in scales.split(","))
        except ValueError:
            raise InputError(f"expected --scales as numbers such as 0.5,1,2; got {scales!r}") from None
    return InferenceSettings(scales=chosen, flip=not is_network if flip is None else flip, base=base, refined=refined)


def _layout_of(source: str) -> Layout:
    """What a path looks like."""
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
    layout: Layout,
    split: str | None,
    masks: Path | None,
    names: Path | None,
    labels: str,
    class_names: Sequence[str] | None,
) -> MaskedImages:
    """The pictures that the options name."""
    from ...datasets.masked_images import splits_of_table
    from ...remarks import remark
    from ...segmentation.data import VOC_CLASSES, MaskedImages, read_names

    layout = _layout_of(source) if layout == "auto" else layout
    if layout != "folder":
        refuse_unused(f"by the layout {layout}, which has its own", "masks")
        if labels not in ("known", "predicted", "all"):
            raise InputError(f"the layout {layout} says itself which classes a picture shows; leave --labels FILE out")
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
    refuse_unused("by a folder of pictures", "split", remedy="name the folder of the split, or --layout")
    table = None if labels in ("known", "predicted", "all") else labels
    return MaskedImages.from_folder(source, masks, own or class_names or VOC_CLASSES, labels=table)


def mask_pairs(
    found: Path, truth: str, *, layout: Layout, split: str | None, masks: Path | None, names: Path | None
) -> tuple[Iterator[tuple[Mask, Mask]], tuple[str, ...]]:
    """True and found masks by name, and what the numbers in them mean."""
    from ...images.masks import read_class_numbers
    from ...segmentation.data import VOC_CLASSES, MaskIds, read_names

    found = found / "SegmentationClass" if (found / "SegmentationClass").is_dir() else found
    if not found.is_dir():
        raise InputError(f"expected a folder of masks or a model, and nothing is at {found}")
    layout = _layout_of(truth) if layout == "auto" else layout
    if layout != "folder" or masks is not None:
        data = open_data(truth, layout=layout, split=split, masks=masks, names=names, labels="known", class_names=None)
        own = data.with_masks(found)

        def of_data() -> Iterator[tuple[Mask, Mask]]:
            for i in range(len(data)):
                true, other = data.mask(i), own.mask(i)
                if true is not None and other is not None:
                    yield true, other

        return of_data(), data.mask_names
    refuse_unused("by a folder of masks", "split", remedy="name the folder of the split, or --layout")
    listed = names or next((p for p in (found.parent / "classes.txt", found / "classes.txt") if p.is_file()), None)
    class_names = VOC_CLASSES if listed is None else read_names(listed)
    root = Path(truth) / "SegmentationClass" if (Path(truth) / "SegmentationClass").is_dir() else Path(truth)
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
