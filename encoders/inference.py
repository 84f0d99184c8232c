"""The fast path from images to encodings, without gradient; images are decoded while the network runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..errors import ImageError, InputError
from ..forking import make_forks_safe
from ..images.transform import Transform
from .devices import (
    Graphs,
    SideStream,
    absorb_batch_norms,
    at_once,
    cast_once,
    in_order,
    one_late,
    resolved_precision,
    stacked,
)
from .encoder import Encoder
from .encoding import Encoding
from .fine import FineReader
from .layers import unwrapped
from .readouts import makes_maps, making_maps

T = TypeVar("T")
ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


@dataclass(frozen=True)
class Failure(Generic[T]):
    """An item of a stream that is no usable image, and why."""

    item: T
    error: ImageError


class EncodedBatch(NamedTuple, Generic[T]):
    """One step of a stream: the items that were encoded, those that were not, and the encoding (None if of nothing)."""

    items: list[T]
    failures: list[Failure[T]]
    encoding: Encoding | None


@runtime_checkable
class Encodes(Protocol):
    """An encoder of images: an `Inference`, or in a server the queue that stands before one."""

    encoder: Encoder
    device: torch.device
    fine: FineReader

    def encode_images(self, images: Sequence[Any]) -> Encoding:
        """The encoding of files, bytes or Pillow images."""


class Inference:
    """An encoder made fast and frozen: a private copy, so the encoder itself keeps its mode, gradients, and device.

    Later changes to the encoder do not reach the copy; `fingerprint` says what it was made from.

    Args:
        encoder: what to copy; wrapped in DataParallel or torch.compile if need be.
        device: "auto" (CUDA if there is any), or a torch device.
        precision: of the backbone's arithmetic: "fp32", "bf16", or "auto", the one default of every command: bfloat16
            where the hardware gains by it (`has_fast_bfloat16`). Results are float32 in any case.
        batch_size: images per forward pass; 16 on a CPU and 256 elsewhere if left out. On a CPU larger is slower.
        graphs: launch whole batches as CUDA graphs, for small networks that always do the same; refused on a CPU.

    Attributes:
        encoder: the copy; its backbone has other weights than the original's, since batch norms are absorbed.
        fine: reads an earlier layer in the same passes, once its `read` was called.
        fingerprint: of the original.
    """

    def __init__(
        self,
        encoder: Encoder | nn.Module,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        graphs: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"expected a batch size of at least 1, got {batch_size}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"no device {device!r}: expected 'auto', 'cpu', or 'cuda'") from error
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {device!r} was asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")
        self.precision = resolved_precision(precision, self.device)
        self.batch_size = batch_size or (16 if self.device.type == "cpu" else 256)
        encoder = whole_encoder(encoder)
        self.fingerprint = encoder.fingerprint
        self.short_name = encoder.short_name
        copy = _copied(encoder).eval().requires_grad_(False).to(self.device, torch.float32)
        for parameter in copy.parameters():
            parameter.grad = None
        absorb_batch_norms(copy, self.device)
        self.encoder = copy.to(memory_format=torch.channels_last)
        if self.precision == "bf16":
            cast_once(self.encoder.backbone)
        self.fine = FineReader(self.encoder)
        if graphs and self.device.type != "cuda":
            raise InputError(f"graphs are for CUDA, and the device is {self.device}; leave graphs out")
        self._graphs = Graphs(self._forward, size=self.batch_size) if graphs else None
        self._process = os.getpid()
        make_forks_safe()

    @property
    def transform(self) -> Transform:
        """From an image to the pixels that a call takes."""
        return self.encoder.transform

    @property
    def seen_as(self) -> str:
        """Fit, size and precision of the images, to be printed beside numbers: `'pad to 224×224, bf16'`."""
        return f"{self.transform.summary}, {self.precision}"

    @property
    def default_workers(self) -> int:
        """Threads that decode beside the network."""
        cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
        return 1 if self.device.type == "cpu" else max(1, (cores or 2) - 1)

    def __call__(self, pixels: UInt8[Tensor, "b 3 rows columns"]) -> Encoding:
        """The encoding of pixels as `transform` returns them, float32, on `device`, without gradient."""
        if not len(pixels):
            raise InputError("expected at least one image, got an empty batch")
        starts = range(0, len(pixels), self.batch_size)
        return Encoding.cat([self._encode(pixels[start : start + self.batch_size]) for start in starts])

    def encode_images(self, images: Sequence[ImageSource]) -> Encoding:
        """The encoding of files, bytes, or Pillow images, all feature maps included: for dozens, not for millions.

        Raises:
            ImageError: the first image that cannot be used; `stream` steps over such images.
            InputError: there is none, or one is something else, such as an array.
        """
        encodings = []
        for batch in self.stream(images):
            if batch.failures:
                raise batch.failures[0].error
            encodings += [batch.encoding] if batch.encoding is not None else []
        if not encodings:
            raise InputError("expected at least one image, got none")
        return Encoding.cat(encodings)

    def read(self, source: ImageSource) -> UInt8[Tensor, "3 rows columns"]:
        """The network's pixels of one image.

        Raises:
            ImageError: it is not a usable image.
        """
        return self.transform(source) if isinstance(source, Image.Image) else self.transform.read(source)[0]

    def stream(
        self,
        items: Iterable[T],
        *,
        load: Callable[[T], Tensor] | None = None,
        workers: int | None = None,
        maps: bool = True,
    ) -> Iterator[EncodedBatch[T]]:
        """Encodings of any number of images, batch by batch, in order, in bounded memory.

        Threads decode the next batches while the network works on this one. Closing the iterator, or an exception in
        it, ends the threads as soon as the images they are at are decoded; every batch is complete when it is yielded.

        Args:
            items: file names, or whatever `load` takes; read no further ahead than two batches, on a GPU three.
            load: from an item to its pixels (3, H, W); `read` if left out. An `ImageError` becomes a `Failure`, any
                other exception ends the stream.
            workers: decoding threads; 0 decodes between forward passes. `default_workers` if left out.
            maps: False where vectors are all that is wanted: a map that costs something (of a class token, an attention
                pooling) then has one place.
        """
        decode: Callable[[Any], Tensor] = load or self.read
        if workers is not None and workers < 0:
            raise InputError(f"expected 0 or more decoding threads, got {workers}")
        threads = self.default_workers if workers is None else workers
        decoded = in_order(decode, items, workers=threads, ahead=2 * self.batch_size)
        launch = SideStream(self.device).launch if self.device.type == "cuda" else at_once

        def begun() -> Iterator[tuple[EncodedBatch[T], Callable[[], Encoding] | None]]:
            while chunk := list(islice(decoded, self.batch_size)):
                good = [(item, pixels) for item, pixels in chunk if not isinstance(pixels, ImageError)]
                bad = [Failure(item, error) for item, error in chunk if isinstance(error, ImageError)]
                with making_maps(maps):
                    pixels = [pixels for _, pixels in good]
                    ready = launch(partial(self._encode, stacked(pixels, self.device))) if good else None
                yield EncodedBatch([item for item, _ in good], bad, None), ready

        try:
            for batch, ready in begun() if launch is at_once else one_late(begun()):
                yield batch if ready is None else batch._replace(encoding=ready())
        finally:
            decoded.close()

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Encoding:
        if self.device.type == "cuda":
            if os.getpid() != self._process:
                raise InputError(
                    "this process was forked after CUDA was in use, which it cannot use; start it with "
                    'multiprocessing.get_context("spawn")'
                )
            pixels = (pixels if pixels.is_pinned() else pixels.pin_memory()).to(self.device, non_blocking=True)
        images = self.transform.normalise(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)
        state = (self.fine.layer, makes_maps())
        return self._forward(images) if self._graphs is None else self._graphs(images, state=state)

    def _forward(self, images: Float[Tensor, "b 3 rows columns"]) -> Encoding:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            encoding: Encoding = self.fine(images)
        return encoding.changed(Tensor.contiguous)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()
        make_forks_safe()

    def __repr__(self) -> str:
        return f"Inference({self.short_name}, {self.device}, {self.precision}, batches of {self.batch_size})"


def whole_encoder(encoder: object) -> Encoder:
    """The encoder, taken out of DataParallel or torch.compile."""
    found = unwrapped(encoder) if isinstance(encoder, nn.Module) else encoder
    if not isinstance(found, Encoder):
        how = repr(str(found)) if isinstance(found, str | os.PathLike) else "module, layer=…"
        raise InputError(f"expected an Encoder, got a {type(found).__name__}; make one with Encoder.load({how})")
    return found


def _copied(encoder: Encoder) -> Encoder:
    """A copy of the encoder, whatever hooks have left in its parts."""
    # Old weight norm and pruning keep a computed tensor as an attribute, which `deepcopy` refuses; hooks make it anew.
    computed = [
        value
        for part in encoder.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and value.grad_fn
    ]
    try:
        return deepcopy(encoder, {id(tensor): tensor.detach().clone() for tensor in computed})
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        culprit = "itself"
        for name, part in encoder.backbone.named_children():
            try:
                deepcopy(part)
            except Exception:  # whatever a part of the user's own raises
                culprit = name
                break
        raise InputError(
            f"{encoder.architecture} cannot be copied ({culprit}: {str(error).splitlines()[0]}); remove what is no "
            "weight from it, such as a lock, an open file, or a tensor kept from a forward pass"
        ) from error
