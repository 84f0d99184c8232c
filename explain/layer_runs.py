"""Runs of a network with a look at one layer, a new leaf of gradients; all else about the network stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..encoders.layers import as_feature_map, eagerly, evaluating, find_layer, require_layer, run_watched
from ..errors import InputError, ShapeError
from .inputs import at_least_float32, refuse_non_finite
from .targets import Target, TargetScore

AT_ONCE = 32  # how many scores are differentiated together: memory grows with it
UNRELATED = "the score does not depend on the layer; choose one that leads to the output"


@contextmanager
def capture(model: nn.Module, layer: str) -> Iterator[LayerRun]:
    """A network in evaluation mode that can be run with a look at one of its layers.

    Its rows must not depend on one another. The layer is a name from `model.named_modules()` (else an InputError with
    the three nearest); its output is a map (b, k, h, w), channels last, or tokens.
    """
    layer = find_layer(model, layer)[0]
    require_layer(model, layer)
    with undisturbed(model):
        yield LayerRun(model, layer)


class LayerRun:
    """The runs of a network with a look at one layer; made by `capture`."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model = model
        self.layer = layer
        self.images = torch.empty(0)
        self._leaf: Tensor | None = None

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Any:
        """The network's output; gradients are recorded from the layer on."""
        refuse_non_finite("the images", images)
        self.images, self._leaf = images.detach(), None

        def cut_here(output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            self._leaf = output.detach().clone().requires_grad_()
            return self._leaf.clone()  # so that an operation in place behind the layer does not touch the leaf

        torch.set_grad_enabled(False)
        return self._run(self.images.clone(), cut_here)  # the network may work on its input in place

    @property
    def activations(self) -> Float[Tensor, "b k h w"]:
        """The layer's output for the images as they are, as a map; no gradient flows through it."""
        maps = at_least_float32("the activations", self.as_map(self.leaf.detach()))
        refuse_non_finite(f"the output of layer {self.layer!r}", maps)
        return maps

    @property
    def leaf(self) -> Tensor:
        """The layer's output in its own layout, where gradients end."""
        if self._leaf is None:
            raise InputError("run the images first")
        return self._leaf

    def gradients(self, scores: Float[Tensor, "b m"]) -> Float[Tensor, "b m k h w"]:
        """The derivative of each score with respect to the layer's output, laid out as `activations` is."""
        (gradients,) = jacobian(scores, [self.leaf])
        n_images, n_scores = scores.shape
        maps = at_least_float32("the gradients", self.as_map(gradients.flatten(0, 1)))
        refuse_non_finite(f"the gradients at layer {self.layer!r}", maps)
        return maps.reshape(n_scores, n_images, *maps.shape[1:]).transpose(0, 1)

    def replay(self, rows: Int[Tensor, " r"], edit: Callable[[Tensor], None], *, share: bool = False) -> Any:
        """The network's output for some of the images when the layer's map is edited; no gradients are recorded."""
        edit(self.as_map(edited := self.leaf.detach()[rows].clone()))
        with torch.no_grad():
            return self._run(self.images[rows[:1] if share else rows], lambda _: edited)

    def can_share(self, score: Callable[[Any, Tensor], Tensor]) -> bool:
        """True if `replay` may share: tried out on the first image, with its own map and with nothing but zeros."""
        rows = torch.zeros(2, dtype=torch.long, device=self.images.device)

        def empty_second(maps: Tensor) -> None:
            maps[1] = 0

        expected = score(self.replay(rows, empty_second), rows)
        try:
            found = score(self.replay(rows, empty_second, share=True), rows)
        except (RuntimeError, ShapeError):
            return False
        change = (expected[0] - expected[1]).abs().amax()
        return found.shape == expected.shape and bool((found - expected).abs().amax() < 1e-3 * change)

    def beside_zero(self) -> Any:
        """The output for 2b rows: the images as they are, then the images with nothing but zeros in the layer's map."""
        zeros = self.leaf.detach().clone()
        self.as_map(zeros).zero_()
        with torch.no_grad():
            images = torch.cat([self.images, self.images])

        def cut_here(_: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            return torch.cat([self.leaf, zeros])

        torch.set_grad_enabled(False)
        return self._run(images, cut_here)

    def as_map(self, output: Any) -> Tensor:
        """The layer's output as (b, k, h, w): always a view, so that what is written to it reaches the output."""
        return as_feature_map(output, (*self.images.shape[-2:],), origin=f"layer {self.layer!r}")

    def _run(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
        """The output for images when what the layer returns is changed on its way."""

        def watch(output: Any) -> Tensor:
            self.as_map(output)  # refuses what is no map
            return change(output)

        return run_watched(self.model, self.layer, images, watch)


class LayerView:
    """The input of a method: activations, gradients (computed when they are asked for), and the network."""

    def __init__(self, run: LayerRun, output: Any, target: Target) -> None:
        self.run = run
        self.output = output
        self.target = target
        self.score: TargetScore = target.fix(output)
        self.scores: Tensor = self.score(output)

    @cached_property
    def activations(self) -> Float[Tensor, "b m k h w"]:
        """The same activations for all questions about an image."""
        return self.run.activations[:, None].expand(-1, self.scores.shape[1], -1, -1, -1)

    @cached_property
    def gradients(self) -> Float[Tensor, "b m k h w"]:
        """The derivatives of the scores with respect to the activations."""
        return self.run.gradients(self.scores)


def jacobian(scores: Float[Tensor, "b m"], inputs: Sequence[Tensor], *, allow_unrelated: bool = False) -> list[Tensor]:
    """The derivatives of the m scores of each image with respect to each input, (m, *input.shape), in one sweep."""
    if not scores.requires_grad:
        raise InputError(UNRELATED)
    n_images, n_scores = scores.shape
    one_hot = torch.eye(n_scores, dtype=scores.dtype, device=scores.device)
    directions = one_hot[:, None].expand(-1, n_images, -1)

    def product(direction: Tensor, *, batched: bool) -> list[Tensor]:
        how = {"retain_graph": True, "is_grads_batched": batched, "allow_unused": True}
        found = torch.autograd.grad(scores, inputs, direction, **how)
        if not allow_unrelated and any(gradient is None for gradient in found):
            raise InputError(UNRELATED)
        several = direction.shape[:-2]  # (n,) for a batch of directions
        pairs = zip(inputs, found, strict=True)
        return [at.new_zeros((*several, *at.shape)) if gradient is None else gradient for at, gradient in pairs]

    def products(some: Tensor) -> list[Tensor]:
        if len(some) > 1:
            # Some operations, a function of the model's own say, cannot be differentiated in batches; one by one then.
            with suppress(RuntimeError):
                return product(some, batched=True)
        singly = [product(direction, batched=False) for direction in some]
        return [torch.stack(gradients) for gradients in zip(*singly, strict=True)]

    parts = [products(some) for some in torch.split(directions, AT_ONCE)]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards modes, gradient mode, and random numbers are as they were."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(
            f"the weights of {type(model).__name__} were made within torch.inference_mode, so nothing can be "
            "differentiated; make them outside of it"
        )
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    was_enabled = torch.is_grad_enabled()
    was_fused = torch.backends.mha.get_fastpath_enabled()
    generators = torch.random.fork_rng(devices=list(devices))
    with evaluating(model), eagerly(model), generators, torch.inference_mode(False):
        torch.backends.mha.set_fastpath_enabled(False)  # a fused layer never calls its parts, nor their hooks
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(was_fused)
            torch.set_grad_enabled(was_enabled)
