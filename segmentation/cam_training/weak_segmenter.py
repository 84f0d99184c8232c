"""A segmenter that has never seen a mask: encoder, class weights, and perhaps a refinement, in one file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...encoders import Encoder
from ...encoders.checkpoint import built_from_header, read_checkpoint, write_checkpoint
from ...encoders.heads import head_from_dict, pooling_from
from ...encoders.state_dicts import load_state
from ...encoders.trained_on import DIGESTS, TrainedOn
from ...errors import InputError, ShapeError, WeightsError
from ...images import Transform
from .class_maps import class_maps
from .map_refinement import MapRefinement, read_stages
from .map_term import MapTerm

_KIND = "weak segmenter"


class WeakSegmenter(nn.Module):
    """Class maps, plain or refined, of a training from image-level labels.

    Args:
        encoder: gives the feature map.
        class_weights: one vector per class on its channels.
        class_names: in their order; the foreground.
        refinement: trained PCM and PRCM; None for plain maps.
        stages: the layers that the refinement reads.
        metadata: free JSON-able notes: the best background score β, the recipe.
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

        Plain maps are signed, refined ones are not. The maps of a batch's images do not depend on one another.

        Args:
            images: normalised, of any size that the encoder takes.
            refined: apply the refinement, if there is one.
            labels: 0/1 columns: the refinement then knows which classes are absent, as it did in training.
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
        """Write everything into one `.safetensors` file.

        Raises:
            InputError: the encoder is code of your own, which no file can bring back.
            WeightsError: the file cannot be written.
        """
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
            config["trained_on"] = record.to_dict()
            tensors[DIGESTS] = torch.from_numpy(record.digests)
        write_checkpoint(path, config, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The segmenter of a file that `save` wrote.

        Raises:
            WeightsError: no such file, damaged, or something else.
        """
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
                    refinement = MapRefinement(tuple(options.pop("stage_dims")), **options)
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
