"""Recipes that end in a segmentation network: class maps from labels, masks from maps, a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import InputError
from ..training.data.training_set import Cache
from ..training.recipes.recipe import Recipe, RecipeFile, located
from ..training.recipes.tables import Table, check_name, checked_table, parse
from .data import BENCHMARKS, MaskedImages
from .pseudo_masks.make import CueStage
from .pseudo_masks.refining import CrfSettings
from .segmenter.inference import ONE_LOOK, InferenceSettings

_TABLES = ("name", "variant", "data", "weak", "cues", "segmenter", "seed")
_SOURCES = ("scenes", "voc", "camvid", "cityscapes", "table", "images")
_TRAINING = ("loss", "sampler", "augment", "optimiser", "schedule", "run", "encoder")


class PipelineScenes(Table):
    """Drawn scenes with masks, some of them with two objects."""

    classes: int = 6  # how many
    train: int = 60  # scenes of each class to learn from
    test: int = 20  # scenes of each class to measure on
    two_objects: float = 0.5  # share of the scenes with a second object
    size: int = 64  # side of the images in pixels
    seed: int = 0  # of classes and images

    def _check(self) -> None:
        if self.classes < 2 or self.train < 1 or self.test < 1:
            raise InputError("expected two classes or more, and scenes of each to learn from and to measure on")


class PipelineData(Table):
    """The images, from one of scenes, voc, camvid, cityscapes, table, images. `$NAME` in a path is filled in."""

    scenes: PipelineScenes | None = None  # drawn ones
    voc: str = ""  # a folder in VOC's layout
    camvid: str = ""  # a folder of CamVid
    cityscapes: str = ""  # a folder of Cityscapes
    table: str = ""  # a CSV with path, mask, split, and labels or 0/1 columns
    images: str = ""  # a folder of images, with `masks` and `names`; {split} in the paths stands for the split
    masks: str = ""  # a folder of masks
    names: str = ""  # a file with the classes' names
    train: str = "train"  # the split to learn from
    test: str = "val"  # the split to measure on
    size: int | tuple[int, int] = 64  # side of the networks' input in pixels, or height and width
    outlined: int = 0  # how many training images may show their outline to a loss (GAIN-ext)
    outlines: Literal["mask", "box"] = "mask"  # whether they show a mask, or boxes around its parts
    boxed: int = 0  # how many further ones may show boxes, where those show masks (GAIN^{b,p})
    outline_seed: int = 0  # of the choice of those images
    # a folder of saliency maps, `NAME.png` in grey levels: what stands out in boxes (GAIN's S), and in images whose
    # cues are made with sure.background = "saliency"; left out, the contrast of colours
    saliency: str = ""
    cache: Cache = "auto"  # whether decoded images stay in memory while a network learns; see `Cache`
    strict: bool = False  # stop where an image or its mask cannot be read, instead of leaving it out with a remark

    def _check(self) -> None:
        given = [name for name in _SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise InputError(f"expected one of {', '.join(_SOURCES)}; got {' and '.join(given) or 'none'}")
        if self.images and not (self.masks and self.names):
            raise InputError("images come with masks and names")
        if self.boxed and self.outlines == "box":
            raise InputError('boxed are further images beside those of outlines = "mask"; add them to outlined')

    def _unused(self) -> dict[str, str]:
        [kind] = [name for name in _SOURCES if getattr(self, name)]
        takers = {"masks": ("images",), "names": ("table", "images"), "train": _SOURCES[1:]}
        takers["test"] = takers["train"]
        return {key: kind for key, by in takers.items() if kind not in by}

    def load(self, split: Literal["train", "test"], *, folder: Path, cache: Path) -> MaskedImages:
        """The images of a split; scenes are drawn into `cache`, once for all runs with the same ones."""
        name = self.train if split == "train" else self.test
        if self.scenes is not None:
            from ..synthetic.blueprint import blueprints
            from ..synthetic.scene_set import SceneSet, write_scenes

            scenes = self.scenes
            digest = hashlib.sha256(json.dumps(scenes.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
            target = cache / f"scenes-{digest}"
            if not (target / "scenes.csv").is_file():
                write_scenes(
                    target,
                    classes=blueprints(scenes.classes, seed=scenes.seed),
                    splits={"train": scenes.train, "test": scenes.test},
                    size=scenes.size,
                    two_object_share=scenes.two_objects,
                    seed=scenes.seed,
                    masks=True,
                )
            return MaskedImages.from_scenes(SceneSet.read(target), split)
        for kind, read in BENCHMARKS.items():
            if place := getattr(self, kind):
                return read(located(place, folder), name)
        if self.table:
            names = located(self.names, folder) if self.names else None
            return MaskedImages.from_table(located(self.table, folder), names, split=name)
        images, masks = (located(text.replace("{split}", name), folder) for text in (self.images, self.masks))
        return MaskedImages.from_folder(images, masks, located(self.names, folder))


class NetworkSettings(Table):
    """The segmentation network; see `build_segmenter`."""

    only_for: ClassVar = {"crf": ("refine", "crf")}

    architecture: str = "light"  # of torchvision's segmenters, "unet", "deeplab_largefov_vgg16", or "light"
    weights: str = "random"  # "random", "imagenet", a file, or "weak": the encoder of the first stage ("light" only)
    options: Mapping[str, Any] = {}  # for the architecture
    inference: InferenceSettings = ONE_LOOK  # how it looks at the test images
    refine: Literal["none", "crf"] = "none"  # "crf": a dense CRF behind it, on the test images
    crf: CrfSettings = CrfSettings()  # of that CRF


@dataclass(frozen=True)
class PipelineRecipe:
    """A run from labels to masks, resolved."""

    name: str
    data: PipelineData
    weak: Recipe | None  # how class maps are learnt; None if a checkpoint or the truth stands in
    checkpoint: str  # what gives class maps instead; see `load_source`
    cues: CueStage
    network: NetworkSettings | None  # None ends the run with the masks
    training: Recipe | None  # of the network
    variant: str = ""
    folder: Path = Path()  # what relative paths start from
    table: Mapping[str, Any] = field(default_factory=dict)  # all of it as it was read, with the changes

    @property
    def seed(self) -> int:
        """Of the whole run, unless another is asked for."""
        return int(self.table.get("seed", 0))

    @classmethod
    def read(cls, path: str | Path, *, variant: str | None = None, changes: Sequence[str] = ()) -> PipelineRecipe:
        """The recipe of a TOML file; see `Recipe.read`."""
        file = RecipeFile.read(path)
        return cls.from_dict(file.resolved(variant=variant, changes=changes), folder=file.folder)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path = Path()) -> PipelineRecipe:
        """The recipe that a resolved table holds."""
        for key in table:
            check_name("table or key of the recipe", key, _TABLES)
        if "data" not in table:
            raise InputError("the recipe lacks [data]")
        seed = table.get("seed", 0)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"seed: expected a whole number, got {seed!r}")
        data = parse(PipelineData, table["data"], "data")
        cues = parse(CueStage, table.get("cues", {}), "cues")
        weak = dict(checked_table(table.get("weak", {}), "weak"))
        checkpoint = str(weak.pop("checkpoint", ""))
        if cues.kind != "truth" and bool(weak) == bool(checkpoint):
            raise InputError("[weak] needs a checkpoint, or a [[weak.loss]] to learn class maps with; got "
                             + ("both" if weak else "neither"))  # fmt: skip
        name = str(table.get("name", "segmentation"))
        learnt = _stage(weak, data, "weak", name, folder) if weak and cues.kind != "truth" else None
        network = dict(checked_table(table.get("segmenter", {}), "segmenter"))
        own = {key: network.pop(key) for key in _TRAINING if key in network and key != "encoder"}
        has_network = "segmenter" in table
        training = None
        if has_network:
            training = _stage({"loss": [{"kind": "pixels"}], **own}, data, "segmenter", name, folder)
            if training.augment.mixes:
                raise InputError(
                    "[segmenter.augment]: masks do not go with mixup, cutmix or manifold_mixup; leave them at 0"
                )
        return cls(
            name=name,
            data=data,
            weak=learnt,
            checkpoint=checkpoint,
            cues=cues,
            network=parse(NetworkSettings, network, "segmenter") if has_network else None,
            training=training,
            variant=str(table.get("variant", "")),
            folder=folder,
            table=table,
        )


def _stage(table: Mapping[str, Any], data: PipelineData, where: str, name: str, folder: Path) -> Recipe:
    """The tables of one training as an ordinary recipe; its `[data]` says the size alone."""
    for key in table:
        check_name(f"key in [{where}]", key, _TRAINING)
    stand_in = {"images": "-", "size": data.size, "fit": "squash"}
    return Recipe.from_dict({"name": f"{name}: {where}", "data": stand_in, **table}, folder=folder)


def is_pipeline(file: RecipeFile) -> bool:
    """True if a recipe is one of this module's: it has a table `[segmenter]`, `[weak]`, or `[cues]`."""
    return any(key in file.table for key in ("segmenter", "weak", "cues"))
