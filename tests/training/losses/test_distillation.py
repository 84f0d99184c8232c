"""Distillation: maps and probabilities of a teacher, which nothing trains and no checkpoint holds."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distcam.encoders import Encoder
from distcam.encoders.heads import Linear
from distcam.errors import FingerprintMismatchError, InputError, WeightsError
from distcam.explain import upsample
from distcam.images import Transform
from distcam.remarks import DistcamWarning
from distcam.training.engine.step import Batch, Mix, Step, TrainingProgress, true_classes
from distcam.training.losses.attention import scaled
from distcam.training.losses.cam_loss import cam_differences
from distcam.training.losses.classifier import ClassifierTerm, save_classifier
from distcam.training.losses.distillation import AttentionTransfer, Ccm, Kd, Teacher

NAMES = ("cat", "dog", "owl")
LABELS = torch.tensor([0, 2, 1, 2])
STUDENT = Transform(64)


def written(folder: Path, encoder: Encoder, *, names: tuple[str, ...] = NAMES, **options: str) -> ClassifierTerm:
    torch.manual_seed(9)
    classifier = ClassifierTerm(encoder.embedding_dim, len(names), **options)  # type: ignore[arg-type]
    encoder.save(folder / "encoder.safetensors")
    save_classifier(folder / "classifier.safetensors", classifier, names, fingerprint=encoder.fingerprint)
    return classifier


def teacher_in(folder: Path, transform: Transform = STUDENT, names: tuple[str, ...] = NAMES) -> Teacher:
    return Teacher(folder / "encoder.safetensors", class_names=names, transform=transform)


def step_of(student: Encoder, labels: Tensor = LABELS, *, mix: Mix | None = None) -> Step:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    step = Step(student, Batch(images, labels, torch.arange(4), mix=mix), TrainingProgress(0, 1, 0))
    torch.manual_seed(4)
    step.classifier = ClassifierTerm(student.embedding_dim, 3)
    return step


@pytest.fixture
def student() -> Encoder:
    return Encoder.load("conv4", weights="random", transform=STUDENT, seed=1).train()


@pytest.fixture
def resnet(tmp_path: Path) -> tuple[Path, Encoder, ClassifierTerm]:
    """Another architecture, with another map size: 2×2 where the student has 4×4."""
    encoder = Encoder.load("resnet18", weights="random", transform=STUDENT, head=Linear(512, 16), seed=3)
    return tmp_path, encoder, written(tmp_path, encoder)


def test_ccm_with_itself_as_teacher_is_cam_loss_with_a_fixed_target(tmp_path: Path, student: Encoder) -> None:
    classifier = written(tmp_path, student.eval())
    step = step_of(student)
    value = Ccm(teacher_in(tmp_path))(step)
    features = step.encoding.feature_map
    expected = cam_differences(features, classifier.weight[LABELS].detach(), detach_target=True).mean()
    torch.testing.assert_close(value, expected)
    got, wanted = (torch.autograd.grad(v, features, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(got, wanted)


def test_the_teachers_map_is_resized_to_the_students(resnet, student: Encoder) -> None:
    folder, encoder, classifier = resnet
    step = step_of(student)
    value = Ccm(teacher_in(folder))(step)
    with torch.no_grad():
        features = encoder(step.batch.images).feature_map
        assert features.shape[-2:] == (2, 2)
        assert step.encoding.feature_map.shape[-2:] == (4, 4)
        weights = (classifier.weight @ encoder.head.weight)[LABELS]
        maps = torch.stack([sum(weights[i, k] * features[i, k] for k in range(512)) for i in range(4)])
        maps = functional.interpolate(maps[:, None], (4, 4), mode="bilinear")[:, 0]
        expected = (scaled(step.encoding.feature_map.sum(1)) - scaled(maps)).abs().mean()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-5)


def test_attention_transfer_of_class_agnostic_maps_needs_no_classifier(tmp_path: Path, student: Encoder) -> None:
    student.eval().save(tmp_path / "encoder.safetensors")
    assert AttentionTransfer(teacher_in(tmp_path), maps="caam")(step_of(student)) < 1e-9
    other = Encoder.load("conv4", weights="random", transform=STUDENT, seed=2).eval()
    step = step_of(other)
    value = AttentionTransfer(teacher_in(tmp_path), maps="caam")(step)
    maps = [scaled(encoder(step.batch.images).feature_map.sum(1)) for encoder in (other, student)]
    torch.testing.assert_close(value, (maps[0] - maps[1]).square().mean())
    with pytest.raises(WeightsError, match=r"classifier\.safetensors"):
        AttentionTransfer(teacher_in(tmp_path))
    with pytest.raises(InputError, match="unknown maps 'both'"):
        AttentionTransfer(teacher_in(tmp_path), maps="both")  # type: ignore[arg-type]


def test_attention_transfer_compares_the_maps_of_the_images_class(tmp_path: Path, student: Encoder) -> None:
    teacher = Encoder.load("conv4", weights="random", transform=STUDENT, seed=7)
    theirs, step = written(tmp_path, teacher), step_of(student)
    value = AttentionTransfer(teacher_in(tmp_path))(step)
    maps = []
    for encoder, weight in ((teacher, theirs.weight), (student, step.classifier.weight)):
        features = encoder(step.batch.images).feature_map
        maps.append(torch.stack([(weight[LABELS[i], :, None, None] * features[i]).sum(0) for i in range(4)]))
    torch.testing.assert_close(value, (scaled(maps[0]) - scaled(maps[1])).square().mean(), rtol=1e-4, atol=1e-6)
    value.backward()
    assert step.classifier.weight.grad is None  # as in CAM-loss, the class weights learn from their own loss alone


@pytest.mark.parametrize("term", [Ccm, AttentionTransfer])
def test_flat_maps_teach_nothing_and_are_counted_once(term, tmp_path: Path, student: Encoder) -> None:
    written(tmp_path, student.eval())
    teacher, step = teacher_in(tmp_path), step_of(student)
    maps = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(1))
    maps[1], maps[3] = 2.0, 0.0
    loss = term(teacher)
    loss.teacher_maps = lambda step, targets: maps
    with pytest.warns(DistcamWarning, match="or the teacher's maps of its first batch are flat for 2 of 4"):
        value = loss(step)
    own = loss.student_maps(step, true_classes(step.batch))
    maps = upsample(maps, (own.shape[-2], own.shape[-1]))
    differences = (scaled(own) - scaled(maps))[[0, 2]]
    expected = differences.abs() if term is Ccm else differences.square()
    torch.testing.assert_close(value, expected.mean((1, 2)).sum() / 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(step)


def test_ccm_is_at_most_cam_loss_of_the_student_plus_at(resnet, student: Encoder) -> None:
    folder, _, _ = resnet
    teacher, step = teacher_in(folder), step_of(student)
    ccm, at = Ccm(teacher)(step), AttentionTransfer(teacher, norm="l1")(step)
    features = step.encoding.feature_map
    own = cam_differences(features, step.classifier.weight[LABELS]).mean()
    assert ccm <= own + at + 1e-6  # the triangle inequality of Eq. 11


def test_kd_by_hand(tmp_path: Path, student: Encoder) -> None:
    encoder = Encoder.load("conv4", weights="random", transform=STUDENT, seed=7)
    classifier = written(tmp_path, encoder)
    step = step_of(student)
    value = Kd(teacher_in(tmp_path), temperature=2.0)(step)
    p = (classifier.logits(encoder(step.batch.images).embedding) / 2).softmax(1)
    q = (step.classifier.logits(step.encoding.embedding) / 2).softmax(1)
    torch.testing.assert_close(value, 4 * (p * (p / q).log()).sum(1).mean(), rtol=1e-4, atol=1e-6)
    printed = Kd(teacher_in(tmp_path), temperature=2.0, as_printed=True)(step)
    torch.testing.assert_close(printed, 4 * (p * (p / q).log()).mean(), rtol=1e-4, atol=1e-6)


def test_the_teacher_is_neither_trained_nor_part_of_the_state(resnet, student: Encoder) -> None:
    folder, _, _ = resnet
    teacher = teacher_in(folder)
    terms = [Ccm(teacher), Kd(teacher), AttentionTransfer(teacher)]
    before = {name: value.clone() for name, value in teacher.encoder.state_dict().items()}
    step = step_of(student)
    for term in terms:
        assert not list(term.parameters())
        assert not term.state_dict()
        term.train()
    torch.stack([term(step) for term in terms]).sum().backward()
    assert not teacher.encoder.training
    assert all(p.grad is None for p in [*teacher.encoder.parameters(), *teacher.classifier.parameters()])
    assert all(torch.equal(before[name], value) for name, value in teacher.encoder.state_dict().items())
    assert next(student.parameters()).grad is not None


def test_terms_that_share_a_teacher_let_it_look_once(resnet, student: Encoder) -> None:
    teacher, calls = teacher_in(resnet[0]), []
    teacher.encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        step = step_of(student)
        for term in (Ccm(teacher), Kd(teacher), AttentionTransfer(teacher)):
            term(step)
    assert len(calls) == 2


def test_a_teacher_sees_the_pictures_as_it_was_taught(tmp_path: Path, student: Encoder) -> None:
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    own = Transform(64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), channels="bgr")
    written(tmp_path, Encoder.load("conv4", weights="random", transform=own, seed=5))
    batch = Batch(STUDENT.normalise(pixels), LABELS, torch.arange(4))
    seen = teacher_in(tmp_path).look(Step(student, batch, TrainingProgress(0, 1, 0)))
    expected = Encoder.load(tmp_path / "encoder.safetensors")(own.normalise(pixels.flip(1)))
    torch.testing.assert_close(seen.embedding, expected.embedding, rtol=1e-4, atol=1e-4)


def test_classes_are_matched_by_name(tmp_path: Path, student: Encoder) -> None:
    classifier = written(tmp_path, student.eval(), names=("owl", "emu", "dog", "cat"))
    teacher = teacher_in(tmp_path)
    assert torch.equal(teacher.classifier.weight, classifier.weight[[3, 2, 0]])
    assert torch.equal(teacher.classifier.bias, classifier.bias[[3, 2, 0]])
    with pytest.raises(InputError, match="does not know 1 classes, such as 'yak'"):
        Ccm(teacher_in(tmp_path, names=("cat", "yak")))


def test_mixed_images_count_for_both_classes(resnet, student: Encoder) -> None:
    teacher, partner = teacher_in(resnet[0]), torch.tensor([1, 0, 3, 2])
    student.eval()
    own, other = (Ccm(teacher)(step_of(student, labels)) for labels in (LABELS, LABELS[partner]))
    mixed = Ccm(teacher)(step_of(student, mix=Mix(partner, 0.6)))
    torch.testing.assert_close(mixed, 0.6 * own + 0.4 * other)


def test_what_is_missing_or_foreign_is_found_before_training(tmp_path: Path, student: Encoder) -> None:
    student.save(tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match=r"classifier\.safetensors: no such checkpoint"):
        Kd(teacher_in(tmp_path))
    written(tmp_path, student)
    Encoder.load("conv4", weights="random", transform=STUDENT, seed=8).save(tmp_path / "encoder.safetensors")
    with pytest.raises(FingerprintMismatchError, match="give the teacher's own `classifier`"):
        Kd(teacher_in(tmp_path))
    written(tmp_path, student)
    with pytest.raises(InputError, match="kd needs one class per image"):
        Kd(teacher_in(tmp_path))(step_of(student, functional.one_hot(LABELS, 3).float()))
    with pytest.raises(InputError, match="temperature above 0"):
        Kd(teacher_in(tmp_path), temperature=0)
