"""The training loop: what it does to weights, modes and random numbers, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import random
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distcam.encoders import Encoder, Linear
from distcam.errors import InputError, MissingExtraError
from distcam.images import Transform
from distcam.training import (
    Batch,
    Objective,
    OptimiserSettings,
    ScheduleSettings,
    Settings,
    Step,
    Term,
    fit,
    load_classifier,
)
from distcam.training.engine.step import Mix, TrainingProgress, is_right

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "shared" / "tiny_run.py"), run_name="tiny"))
QUICK = Settings(epochs=2, precision="fp32", device="cpu")


def run(*kinds: str, settings: Settings = QUICK, **options):
    """Encoder, objective, and result of a short run."""
    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder, *kinds)
    return encoder, objective, fit(encoder, tiny.Images(), objective, settings, **options)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_the_loss_falls_with_every_optimiser(kind: str) -> None:
    rate = 0.05 if kind == "sgd" else 0.01
    _, _, result = run(settings=QUICK.changed(epochs=5, optimiser=OptimiserSettings(kind, learning_rate=rate)))
    assert result.loss_per_epoch[-1] < 0.8 * result.loss_per_epoch[0]
    assert result.metrics["accuracy"] > 0.6


def test_one_step_is_the_gradient_times_the_learning_rate() -> None:
    encoder, twin = tiny.make_encoder(), tiny.make_encoder()
    objective, same = tiny.make_objective(encoder), tiny.make_objective(twin)
    source = tiny.Images(8)
    sgd = OptimiserSettings("sgd", learning_rate=0.1, momentum=0, weight_decay=0)
    settings = QUICK.changed(epochs=1, optimiser=sgd, schedule=ScheduleSettings("constant"))
    fit(encoder, source, objective, settings)

    batch = next(source.epoch(0))
    same(Step(twin.train(), batch, SimpleNamespace())).total.backward()
    for after, before in zip(encoder.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad)


def test_accumulated_batches_are_one_large_batch_for_a_net_without_batch_statistics() -> None:
    weights = []
    for size, accumulate in ((12, 1), (4, 3), (5, 3)):  # 5 + 5 + 2 are not equally large
        encoder = tiny.make_encoder()
        settings = QUICK.changed(accumulate=accumulate, freeze_batch_norm=True)
        fit(encoder, tiny.Images(12, batch_size=size), tiny.make_objective(encoder), settings)
        weights.append([parameter.detach().clone() for parameter in encoder.parameters()])
    for others in weights[1:]:
        for one, other in zip(weights[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_to_its_longest_length() -> None:
    encoder, before = tiny.make_encoder(), tiny.make_encoder()
    sgd = OptimiserSettings("sgd", learning_rate=1.0, momentum=0, weight_decay=0, clip_norm=1e-3)
    objective = tiny.make_objective(encoder)
    old = [parameter.detach().clone() for parameter in objective.parameters()]
    settings = QUICK.changed(epochs=1, optimiser=sgd, schedule=ScheduleSettings("constant"))
    fit(encoder, tiny.Images(8), objective, settings)
    moved = [(a - b).detach() for a, b in zip(encoder.parameters(), before.parameters(), strict=True)]
    moved += [(a - b).detach() for a, b in zip(objective.parameters(), old, strict=True)]
    assert float(torch.cat([difference.flatten() for difference in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_backbone_and_terms_learn_at_their_own_rates() -> None:
    encoder, before = tiny.make_encoder(), tiny.make_encoder()
    objective = tiny.make_objective(encoder)
    old = [parameter.detach().clone() for parameter in objective.parameters()]
    fit(encoder, tiny.Images(), objective, QUICK.changed(optimiser=OptimiserSettings(backbone_factor=0, term_factor=9)))
    assert all(map(torch.equal, encoder.parameters(), before.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(objective.parameters(), old, strict=True) if a.requires_grad)


def test_bfloat16_trains_with_losses_in_float32() -> None:
    seen = []

    class Watch(Term):
        def forward(self, step: Step) -> torch.Tensor:
            seen.append((step.encoding.embedding.dtype, torch.is_autocast_enabled("cpu")))
            return step.encoding.embedding.square().mean()

    encoder = tiny.make_encoder()
    fit(encoder, tiny.Images(8), Objective({"watch": Watch()}), QUICK.changed(epochs=1, precision="bf16"))
    assert seen == [(torch.float32, False)]
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())


def test_progress_tells_terms_the_last_epochs_accuracy() -> None:
    seen = []

    class Watch(Term):
        def weight_at(self, progress, weight: float) -> float:
            seen.append((progress.epoch, progress.epochs, progress.step, progress.train_accuracy))
            return 0.0

    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder)
    result = fit(encoder, tiny.Images(16), Objective({**objective.terms, "watch": Watch()}), QUICK)
    accuracy = result.history[0]["accuracy"]
    assert seen == [(0, 2, 0, None), (0, 2, 1, None), (1, 2, 2, accuracy), (1, 2, 3, accuracy)]
    assert "loss/watch" not in result.history[0]


# --- what stays as it was ---------------------------------------------------------------------------------------------


def test_a_seeded_run_repeats_bit_for_bit_and_leaves_the_callers_random_numbers_alone() -> None:
    digests = []
    for spoilt, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(spoilt)
        encoder = tiny.make_encoder()
        objective = tiny.make_objective(encoder, "memory", "noise")
        random.seed(spoilt)  # only now: beartype draws from it to check containers
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        fit(encoder, tiny.Images(), objective, QUICK.changed(seed=seed))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
        digests.append(tiny.digest(encoder, objective))
    assert digests[0] == digests[1] != digests[2]


def test_frozen_parts_keep_weights_and_statistics_and_can_be_trained_afterwards() -> None:
    encoder, before = tiny.make_encoder(), tiny.make_encoder()
    names = [name for name, _ in encoder.backbone.named_children()]
    fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK.changed(freeze=(names[0],)))
    old = before.backbone.state_dict()
    for name, value in encoder.backbone.state_dict().items():
        is_frozen = name.startswith(f"{names[0]}.")
        assert torch.equal(value, old[name]) == is_frozen, name
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_a_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale() -> None:
    encoder, before = tiny.make_encoder(), tiny.make_encoder()
    fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK.changed(freeze_batch_norm=True))
    old = before.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, old[name]) == ("running" in name or "num_batches" in name), name


def test_encoder_and_objective_end_in_evaluation_mode_even_after_an_error() -> None:
    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    source = tiny.Images()
    with pytest.raises(KeyboardInterrupt):
        fit(encoder, source, objective, QUICK, progress=fail)
    assert not any(module.training for module in [*encoder.modules(), *objective.modules()])
    assert source.closed == 1  # its workers were told to stop


# --- averages and the best epoch --------------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_is_what_is_evaluated_and_kept() -> None:
    seen = []
    encoder = tiny.make_encoder()
    values: list[torch.Tensor] = []

    def follow(*_: object) -> None:
        values.append(next(encoder.parameters()).detach().clone())

    settings = QUICK.changed(ema=0.15)
    source = tiny.Images(24)
    fit(
        encoder,
        source,
        tiny.make_objective(encoder),
        settings,
        progress=follow,
        evaluate=lambda given: seen.append(next(given.parameters()).detach().clone()) or {},
    )
    after = values[1:]  # a step's weights are seen when the next batch begins; the last step's never
    average = after[0]
    for count, value in enumerate(after[1:], start=1):
        average = average.lerp(value, 1 - min(0.15, (1 + count) / (10 + count)))
        if count == 2:
            torch.testing.assert_close(seen[0], average)
    assert torch.equal(next(encoder.parameters()), seen[-1])
    assert not torch.equal(seen[-1], after[-1])


def test_an_average_covers_batch_statistics_and_classifier() -> None:
    plain, classifier, _ = run()
    averaged, average, _ = run(settings=QUICK.changed(ema=0.9))
    assert tiny.digest(plain) != tiny.digest(averaged)
    assert not torch.equal(
        plain.state_dict()["backbone.encoder.0.1.running_mean"],
        averaged.state_dict()["backbone.encoder.0.1.running_mean"],
    )
    assert tiny.digest(classifier) != tiny.digest(average)


def test_the_best_epochs_weights_are_kept_and_waiting_ends_the_run(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.3, float("nan"), 0.4, 0.9])
    weights = []

    def evaluate(encoder: Encoder) -> dict[str, float]:
        weights.append(tiny.digest(encoder))
        return {"recall": next(scores)}

    settings = QUICK.changed(epochs=9, monitor="recall", patience=3)
    encoder, _, result = run(settings=settings, evaluate=evaluate, folder=tmp_path)
    assert len(result.history) == 5
    assert result.best_epoch == 2
    assert result.metrics["recall"] == 0.5
    assert tiny.digest(encoder) == weights[1]
    assert Encoder.load(tmp_path / "encoder.safetensors").fingerprint == encoder.fingerprint


def test_a_lower_metric_may_be_the_better_one_and_evaluations_may_be_rare() -> None:
    scores = iter([3.0, 2.0, 4.0])
    settings = QUICK.changed(epochs=5, monitor="error", mode="min", evaluate_every=2)
    _, _, result = run(settings=settings, evaluate=lambda _: {"error": next(scores)})
    assert ["error" in row for row in result.history] == [False, True, False, True, True]
    assert result.best_epoch == 4


def test_an_unknown_metric_to_monitor_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no metric 'recal'; nearest: 'recall'"):
        run(settings=QUICK.changed(monitor="recal"), evaluate=lambda _: {"recall": 1.0})


# --- files and reports ------------------------------------------------------------------------------------------------


def test_a_folder_holds_encoder_classifier_metrics_and_log(tmp_path: Path) -> None:
    rows = []
    encoder, objective, result = run(
        folder=tmp_path / "new" / "run", config={"name": "tiny"}, evaluate=tiny.brightness, report=rows.append
    )
    folder = tmp_path / "new" / "run"
    assert result.folder == folder
    assert {path.name for path in folder.iterdir()} == {
        "encoder.safetensors",
        "classifier.safetensors",
        "metrics.json",
        "log.csv",
        "state",
    }
    again = Encoder.load(folder / "encoder.safetensors")
    assert again.fingerprint == encoder.fingerprint
    assert again.metadata["training"]["config"] == {"name": "tiny"}
    assert again.metadata["training"]["settings"]["epochs"] == 2
    assert again.metadata["training"]["metrics"]["brightness"] == result.metrics["brightness"]
    assert set(again.metadata["training"]["versions"]) == {"distcam", "torch"}
    classifier, names, fingerprint = load_classifier(folder / "classifier.safetensors")
    assert torch.equal(classifier.class_weights(), objective.classifier.class_weights())
    assert (names, fingerprint) == (["0", "1", "2"], encoder.fingerprint)
    table = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in table] == list(result.loss_per_epoch)
    assert json.loads((folder / "metrics.json").read_text())["history"] == [dict(row) for row in rows]
    columns = {"epoch", "loss", "loss/cross_entropy", "accuracy", "brightness", "learning_rate", "seconds", "waiting"}
    assert set(rows[0]) == columns
    assert 0 <= rows[0]["waiting"] <= 1


def test_two_runs_leave_the_same_encoder_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(folder=tmp_path / name)
    first, second = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_an_encoder_of_ones_own_code_leaves_its_weights(tmp_path: Path) -> None:
    encoder = Encoder.load(nn.Conv2d(3, 4, 3), transform=Transform(16), head=Linear(4, 4))
    fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK, folder=tmp_path)
    saved = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in encoder.state_dict().items())
    assert not (tmp_path / "encoder.safetensors").exists()


def test_progress_counts_batches() -> None:
    seen = []
    run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


def test_event_files_need_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'distcam\[tensorboard\]'"):
        run(folder=tmp_path, settings=QUICK.changed(tensorboard=True))


def test_event_files_hold_every_step_and_epoch(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, _, result = run(folder=tmp_path, settings=QUICK.changed(tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("epoch/loss")] == [5, 10]
    assert [event.value for event in events.Scalars("epoch/loss")] == pytest.approx(result.loss_per_epoch)


# --- what is refused --------------------------------------------------------------------------------------------------


class Sick(Term):
    """Well until a step, then `value`."""

    def __init__(self, step: int, value: float = float("nan")) -> None:
        super().__init__()
        self.step, self.value = step, value

    def forward(self, step: Step) -> torch.Tensor:
        ill = step.progress.step == self.step
        return step.encoding.embedding.square().mean() * (self.value if ill else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_epoch_step_and_images(
    tmp_path: Path, value: float
) -> None:
    encoder = tiny.make_encoder()
    objective = Objective({**tiny.make_objective(encoder).terms, "sick": Sick(7, value)})
    with pytest.raises(InputError) as caught:
        fit(encoder, tiny.Images(), objective, QUICK, folder=tmp_path)
    message = str(caught.value)
    batch = list(tiny.Images().epoch(1))[2]
    assert f"sick: {value}" in message
    assert "in epoch 2, step 8" in message
    assert ", ".join(f"picture-{int(i)}.png" for i in batch.index) in message
    assert str(tmp_path / "state" / "run.safetensors") in message
    assert "lower optimiser.learning_rate" in message
    assert all(bool(parameter.isfinite().all()) for parameter in encoder.parameters())


def test_after_a_loss_that_is_not_finite_the_last_checkpoint_goes_on(tmp_path: Path) -> None:
    encoder = tiny.make_encoder()
    objective = Objective({**tiny.make_objective(encoder).terms, "sick": Sick(7)})
    with pytest.raises(InputError, match="not finite"):
        fit(encoder, tiny.Images(), objective, QUICK, folder=tmp_path)
    again = tiny.make_encoder()
    healthy = Objective({**tiny.make_objective(again).terms, "sick": Sick(999)})
    assert len(fit(again, tiny.Images(), healthy, QUICK, folder=tmp_path, resume=True).history) == 2


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    class Root(Term):
        def forward(self, step: Step) -> torch.Tensor:
            return (step.encoding.embedding * 0).square().sum().sqrt()  # 0, with the gradient 0/0

    encoder = tiny.make_encoder()
    with pytest.raises(InputError, match="the losses are finite, but their gradient is not in epoch 1, step 1; images"):
        fit(encoder, tiny.Images(), Objective({"root": Root()}), QUICK)
    assert all(bool(parameter.isfinite().all()) for parameter in encoder.parameters())


def test_without_a_checkpoint_none_is_promised() -> None:
    encoder = tiny.make_encoder()
    with pytest.raises(InputError) as caught:
        fit(encoder, tiny.Images(40, batch_size=20), Objective({"sick": Sick(0)}), QUICK)
    assert "checkpoint" not in str(caught.value)
    assert "and 12 more" in str(caught.value)


def test_a_part_to_freeze_that_is_not_there_names_the_nearest() -> None:
    encoder = Encoder.load("resnet18", weights="random", transform=Transform(32))
    with pytest.raises(InputError, match=r"the backbone has no part 'layer11'; nearest: 'layer1.1', 'layer1'"):
        fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK.changed(freeze=("layer11",)))


def test_a_run_that_trains_nothing_is_refused() -> None:
    encoder = tiny.make_encoder()
    with pytest.raises(InputError, match="nothing is left to train"):
        fit(encoder, tiny.Images(), Objective({"noise": tiny.Noise()}), QUICK.changed(freeze="backbone"))


def test_data_that_break_their_promise_are_refused() -> None:
    class Short(tiny.Images):
        def epoch(self, epoch: int, *, skip: int = 0):
            return iter(list(super().epoch(epoch))[:-1])

    encoder = tiny.make_encoder()
    with pytest.raises(InputError, match="epoch 1 ended after 4 batches; the data promised 5"):
        fit(encoder, Short(), tiny.make_objective(encoder), QUICK)


def test_no_batch_at_all_is_refused() -> None:
    encoder = tiny.make_encoder()
    with pytest.raises(InputError, match="make no batch"):
        fit(encoder, tiny.Images(0), tiny.make_objective(encoder), QUICK)


@pytest.mark.parametrize("device", ["the-fast-one", "cuda:99x"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=r"run.device: expected 'auto', 'cpu', or 'cuda'"):
        run(settings=QUICK.changed(device=device))


def test_regions_and_mixtures_reach_the_terms() -> None:
    from distcam.training import Mix, Regions

    seen: list[Batch] = []

    class Watch(Term):
        def forward(self, step: Step) -> torch.Tensor:
            seen.append(step.batch)
            return step.encoding.embedding.mean()

    class Rich(tiny.Images):
        def epoch(self, epoch: int, *, skip: int = 0):
            for batch in super().epoch(epoch, skip=skip):
                regions = Regions(
                    torch.zeros(1).long(), torch.ones(1).long(), torch.tensor([True]), torch.ones(1, 16, 16)
                )
                yield replace(batch, regions=regions, mix=Mix(torch.arange(len(batch)), 0.25))

    fit(tiny.make_encoder(), Rich(8), Objective({"watch": Watch()}), QUICK.changed(epochs=1))
    assert seen[0].regions.raster.shape == (1, 16, 16)
    assert seen[0].mix.share == 0.25
    assert seen[0].images.is_contiguous(memory_format=torch.channels_last)


def test_a_tie_with_a_class_that_is_not_shown_is_lost() -> None:
    assert is_right(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0])).tolist() == [True, False]


# --- manifold mixup ---------------------------------------------------------------------------------------------------


def blended(layer: str, architecture: str = "conv4", **options: object) -> Step:
    encoder = Encoder.load(architecture, weights="random", transform=Transform(16), options=options)
    images = torch.rand(4, 3, 16, 16)
    mix = Mix(torch.tensor([1, 0, 3, 2]), 0.7, layer)
    return Step(encoder, Batch(images, torch.tensor([0, 1, 0, 1]), torch.arange(4), mix=mix), TrainingProgress(0, 1, 0))


def test_what_a_layer_hands_on_is_blended_with_the_partners() -> None:
    step = blended("encoder.1")
    stages, images = step.encoder.backbone.encoder, step.batch.images
    hidden = stages[:2](images)
    expected = stages[2:](0.7 * hidden + 0.3 * hidden[[1, 0, 3, 2]])
    torch.testing.assert_close(step.encoding.feature_map, expected)
    torch.testing.assert_close(step.encoder(images).feature_map, stages(images))  # the hook has gone


def test_a_second_look_at_images_that_are_blended_inside_is_refused() -> None:
    step = blended("encoder.1")
    for look in (
        lambda: step.encode(step.batch.images * 0),
        lambda: step.encode(step.batch.images, encoder=step.encoder),
    ):
        with pytest.raises(InputError, match="blends inside the trained network alone"):
            look()
    with pytest.raises(InputError, match=r"augment.manifold_layers: no layer 'layer9'; nearest: "):
        _ = blended("layer9").encoding
    with pytest.raises(InputError, match=r"augment.manifold_layers: layer 'backbone.*activation' ran 3 times"):
        _ = blended("layer1.0.activation", "resnet12", widths=(4, 4, 4, 4)).encoding
