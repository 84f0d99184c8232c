"""Several processes that train together, as torchrun starts them: on a CPU, through gloo."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distcam.encoders import Encoder
from distcam.errors import InputError
from distcam.training import Settings, World, current_world, fit, load_classifier
from distcam.training.engine.environment import average_gradients, gathered, spread
from distcam.training.engine.outcome import read_state

RUN = Path(__file__).parents[2] / "shared" / "tiny_run.py"
tiny = SimpleNamespace(**runpy.run_path(str(RUN), run_name="tiny"))
QUICK = Settings(epochs=2, precision="fp32", device="cpu", freeze_batch_norm=True)
PLAIN = {"epochs": 2, "freeze_batch_norm": True}


def run_together(order: object, *, size: int = 2) -> list[tuple[int, str, str]]:
    """Status, output and errors of `size` processes that know of one another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, RUN, json.dumps(order)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def results(outcomes: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """What the processes printed."""
    for status, _, errors in outcomes:
        assert status == 0, errors
    return [json.loads(output.splitlines()[-1]) for _, output, _ in outcomes]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three runs of two processes, which start once for all: the folder, and by run what both processes printed."""
    folder = tmp_path_factory.mktemp("together")
    orders = {
        "plain": {"settings": PLAIN, "terms": [], "count": 32, "evaluate": True},
        "memory": {"settings": PLAIN, "terms": ["memory"], "count": 32},
        "sick": {"settings": {"epochs": 1}, "is_sick": True},
    }
    listed = [{**order, "folder": str(folder / name)} for name, order in orders.items()]
    outcomes = run_together(listed)
    printed = [[json.loads(line) for line in output.splitlines()] for _, output, _ in outcomes]
    assert [status for status, _, _ in outcomes] == [0, 0], outcomes
    return {"folder": folder, **dict(zip(orders, zip(*printed, strict=True), strict=True))}


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(together: dict[str, Any]) -> None:
    """A loss per image and a net without batch statistics; gathered logs are the same, too."""
    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder)
    alone = fit(encoder, tiny.Images(32), objective, QUICK)

    first, second = together["plain"]
    assert first["digest"] == second["digest"]
    assert first["history"] == second["history"]
    assert "brightness" in second["history"][0]  # evaluated by the first process, known to both
    folder = together["folder"] / "plain"
    trained = Encoder.load(folder / "encoder.safetensors")
    for one, other in zip(encoder.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    kept, _, _ = load_classifier(folder / "classifier.safetensors")
    for one, other in zip(objective.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for here, there in zip(alone.history, first["history"], strict=True):
        assert there["loss"] == pytest.approx(here["loss"], abs=1e-6)
        assert there["accuracy"] == pytest.approx(here["accuracy"])


def test_a_metric_loss_sees_the_images_of_all_processes(together: dict[str, Any]) -> None:
    encoder = tiny.make_encoder()
    objective = tiny.make_objective(encoder, "memory")
    fit(encoder, tiny.Images(32), objective, QUICK)

    first, second = together["memory"]
    assert first["digest"] == second["digest"]  # memory bank and centres included
    trained = Encoder.load(together["folder"] / "memory" / "encoder.safetensors")
    for one, other in zip(encoder.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batch_statistics_are_averaged_and_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = {"epochs": 2, "checkpoint_every_steps": 2, "ema": 0.9}
    order = {"settings": settings, "count": 32, "resume": True}
    whole = results(run_together(order | {"folder": str(tmp_path / "whole")}))
    assert whole[0]["digest"] == whole[1]["digest"]

    killed = run_together(order | {"folder": str(tmp_path / "killed"), "kill_at": 7})
    assert [status for status, _, _ in killed] == [-signal.SIGKILL, -signal.SIGKILL]
    state = read_state(tmp_path / "killed")
    assert (state["epoch"], state["batch"]) == (1, 2)
    again = results(run_together(order | {"folder": str(tmp_path / "killed")}))
    assert again[0]["digest"] == whole[0]["digest"]
    assert again[0]["history"] == whole[0]["history"]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(together: dict[str, Any]) -> None:
    first, second = together["sick"]
    assert "another process's loss is not finite in epoch 1, step 3" in first["error"]
    assert "the loss is not finite (sick: nan) in epoch 1, step 3" in second["error"]


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    order = json.dumps({"folder": str(tmp_path), "settings": PLAIN, "terms": [], "count": 32})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RUN), order]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "encoder.safetensors").exists()


# --- alone ------------------------------------------------------------------------------------------------------------


def test_torchruns_variables_say_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert current_world() == World(0, 1, 0)
    assert current_world().is_first
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert current_world() == World(5, 8, 1)
    assert not current_world().is_first
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="RANK=5 is not below WORLD_SIZE=4; start the processes with torchrun"):
        current_world()


def test_a_process_alone_says_everything_to_itself() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    assert average_gradients([weight], World(), failed=True)
    assert not average_gradients([weight], World(), failed=False)
    assert weight.grad.tolist() == [1, 1]
    spread([weight], World())
    assert gathered("a", World()) == ["a"]
