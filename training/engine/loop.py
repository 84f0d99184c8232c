"""The one training loop: batches through the encoder, an objective, an optimiser; repeatable, resumable, parallel.

What is random in a step follows from (seed, batch, process) alone, so a run that was killed goes on from its last
checkpoint to the same weights as one that was not, and no state of a generator has to be kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...encoders import Encoder
from ...encoders.devices import resolved_precision
from ...errors import InputError
from ...progress import Progress as OnProgress
from ..recipes.settings import Settings
from . import environment, outcome
from .adapters import merge_adapters
from .features import features_of_frozen
from .optimisation import Optimisation, set_training, training_mode, what_is_trained
from .step import Batch, BatchSource, Losses, Objective, Progress, Step, as_numbers

Evaluate = Callable[[Encoder], Mapping[str, float]]
_FREE = ("device", "checkpoint_every_steps", "tensorboard")  # settings that a resumed run may change


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
    progress: OnProgress | None = None,
    report: Callable[[outcome.LogRow], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> outcome.FitResult:
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
        evaluate: metrics of the encoder, in evaluation mode, with the weights that would be kept.
        config: where this run came from (a resolved recipe, say), as JSON can hold it; kept with the encoder.
        progress: called with (batches done, batches in all).
        report: called after every epoch with its row of the log.
        announce: called before the first step with a sentence on what of the backbone is frozen, if anything is.

    Raises:
        InputError: a loss or gradient is not finite; the checkpoint was made with other settings; `folder` holds a run
            and `resume` is not set; nothing to train; `monitor` names no metric.
    """
    settings = settings or Settings()
    device = environment.choose_device(settings.device)
    with ExitStack() as stack:
        world = stack.enter_context(environment.joined(device))
        stack.enter_context(environment.own_randomness(device))
        repeats = settings.deterministic
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=not repeats, deterministic=repeats))
        encoder.to(device).to(memory_format=torch.channels_last)
        objective.to(device)
        stack.enter_context(training_mode(encoder, objective, settings))
        if announce is not None and world.is_first and (said := what_is_trained(encoder, settings)):
            announce(said)
        run = _Run(
            encoder,
            batches,
            objective,
            settings,
            world=world,
            device=device,
            folder=None if folder is None else Path(folder),
            resume=resume,
            evaluate=evaluate,
            config=config,
            progress=progress,
            report=report,
        )
        return run.train()


@dataclass(eq=False)
class _Run:
    """One call of `fit`: everything that changes from step to step, and what is done with it."""

    encoder: Encoder
    batches: BatchSource
    objective: Objective
    settings: Settings
    world: environment.World
    device: torch.device
    folder: Path | None
    resume: InitVar[bool]
    evaluate: Evaluate | None
    config: Mapping[str, Any] | None
    progress: OnProgress | None
    report: Callable[[outcome.LogRow], None] | None
    batch: int = 0  # done in this epoch
    means: outcome.Means = field(default_factory=outcome.Means)
    history: list[dict[str, float]] = field(default_factory=list)
    last_losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self, resume: bool) -> None:
        settings, n_batches = self.settings, self.batches.steps_per_epoch
        if n_batches < 1:
            raise InputError("the training data make no batch; add images or choose a smaller batch size")
        if self.device.type == "cuda" and hasattr(self.batches, "finish_on"):
            self.batches.finish_on(self.device)
        self.modules: dict[str, torch.nn.Module] = {"encoder": self.encoder, "objective": self.objective}
        for module in self.modules.values():
            environment.spread([*module.parameters(), *module.buffers()], self.world)
        steps = math.ceil(n_batches / settings.accumulate)
        self.optimisation = Optimisation(self.encoder, self.objective, settings, steps_per_epoch=steps)
        self.early_stopping = outcome.EarlyStopping(settings, self.modules)
        bf16 = resolved_precision(settings.precision, self.device) == "bf16"
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16) if bf16 else nullcontext
        self.now = Progress(epoch=0, epochs=settings.epochs, step=0)
        self._restore(resume=resume)
        is_probe = "backbone" in settings.freeze
        self.features = (
            features_of_frozen(self.encoder, self.batches, self.objective, autocast=self.autocast) if is_probe else None
        )
        self.board = None
        if self.folder is not None and settings.tensorboard and self.world.is_first:
            self.board = outcome.TensorBoardLog(self.folder / "tensorboard", step=self.now.step)

    def train(self) -> outcome.FitResult:
        """Epoch after epoch until all are done or nothing gets better; the best weights are the encoder's then."""
        try:
            while self.now.epoch < self.settings.epochs and not self.early_stopping.should_stop(epochs=self.now.epoch):
                self._epoch()
        finally:
            if self.board is not None:
                self.board.writer.close()
        if self.early_stopping.best_epoch is not None:
            self.early_stopping.restore_best()
        elif self.optimisation.average is not None:
            self.optimisation.average.exchange()
        best = self.early_stopping.best_epoch or self.now.epoch
        merge_adapters(self.encoder)
        result = outcome.FitResult(tuple(self.history), best, self.folder)
        if self.folder is not None and self.world.is_first:
            outcome.write_outcome(
                result,
                self.encoder,
                self.objective,
                class_names=getattr(self.batches, "class_names", ()),
                settings=self.settings.model_dump(mode="json"),
                config=self.config,
            )
        return result

    def _epoch(self) -> None:
        started, waited = time.perf_counter(), 0.0
        every = self.settings.checkpoint_every_steps
        source = self.batches.epoch(self.now.epoch, skip=self.batch)
        try:
            while True:
                asked = time.perf_counter()
                group = list(islice(source, self.settings.accumulate))
                waited += time.perf_counter() - asked
                if not group:
                    break
                self._optimiser_step(group)
                if every and self.now.step % every == 0 and self.batch < self.batches.steps_per_epoch:
                    self._agree()
                    self._save()
        finally:
            if hasattr(source, "close"):
                source.close()
        if self.batch != self.batches.steps_per_epoch:
            raise InputError(
                f"epoch {self.now.epoch + 1} ended after {self.batch} batches; "
                f"the data promised {self.batches.steps_per_epoch}"
            )
        seconds = time.perf_counter() - started
        self._end_epoch({"seconds": seconds, "waiting": waited / seconds})

    def _optimiser_step(self, group: Sequence[Batch]) -> None:
        images = sum(len(batch) for batch in group)
        begun = [self._backward(batch, place, share=len(batch) / images) for place, batch in enumerate(group)]
        norm = self.optimisation.gradient_norm() if self.world.size == 1 else None
        failures = [self._read(batch, *values) for batch, values in zip(group, begun, strict=True)]
        failure = next(filter(None, failures), None)
        if environment.average_gradients(self.optimisation.parameters, self.world, failed=failure is not None):
            raise InputError(failure or self._failure("another process's loss is not finite", group))
        numbers = {"learning_rate": self.optimisation.learning_rate, **self.last_losses}
        if not self.optimisation.step(norm):
            raise InputError(self._failure("the losses are finite, but their gradient is not", group))
        self.now = replace(self.now, step=self.now.step + 1)
        if self.board is not None:
            self.board.add("step", self.now.step, numbers)

    def _backward(self, batch: Batch, place: int, *, share: float) -> tuple[Losses, dict[str, float | torch.Tensor]]:
        """Add a batch's share of the gradient; a device may still be at work on it, and on the losses and the log."""
        number = self.now.epoch * self.batches.steps_per_epoch + self.batch + place
        environment.seed_step(self.settings.seed, number, self.world.rank)
        batch = environment.batch_on_device(batch, self.device)
        step = Step(self.encoder, batch, self.now, autocast=self.autocast, features=self.features)
        losses = self.objective(step)
        if losses.total.requires_grad:
            (losses.total * share).backward()
        return losses, step.log

    def _read(self, batch: Batch, losses: Losses, log: dict[str, float | torch.Tensor]) -> str | None:
        """Wait for the losses of a batch and take them down; what is wrong with them, if anything."""
        values = {"loss": losses.total.detach(), **{f"loss/{name}": value for name, value in losses.values.items()}}
        numbers = as_numbers(values | log)
        self.last_losses = {name: numbers[name] for name in values}
        self.means.add(numbers, len(batch))
        self.batch += 1
        if self.progress is not None:
            done = self.now.epoch * self.batches.steps_per_epoch + self.batch
            self.progress(done, self.settings.epochs * self.batches.steps_per_epoch)
        if not all(map(math.isfinite, self.last_losses.values())):
            shown = ", ".join(f"{name}: {numbers[f'loss/{name}']:.6g}" for name in losses.values)
            return self._failure(f"the loss is not finite ({shown})", [batch])
        return None

    def _failure(self, what: str, group: Sequence[Batch]) -> str:
        index = [int(i) for batch in group for i in batch.index]
        find_names = getattr(self.batches, "names", None)
        shown = [str(name) for name in (find_names(index[:8]) if find_names else index[:8])]
        more = f" and {len(index) - len(shown)} more" if len(index) > len(shown) else ""
        kept = f"; the last good checkpoint is {self.folder / outcome.STATE}" if self.folder and self.now.step else ""
        return (
            f"{what} in epoch {self.now.epoch + 1}, step {self.now.step + 1}; images {', '.join(shown)}{more}{kept}; "
            "lower optimiser.learning_rate, or set optimiser.clip_norm"
        )

    def _end_epoch(self, times: outcome.LogRow) -> None:
        means = outcome.Means.together(environment.gathered(self.means, self.world)).means()
        done = self.now.epoch + 1
        row: dict[str, float] = {"epoch": done, **means, "learning_rate": self.optimisation.learning_rate}
        self._agree()
        if done % self.settings.evaluate_every == 0 or done == self.settings.epochs:
            self.encoder.eval()
            self.objective.eval()
            try:
                with self.optimisation.averaged():  # encoder and objective are what would be kept
                    found = dict(self.evaluate(self.encoder)) if self.evaluate and self.world.is_first else {}
                    row |= {name: float(value) for name, value in environment.gathered(found, self.world)[0].items()}
                    self.early_stopping.update(row, epoch=done)
            finally:
                set_training(self.encoder, self.objective, self.settings)
        self.history.append({**row, **times})
        self.now = replace(self.now, epoch=done, train_accuracy=means.get("accuracy"))
        self.batch, self.means = 0, outcome.Means()
        self._save()
        if self.folder is not None and self.world.is_first:
            outcome.write_csv(self.folder / "log.csv", self.history)
        if self.board is not None:
            self.board.add("epoch", self.now.step, self.history[-1])
            self.board.writer.flush()
        if self.report is not None:
            self.report(self.history[-1])

    def _setup(self) -> dict[str, Any]:
        """Everything that a resumed run must have in common with the one that was killed."""
        settings = {name: value for name, value in self.settings.model_dump(mode="json").items() if name not in _FREE}
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
        """Make equal in all processes what each has gathered by itself: batch statistics, memory banks."""
        environment.average_statistics(self.encoder, self.world)
        environment.spread(self.objective.buffers(), self.world)
        if self.optimisation.average is not None:
            environment.average_statistics(self.optimisation.average.model, self.world)

    def _save(self) -> None:
        """Write the run down as it is between two steps."""
        means = [part.state for part in environment.gathered(self.means, self.world)]
        if self.folder is None or not self.world.is_first:
            return
        tree = {
            "setup": self._setup(),
            "epoch": self.now.epoch,
            "step": self.now.step,
            "train_accuracy": self.now.train_accuracy,
            "batch": self.batch,
            "means": means,
            "history": self.history,
            **{name: module.state_dict() for name, module in self.modules.items()},
            **self.optimisation.state_dict(),
            "best": self.early_stopping.best,
        }
        outcome.write_state(self.folder, tree)

    def _restore(self, *, resume: bool) -> None:
        """Take up the run that was begun in the folder, or make sure that there is none."""
        state = None if self.folder is None else outcome.read_state(self.folder)
        if state is not None:
            if not resume:
                raise InputError(f"{self.folder} holds a run already; pass resume, or choose another folder")
            change = outcome.difference(state["setup"], self._setup())
            if change:
                raise InputError(f"{self.folder}: cannot resume, {change}; change it back or choose another folder")
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.optimisation.load_state_dict(state)
            self.early_stopping.best = state["best"]
            self.now = replace(
                self.now, epoch=state["epoch"], step=state["step"], train_accuracy=state["train_accuracy"]
            )
            self.batch, self.means = state["batch"], outcome.Means(state["means"][self.world.rank])
            self.history = list(state["history"])
        places = environment.gathered((self.now.epoch, self.batch), self.world)
        if len(set(places)) > 1:
            raise InputError(f"the processes are at different places {places}; all must see the same folder")
