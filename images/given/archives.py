"""Images in archives: Parquet files, and tar files as webdataset writes them, a few files for each sample."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, product
from pathlib import Path
from typing import Any

from ...errors import InputError, MissingExtraError
from ...remarks import remark
from ..image_sources import printable
from ..loading import IMAGE_SUFFIXES

_TARS = (".tar", ".tar.gz", ".tgz")
_MAX_MEMBER = 1 << 28  # bytes


def in_archives(text: str) -> tuple[Path, Iterator[Mapping[str, Any]]] | None:
    """The folder and the samples of `data.parquet` or `shards-{000..003}.tar`; None of anything else."""
    names = _expanded(text)
    paths = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100  (names of links stay)
    if all(name.lower().endswith(_TARS) for name in names) and (len(names) > 1 or paths[0].is_file()):
        reader = _of_tars
    elif all(path.suffix.lower() == ".parquet" for path in paths) and (len(names) > 1 or paths[0].is_file()):
        reader = _of_parquet
    else:
        return None
    if missing := [name for name, path in zip(names, paths, strict=True) if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; {len(missing)} of the {len(names)} files of {text} are missing")
    return paths[0].parent, (row for path in paths for row in reader(path))


def sample_of(members: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each image of a sample of webdataset, whose members go by their suffixes."""
    rest: dict[str, Any] = {}
    images = {}
    for name, content in members.items():
        kind = name.rpartition(".")[2].lower()
        if f".{kind}" in IMAGE_SUFFIXES:
            images[name] = content
        elif kind == "json":
            known = json.loads(content) if isinstance(content, (bytes, str)) else content
            rest |= known if isinstance(known, dict) else {name: known}
        elif not name.startswith("__"):
            text = content.decode("utf-8", "replace").strip() if isinstance(content, bytes) else content
            rest["label" if kind == "cls" else name] = text
    for name, content in images.items():
        yield {"source": f"{members.get('__key__', '')}.{name}", **rest, "image": content}


def named(label: Any, classes: Any) -> Any:
    """The name of a class that is given by its number; None of -1, which stands for no class."""
    with suppress(TypeError, ValueError, IndexError):
        if classes is not None and (number := int(label)) == label:
            return classes[number] if number >= 0 else None
    return label


def _expanded(text: str) -> list[str]:
    """The names that a pattern with `{000..003}` or `{a,b}` stands for.

    >>> _expanded("s-{08..10}.tar")
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    parts: list[Sequence[str]] = []
    for part in re.split(r"(\{\d+\.\.\d+\}|\{[^{}]+,[^{}]*\})", text):
        if found := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
            parts.append([f"{i:0{len(found[1])}}" for i in range(int(found[1]), int(found[2]) + 1)])
        else:
            parts.append(part[1:-1].split(",") if part.startswith("{") and part.endswith("}") else [part])
    return ["".join(chosen) for chosen in product(*parts)]


def _of_tars(file: Path) -> Iterator[Mapping[str, Any]]:
    left_out: list[str] = []
    try:
        with tarfile.open(file, "r|*") as archive:
            for key, members in groupby((member for member in archive if member.isfile()), _sample_name):
                sample: dict[str, Any] = {"__key__": printable(key)}
                for member in members:
                    suffix = member.name[len(key) + 1 :]
                    is_known = f".{suffix.rpartition('.')[2].lower()}" in {".cls", ".txt", ".json", *IMAGE_SUFFIXES}
                    stream = archive.extractfile(member) if is_known and member.size <= _MAX_MEMBER else None
                    if stream is None:
                        left_out.append(printable(member.name))
                    else:
                        sample[suffix] = stream.read()
                rows = list(sample_of(sample))
                left_out += [printable(key)] if not rows and len(sample) > 1 else []
                yield from rows
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as a tar of images, their .cls, .txt and .json: {error}") from error
    if left_out:
        remark(
            f"{file.name}: {len(left_out):,} members are no image with its class or text: left out, {left_out[0]} first"
        )


def _sample_name(member: tarfile.TarInfo) -> str:
    """The path of a member up to the first dot of its name."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _of_parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow: pip install 'distcam[parquet]'") from error
    try:
        with ParquetFile(file) as table:
            about = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            features = about.get("info", {}).get("features", {})
            classes = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
            for batch in table.iter_batches(64):
                for row in batch.to_pylist():
                    yield {name: named(cell, classes[name]) if name in classes else cell for name, cell in row.items()}
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as Parquet: {error}") from error
