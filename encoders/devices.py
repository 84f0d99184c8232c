"""Networks at work on a device: made fast once they are frozen, in the precision that pays, fed ahead of time.

Frozen, convolutions absorb the batch norms behind them, and weights are cast once. A GPU's next batch is begun before
one is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import ImageError, InputError
from ..threads import in_threads
from .encoder import Encoder
from .encoding import Encoding
from .layers import watch_parts
from .names import library_of

T = TypeVar("T")


def resolved_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision that a choice, "auto" among them, means on a device."""
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"unknown precision {precision!r}: expected 'auto', 'fp32', or 'bf16'")
    if precision == "auto":
        return "bf16" if has_fast_bfloat16(device) else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def has_fast_bfloat16(device: torch.device) -> bool:
    """True where the hardware multiplies matrices in bfloat16 faster than in float32: CUDA, and CPUs with AMX.

    AVX512_BF16 alone is no gain: one thread of such a Xeon was slower in bfloat16 for all of 18 architectures.
    Anywhere else torch would emulate it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not tell
    return bool(capabilities.get("amx_bf16"))


def in_order(
    load: Callable[[T], Tensor], items: Iterable[T], *, workers: int, ahead: int
) -> Generator[tuple[T, Tensor | ImageError], None, None]:
    """Items with their pixels or the reason there are none, in order; threads work up to `ahead` items ahead."""

    def attempt(item: T) -> tuple[T, Tensor | ImageError]:
        try:
            return item, load(item)
        except ImageError as error:
            return item, error

    yield from in_threads(attempt, items, workers=workers, ahead=ahead) if workers else map(attempt, items)


def one_late(batches: Iterator[T]) -> Iterator[T]:
    """The same items, each once the next one has begun; where that fails, the one before still comes."""
    held: list[T] = []
    try:
        for batch in batches:
            yield from held
            held = [batch]
    except Exception:
        yield from held
        raise
    yield from held


def stacked(pixels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Images as one batch, for a GPU in page-locked memory: written once, and read by the GPU itself."""
    if device.type != "cuda":
        return torch.stack(list(pixels))
    shape = (len(pixels), *pixels[0].shape)
    return torch.stack(list(pixels), out=torch.empty(shape, dtype=pixels[0].dtype, pin_memory=True))


def at_once(work: Callable[[], T]) -> Callable[[], T]:
    """A pass on a CPU, done when this returns; see `SideStream.launch`."""
    done = work()
    return lambda: done


class SideStream:
    """A stream of a GPU for forward passes: who reads the results of one does not wait for the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def launch(self, work: Callable[[], Encoding]) -> Callable[[], Encoding]:
        """Begin a pass; what is returned makes its results safe to read on the caller's stream."""
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            encoding = work()
            done = self.stream.record_event()

        def ready() -> Encoding:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(done)
            for part in encoding.parts():
                part.record_stream(stream)
            return encoding

        return ready


class Graphs:
    """Forward passes as CUDA graphs, one for each shape and state: launched at once, not kernel by kernel."""

    def __init__(self, run: Callable[[Tensor], Encoding], *, size: int) -> None:
        self._run = run
        self._size = size
        self._graphs: dict[Hashable, tuple[Any, Tensor, Encoding]] = {}
        self._lock = threading.Lock()
        self._read: Any = None  # when the last results had been copied

    def __call__(self, images: Tensor, *, state: Hashable) -> Encoding:
        """The encoding of a whole batch by its graph, which is captured first if need be; of a smaller one without."""
        if len(images) != self._size:
            return self._run(images)
        key, stream = (images.shape, state), torch.cuda.current_stream(images.device)
        with self._lock:
            if self._read is not None:
                stream.wait_event(self._read)
            if key not in self._graphs:
                self._graphs[key] = self._captured(images)
            graph, held, encoding = self._graphs[key]
            held.copy_(images)
            graph.replay()
            copied = encoding.changed(Tensor.clone)  # the next replay writes to the same places
            self._read = stream.record_event()
        return copied

    def _captured(self, images: Tensor) -> tuple[Any, Tensor, Encoding]:
        held, stream = images.clone(memory_format=torch.preserve_format), SideStream(images.device).stream
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their algorithms and allocate before anything is captured
                self._run(held)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            encoding = self._run(held)
        return graph, held, encoding


_PROBE = 64  # pixels


class _CastOnce(nn.Conv2d):
    """A frozen convolution that keeps its weights in bfloat16 too: autocast would cast them anew at every call."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            weight, bias = self.__dict__["low"]
        output: Tensor = super()._conv_forward(input, weight, bias)
        return output


def cast_once(network: nn.Module) -> None:
    """Store the convolutions' weights of a frozen network on its device in bfloat16 too."""
    for part in network.modules():
        if type(part) is nn.Conv2d and "weight" in part._parameters:
            low = part.weight.bfloat16(), None if part.bias is None else part.bias.bfloat16()
            part.__class__, part.__dict__["low"] = _CastOnce, low


def absorb_batch_norms(encoder: Encoder, device: torch.device) -> None:
    """Absorb the batch norms of the backbone; a small image tells enough of a network that is known by name."""
    size = (encoder.transform.height, encoder.transform.width)
    is_known = encoder.options is not None and library_of(encoder.architecture) is None
    small = (min(_PROBE, size[0]), min(_PROBE, size[1])) if is_known else size
    for rows, columns in (small, size):
        probe = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(0))
        try:
            fuse_batch_norms(encoder.backbone, probe.to(device))
            break
        except (RuntimeError, ValueError, AssertionError):  # of networks that take no image but of their own size
            if (rows, columns) == size:
                raise


@torch.no_grad()
def fuse_batch_norms(network: nn.Module, probe: Float[Tensor, "b 3 h w"]) -> None:
    """Fuse the batch norms of a network in evaluation mode into the convolutions before them.

    The order is seen by watching one forward pass, so any code will do, and the result is believed only if it gives the
    probe the same output; else the network is as it was.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return
    expected, pairs = _watched_pairs(network, probe)
    before = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    norms = {norm for _, norm in pairs}
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent._modules.items()
        if child in norms
    ]
    for convolution, norm in pairs:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
    for parent, name, _ in places:
        setattr(parent, name, nn.Identity())
    if not (network(probe) - expected).abs().max() <= 1e-3 * expected.abs().max():
        for convolution, weight, bias in before:
            convolution.weight, convolution.bias = weight, bias
        for parent, name, norm in places:
            setattr(parent, name, norm)


def _watched_pairs(network: nn.Module, probe: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The output, and convolutions whose output went straight into a batch norm, where both ran once."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def after(_name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        # A weight that hooks compute anew before each pass (old weight norm, pruning) is no parameter to be replaced.
        if type(module) is nn.Conv2d and "weight" in module._parameters:
            outputs.append((module, output))

    def before(_name: str, module: nn.Module, args: Any) -> None:
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            inputs.append((module, args[0]))

    output = watch_parts(network, probe, before=before, after=after)
    runs = [module for module, _ in [*outputs, *inputs]]
    # The tensors are held until here, so that `is` means the same tensor and not the same address used again.
    return output, [
        (convolution, norm)
        for convolution, made in outputs
        for norm, value in inputs
        if value is made and runs.count(convolution) == runs.count(norm) == 1
    ]
