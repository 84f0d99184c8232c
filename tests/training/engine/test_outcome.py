"""Checkpoints of a run: what goes in comes out, and a killed run ends as one that was never killed."""

from __future__ import annotations

import json
import math
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import InputError, WeightsError
from distcam.training import OptimiserSettings, ScheduleSettings, Settings, Term, fit
from distcam.training.engine.outcome import STATE, Means, flatten, read_state, restore, write_state

RUN = Path(__file__).parents[2] / "shared" / "tiny_run.py"
tiny = SimpleNamespace(**runpy.run_path(str(RUN), run_name="tiny"))
QUICK = Settings(epochs=2, precision="fp32", device="cpu")

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_a_tree_of_plain_values_survives_json(tree: object) -> None:
    flat, tensors = flatten(tree)
    assert restore(json.loads(json.dumps(flat, allow_nan=False)), tensors) == tree


def test_a_number_that_is_none_survives_as_well() -> None:
    flat, _ = flatten([math.nan, math.inf])
    first, second = restore(json.loads(json.dumps(flat, allow_nan=False)), {})
    assert math.isnan(first)
    assert second == math.inf


def test_tensors_of_every_kind_survive_a_file(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    tree = {
        "weights": {0: tied, 1: tied},
        "layout": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "kinds": (torch.tensor(True), torch.tensor(7), torch.zeros(0), torch.tensor(1.5, dtype=torch.bfloat16)),
    }
    write_state(tmp_path, tree)
    again = read_state(tmp_path)
    assert torch.equal(again["weights"][1], tied)
    assert torch.equal(again["layout"], tree["layout"])
    assert isinstance(again["kinds"], tuple)
    for one, other in zip(again["kinds"], tree["kinds"], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE.name]


def test_what_is_neither_tensor_nor_plain_is_named() -> None:
    with pytest.raises(InputError, match=r"objective/terms.x._extra_state is a set"):
        flatten({"objective": {"terms.x._extra_state": {1, 2}}})


def test_no_state_is_none_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, {"a": torch.zeros(3)})
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[:-5])
    with pytest.raises(WeightsError, match="not a sound safetensors file"):
        read_state(tmp_path)


def test_an_encoders_checkpoint_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    tiny.make_encoder().save(tmp_path / STATE)
    with pytest.raises(WeightsError, match="not the state of a training run"):
        read_state(tmp_path)


def test_a_write_that_fails_leaves_the_state_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, {"epoch": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distcam.encoders.checkpoint.save_file", full)
    with pytest.raises(WeightsError, match="No space left"):
        write_state(tmp_path, {"epoch": 2})
    assert read_state(tmp_path) == {"epoch": 1}
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE.name]


def test_means_weigh_their_values_and_go_on_from_their_state() -> None:
    means = Means()
    means.add({"loss": 1.0, "accuracy": 0.5}, 3)
    means = Means(json.loads(json.dumps(means.state)))
    means.add({"loss": 5.0}, 1)
    assert means.means() == {"loss": 2.0, "accuracy": 0.5}
    assert Means.together([means, means]).means() == means.means()


# --- killed and resumed -----------------------------------------------------------------------------------------------


def run_apart(order: dict) -> subprocess.CompletedProcess[str]:
    """`tiny_run.py` in a process of its own."""
    return subprocess.run([sys.executable, RUN, json.dumps(order)], capture_output=True, text=True, check=False)


RICH = {
    "epochs": 3,
    "ema": 0.9,
    "monitor": "brightness",
    "optimiser": {"learning_rate": 0.01, "clip_norm": 5.0},
    "checkpoint_every_steps": 2,
    "accumulate": 2,
}


@pytest.mark.slow
def test_a_run_killed_between_epochs_and_inside_one_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Accumulation, average, best epoch, memory bank, centres, random numbers: every bit as in the unbroken run.

    An epoch has five batches, so three optimiser steps; checkpoints are written after steps 2, 3, 4, 6, …
    """
    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder, "memory", "noise")
    result = fit(encoder, tiny.Images(), objective, tiny.make_settings(RICH), evaluate=tiny.brightness)
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in result.history]

    order = {"folder": str(tmp_path / "run"), "settings": RICH, "evaluate": True, "resume": True}
    places = []
    for batch in (6, 10):  # the first batch of the second epoch; the last one of it, behind a checkpoint inside it
        assert run_apart(order | {"kill_at": batch}).returncode == -signal.SIGKILL
        state = read_state(tmp_path / "run")
        places.append((state["epoch"], state["batch"], state["step"]))
    assert places == [(1, 0, 3), (1, 2, 4)]
    last = run_apart(order)
    assert last.returncode == 0, last.stderr
    found = json.loads(last.stdout)
    assert found["history"] == rows
    assert found["best_epoch"] == result.best_epoch
    assert found["digest"] == tiny.digest(encoder, objective)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": OptimiserSettings("sgd", learning_rate=0.05), "schedule": ScheduleSettings("one_cycle")},
        {"optimiser": OptimiserSettings("sgd", momentum=0), "schedule": ScheduleSettings("step", milestones=(1,))},
        {"optimiser": OptimiserSettings("adam"), "schedule": ScheduleSettings("cosine", warm_up=1.5)},
        {"freeze_batch_norm": True, "precision": "bf16"},
    ],
)
@pytest.mark.parametrize("stop", [5, 8])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, changes: dict, stop: int) -> None:
    settings = QUICK.changed(checkpoint_every_steps=1, **changes)
    whole = tiny.make_encoder()
    objective = tiny.make_objective(whole, "memory")
    fit(whole, tiny.Images(), objective, settings)

    def interrupt(done: int, _total: int) -> None:
        if done == stop + 1:
            raise KeyboardInterrupt

    first = tiny.make_encoder()
    with pytest.raises(KeyboardInterrupt):
        fit(
            first,
            tiny.Images(),
            tiny.make_objective(first, "memory"),
            settings,
            folder=tmp_path / "run",
            progress=interrupt,
        )
    second = tiny.make_encoder()
    other = tiny.make_objective(second, "memory")
    fit(second, tiny.Images(), other, settings, folder=tmp_path / "run", resume=True)
    assert tiny.digest(second, other) == tiny.digest(whole, objective)


def test_a_finished_run_resumes_to_its_result_without_training(tmp_path: Path) -> None:
    encoder = tiny.make_encoder()
    result = fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK, folder=tmp_path)
    (tmp_path / "encoder.safetensors").unlink()
    (tmp_path / "log.csv").unlink()
    again = tiny.make_encoder()

    def never(*_: object) -> None:
        raise AssertionError

    second = fit(again, tiny.Images(), tiny.make_objective(again), QUICK, folder=tmp_path, resume=True, progress=never)
    assert second.history == result.history
    assert again.fingerprint == encoder.fingerprint
    assert (tmp_path / "encoder.safetensors").exists()
    assert (tmp_path / "log.csv").exists()


def test_state_of_a_terms_own_is_kept(tmp_path: Path) -> None:
    class Counting(Term):
        seen = 0

        def get_extra_state(self) -> dict:
            return {"seen": self.seen}

        def set_extra_state(self, state: dict) -> None:
            self.seen = state["seen"]

        def forward(self, step):
            self.seen += 1
            return step.encoding.embedding.square().mean() * self.seen

    from distcam.training import Objective

    encoder = tiny.make_encoder()
    fit(encoder, tiny.Images(), Objective({"count": Counting()}), QUICK, folder=tmp_path)
    term = Counting()
    fit(tiny.make_encoder(), tiny.Images(), Objective({"count": term}), QUICK, folder=tmp_path, resume=True)
    assert term.seen == 10


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    encoder = tiny.make_encoder()
    fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK, folder=tmp_path)
    with pytest.raises(InputError, match="holds a run already; pass resume, or choose another folder"):
        fit(encoder, tiny.Images(), tiny.make_objective(encoder), QUICK, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": QUICK.changed(epochs=3)}, "run.epochs was 2 and is 3"),
        (
            {"settings": QUICK.changed(optimiser=OptimiserSettings(learning_rate=0.5))},
            "run.optimiser.learning_rate was 0.001 and is 0.5",
        ),
        ({"config": {"name": "b"}}, "config.name was 'a' and is 'b'"),
        ({"width": 8}, "encoder.options.width was 4 and is 8"),
        ({"count": 16}, "batches per epoch was 5 and is 2"),
    ],
)
def test_a_run_resumes_only_with_what_it_began_with(tmp_path: Path, change: dict, message: str) -> None:
    for given_change in ({}, change):
        encoder = tiny.make_encoder(**{k: v for k, v in given_change.items() if k == "width"})
        images = tiny.Images(given_change.get("count", 36))
        options = {"folder": tmp_path, "resume": True, "config": given_change.get("config", {"name": "a"})}
        if given_change:
            with pytest.raises(InputError, match=message):
                fit(encoder, images, tiny.make_objective(encoder), given_change.get("settings", QUICK), **options)
        else:
            fit(encoder, images, tiny.make_objective(encoder), QUICK, **options)


def test_a_resumed_run_may_write_checkpoints_more_often(tmp_path: Path) -> None:
    for every in (None, 2):
        encoder = tiny.make_encoder()
        settings = QUICK.changed(checkpoint_every_steps=every)
        fit(encoder, tiny.Images(), tiny.make_objective(encoder), settings, folder=tmp_path, resume=True)
