"""Sources of class maps: a weak segmenter, a classifier that `distcam train` left, or anything of one's own.

Whatever has `class_names`, a `transform`, and `class_maps(images, refined=…, labels=…)` can be asked for masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders import Encoder
from ...encoders.backbones.networks import Network
from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...encoders.heads import head_from_dict, pooling_from
from ...encoders.layers import evaluating
from ...encoders.state_dicts import load_state
from ...encoders.trained_on import TrainedOn
from ...errors import InputError, ShapeError, WeightsError
from ...images import Transform
from ...training.engine.step import HasClassWeights, Targets
from ...training.losses.attention import gradient_weights, pooled_weights
from ...training.losses.classifier import load_classifier
from ..cam_training.class_maps import MapRefinement, RefinementSettings, class_maps, read_stages
from ..cam_training.map_term import MapTerm

CamMethod = Literal["cam", "gradcam"]


class ClassMapSource(Protocol):
    """A source of class maps."""

    @property
    def class_names(self) -> Sequence[str]:
        """The foreground classes, in the order of the maps."""

    @property
    def transform(self) -> Transform:
        """From an image to the input; its size is the one that scale 1 stands for."""

    def class_maps(
        self, images: Float[Tensor, "b 3 rows columns"], *, refined: bool = True, labels: Tensor | None = None
    ) -> Tensor:
        """Raw maps (b, c, h, w) of normalised images; `labels` are 0/1 columns, None where nobody knows."""


class ClassifierMaps(nn.Module):
    """The class maps of an encoder with a classifier (Zhou et al. 2016, Eq. 2 (CAM); [GAIN] Eq. 1-2)."""

    def __init__(
        self,
        encoder: Encoder,
        classifier: HasClassWeights,
        class_names: Sequence[str],
        *,
        method: Literal["cam", "gradcam"] = "cam",
    ) -> None:
        super().__init__()
        if len(classifier.class_weights()) != len(class_names):
            raise InputError(f"{len(class_names)} names of classes for {len(classifier.class_weights())} class weights")
        self.encoder, self.classifier = encoder, classifier
        self.class_names, self.method = tuple(class_names), method

    @property
    def transform(self) -> Transform:
        """The encoder's."""
        return self.encoder.transform

    @torch.no_grad()
    def class_maps(
        self, images: Float[Tensor, "b 3 rows columns"], *, refined: bool = True, labels: Tensor | None = None
    ) -> Tensor:
        """Raw maps (b, c, h, w), before the ReLU of Grad-CAM; there is nothing to refine them."""
        del refined, labels
        with evaluating(self.encoder):
            feature_map = self.encoder(images).feature_map
            if self.method == "cam":
                weights = pooled_weights(self.encoder, self.classifier.class_weights())
                return torch.einsum("ck,bkhw->bchw", weights, feature_map)
            count, classes = len(images), len(self.class_names)
            row = torch.arange(count, device=images.device).repeat_interleave(classes)
            label = torch.arange(classes, device=images.device).repeat(count)
            targets = Targets(row, label, torch.ones(len(row), device=images.device))
            weights = gradient_weights(self.encoder, feature_map, self.classifier, targets)
            positions = feature_map[0, 0].numel()  # Grad-CAM's 1/N would make a large scale count less than a small one
            return torch.einsum("bck,bkhw->bchw", weights.view(count, classes, -1) * positions, feature_map)

    def presence(self, images: Float[Tensor, "b 3 rows columns"]) -> Float[Tensor, "b c"]:
        """The classes' logits, inside the gradient graph; above 0 a class is more likely there than not."""
        with evaluating(self.encoder):
            return self.classifier.logits(self.encoder(images).embedding)


def load_source(path: str | os.PathLike[str], *, method: CamMethod = "cam") -> ClassMapSource:
    """The class maps of a `WeakSegmenter`'s file, or of a run's folder or encoder with a classifier beside it.

    `method` is that of a classifier's maps. WeightsError: no such file, or one that gives no class maps.
    """
    given = Path(path)
    weak = given / "weak_segmenter.safetensors"
    file = (weak if weak.is_file() else given / "encoder.safetensors") if given.is_dir() else given
    config, _ = read_checkpoint(file)
    if config.get("kind") == "weak segmenter":
        return WeakSegmenter.load(file)
    beside = file.with_name("classifier.safetensors")
    if "architecture" not in config or not beside.is_file():
        raise WeightsError(
            f"{file}: gives no class maps; expected a weak segmenter, or an encoder beside classifier.safetensors"
        )
    encoder = Encoder.load(file)
    classifier, names, fingerprint = load_classifier(beside)
    if fingerprint != encoder.fingerprint:
        raise WeightsError(f"{beside}: belongs to another encoder than {file.name} beside it; train both in one run")
    return ClassifierMaps(encoder, classifier, names, method=method)


class _Presence(nn.Module):
    def __init__(self, source: WeakSegmenter | ClassifierMaps) -> None:
        super().__init__()
        self.source = source

    def forward(self, images: Tensor) -> Tensor:
        return self.source.presence(images)


def network_of(source: ClassMapSource) -> Network:
    """The source, but one's own, as a classifier for `distcam explain --target class:…`; the weights are shared."""
    if not isinstance(source, WeakSegmenter | ClassifierMaps):
        raise InputError(f"{type(source).__name__} does not say which classes an image shows")
    names = tuple(source.class_names)
    return Network(
        _Presence(source).eval(), "classifier", source.transform, "source.encoder.backbone", names, len(names)
    )


_KIND = "weak segmenter"


class WeakSegmenter(nn.Module):
    """Class maps, plain or refined, of a training from image-level labels.

    `class_weights` are one vector per class on the channels of the encoder's feature map, `stages` the layers that the
    trained refinement (PCM and PRCM) reads; `metadata` are free JSON-able notes: the best background score β, say.
    """

    def __init__(
        self,
        encoder: Encoder,
        class_weights: Float[Tensor, "c k"],
        class_names: Sequence[str],
        *,
        refinement: MapRefinement | None = None,
        stages: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if class_weights.shape != (len(class_names), encoder.pooled_dim):
            raise ShapeError(
                f"expected class weights ({len(class_names)}, {encoder.pooled_dim}) for {len(class_names)} classes, "
                f"got {tuple(class_weights.shape)}"
            )
        if (refinement is None) != (not stages):
            raise InputError("a refinement and the two stages that it reads come together")
        self.encoder = encoder
        self.class_weights: Tensor
        self.register_buffer("class_weights", class_weights.detach().clone())
        self.class_names = tuple(class_names)
        self.refinement = refinement
        self.stages = tuple(stages)
        self.metadata = dict(metadata or {})
        self.eval()

    @classmethod
    def of(cls, encoder: Encoder, term: MapTerm, class_names: Sequence[str], **options: Any) -> Self:
        """The segmenter of an encoder and a term that was trained with it; they are shared, not copied."""
        return cls(
            encoder, term.class_weights(), class_names, refinement=term.refinement, stages=term.stages, **options
        )

    @property
    def transform(self) -> Transform:
        """The encoder's."""
        return self.encoder.transform

    @property
    def is_refined(self) -> bool:
        """True with a refinement."""
        return self.refinement is not None

    def class_maps(
        self,
        images: Float[Tensor, "b 3 h w"],
        *,
        refined: bool = True,
        labels: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b c _h _w"]:
        """Raw maps of the classes, in the network's resolution, inside the gradient graph.

        Plain maps are signed, refined ones are not. With `labels`, 0/1 columns, the refinement knows which classes are
        absent, as it did in training. The maps of a batch's images do not depend on one another.
        """
        refinement = self.refinement if refined else None
        with read_stages(self.encoder, self.stages if refinement is not None else ()) as read:
            feature_map = self.encoder(images).feature_map
        maps = class_maps(feature_map, self.class_weights)
        if refinement is None:
            return maps
        features = refinement.features(read(), images, (maps.shape[-2], maps.shape[-1]))
        return refinement.refine(maps, features, labels)[:, 1:]

    def presence(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """The classes' logits; above 0 a class is more likely there than not."""
        return self.class_maps(images, refined=False).mean((-2, -1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one `.safetensors` file; InputError for an encoder that is code of your own."""
        if self.encoder.options is None:
            raise InputError(f"{self.encoder.architecture} is a network of your own; save its state_dict() instead")
        config: dict[str, Any] = {
            "kind": _KIND,
            "encoder": self.encoder.describe(),
            "class_names": list(self.class_names),
            "refinement": None if self.refinement is None else self.refinement.options(),
            "stages": list(self.stages),
            "metadata": {"training": self.encoder.metadata.get("training"), **self.metadata},
        }
        tensors, record = self.state_dict(), self.encoder.trained_on
        if record is not None:
            record.put(config, tensors)
        write_checkpoint(path, config, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The segmenter of a file that `save` wrote; WeightsError for no such file, damaged, or something else."""
        config, tensors = read_checkpoint(path)
        if config.get("kind") != _KIND:
            raise WeightsError(f"{path}: holds no weak segmenter; expected a file that WeakSegmenter.save wrote")
        with built_from_header(path, "a weak segmenter"):
            described = config["encoder"]
            encoder = Encoder.load(
                described["architecture"],
                weights="random",
                layer=described["layer"],
                pooling=pooling_from(described["pooling"]),
                head=head_from_dict(described["head"]),
                transform=Transform.from_dict(described["transform"]),
                options=described["options"],
            )
            encoder.trained_on = TrainedOn.of_checkpoint(config, tensors)
            refinement = None
            if config["refinement"] is not None:
                with torch.random.fork_rng(devices=[]):
                    options = dict(config["refinement"])
                    refinement = MapRefinement(tuple(options.pop("stage_dims")), RefinementSettings(**options))
            segmenter = cls(
                encoder,
                tensors["class_weights"],
                [str(name) for name in config["class_names"]],
                refinement=refinement,
                stages=config["stages"],
                metadata=config["metadata"],
            )
        load_state(segmenter, tensors, origin=str(path), exact=True)
        return segmenter.eval()
