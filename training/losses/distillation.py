"""Learning from a trained teacher: its class maps (CCM), its class-agnostic maps (AT), its probabilities (KD).

Equations, and where this is not what the papers print: docs/guides/losses.md.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ...encoders import Encoder, Encoding
from ...errors import FingerprintMismatchError, InputError
from ...explain import upsample
from ...images import Transform
from ..engine.step import Step, Targets, Term, single_labels, true_classes
from ..recipes.tables import check_name
from .attention import gradient_weights, pooled_weights, scaled, weighted_map
from .cam_loss import MapNorm, has_cam, map_difference, unpooled
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
        feature_map, classifier = self.look(step).feature_map, self.classifier.to(step.batch.images.device)
        if not has_cam(self.encoder, classifier):
            return weighted_map(
                targets.of(feature_map), gradient_weights(self.encoder, feature_map, classifier, targets)
            )
        weights = pooled_weights(self.encoder, classifier.class_weights())[targets.label]
        return weighted_map(targets.of(unpooled(self.encoder, feature_map)), weights)

    def logits(self, step: Step) -> Float[Tensor, "b c"]:
        """Scores of the student's classes."""
        embedding = self.look(step).embedding
        return self.classifier.to(embedding.device).logits(embedding)


class Distillation(Term):
    """A term with a teacher; a missing file of its classifier, where one is needed, is found before the training."""

    needs_classifier = True

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        if self.needs_classifier:
            _ = teacher.classifier


class Ccm(Distillation):
    """CCM: `mean |CAAM_student' - CAM_teacher,i'|`, maps scaled to [0, 1] ([CAM-loss] Eq. 10)."""

    def __init__(self, teacher: Teacher, *, norm: MapNorm = "l1") -> None:
        super().__init__(teacher)
        check_name("norm", norm, ("l1", "l2"))
        self.norm = norm

    def differences(self, step: Step, teacher: Tensor, targets: Targets | None = None) -> Tensor:
        """Difference of the student's class-agnostic map from each of the teacher's maps."""
        student = unpooled(step.encoder, step.encoding.feature_map).sum(1)
        size = (student.shape[-2], student.shape[-1])
        teacher = teacher if teacher.shape[-2:] == size else upsample(teacher, size)
        student = scaled(student)
        return map_difference(student if targets is None else targets.of(student), scaled(teacher), self.norm)

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images; a mixed image counts for both classes in their shares."""
        targets = true_classes(step.batch)
        values = self.differences(step, self.teacher.class_maps(step, targets), targets)
        return targets.mean(values, n_images=len(step.batch))


class AttentionTransfer(Ccm):
    """AT: `mean (CAAM_student' - CAAM_teacher')²`, which needs no classifier (after [CAM-loss] Eq. 9)."""

    default_weight = 10.0
    needs_classifier = False

    def __init__(self, teacher: Teacher, *, norm: MapNorm = "l2") -> None:
        super().__init__(teacher, norm=norm)

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images."""
        feature_map = self.teacher.look(step).feature_map
        return self.differences(step, unpooled(self.teacher.encoder, feature_map).sum(1)).mean()


class Kd(Distillation):
    """KD: `τ² KL(softmax(t / τ) ‖ softmax(s / τ))` of class scores (Hinton et al. 2015; [CAM-loss] Eq. 8 and 12)."""

    default_weight = 0.5

    def __init__(self, teacher: Teacher, *, temperature: float = 4.0) -> None:
        super().__init__(teacher)
        if temperature <= 0:
            raise InputError(f"expected a temperature above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        """Mean over the batch's images."""
        single_labels(step.batch, "kd")
        student = step.need_classifier("KD").logits(step.encoding.embedding) / self.temperature
        teacher = self.teacher.logits(step) / self.temperature
        divergence = functional.kl_div(
            student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
        )
        return self.temperature**2 * divergence
