"""Sources of a listing other than folders: tables in memory, data sets, arrays, URLs, archives of images.

Images that are no files are written once into a folder, under their checksums: their own bytes where there are some.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...errors import ImageError, InputError, MissingExtraError
from ...files import replacing
from ...remarks import refusing, remark
from ..geometry import as_rgb
from ..image_sources import Source, TableSource, source_of
from ..loading import IMAGE_SUFFIXES
from ..tables import TABLE_SUFFIXES, RowTable, TableFormat, missing_column, rows_of
from .archives import in_archives, named, sample_of
from .arrays import INTENSITIES, image_of_array, is_array, is_of_floats
from .remote import fetch, is_url

IMAGE_KINDS = "a path, URL, Pillow image, array (rows, columns, 3), tensor (3, rows, columns), or the bytes of a file"
_ACCEPTED = (
    "a folder, image, pattern, CSV or Parquet file, tar files, or a URL; a sequence of paths, URLs, Pillow images, "
    "arrays, tensors or bytes; (images, labels); a DataFrame or mapping of columns, `path` or `image` among them; or a "
    "data set of torch, torchvision or Hugging Face"
)
_IMAGE_COLUMNS = ("path", "image", "img", "bytes", "url")
_TYPES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"GIF8", ".gif"), (b"BM", ".bmp"))
_AT_ONCE, _THREADS = 64, 8
_Row = Mapping[str, Any]


def given_source(
    source: Any, labels: Any = None, *, keep: str | os.PathLike[str] | None, strict: bool, is_cut: bool = False
) -> Source:
    """The source that `list_images` describes; `labels` are a sequence, or None; `is_cut` see `quiet_listing`.

    Raises:
        InputError: the source is nothing of the kind, or holds images that are no files and `keep` is None.
    """
    rows: Iterator[_Row] | None = None
    base = Path.cwd()
    if labels is None and isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        if is_url(source):
            rows = iter([{"image": source}])
        elif (found := in_archives(name)) is not None or (found := _table_of_urls(Path(name))) is not None:
            name, (base, rows) = Path(name).name, found
    else:
        if labels is not None and not _is_collection(source):
            raise InputError(f"expected labels in a sequence beside a sequence of images; got {kind_of(source)}")
        name, given = _rows_of(source if labels is None else (source, labels))
        rows = iter(given)
        first = next(rows, {})
        if not _is_bare_path(first):
            rows = chain([first] if first else [], rows)
        elif all(map(_is_bare_path, listed := [first, *rows])):
            source, rows = [row["image"] for row in listed], None
        else:
            rows = iter(listed)
    if rows is None:
        return source_of(source, strict=strict, is_cut=is_cut)
    folder = None if keep is None else Path(os.path.abspath(keep))  # noqa: PTH100  (as `source_of`)
    with refusing() if strict else nullcontext():
        table = _Rows(name, base, folder, strict=strict).table(rows)
    return TableSource.read(table, strict=strict, is_cut=is_cut)


def is_given(source: Any) -> bool:
    """True of what is no file or folder as it stands: objects, URLs, archives of images."""
    return not isinstance(source, (str, os.PathLike)) or is_url(source) or in_archives(os.fspath(source)) is not None


def kind_of(value: object) -> str:
    """A value's type in words, with its shape if it has one."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{kind} {tuple(getattr(value, 'shape', ()))}" if is_array(value) else kind


def _table_of_urls(table: Path) -> tuple[Path, Iterator[_Row]] | None:
    """The folder and the lines of a CSV file whose first paths are URLs, or some of them."""
    if table.suffix.lower() not in TABLE_SUFFIXES or not table.is_file():
        return None
    form = TableFormat.of(table)
    is_of_urls = any(is_url(row["path"]) for _, row in islice(rows_of(table, form=form, left_out={}), _AT_ONCE))
    return (table.absolute().parent, (row for _, row in rows_of(table))) if is_of_urls else None


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and not is_url(value)


def _is_bare_path(row: _Row) -> bool:
    return list(row) == ["image"] and _is_path(row["image"])


def _is_image(value: object) -> bool:
    """True of one Pillow image, and of the bytes of a file."""
    return isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "getbands")


def _is_collection(value: object) -> bool:
    """True of what holds one thing for each image."""
    is_one = isinstance(value, (str, os.PathLike, Mapping)) or _is_image(value)
    return not is_one and hasattr(value, "__len__") and getattr(value, "ndim", 1) in (1, 4)


def _rows_of(source: Any) -> tuple[str, Iterable[_Row]]:
    """A name for a source in memory, and its rows: cells by column, or `image` and perhaps `label`."""
    if hasattr(source, "batch_sampler"):
        raise InputError("a DataLoader gives batches for training; expected its data set, loader.dataset")
    if isinstance(source, Mapping) and any(hasattr(value, "cast_column") for value in source.values()):
        raise InputError(f"expected one split of a data set; got {', '.join(map(repr, source))}: choose one of them")
    if hasattr(source, "cast_column"):
        return "the data set", _of_hugging_face(source)
    if (columns := _columns_of(source)) is not None:
        name = "the mapping" if isinstance(source, Mapping) else "the DataFrame"
        if len({len(column) for column in columns.values()}) > 1:
            lengths = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
            raise InputError(f"{name}: expected columns of one length; got {lengths}")
        return name, (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    if isinstance(source, tuple) and len(source) == 2 and all(map(_is_collection, source)):
        images, labels = map(list, source)
        if len(images) != len(labels):
            raise InputError(f"expected a label for each image; got {len(images)} images and {len(labels)} labels")
        return "(images, labels)", _of_items(zip(images, labels, strict=True))
    if _is_image(source) or (is_array(source) and source.ndim in (2, 3)):
        return "the given image", [{"image": source}]
    if isinstance(source, Mapping) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise InputError(f"expected {_ACCEPTED}; got {kind_of(source)}")
    return "the sequence" if isinstance(source, Sequence) or is_array(source) else "the data set", _of_items(source)


def _columns_of(source: Any) -> dict[str, Any] | None:
    """The columns of a table, each a list; None of what is no table."""
    if isinstance(source, Mapping):
        return dict(source) if source and all(map(_is_collection, source.values())) else None
    if type(source).__name__ == "LazyFrame":
        source = source.collect()
    if set(_IMAGE_COLUMNS) & set(getattr(getattr(source, "index", None), "names", ())):
        source = source.reset_index()
    is_frame = hasattr(source, "columns") and hasattr(source, "dtypes") and hasattr(source, "__getitem__")
    if not is_frame and not hasattr(source, "to_pydict"):
        if not any(hasattr(source, way) for way in ("__arrow_c_stream__", "__dataframe__")) or hasattr(source, "dtype"):
            return None
        source = _arrow_table(source)
    names = list(source.columns if is_frame else source.column_names)
    if twice := [name for name, count in Counter(map(str, names)).items() if count > 1]:
        raise InputError(f"the DataFrame: expected every column once; got {twice[0]!r} more than once")
    return {str(name): source[name].to_list() if is_frame else source[name].to_pylist() for name in names}


def _arrow_table(source: Any) -> Any:
    try:
        import pyarrow
        from pyarrow.interchange import from_dataframe
    except ImportError as error:
        raise MissingExtraError(f"{kind_of(source)} is read by pyarrow: pip install 'distcam[parquet]'") from error
    try:
        return pyarrow.table(source) if hasattr(source, "__arrow_c_stream__") else from_dataframe(source)
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"expected {_ACCEPTED}; got {kind_of(source)} ({error})") from error


def _of_hugging_face(data: Any) -> Iterator[_Row]:
    """Rows with images as the files or bytes that they are, and classes by name."""
    features, data = data.features or {}, data.with_format(None)
    for name, feature in features.items():
        if type(feature).__name__ == "Image":
            data = data.cast_column(name, type(feature)(decode=False))
    classes = {name: feature.names for name, feature in features.items() if hasattr(feature, "int2str")}
    for row in data:
        yield {name: named(cell, classes.get(name)) for name, cell in row.items()}


def _of_items(source: Any) -> Iterator[_Row]:
    """Rows of a sequence or data set whose items are images, (image, label), or mappings."""
    whole, chosen = source, None
    while hasattr(whole, "indices") and hasattr(whole, "dataset"):  # a Subset of torch
        chosen = whole.indices if chosen is None else [whole.indices[i] for i in chosen]
        whole = whole.dataset
    samples = getattr(whole, "samples", None)
    classes = getattr(whole, "classes", None) if getattr(whole, "target_transform", None) is None else None
    items: Iterable[Any] = source
    if isinstance(samples, list) and samples and _is_path(samples[0][0]):
        if getattr(whole, "transform", None) is not None:
            remark("the data set's own transform is not used: images are read from their files as the encoder does")
        items = samples if chosen is None else (samples[i] for i in chosen)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        items = (source[i] for i in range(len(source))) if not hasattr(source, "to_list") else source.to_list()
    for item in items:
        if isinstance(item, Mapping):
            yield from sample_of(item) if "__key__" in item else [item]
        elif isinstance(item, (tuple, list)) and len(item) == 2:
            yield {"image": item[0], "label": named(item[1], classes)}
        else:
            yield {"image": item[0] if isinstance(item, (tuple, list)) and len(item) == 1 else item}


class _Rows:
    """Rows on their way to a table; images that are no files are written into the folder `keep`."""

    def __init__(self, name: str, base: Path, keep: Path | None, *, strict: bool) -> None:
        self.name, self.base, self.keep, self.strict = name, base, keep, strict
        self._problems: list[tuple[str, str]] = []
        self._times: Counter[str] = Counter()  # that an image came, by its checksum
        self._textless: Counter[str] = Counter()  # cells, by column

    def table(self, rows: Iterable[_Row]) -> RowTable:
        """The table of all rows; an image that cannot be had is a problem of the table."""
        rest, found, column, count, floats = iter(rows), list[dict[str, str]](), "", 0, 0
        with ThreadPoolExecutor(_THREADS) as threads:
            while batch := list(islice(rest, _AT_ONCE)):
                column = column or self._image_column(batch[0])
                images = [row.get(column) for row in batch]
                floats += sum(map(is_of_floats, images))
                for row, image, content in zip(batch, images, threads.map(_content, images), strict=True):
                    others = {name: cell for name, cell in row.items() if name != column}
                    found += self._cells(others, count, image, content)
                    count += 1
        if floats:
            remark(f"{floats:,} images are arrays of floats: {INTENSITIES}")
        for name, number in self._textless.items():
            remark(f"{self.name}: {number:,} cells of the column {name!r} have no text and are left out")
        labels = ["label"] if any("label" in row for row in found) else []
        header = tuple(dict.fromkeys(chain(["path", *labels], *found)))
        parent = self.keep if self.keep is not None and 0 < self._times.total() == len(found) else self.base
        cells = tuple(tuple(row.get(name, "") for name in header) for row in found)
        return RowTable(self.name, parent, header, cells, tuple(self._problems))

    def _image_column(self, row: _Row) -> str:
        if (column := next((name for name in _IMAGE_COLUMNS if name in row), None)) is not None:
            return column
        raise missing_column(self.name, "path", "image", got=list(map(str, row)))

    def _cells(self, others: _Row, number: int, image: Any, content: str | bytes | Exception) -> list[dict[str, str]]:
        """The one row of an image, or none."""
        hint = image.get("path") if isinstance(image, Mapping) else image
        where = str(hint) if is_url(hint) else f"{self.name}, item {number}"
        if isinstance(content, ImageError) and not self.strict:
            self._problems.append((where, content.reason))
            return []
        if isinstance(content, Exception):
            raise InputError(f"{where}: {getattr(content, 'reason', content)}") from content
        texts = {str(name): _text(cell) for name, cell in others.items()}
        self._textless.update(name for name, text in texts.items() if text is None)
        cells = {name: text for name, text in texts.items() if text is not None}
        if isinstance(content, str):
            return [{**cells, "path": content}]
        hint = hint if isinstance(hint, str) else ""
        return [{"source": hint or str(number), **cells, "path": str(self._written(content, hint))}]

    def _written(self, content: bytes, hint: str) -> Path:
        """The file of an image that was none; an image that comes twice gets two."""
        if self.keep is None:
            raise InputError(
                f"{self.name} holds images that are no files: Gallery.build and add keep them in the gallery's folder; "
                "list_images and load_dataset need keep=FOLDER"
            )
        suffix = next((suffix for start, suffix in _TYPES if content.startswith(start)), Path(hint).suffix.lower())
        digest = hashlib.sha256(content).hexdigest()[:32]
        self._times[digest] += 1
        copy = f"-{self._times[digest]}" if self._times[digest] > 1 else ""
        file = self.keep / f"{digest}{copy}{suffix if suffix in IMAGE_SUFFIXES else '.img'}"
        if not file.exists():
            with replacing(file) as aside:
                aside.write_bytes(content)
        return file


def _content(image: Any) -> str | bytes | Exception:
    """An image's path, or its bytes, or what is wrong with it."""
    if isinstance(image, Mapping):  # of Hugging Face
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    try:
        if is_url(image):
            return fetch(image)
        if isinstance(image, (str, os.PathLike)):
            return os.fspath(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            return bytes(image)
        if hasattr(image, "getbands") or is_array(image):
            drawn, stream = as_rgb(image) if hasattr(image, "getbands") else image_of_array(image), io.BytesIO()
            drawn.save(stream, "PNG", compress_level=3)
            return stream.getvalue()
    except (ImageError, InputError, MissingExtraError, OSError) as error:
        return ImageError("", str(error)) if isinstance(error, OSError) else error
    return "" if _text(image) == "" else InputError(f"expected an image as {IMAGE_KINDS}; got {kind_of(image)}")


def _text(cell: Any) -> str | None:
    """A cell as a table in a file has it, empty where it is missing; None of what has no text, such as an image."""
    if hasattr(cell, "tolist") and getattr(cell, "ndim", 0) < 2:
        cell = cell.tolist()
    if isinstance(cell, str):
        return cell
    if _is_image(cell) or is_array(cell) or (isinstance(cell, Mapping) and "bytes" in cell):
        return None
    with suppress(TypeError, ValueError):
        if cell is None or not bool(cell == cell):  # NaN and its kin
            return ""
    if type(cell).__name__ == "NAType":
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
