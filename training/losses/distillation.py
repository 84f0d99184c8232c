"""Learning from a trained teacher: its class maps (CCM, AT), its class-agnostic maps (AT), its probabilities (KD).

Equations, and where this is not what the papers print: docs/guides/losses.md.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder, Encoding
from ...errors import FingerprintMismatchError, InputError
from ...explain import upsample
from ...images import Transform
from ..engine.step import HasClassWeights, Step, Targets, Term, single_labels, true_classes
from ..recipes.tables import check_name
from .attention import above_rounding, gradient_weights, pooled_weights, scaled, weighted_map
from .cam_loss import MapNorm, has_cam, map_difference, say_flat, unpooled
from .classifier import ClassifierTerm, load_classifier

CLASSIFIER = "classifier.safetensors"


class Teacher:
    """A trained encoder that only looks on; no module, so nothing of it is trained or saved."""

    def __init__(
        self,
        encoder: str | os.PathLike[str],
        classifier: str | os.PathLike[str] | None = None,
        *,
        class_names: Sequence[str],
        transform: Transform,
    ) -> None:
        self.path = Path(encoder)
        self.classifier_path = self.path.with_name(CLASSIFIER) if classifier is None else Path(classifier)
        self.class_names, self.transform = tuple(class_names), transform
        self.encoder = Encoder.load(self.path).requires_grad_(False)
        self.fingerprint = self.encoder.fingerprint
        self._seen: tuple[weakref.ref[Step], Encoding] | None = None

    @cached_property
    def classifier(self) -> ClassifierTerm:
        """The teacher's classifier, its classes in the student's order."""
        classifier, names, fingerprint = load_classifier(self.classifier_path)
        if fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                f"{self.classifier_path} belongs to an encoder with fingerprint {fingerprint[:8]}…, but {self.path} "
                f"has {self.fingerprint[:8]}…; give the teacher's own `classifier`"
            )
        unknown = [name for name in self.class_names if name not in names]
        if unknown:
            raise InputError(f"the teacher {self.path} does not know {len(unknown)} classes, such as {unknown[0]!r}")
        order = torch.tensor([names.index(name) for name in self.class_names])
        with torch.no_grad():
            classifier.weight = torch.nn.Parameter(classifier.weight[order])
            if classifier.bias is not None:
                classifier.bias = torch.nn.Parameter(classifier.bias[order])
        return classifier.requires_grad_(False)

    def look(self, step: Step) -> Encoding:
        """The teacher's encoding of the batch, with the statistics and the order of colours that it knows."""
        if self._seen is None or self._seen[0]() is not step:
            images = step.batch.images
            self.encoder.to(images.device).eval()
            own, theirs = self.encoder.transform, self.transform
            if (own.mean, own.std, own.channels) != (theirs.mean, theirs.std, theirs.channels):
                pixels = theirs.denormalise(images) * 255
                images = own.normalise(pixels if own.channels == theirs.channels else pixels.flip(1))
            with torch.no_grad():
                self._seen = weakref.ref(step), step.encode(images, encoder=self.encoder)
        return self._seen[1]

    def class_maps(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """CAM of each pair of an image and a class, raw; Grad-CAM behind a head that is not affine."""
        classifier = self.classifier.to(step.batch.images.device)
        return class_maps(self.encoder, self.look(step).feature_map, classifier, targets)

    def logits(self, step: Step) -> Float[Tensor, "b c"]:
        """Scores of the student's classes."""
        embedding = self.look(step).embedding
        return self.classifier.to(embedding.device).logits(embedding)


def class_maps(
    encoder: Encoder, feature_map: Float[Tensor, "b k h w"], classifier: HasClassWeights, targets: Targets
) -> Float[Tensor, "t h w"]:
    """CAM of each pair of an image and a class, raw, weights constant; Grad-CAM behind a head that is not affine."""
    if not has_cam(encoder, classifier):
        return weighted_map(targets.of(feature_map), gradient_weights(encoder, feature_map, classifier, targets))
    weights = pooled_weights(encoder, classifier.class_weights().detach())[targets.label]
    return weighted_map(targets.of(unpooled(encoder, feature_map)), weights)


def agnostic_map(encoder: Encoder, feature_map: Float[Tensor, "b k h w"]) -> Float[Tensor, "b h w"]:
    """CAAM of each image, raw."""
    maps = unpooled(encoder, feature_map)
    return above_rounding(maps.sum(1), maps)


class Distillation(Term):
    """A term with a teacher; a missing file of its classifier, where one is needed, is found before the training."""

    needs_classifier = True

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        if self.needs_classifier:
            _ = teacher.classifier


class Ccm(Distillation):
    """CCM: `mean |CAAM_student' - CAM_teacher,i'|`, maps scaled to [0, 1] ([CAM-loss] Eq. 10); 0 where one is flat."""

    has_looked = False

    def __init__(self, teacher: Teacher, *, norm: MapNorm = "l1") -> None:
        super().__init__(teacher)
        check_name("norm", norm, ("l1", "l2"))
        self.norm = norm

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images; a mixed image counts for both classes in their shares."""
        targets = true_classes(step.batch)
        student, teacher = self.student_maps(step, targets), self.teacher_maps(step, targets)
        size = (student.shape[-2], student.shape[-1])
        student, teacher = scaled(student), scaled(teacher if teacher.shape[-2:] == size else upsample(teacher, size))
        is_flat = ~(student.flatten(1).any(1) & teacher.flatten(1).any(1))
        whose = f"{type(self).__name__}: the student's or the teacher's maps"
        self.has_looked = self.has_looked or say_flat(whose, is_flat)
        values = torch.where(is_flat, 0.0, map_difference(student, teacher, self.norm))
        return targets.mean(values, n_images=len(step.batch))

    def student_maps(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """The class-agnostic maps."""
        return targets.of(agnostic_map(step.encoder, step.encoding.feature_map))

    def teacher_maps(self, step: Step, targets: Targets) -> Float[Tensor, "t rows columns"]:
        """The maps of the classes."""
        return self.teacher.class_maps(step, targets)


class AttentionTransfer(Ccm):
    """AT: `mean (CAM_student,i' - CAM_teacher,i')²`, maps of the image's class ([CAM-loss] Eq. 9).

    With maps="caam" the class-agnostic maps, which need no classifier (after Zagoruyko and Komodakis, 2017).
    """

    default_weight = 10.0

    def __init__(self, teacher: Teacher, *, maps: Literal["cam", "caam"] = "cam", norm: MapNorm = "l2") -> None:
        check_name("maps", maps, ("cam", "caam"))
        self.needs_classifier = maps == "cam"
        super().__init__(teacher, norm=norm)
        self.maps = maps

    def student_maps(self, step: Step, targets: Targets) -> Float[Tensor, "t h w"]:
        """The maps of the classes by the student's own classifier, or the class-agnostic ones."""
        if self.maps == "caam":
            return super().student_maps(step, targets)
        classifier = step.need_classifier("attention transfer")
        return class_maps(step.encoder, step.encoding.feature_map, classifier, targets)

    def teacher_maps(self, step: Step, targets: Targets) -> Float[Tensor, "t rows columns"]:
        """The same maps of the teacher."""
        if self.maps == "cam":
            return super().teacher_maps(step, targets)
        return targets.of(agnostic_map(self.teacher.encoder, self.teacher.look(step).feature_map))


class Kd(Distillation):
    """KD: `τ² KL(softmax(t / τ) ‖ softmax(s / τ))` of class scores (Hinton et al. 2015; [CAM-loss] Eq. 8 and 12).

    With as_printed=True it is divided by the number of classes, as Eq. 8 prints it.
    """

    default_weight = 0.5

    def __init__(self, teacher: Teacher, *, temperature: float = 4.0, as_printed: bool = False) -> None:
        super().__init__(teacher)
        if temperature <= 0:
            raise InputError(f"expected a temperature above 0, got {temperature}")
        self.temperature, self.as_printed = temperature, as_printed

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images."""
        single_labels(step.batch, "kd")
        student = step.need_classifier("KD").logits(step.encoding.embedding) / self.temperature
        teacher = self.teacher.logits(step) / self.temperature
        divergence = functional.kl_div(
            student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
        )
        return self.temperature**2 * divergence / (student.shape[1] if self.as_printed else 1)
