"""Learning rates step by step, and the settings that refuse what makes no sense."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.images import Transform
from distcam.training import OptimiserSettings, ScheduleSettings, Settings, TermContext, build_objective
from distcam.training.engine.optimisation import (
    Optimisation,
    is_fused,
    learning_rate_factor,
    learning_rate_schedule,
)


def rates(schedule: ScheduleSettings, *, steps: int, steps_per_epoch: int, highest: float = 1.0) -> list[float]:
    """The learning rate of every optimiser step, as torch applies it."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest)
    scheduler = learning_rate_schedule(optimiser, schedule, steps=steps, steps_per_epoch=steps_per_epoch)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


def test_a_cosine_starts_at_the_highest_rate_and_is_half_way_down_in_the_middle() -> None:
    found = rates(ScheduleSettings("cosine"), steps=8, steps_per_epoch=2, highest=0.4)
    assert found[0] == 0.4
    assert found[4] == pytest.approx(0.2)
    assert found[2] == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_cosine_stops_at_its_end() -> None:
    assert rates(ScheduleSettings("cosine", end=0.1), steps=1000, steps_per_epoch=10)[-1] == pytest.approx(
        0.1, abs=1e-4
    )


def test_warm_up_rises_in_equal_steps_and_then_the_cosine_begins() -> None:
    found = rates(ScheduleSettings("cosine", warm_up=2), steps=12, steps_per_epoch=2)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[8] == pytest.approx(0.5)  # half of the eight steps that are left


def test_half_an_epoch_of_warm_up_is_possible() -> None:
    assert rates(ScheduleSettings("constant", warm_up=0.5), steps=6, steps_per_epoch=4) == [0.5, 1, 1, 1, 1, 1]


def test_steps_go_down_after_their_milestones() -> None:
    found = rates(ScheduleSettings("step", milestones=(1, 2.5), factor=0.5), steps=8, steps_per_epoch=2)
    assert found == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def rates_of(scheduler: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    """The rates of ten steps by one of torch's schedules."""
    found = []
    for _ in range(10):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_poly_is_torchs() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = rates_of(torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=10, power=0.9))
    assert rates(ScheduleSettings("poly"), steps=10, steps_per_epoch=5, highest=0.1) == pytest.approx(theirs)
    assert rates(ScheduleSettings("poly", power=2.0, warm_up=1), steps=6, steps_per_epoch=2) == pytest.approx(
        [0.5, 1.0, 1.0, 9 / 16, 4 / 16, 1 / 16]
    )


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_nesterovs_or_plain(nesterov: bool) -> None:
    encoder = Encoder.load("conv4", weights="random", options={"width": 4}, transform=Transform(16))
    objective = build_objective([{"kind": "cross_entropy"}], TermContext(encoder, ["a", "b"]))
    settings = Settings(optimiser=OptimiserSettings("sgd", nesterov=nesterov))
    optimiser = Optimisation(encoder, objective, settings, steps_per_epoch=1).optimiser
    assert {(group["momentum"], group["nesterov"]) for group in optimiser.param_groups} == {(0.9, nesterov)}


def test_one_cycle_is_torchs() -> None:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = rates_of(torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=10))
    assert rates(ScheduleSettings("one_cycle"), steps=10, steps_per_epoch=5, highest=0.1) == pytest.approx(theirs)


def test_each_parameter_group_keeps_its_own_highest_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 1.0)]
    for kind in ("cosine", "one_cycle"):
        optimiser = torch.optim.SGD([dict(group) for group in groups], lr=0.5)
        schedule = learning_rate_schedule(optimiser, ScheduleSettings(kind), steps=10, steps_per_epoch=5)
        optimiser.step()
        schedule.step()
        low, high = (group["lr"] for group in optimiser.param_groups)
        assert high == pytest.approx(10 * low)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.floats(0, 5),
    st.sampled_from(["cosine", "poly", "constant"]),
    st.floats(0, 1),
)
def test_a_factor_is_a_share(steps: int, steps_per_epoch: int, warm_up: float, kind: str, end: float) -> None:
    schedule = ScheduleSettings(kind, warm_up=warm_up, end=end)
    for step in range(steps):
        factor = learning_rate_factor(step, settings=schedule, steps=steps, steps_per_epoch=steps_per_epoch)
        assert 0 <= factor <= 1 + 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScheduleSettings("linear"), "kind: expected one of 'cosine', 'poly', 'step'"),
        (lambda: ScheduleSettings("step"), "milestones go with kind 'step' alone"),
        (lambda: ScheduleSettings("cosine", milestones=(3,)), "milestones go with kind 'step' alone"),
        (lambda: ScheduleSettings("step", milestones=(3, 1)), "rising order"),
        (lambda: ScheduleSettings("one_cycle", warm_up=1), "a warm-up of its own"),
        (lambda: ScheduleSettings("one_cycle", peak=1), "between 0 and 1"),
        (
            lambda: OptimiserSettings("lion"),
            "OptimiserSettings.kind: expected one of 'adamw', 'adam', 'sgd'; got 'lion'",
        ),
        (lambda: OptimiserSettings(learning_rate=0), "learning_rate: expected a number above 0, got 0"),
        (lambda: OptimiserSettings(learning_rate=float("nan")), "expected a number above 0, got nan"),
        (lambda: OptimiserSettings(betas=(0.9,)), "betas: expected 2 values, got 1"),
        (lambda: OptimiserSettings(betas=(0.9, 1.0)), "from 0 to below 1, got 1.0"),
        (lambda: OptimiserSettings(clip_norm=0), "clip_norm"),
        (lambda: Settings(epochs=0), "epochs: expected a whole number from 1 on, got 0"),
        (lambda: Settings(epochs=2.5), "epochs: expected a whole number, got 2.5"),
        (lambda: Settings(accumulate=True), "accumulate: expected a whole number, got True"),
        (lambda: Settings(ema=1.0), "ema: expected a number from 0 to below 1"),
        (lambda: Settings(precision="fp16"), "precision: expected one of 'auto', 'fp32', 'bf16'; got 'fp16'"),
        (lambda: Settings(patience=3), "name the metric to wait for"),
        (lambda: Settings(seed=-1), "run.seed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_lists_as_toml_has_them_become_tuples() -> None:
    assert Settings(freeze=["layer1"]) == Settings(freeze=("layer1",)) == Settings(freeze="layer1")
    assert ScheduleSettings("step", milestones=[1, 2]).milestones == (1, 2)
    assert hash(OptimiserSettings(betas=[0.8, 0.9])) == hash(OptimiserSettings(betas=(0.8, 0.9)))


def test_half_way_down_a_cosine_is_half_the_rate() -> None:
    schedule = ScheduleSettings(kind="cosine")
    assert learning_rate_factor(50, settings=schedule, steps=100, steps_per_epoch=10) == 0.5


def test_weights_on_cuda_are_moved_by_one_kernel() -> None:
    with FakeTensorMode():  # tensors that only say where they are
        on_gpu, on_cpu = torch.empty(2, device="cuda"), torch.empty(2)
        assert is_fused([on_gpu, on_gpu]) is True
        assert is_fused([on_gpu, on_cpu]) is None
        assert is_fused([torch.empty(2, device="cuda", dtype=torch.complex64)]) is None
