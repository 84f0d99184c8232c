"""What runs ahead of its use: images by threads, batches on a GPU (here a pretended one), passes as graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

import distcam.encoders.inference as module
from distcam.encoders import Encoder, Encoding, Inference
from distcam.encoders.devices import Graphs, SideStream, one_late
from distcam.errors import InputError
from distcam.images import Transform

CPU = torch.device("cpu")


class PretendedStream:
    """A stream that writes down what is asked of it."""

    def __init__(self, said: list[str], name: str) -> None:
        self.said, self.name = said, name

    def wait_stream(self, other: PretendedStream) -> None:
        self.said.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.said.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        return f"the end of {self.name}"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams and graphs of a pretended GPU were asked to do."""
    said: list[str] = []
    now = [PretendedStream(said, "main")]

    @contextmanager
    def entered(stream: PretendedStream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: PretendedStream(said, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device=None: now[-1])
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(Tensor, "record_stream", lambda _part, stream: said.append(f"kept for {stream.name}"))
    return said


def encoding(images: Tensor) -> Encoding:
    pooled = images.mean((2, 3))
    return Encoding(images.clone(), pooled, 2 * pooled)


def test_an_item_comes_once_the_next_has_begun_and_before_an_error_of_the_next() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            begun.append(number)
            yield number
        raise ZeroDivisionError

    late = one_late(items())
    assert (next(late), begun) == (0, [0, 1])
    assert (next(late), begun) == (1, [0, 1, 2])
    assert next(late) == 2
    with pytest.raises(ZeroDivisionError):
        next(late)
    assert list(one_late(iter("abc"))) == ["a", "b", "c"]
    assert list(one_late(iter(""))) == []


def test_results_are_read_on_the_callers_stream_after_their_pass_alone(said: list[str]) -> None:
    ready = SideStream(CPU).launch(lambda: encoding(torch.ones(2, 3, 4, 4)))
    assert said == ["side waits for main"]
    assert torch.equal(ready().pooled, torch.ones(2, 3))
    assert said[1:] == ["main waits for the end of side", *["kept for main"] * 3]


def test_a_stream_begins_the_next_batch_before_it_gives_one(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inference = Inference(Encoder.load("conv4", weights="random", transform=Transform(32)), device="cpu", batch_size=2)
    expected = [batch.encoding for batch in inference.stream(range(5), load=numbered)]
    assert not said

    def encode(pixels: Tensor) -> Encoding:  # on the CPU after all
        with torch.no_grad():
            return inference.fine(inference.transform.normalise(pixels)).changed(Tensor.contiguous)

    inference.device = torch.device("cuda")
    monkeypatch.setattr(module, "stacked", lambda pixels, _device: torch.stack(pixels))
    inference._encode = encode  # type: ignore[method-assign]
    stream = inference.stream(range(5), load=numbered, workers=2)
    first = next(stream)
    assert said[:2] == ["side waits for main"] * 2
    for batch, wanted in zip([first, *stream], expected, strict=True):
        assert batch.encoding is not None
        assert wanted is not None
        assert torch.equal(batch.encoding.feature_map, wanted.feature_map)


def numbered(item: int) -> Tensor:
    return torch.full((3, 32, 32), 10 * item, dtype=torch.uint8)


def test_whole_batches_are_replayed_and_their_results_are_copies(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    def run(images: Tensor) -> Encoding:
        runs.append(len(images))
        return encoding(images)

    class PretendedGraph:
        def replay(self) -> None:
            ((_, held, kept),) = graphs._graphs.values()
            for part, new in zip(kept.parts(), encoding(held).parts(), strict=True):
                part.copy_(new)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, **_: nullcontext())
    graphs = Graphs(run, size=2)
    one, other = (graphs(torch.full((2, 3, 4, 4), value), state="maps") for value in (1.0, 5.0))
    assert runs == [2] * 4  # three to warm up, one that is captured, none afterwards
    assert (one.pooled.unique().item(), other.pooled.unique().item()) == (1, 5)
    assert graphs(torch.ones(1, 3, 4, 4), state="maps").pooled.shape == (1, 3)
    assert runs[4:] == [1]
    assert "main waits for the end of main" in said  # a replay waits until the last results are copied


def test_graphs_on_a_cpu_are_refused() -> None:
    with pytest.raises(InputError, match="graphs are for CUDA, and the device is cpu; leave graphs out"):
        Inference(Encoder.load("conv4", weights="random"), device="cpu", graphs=True)


def test_a_gpu_is_fed_by_all_cores_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    inference = Inference(Encoder.load("conv4", weights="random"), device="cpu")
    for name in ("cpu_count", "process_cpu_count"):  # the second from Python 3.13
        monkeypatch.setattr(f"os.{name}", lambda: 64, raising=False)
    assert inference.default_workers == 1
    inference.device = torch.device("cuda")
    assert inference.default_workers == 63
