"""The one training loop: batches through the encoder, an objective, an optimiser; repeatable, resumable, parallel.

What is random in a step follows from (seed, batch, process) alone, so a run that was killed goes on from its last
checkpoint to the same weights as one that was not, and no state of a generator has to be kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from ...encoders import Encoder
from ...encoders.inference import has_fast_bfloat16
from ...errors import InputError
from ..recipes.settings import Settings
from .distributed import World, average_gradients, average_statistics, gathered, joined, shared, spread
from .early_stopping import Best
from .environment import choose_device, on_device, own_randomness, repeatable, seed_step
from .logs import Log, Means, Row, TensorBoardLog, write_csv
from .optimiser_weights import Average, make_optimiser, set_training, training_mode
from .outcome import FitResult, write_outcome
from .schedules import learning_rate_schedule
from .state import STATE, difference, load_optimiser, read_state, write_state
from .step import Batch, Objective, Progress, Step

__all__ = ["BatchSource", "fit"]

Evaluate = Callable[[Encoder], Mapping[str, float]]
_FREE = ("device", "checkpoint_every_steps", "tensorboard")  # settings that a resumed run may change


class BatchSource(Protocol):
    """Where batches come from; epoch e is the same list of batches whenever and by whomever it is asked for.

    A source that has `names(index)` lets error messages say which images a batch held; one that has `class_names` names
    the classes of the classifier that is kept.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Batches of every epoch, for this process."""

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch on the CPU, without the first `skip`; closing the iterator stops its workers."""


def fit(
    encoder: Encoder,
    batches: BatchSource,
    objective: Objective,
    settings: Settings | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[Row], None] | None = None,
) -> FitResult:
    """Train `encoder` and what `objective` learns, in place; both end in evaluation mode, on the training device.

    With `folder` the run leaves `encoder.safetensors`, `classifier.safetensors` if a loss has class weights,
    `metrics.json`, `log.csv`, and its `state/`, where everything else is that losses learn. Seeded runs repeat exactly
    on one machine. The caller's random generators stay as they were. Under torchrun every process calls this with its
    share of the batches; the first one evaluates and writes.

    Args:
        encoder: any; its fingerprint changes with its weights.
        batches: the training set, batch by batch.
        objective: the weighted sum of losses.
        settings: everything else; `Settings()` if left out.
        folder: where results and checkpoints go; None writes nothing.
        resume: go on from the checkpoint in `folder`; a new run if there is none.
        evaluate: metrics of the encoder, which comes in evaluation mode with the weights that would be kept.
        config: where this run came from (a resolved recipe, say), as JSON can hold it; kept with the encoder.
        progress: called with (batches done, batches in all).
        report: called after every epoch with its row of the log.

    Raises:
        InputError: a loss or gradient is not finite; the checkpoint was made with other settings; `folder` holds a run
            and `resume` is not set; nothing to train; `monitor` names no metric.
    """
    settings = settings or Settings()
    device = choose_device(settings.device)
    with ExitStack() as stack:
        world = stack.enter_context(joined(device))
        stack.enter_context(own_randomness(device))
        stack.enter_context(repeatable(device, deterministic=settings.deterministic))
        encoder.to(device).to(memory_format=torch.channels_last)
        objective.to(device)
        stack.enter_context(training_mode(encoder, objective, settings))
        run = _Run(encoder, batches, objective, settings, world=world, device=device, config=config)
        run.folder = None if folder is None else Path(folder)
        run.evaluate, run.progress, run.report = evaluate, progress, report
        run.begin(resume=resume)
        return run.train()


class _Run:
    """One call of `fit`: everything that changes from step to step, and what is done with it."""

    folder: Path | None = None
    evaluate: Evaluate | None = None
    progress: Callable[[int, int], None] | None = None
    report: Callable[[Row], None] | None = None

    def __init__(
        self,
        encoder: Encoder,
        batches: BatchSource,
        objective: Objective,
        settings: Settings,
        *,
        world: World,
        device: torch.device,
        config: Mapping[str, Any] | None,
    ) -> None:
        self.encoder, self.batches, self.objective, self.settings = encoder, batches, objective, settings
        self.world, self.device, self.config = world, device, config
        for module in (encoder, objective):
            spread([*module.parameters(), *module.buffers()], world)
        self.optimiser = make_optimiser(encoder, objective, settings.optimiser)
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self.average = None if settings.ema is None else Average(encoder, objective, settings.ema)
        if batches.steps_per_epoch < 1:
            raise InputError("the training data make no batch; add images or choose a smaller batch size")
        self.steps_per_epoch = math.ceil(batches.steps_per_epoch / settings.accumulate)
        self.schedule = learning_rate_schedule(
            self.optimiser,
            settings.schedule,
            steps=settings.epochs * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
        )
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_fast_bfloat16(device))
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16) if bf16 else nullcontext
        self.now = Progress(epoch=0, epochs=settings.epochs, step=0)
        self.batch = 0  # done in this epoch
        self.means = Means()
        self.history: list[dict[str, float]] = []
        self.waited = 0.0  # seconds, for the data of this epoch
        self.last_losses: dict[str, float] = {}
        self.modules: dict[str, torch.nn.Module] = {"encoder": encoder, "objective": objective}
        self.best = Best(settings, self.modules)
        self.logs: list[Log] = []

    # ---- the whole run

    def begin(self, *, resume: bool) -> None:
        """Take up a run that was begun, or make sure that there is none."""
        if self.folder is not None:
            state = read_state(self.folder)
            if state is not None and not resume:
                raise InputError(f"{self.folder} holds a run already; pass resume, or choose another folder")
            if state is not None:
                self._restore(state)
            if self.settings.tensorboard and self.world.is_first:
                self.logs.append(TensorBoardLog(self.folder / "tensorboard", step=self.now.step))
        places = gathered((self.now.epoch, self.batch), self.world)
        if len(set(places)) > 1:
            raise InputError(f"the processes are at different places {places}; all must see the same folder")

    def train(self) -> FitResult:
        """Epoch after epoch until all are done or nothing gets better."""
        with ExitStack() as stack:
            for log in self.logs:
                stack.callback(log.close)
            while self.now.epoch < self.settings.epochs and not self.best.is_too_long_ago(epochs=self.now.epoch):
                self._epoch()
        return self._finish()

    def _epoch(self) -> None:
        started, self.waited = time.perf_counter(), 0.0
        with _closed(self.batches.epoch(self.now.epoch, skip=self.batch)) as source:
            while group := self._next_group(source):
                self._optimiser_step(group)
                every = self.settings.checkpoint_every_steps
                if every and self.now.step % every == 0 and self.batch < self.batches.steps_per_epoch:
                    self._agree()
                    self._save()
        if self.batch != self.batches.steps_per_epoch:
            raise InputError(
                f"epoch {self.now.epoch + 1} ended after {self.batch} batches; "
                f"the data promised {self.batches.steps_per_epoch}"
            )
        seconds = time.perf_counter() - started
        self._end_epoch({"seconds": seconds, "waiting": self.waited / seconds})

    # ---- one optimiser step

    def _next_group(self, source: Iterator[Batch]) -> list[Batch]:
        """The batches of the next optimiser step; how long they took to come is noted."""
        asked = time.perf_counter()
        group = list(islice(source, self.settings.accumulate))
        self.waited += time.perf_counter() - asked
        return group

    def _optimiser_step(self, group: Sequence[Batch]) -> None:
        images = sum(len(batch) for batch in group)
        failures = [self._backward(batch, share=len(batch) / images) for batch in group]
        failure = next((failure for failure in failures if failure), None)
        if average_gradients(self.parameters, self.world, failed=failure is not None):
            raise InputError(failure or self._failure("another process's loss is not finite", group))
        self._check_gradient(group)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for log in self.logs:
            log.step(self.now.step + 1, {"learning_rate": self.optimiser.param_groups[0]["lr"], **self.last_losses})
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        self.now = replace(self.now, step=self.now.step + 1)

    def _backward(self, batch: Batch, *, share: float) -> str | None:
        """Add a batch's share of the gradient; what is wrong with its losses, if anything."""
        number = self.now.epoch * self.batches.steps_per_epoch + self.batch
        seed_step(self.settings.seed, number, self.world.rank)
        step = Step(self.encoder, on_device(batch, self.device), self.now, autocast=self.autocast)
        losses = self.objective(step)
        total = float(losses.total.detach())
        self.last_losses = {"loss": total, **{f"loss/{name}": value for name, value in losses.terms.items()}}
        self.means.add(self.last_losses | step.log, len(batch))
        self.batch += 1
        if self.progress is not None:
            self.progress(number + 1, self.settings.epochs * self.batches.steps_per_epoch)
        if not math.isfinite(total) or not all(map(math.isfinite, losses.terms.values())):
            values = ", ".join(f"{name}: {value:.6g}" for name, value in losses.terms.items())
            return self._failure(f"the loss is not finite ({values})", [batch])
        if losses.total.requires_grad:
            (losses.total * share).backward()
        return None

    def _check_gradient(self, group: Sequence[Batch]) -> None:
        """Clip the gradient, and refuse one that would ruin the weights."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)):
            raise InputError(self._failure("the losses are finite, but their gradient is not", group))
        if self.settings.optimiser.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.optimiser.clip_norm, norm)

    def _failure(self, what: str, group: Sequence[Batch]) -> str:
        index = [int(i) for batch in group for i in batch.index]
        find_names = getattr(self.batches, "names", None)
        shown = [str(name) for name in (find_names(index[:8]) if find_names else index[:8])]
        more = f" and {len(index) - len(shown)} more" if len(index) > len(shown) else ""
        kept = f"; the last good checkpoint is {self.folder / STATE}" if self.folder and self.now.step else ""
        return (
            f"{what} in epoch {self.now.epoch + 1}, step {self.now.step + 1}; images {', '.join(shown)}{more}{kept}; "
            "lower optimiser.learning_rate, or set optimiser.clip_norm"
        )

    # ---- the end of an epoch

    def _end_epoch(self, times: Row) -> None:
        means = Means.together(gathered(self.means, self.world)).means()
        row: dict[str, float] = {
            "epoch": self.now.epoch + 1,
            **means,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
        }
        self._agree()
        with self._kept_weights():
            row |= self._metrics()
            if self._evaluation_is_due:
                self.best.consider(row, epoch=self.now.epoch + 1)
        self.history.append({**row, **times})
        self.now = replace(self.now, epoch=self.now.epoch + 1, train_accuracy=means.get("accuracy"))
        self.batch, self.means = 0, Means()
        self._save()
        if self.folder is not None and self.world.is_first:
            write_csv(self.folder / "log.csv", self.history)
        for log in self.logs:
            log.epoch(self.now.step, self.history[-1])
        if self.report is not None:
            self.report(self.history[-1])

    @contextmanager
    def _kept_weights(self) -> Iterator[None]:
        """Inside, encoder and objective are what would be kept, in evaluation mode."""
        self.encoder.eval()
        self.objective.eval()
        if self.average is not None:
            self.average.exchange()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.exchange()
            set_training(self.encoder, self.objective, self.settings)

    @property
    def _evaluation_is_due(self) -> bool:
        done = self.now.epoch + 1
        return done % self.settings.evaluate_every == 0 or done == self.settings.epochs

    def _metrics(self) -> dict[str, float]:
        """What `evaluate` says, if it is time; the first process asks, all get the answer."""
        if self.evaluate is None or not self._evaluation_is_due:
            return {}
        found = self.evaluate(self.encoder) if self.world.is_first else {}
        return shared({name: float(value) for name, value in found.items()}, self.world)

    def _finish(self) -> FitResult:
        """The weights to keep are the encoder's from here on; the first process writes them down."""
        if self.best.epoch is not None:
            self.best.put_back()
        elif self.average is not None:
            self.average.exchange()
        result = FitResult(tuple(self.history), self.best.epoch or self.now.epoch, self.folder)
        if self.folder is not None and self.world.is_first:
            write_outcome(
                result,
                self.encoder,
                self.objective,
                class_names=getattr(self.batches, "class_names", ()),
                settings=self.settings.to_dict(),
                config=self.config,
            )
        return result

    # ---- checkpoints

    def _setup(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that was killed."""
        settings = {name: value for name, value in self.settings.to_dict().items() if name not in _FREE}
        setup: dict[str, Any] = {
            "run": settings,
            "encoder": self.encoder.describe(),
            "objective": self.objective.weights,
            "config": self.config,
            "batches per epoch": self.batches.steps_per_epoch,
            "processes": self.world.size,
        }
        plain: dict[str, Any] = json.loads(json.dumps(setup))
        return plain

    def _agree(self) -> None:
        """What each process has gathered by itself becomes the same in all: batch statistics, memory banks."""
        average_statistics(self.encoder, self.world)
        spread(self.objective.buffers(), self.world)
        if self.average is not None:
            average_statistics(self.average.model, self.world)

    def _save(self) -> None:
        """Write the run down as it is between two steps."""
        means = [part.state for part in gathered(self.means, self.world)]
        if self.folder is None or not self.world.is_first:
            return
        write_state(
            self.folder,
            {
                "setup": self._setup(),
                "epoch": self.now.epoch,
                "step": self.now.step,
                "train_accuracy": self.now.train_accuracy,
                "batch": self.batch,
                "means": means,
                "history": self.history,
                **{name: module.state_dict() for name, module in self.modules.items()},
                "average": None if self.average is None else self.average.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "best": self.best.state,
            },
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        change = difference(state["setup"], self._setup())
        if change:
            raise InputError(f"{self.folder}: cannot resume, {change}; change it back or choose another folder")
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        load_optimiser(self.optimiser, state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.now = replace(self.now, epoch=state["epoch"], step=state["step"], train_accuracy=state["train_accuracy"])
        self.batch, self.means = state["batch"], Means(state["means"][self.world.rank])
        self.history, self.best.state = list(state["history"]), state["best"]


@contextmanager
def _closed(source: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """The iterator; it is told when nobody wants more of it, if it cares."""
    try:
        yield source
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
