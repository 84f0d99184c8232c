"""Building a gallery with the encoders of many machines: Ray Data carries images out and vectors back to one writer.

The writer, its commits, and so everything that makes a build resumable, are those of the local engine: only where the
network runs differs. Work goes out in the listing's order and comes back in it, cut at the same places as locally, so
that the same arithmetic gives the same bits. The encoder travels as the bytes of its checkpoint; no module is pickled.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from torch import nn

from ...encoders import Encoder, Inference
from ...errors import GalleryError, ImageError, InputError, MissingExtraError
from ...images.loading import read_image
from ...images.masks import MaskFolder
from ..storage.hdf5 import Array
from ..storage.manifest import Spec
from ..storage.segments import Vectors
from ..storage.writer import GalleryWriter
from .build import InferenceSettings, begin, to_vectors
from .ingest import Encoded, Offer, Stream, read_offer

__all__ = ["RayEngine"]

_BATCHES_PER_TASK = 8  # a task decodes its next batch while the network works on this one


@dataclass(frozen=True)
class RayEngine:
    """Where a Ray build runs.

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
        settings: InferenceSettings,
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
        checkpoint = _checkpoint(encoder)
        maps = store_maps if writer.is_new else writer.manifest.spec.map_shape is not None

        def stream(offers: Iterable[Offer]) -> Generator[Encoded, None, None]:
            asked = dataclasses.replace(settings, precision=writer.manifest.encoder.precision or settings.precision)
            work = _Work(asked, writer.manifest.spec, maps)
            rest = iter(offers)
            first = next(rest, None)
            if first is None:  # nothing to encode, and no reason to start Ray
                return
            with _running(self) as cluster:
                for precision, encoded in cluster.encode(chain([first], rest), checkpoint, work):
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


# --- On the machine that writes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every worker is told."""

    settings: InferenceSettings
    spec: Spec
    maps: bool


@contextmanager
def _running(engine: RayEngine) -> Iterator[_Cluster]:
    """A cluster: the one that this process is connected to already, the one at the address, or one of our own."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError(
            "engine ray needs Ray: pip install 'distcam[ray]'; the local engine builds the same gallery"
        ) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _start(ray, engine)
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # Ray Data tells its plans on the terminal
        yield _Cluster(ray, engine)
    except ray.exceptions.RayError as error:
        raise GalleryError(f"Ray: {_last_line(error)}; what was encoded before is kept") from error
    finally:
        logger.setLevel(level)
        if is_ours:
            ray.shutdown()


def _start(ray: Any, engine: RayEngine) -> None:
    options: dict[str, Any] = {"address": engine.address}
    if engine.address is None:
        cores = os.cpu_count() or 1
        options = {"address": "local", "include_dashboard": False, "num_cpus": max(cores, (engine.workers or 1) + 1)}
    try:
        with _without_usage_reports():
            ray.init(log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = engine.address or "this machine"
        raise GalleryError(f"Ray cannot be reached or started at {where}: {_last_line(error)}") from error


@contextmanager
def _without_usage_reports() -> Iterator[None]:
    """Ray reports its use to its makers unless the environment says no while it starts."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = before or "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class _Cluster:
    """A connection to Ray."""

    def __init__(self, ray: Any, engine: RayEngine) -> None:
        self._ray = ray
        self._workers = engine.workers

    def encode(
        self, offers: Iterable[Offer], checkpoint: bytes, work: _Work
    ) -> Iterator[tuple[Literal["fp32", "bf16"], Encoded]]:
        """The encodings of all offers, in their order, each with the precision of its arithmetic."""
        import pyarrow as pa  # comes with Ray Data

        ray = self._ray
        gpus = self._gpus(work.settings.device)
        settings = ray.get(ray.remote(num_cpus=1, num_gpus=min(1, gpus))(_settled).remote(work.settings))
        tasks = [
            ray.put(pa.table({"offers": [task]})) for task in _tasks(offers, settings.batch_size * _BATCHES_PER_TASK)
        ]
        data = ray.data.from_arrow_refs(tasks)
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        encoded = data.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(checkpoint), dataclasses.replace(work, settings=settings)),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self._pool(gpus, len(tasks))),
            num_cpus=1,
            num_gpus=min(1, gpus),
        )  # Ray Data restarts an actor that dies, and gives it its task again
        for row in encoded.iter_rows():
            yield settings.precision, _unpacked(row["offers"], row["arrays"], work)

    def _gpus(self, device: str) -> int:
        return 0 if device == "cpu" else int(self._ray.cluster_resources().get("GPU", 0))

    def _pool(self, gpus: int, tasks: int) -> int:
        """How many encoders: one CPU stays free for Ray's own tasks, which would starve and stop everything."""
        free = max(1, gpus or int(self._ray.cluster_resources().get("CPU", 1)) - 1)
        if self._workers is not None and self._workers > free:
            kind = "GPU" if gpus else "CPU"
            raise InputError(
                f"expected at most {free} Ray workers, got {self._workers}: each takes one {kind}"
                + ("" if gpus else ", and one must stay free")
            )
        return max(1, min(self._workers or free, tasks))


def _tasks(offers: Iterable[Offer], size: int) -> Iterator[str]:
    """Offers as JSON, in portions that are the work of one task: only names wait in memory."""
    rest = iter(offers)
    while some := list(islice(rest, size)):
        yield json.dumps([_to_json(offer) for offer in some])


def _to_json(offer: Offer) -> dict[str, Any]:
    known = None if offer.known_sha256 is None else offer.known_sha256.hex()
    return {
        **{name: getattr(offer, name) for name in ("path", "label", "replaces", "size", "mtime_ns")},
        "file": str(offer.file),
        "columns": dict(offer.columns),
        "known_sha256": known,
        "sha256": offer.sha256.hex(),
    }


def _from_json(value: dict[str, Any]) -> Offer:
    known = None if value["known_sha256"] is None else bytes.fromhex(value["known_sha256"])
    binary = {"known_sha256": known, "sha256": bytes.fromhex(value["sha256"]), "file": Path(value["file"])}
    return Offer(**(value | binary))


def _unpacked(text: str, arrays: bytes, work: _Work) -> Encoded:
    """A worker's answer: the failures, and the vectors of the rest."""
    answer = json.loads(text)
    failures = [(offer := _from_json(value), _failure(offer, reason)) for value, reason in answer["failures"]]
    offers = [_from_json(value) for value in answer["offers"]]
    if not offers:
        return Encoded([], None, failures)
    with np.load(BytesIO(arrays), allow_pickle=False) as found:
        pooled = found["pooled"]
        embedding = pooled if work.spec.embedding_is_pooled else found["embedding"]
        maps = (found["maps"], found["map_scale"]) if work.maps else (None, None)
    return Encoded(offers, Vectors(pooled, embedding, *maps), failures)


def _failure(offer: Offer, reason: str) -> ImageError:
    """The error that a worker met; that a file is unchanged is found out again here, where it counts as no failure."""
    if offer.sha256 == offer.known_sha256:
        try:
            read_offer(offer)
        except ImageError as error:
            return error
    return ImageError(offer.file, reason)


# --- On the machines that encode --------------------------------------------------------------------------------------


def _settled(settings: InferenceSettings) -> InferenceSettings:
    """Batch size and precision as a worker's machine chooses them: one choice for all workers."""
    chosen = Inference(
        Encoder(nn.Identity()), device=settings.device, precision=settings.precision, batch_size=settings.batch_size
    )
    return dataclasses.replace(settings, batch_size=chosen.batch_size, precision=chosen.precision)


class _Worker:
    """One encoder at work in a process of its own."""

    def __init__(self, checkpoint: Any, work: _Work) -> None:
        import ray

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "encoder.safetensors"
            file.write_bytes(ray.get(checkpoint))
            encoder = Encoder.load(file)
        settings = work.settings
        self._inference = Inference(
            encoder, device=settings.device, precision=settings.precision, batch_size=settings.batch_size
        )
        self._workers = settings.workers
        self._spec = dataclasses.replace(
            work.spec, map_shape=(1, 1) if work.maps else None
        )  # only whether there is one

    def __call__(self, task: dict[str, Array]) -> dict[str, list[Any]]:
        """One task: JSON with what became of the offers, and the vectors as an `.npz` file."""
        offers = [_from_json(value) for value in json.loads(str(task["offers"][0]))]
        transform = self._inference.transform
        encoded: list[Any] = []
        failures: list[Any] = []
        vectors: list[Vectors] = []
        for batch in self._inference.stream(
            offers, load=lambda offer: transform(read_image(read_offer(offer))), workers=self._workers
        ):
            failures += [(_to_json(failure.item), failure.error.reason) for failure in batch.failures]
            if batch.encoding is not None:
                encoded += [_to_json(offer) for offer in batch.items]
                vectors.append(to_vectors(batch.encoding, self._spec))
        return {"offers": [json.dumps({"offers": encoded, "failures": failures})], "arrays": [_packed(vectors)]}


def _packed(vectors: Sequence[Vectors]) -> bytes:
    """Vectors as the bytes of an `.npz` file."""
    if not vectors:
        return b""
    arrays = {"pooled": np.concatenate([part.pooled for part in vectors])}
    if any(part.embedding is not part.pooled for part in vectors):
        arrays["embedding"] = np.concatenate([part.embedding for part in vectors])
    for name in ("maps", "map_scale"):
        if getattr(vectors[0], name) is not None:
            arrays[name] = np.concatenate([getattr(part, name) for part in vectors])
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()
