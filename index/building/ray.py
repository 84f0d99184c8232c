"""Building a gallery with the encoders of many machines: Ray carries names out and vectors back to one writer.

Work comes back in the listing's order, cut at the same places as locally: the same arithmetic gives the same bits. The
encoder travels as the bytes of its checkpoint; no module is pickled.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Self

from torch import nn

from ...encoders import Encoder, Inference
from ...errors import GalleryError, ImageError, InputError, MissingExtraError
from ...images.masks import MaskFolder
from ..storage.manifest import Spec
from ..storage.segments import RowVectors
from ..storage.writer import GalleryWriter
from .build import InferenceOptions, begin, to_vectors
from .ingest import Encoded, Offer, Stream, read_offer
from .opened import OpenedImages

_BATCHES_PER_TASK = 8  # a task decodes its next batch while the network works on this one


@dataclass(frozen=True)
class RayEngine:
    """The cluster of a Ray build.

    Attributes:
        address: of a running cluster, such as `"auto"` (that of this machine) or `"head:6379"`; None starts Ray on this
            machine for the time of the build.
        workers: encoders at work at once; None: one per GPU, or one per CPU but one.
    """

    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"expected at least 1 Ray worker, got {self.workers}")

    @classmethod
    def named(cls, engine: str | Self) -> Self:
        """The engine that `Gallery.build` was told of."""
        if isinstance(engine, str) and engine != "ray":
            raise InputError(f"expected the engine local or ray, got {engine!r}")
        return cls() if isinstance(engine, str) else engine

    def stream(
        self,
        writer: GalleryWriter,
        encoder: Encoder,
        settings: InferenceOptions,
        *,
        masks: MaskFolder | None = None,
        store_maps: bool = False,
        strict: bool = False,  # noqa: ARG002 - of masks
    ) -> Stream:
        """The stream that encodes on a cluster, in place of `encoding_stream`.

        A worker that dies is started again, and what it was at is done again. When the driver dies, build again: what
        is committed is kept. Every machine must see the images under the same paths.

        Raises:
            MissingExtraError: Ray is not installed.
            InputError: the encoder has no checkpoint, or the gallery pools under masks.
            GalleryError: the cluster cannot be reached, or a worker failed at something else than an image.
        """
        if masks is not None:
            raise InputError("masks are read by the local engine only; leave out --engine ray, or the masks")
        if settings.fine_layer is not None or writer.manifest.spec.fine_shape is not None:
            raise InputError("fine maps are kept by the local engine only; leave out --engine ray, or --store-lines")
        checkpoint = _checkpoint(encoder)
        maps = store_maps if writer.is_new else writer.manifest.spec.map_shape is not None

        def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
            asked = dataclasses.replace(settings, precision=writer.manifest.encoder.precision or settings.precision)
            work = _Work(asked, writer.manifest.spec, maps, writer.manifest.box_margin)
            rest = iter(offers)
            first = next(rest, None)
            if first is None:  # nothing to encode, and no reason to start Ray
                return
            with _running(self) as ray:
                for precision, encoded in _encodings(ray, self, chain([first], rest), checkpoint=checkpoint, work=work):
                    vectors = encoded.vectors
                    if vectors is not None and writer.is_new and not writer.has_pending:
                        shape = None if vectors.maps is None else (vectors.maps.shape[2], vectors.maps.shape[3])
                        copy = writer.write_encoder(lambda path: path.write_bytes(checkpoint))
                        begin(writer, precision=precision, map_shape=shape, copy=copy)
                    yield encoded

        return stream


def _checkpoint(encoder: Encoder) -> bytes:
    """The encoder as the bytes of its checkpoint; InputError for a network of the user's own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "encoder.safetensors"
        encoder.save(file)
        return file.read_bytes()


@dataclass(frozen=True)
class _Work:
    settings: InferenceOptions
    spec: Spec
    maps: bool
    margin: float = 0.0


@contextmanager
def _running(engine: RayEngine) -> Iterator[Any]:
    """Ray with a cluster: that of this process, the one at the address, or one of our own."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "engine ray needs Ray: pip install 'distcam[ray]'; the local engine builds the same gallery"
        ) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        options: dict[str, Any] = {"address": engine.address}
        if engine.address is None:
            cores = max(os.cpu_count() or 1, (engine.workers or 1) + 1)
            options = {"address": "local", "include_dashboard": False, "num_cpus": cores}
        name = "RAY_USAGE_STATS_ENABLED"
        before = os.environ.get(name)
        os.environ[name] = before or "0"  # Ray reports its use to its makers unless this says no while it starts
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = engine.address or "this machine"
            raise GalleryError(f"Ray cannot be reached or started at {where}: {_last_line(error)}") from error
        finally:
            if before is None:
                del os.environ[name]
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise GalleryError(f"Ray: {_last_line(error)}; what was encoded before is kept") from error
    finally:
        if is_ours:
            ray.shutdown()


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _encodings(
    ray: Any, engine: RayEngine, offers: Iterable[Offer], *, checkpoint: bytes, work: _Work
) -> Iterator[tuple[Literal["fp32", "bf16"], Encoded]]:
    """The encodings of all offers, in their order, each with the precision of its arithmetic."""
    from ray.util import ActorPool

    gpus = 0 if work.settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    resources = {"num_cpus": 1, "num_gpus": min(1, gpus)}
    settings = ray.get(ray.remote(**resources)(_settled).remote(work.settings))
    rest, size = iter(offers), settings.batch_size * _BATCHES_PER_TASK
    tasks = list(iter(lambda: list(islice(rest, size)), []))  # only names wait in memory
    worker = ray.remote(**resources, max_restarts=-1, max_task_retries=-1)(_Worker)  # one that dies starts again
    stored, work = ray.put(checkpoint), dataclasses.replace(work, settings=settings)
    workers = [worker.remote(stored, work) for _ in range(_pool_size(ray, engine, gpus=gpus, tasks=len(tasks)))]
    try:
        for answer in ActorPool(workers).map(lambda actor, task: actor.encode.remote(task), tasks):
            for encoded, vectors, failures in answer:
                refused = [(offer, _failure(offer, reason)) for offer, reason in failures]
                yield settings.precision, Encoded(encoded, vectors, refused)
    finally:
        for actor in workers:
            ray.kill(actor)


def _pool_size(ray: Any, engine: RayEngine, *, gpus: int, tasks: int) -> int:
    """Number of encoders: one CPU stays free for Ray itself."""
    free = max(1, gpus or int(ray.cluster_resources().get("CPU", 1)) - 1)
    if engine.workers is not None and engine.workers > free:
        kind = "GPU" if gpus else "CPU"
        raise InputError(
            f"expected at most {free} Ray workers, got {engine.workers}: each takes one {kind}"
            + ("" if gpus else ", and one must stay free")
        )
    return max(1, min(engine.workers or free, tasks))


def _failure(offer: Offer, reason: str) -> ImageError:
    """The error that a worker met; that a file is unchanged is found out again here, where it counts as no failure."""
    if offer.sha256 == offer.known_sha256:
        try:
            read_offer(offer)
        except ImageError as error:
            return error
    return ImageError(offer.file, reason)


def _settled(settings: InferenceOptions) -> InferenceOptions:
    """Batch size and precision as a worker's machine chooses them: one choice for all workers."""
    chosen = Inference(
        Encoder(nn.Identity()), device=settings.device, precision=settings.precision, batch_size=settings.batch_size
    )
    return dataclasses.replace(settings, batch_size=chosen.batch_size, precision=chosen.precision)


class _Worker:
    def __init__(self, checkpoint: bytes, work: _Work) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "encoder.safetensors"
            file.write_bytes(checkpoint)
            encoder = Encoder.load(file)
        settings = work.settings
        self._inference = Inference(
            encoder, device=settings.device, precision=settings.precision, batch_size=settings.batch_size
        )
        self._workers = settings.workers
        self._margin = work.margin
        self._spec = dataclasses.replace(work.spec, map_shape=(1, 1) if work.maps else None)  # only whether there is

    def encode(self, offers: list[Offer]) -> list[tuple[list[Offer], RowVectors | None, list[tuple[Offer, str]]]]:
        """For each batch its offers, their vectors, and those that could not be used with the reasons."""
        answer, opened = [], OpenedImages(self._inference, self._workers, margin=self._margin)
        for batch in self._inference.stream(
            offers,
            load=lambda offer: opened.read(offer)[0],
            workers=self._workers,
            maps=self._spec.map_shape is not None,
        ):
            vectors = (
                None if batch.encoding is None else to_vectors(batch.encoding, self._spec, self._inference.encoder)
            )
            failures = [(failure.item, failure.error.reason) for failure in batch.failures]
            answer.append((list(batch.items), vectors, failures))
        return answer
