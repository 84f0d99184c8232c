"""Recipes: everything about a training run in one TOML file, its variants, and changes from the command line.

A task is a subclass of `Recipe`: its fields are the tables that it adds, `open` gives its images, losses and measures.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from ...encoders import Encoder
from ...encoders.heads import head_from_dict
from ...encoders.weight_files import drawn_from
from ...errors import InputError
from ...images import Transform
from ...progress import Progress
from ..data.augment import AugmentSettings
from ..data.batches import RunData
from ..data.dividing import SplitSettings
from ..data.samplers import SamplerSettings
from ..data.splits import DataSettings, load_splits
from ..engine.environment import current_world
from .evaluator import EvaluationSettings
from .settings import OptimiserSettings, ScheduleSettings, Settings
from .tables import Table, check_name, checked_table, merged, parse


class EncoderSettings(Table):
    """The encoder that is trained, and its first weights."""

    # a name of torchvision, "timm:NAME", "hf:NAME", "open_clip:NAME", one of our own ("conv4", "resnet12",
    # "resnet56", …), or a checkpoint
    architecture: str = "conv4"
    # "random", "imagenet", "pretrained" (of timm, hf, open_clip), or a file; relative to the recipe's folder,
    # `$DISTCAM_DATA/…` is filled in
    weights: str = "random"
    layer: str | None = None  # where the feature map is read; the last convolution if left out
    pooling: Literal["gap", "gem"] = "gap"
    # such as `{ type = "linear", out_dim = 128 }` or `{ type = "bnneck" }`; none if left out
    head: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = {}  # for the architecture, such as `{ width = 32 }`
    seed: int | None = None  # of random weights; that of the run if left out

    def build(self, data: DataSettings, *, folder: Path, seed: int) -> Encoder:
        """The encoder, for images of the size that the data have."""
        seed = seed if self.seed is None else self.seed
        if self.architecture.endswith(".safetensors"):
            encoder = Encoder.load(located(self.architecture, folder))
        else:
            is_file = self.weights not in ("random", "imagenet", "pretrained")
            encoder = Encoder.load(
                self.architecture,
                weights=located(self.weights, folder) if is_file else self.weights,
                layer=self.layer,
                pooling=self.pooling,
                options=self.options or None,
                seed=seed,
            )
        encoder.transform = encoder.transform.adapted(size=data.size, fit=data.fit)
        if data.resize is not None:
            encoder.transform = replace(encoder.transform, resize=data.resize)
        if self.head is not None:
            with drawn_from(seed):
                # the width of its vectors need not be repeated in the recipe
                own = {"linear": {"in_dim": encoder.pooled_dim}, "bnneck": {"dim": encoder.pooled_dim}}
                try:
                    encoder.head = head_from_dict({**own.get(str(self.head.get("type")), {}), **self.head})
                except TypeError as error:
                    raise InputError(f"[encoder] head: {dict(self.head)} describes no head ({error})") from None
        return encoder


def located(text: str, folder: Path) -> Path:
    """A path of a recipe: relative to its folder, `$NAME` filled in."""
    filled = os.path.expandvars(text)
    if "$" in filled:
        raise InputError(f"{text}: set the environment variable {filled.split('$')[1].split('/')[0]}")
    return folder / filled


class Recipe(Table):
    """One training run, resolved: no variants, nothing left to decide but the seed."""

    kept_tables: ClassVar[tuple[str, ...]] = ()  # a task's own that a resumed run may not change

    data: DataSettings
    loss: tuple[Mapping[str, Any], ...]  # kind, weight, name, and the term's own options; see losses.registry.TERMS
    name: str = ""
    variant: str = ""
    encoder: EncoderSettings = EncoderSettings()
    sampler: SamplerSettings = SamplerSettings()
    augment: AugmentSettings = AugmentSettings()
    run: Settings = Settings()  # and the tables [optimiser] and [schedule]
    evaluation: EvaluationSettings = EvaluationSettings()
    folder: Path = Field(default=Path(), exclude=True)

    def _check(self) -> None:
        if not self.loss or not all("kind" in table for table in self.loss):
            raise InputError("a recipe needs a [[loss]] or more, each with its kind")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.to_dict() == other.to_dict()

    @property
    def seed(self) -> int:
        """Of everything random in the run."""
        return self.run.seed

    @classmethod
    def read(cls, path: str | Path, *, variant: str | None = None, changes: Sequence[str] = ()) -> Self:
        """The recipe of a TOML file, with the variant and the changes of the command line."""
        file = RecipeFile.read(path)
        return cls.from_dict(file.resolved(variant=variant, changes=changes), folder=file.folder)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, folder: Path = Path()) -> Self:
        """The recipe that a resolved table holds."""
        for key in table:
            check_name("table or key of the recipe", key, cls.known_tables())
        for key in ("data", "loss"):
            if key not in table:
                raise InputError(f"the recipe lacks {'[data]' if key == 'data' else '[[loss]]'}")
        of_run: dict[str, type[Table]] = {"optimiser": OptimiserSettings, "schedule": ScheduleSettings}
        parts = {name: parse(kind, table.get(name, {}), name) for name, kind in of_run.items()}
        known = [name for name in Settings.model_fields if name not in of_run]
        for key in checked_table(table.get("run", {}), "run"):
            check_name("key in [run]", key, known)
        rest = {key: value for key, value in table.items() if key not in of_run}
        recipe = parse(cls, rest)
        run = recipe.run.model_copy(update=parts)
        return recipe.model_copy(update={"folder": folder, "run": run})

    @classmethod
    def known_tables(cls) -> list[str]:
        """The tables and keys that such a recipe may have."""
        return [*(name for name in cls.model_fields if name != "folder"), "optimiser", "schedule"]

    def divided(self, split: SplitSettings | None) -> Self:
        """The same recipe with another `[data.split]`; None keeps its own."""
        return self if split is None else self.model_copy(update={"data": self.data.changed(split=split)})

    def open(self, transform: Transform, *, cache: Path, progress: Progress | None = None) -> RunData:
        """The images of the run, and what a task adds to them."""
        world = current_world()
        place = cache / "scenes" / (f"process-{world.rank}" if world.size > 1 else "")
        held = self.augment.crop_from == "input"  # else training reads from the files
        told = {"folder": self.folder, "cache": place, "progress": progress}
        return load_splits(self.data, transform, keeps_training=held, **told)

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe with every default filled in, as JSON can hold it; `from_dict` restores it."""
        table = super().to_dict()
        run = table.pop("run")
        return {**table, "optimiser": run.pop("optimiser"), "schedule": run.pop("schedule"), "run": run}


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as its file says it, variants and all: [variants.NAME] holds what differs, see `tables.merged`."""

    table: Mapping[str, Any]
    folder: Path = Path()

    @classmethod
    def read(cls, path: str | Path) -> RecipeFile:
        """The recipe of a TOML file."""
        file = Path(path)
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: expected a recipe in TOML; {error}") from None
        for name, changes in checked_table(table.get("variants", {}), "variants").items():
            checked_table(changes, f"variants.{name}")
        return cls({"name": file.stem, **table}, file.parent)

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants, in the file's order."""
        return tuple(self.table.get("variants", {}))

    def recipe(self, *, variant: str | None = None, changes: Sequence[str] = ()) -> Recipe:
        """One resolved recipe: the file, then the variant, then the changes; see `resolved`."""
        return Recipe.from_dict(self.resolved(variant=variant, changes=changes), folder=self.folder)

    def resolved(self, *, variant: str | None = None, changes: Sequence[str] = ()) -> dict[str, Any]:
        """The tables of one run: the file's, then the variant's, then the changes; `[paper]` is no part of a run."""
        table = self._chosen(variant)
        table.pop("paper", None)
        for change in changes:
            table = merged(table, parse_change(change))
        return table

    def paper(self, variant: str | None = None) -> Mapping[str, Any]:
        """The table `[paper]` of a variant, see `Paper`; empty for a recipe that repeats no paper's table."""
        return checked_table(self._chosen(variant).get("paper", {}), "paper")

    def _chosen(self, variant: str | None) -> dict[str, Any]:
        table = {key: value for key, value in self.table.items() if key != "variants"}
        if variant is None:
            return table
        check_name("variant", variant, self.variants)
        return {**merged(table, self.table["variants"][variant]), "variant": variant}


def parse_change(text: str) -> dict[str, Any]:
    """A change from the command line as a table; the value is TOML, or a string if it is none.

    Entries of a list are named by their number, or by their `name` or `kind`.

    >>> parse_change("loss.cam_loss.weight=3")
    {'loss': {'cam_loss': {'weight': 3}}}
    >>> parse_change("encoder.weights=imagenet")
    {'encoder': {'weights': 'imagenet'}}
    """
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise InputError(f"expected a change as key=value, such as run.epochs=3; got {text!r}")
    try:
        changed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        changed = value
    for name in reversed(names):
        changed = {name: changed}
    result: dict[str, Any] = changed
    return result


class Miniature(Table):
    """A run of about a minute on small copies of the data."""

    layouts: tuple[str, ...] = ()  # the copies, by their names in `synthetic.miniatures`
    variants: tuple[str, ...] = ()  # those that are run; all if empty
    changes: tuple[str, ...] = ()  # of the recipe, as `--set` takes them


class Paper(Table):
    """Settings that repeat one table of a paper, and the data that it needs."""

    # the command that trains; "none" where nothing is trained, and `then` is all
    task: Literal["train", "fewshot", "reid", "segment", "none"] = "train"
    # files and folders below that of the data, as archives unpack; "A|B" where either will do
    needs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()  # further files, which a miniature does without
    # commands for every run, without the word distcam. In braces: {data_folder}, {run} (the run's own folder), and what
    # the recipe says, such as {encoder[architecture]}
    then: tuple[str, ...] = ()
    mini: Miniature = Miniature()

    def commands(self, table: Mapping[str, Any], *, data_folder: Path, run: Path) -> list[list[str]]:
        """The words of what follows a run; `table` is its resolved recipe."""
        known = {**table, "data_folder": data_folder, "run": run}
        try:
            return [[word.format_map(known) for word in shlex.split(command)] for command in self.then]
        except (KeyError, ValueError) as error:
            raise InputError(f"[paper] then: {error} is nothing that the recipe says") from None


def require(papers: Sequence[Paper], folder: Path, *, weights: bool = True) -> None:
    """Nothing, if all that the recipes read lies in its place; else one error that names every path."""
    needs = dict.fromkeys(need for paper in papers for need in (*paper.needs, *(paper.weights if weights else ())))
    places = ([folder / path for path in need.split("|")] for need in needs)  # alternatives in one line
    missing = [" or ".join(map(str, either)) for either in places if not any(path.exists() for path in either)]
    if not missing:
        return
    firsts = {need.partition("/")[0] for paper in papers for need in paper.needs}
    inside = f"; {folder.name} is one of the data sets: give the folder around it" if folder.name in firsts else ""
    listed = "; ".join(missing)
    raise InputError(f"{folder}: {len(missing)} of what the recipe reads are not there: {listed}{inside}")
