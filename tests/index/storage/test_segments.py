from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import CorruptGalleryError, DistcamError
from distcam.index.filters.matching import Categorical
from distcam.index.storage.hdf5 import FlatFile, pack_strings, write_arrays
from distcam.index.storage.manifest import Spec
from distcam.index.storage.segments import (
    Entries,
    RowVectors,
    Segment,
    located,
    pack_maps,
    stored_path,
    unpack_maps,
    write_segment,
)

SPEC = Spec("cosine", embedding_dim=4, pooled_dim=6, map_shape=(2, 3))


def _entries(n: int, **columns: list[str | None]) -> Entries:
    return Entries(
        ids=np.arange(10, 10 + n, dtype=np.uint64),
        paths=[f"klasse/{row} ü.jpg" for row in range(n)],
        sha256=np.arange(32 * n, dtype=np.uint8).reshape(n, 32),
        size=np.arange(n, dtype=np.uint64) + 2**40,
        mtime_ns=np.arange(n, dtype=np.int64) - 1,
        columns={"label": ["cat", None, "dog", "cat", None][:n], **columns},
    )


def _vectors(n: int, seed: int = 0) -> RowVectors:
    rng = np.random.default_rng(seed)
    maps, scale = pack_maps(rng.random((n, 6, 2, 3), np.float32))
    return RowVectors(rng.random((n, 6), np.float32), rng.random((n, 4), np.float32), maps, scale)


def _write(path: Path, n: int = 5, spec: Spec = SPEC) -> RowVectors:
    vectors = _vectors(n)
    write_segment(path, _entries(n, camera=["1", "2", None, "2", "3"]), [vectors], spec=spec)
    return vectors


# --- What goes in comes out -------------------------------------------------------------------------------------------


def test_a_segment_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = _write(tmp_path / "s.h5")
    segment = Segment(tmp_path / "s.h5", spec=SPEC, count=5)
    entries = segment.entries(np.arange(5))
    expected = _entries(5, camera=["1", "2", None, "2", "3"])
    assert entries.paths == expected.paths
    assert entries.columns == expected.columns
    for name in ("ids", "sha256", "size", "mtime_ns"):
        np.testing.assert_array_equal(getattr(entries, name), getattr(expected, name))
    vectors = segment.vectors(np.arange(5))
    for name in ("pooled", "embedding", "maps", "map_scale"):
        np.testing.assert_array_equal(getattr(vectors, name), getattr(written, name))
    some = segment.vectors(np.array([3, 1]))
    np.testing.assert_array_equal(some.embedding, written.embedding[[3, 1]])


def test_what_was_read_is_the_callers_own_and_an_open_file_outlives_its_name(tmp_path: Path) -> None:
    written = _write(tmp_path / "s.h5")
    segment = Segment(tmp_path / "s.h5", spec=SPEC, count=5)
    (tmp_path / "s.h5").unlink()
    segment.pooled[np.array([0])][:] = 1
    np.testing.assert_array_equal(segment.pooled, written.pooled)


@pytest.mark.parametrize("rows", [[3], [0, 1, 2], [4, 0, 4], [1, 3], [], [2, 2]])
def test_rows_are_those_of_the_array_in_any_order(tmp_path: Path, rows: list[int]) -> None:
    array = np.arange(5 * 40_000, dtype="<f4").reshape(5, -1)  # rows so far apart that each is read by itself
    write_arrays(tmp_path / "a.h5", {"wide": array, "flat": array[:, 7].copy()})
    file = FlatFile(tmp_path / "a.h5", remedy="-")
    for name, truth in (("wide", array), ("flat", array[:, 7])):
        stored = file.array(name, "<f4", truth.shape)
        np.testing.assert_array_equal(stored[np.array(rows, np.int64)], truth[rows])
        np.testing.assert_array_equal(stored[1:4], truth[1:4])
        np.testing.assert_array_equal(stored[-1], truth[-1])
        out = np.full_like(truth, -1)
        stored.fill(out if out.ndim > 1 else out[:, None], [4, 0], [1, 2])
        np.testing.assert_array_equal(out[[4, 0]], truth[[1, 2]])
        with pytest.raises(IndexError):
            stored[np.array([5])]


def test_an_embedding_that_is_the_pooled_vector_is_stored_once(tmp_path: Path) -> None:
    spec = Spec("cosine", embedding_dim=6, pooled_dim=6, embedding_is_pooled=True)
    pooled = _vectors(5).pooled
    write_segment(tmp_path / "s.h5", _entries(5), [RowVectors(pooled, pooled)], spec=spec)
    segment = Segment(tmp_path / "s.h5", spec=spec, count=5)
    assert "embedding" not in segment.file.names
    assert segment.embedding is segment.pooled
    vectors = segment.vectors(np.array([2]))
    assert vectors.embedding is vectors.pooled


def test_blocks_of_vectors_are_written_one_after_another(tmp_path: Path) -> None:
    blocks = [_vectors(2, seed=1), _vectors(1, seed=2), _vectors(2, seed=3)]
    write_segment(tmp_path / "s.h5", _entries(5), iter(blocks), spec=SPEC)
    segment = Segment(tmp_path / "s.h5", spec=SPEC, count=5)
    np.testing.assert_array_equal(segment.embedding, np.concatenate([block.embedding for block in blocks]))
    assert segment.maps(np.array([2])).shape == (1, 6, 2, 3)


def test_all_columns_may_be_empty(tmp_path: Path) -> None:
    entries = Entries.cat([_entries(1), _entries(1)])
    write_segment(tmp_path / "s.h5", Entries(**{**vars(entries), "columns": {}}), [_vectors(2)], spec=SPEC)
    assert Segment(tmp_path / "s.h5", spec=SPEC, count=2).columns["label"].strings() == [None, None]


def test_joined_entries_have_the_columns_of_all_parts() -> None:
    joined = Entries.cat([_entries(1, camera=["a"]), _entries(2, day=["b", None])])
    assert joined.columns == {"label": ["cat", "cat", None], "camera": ["a", None, None], "day": [None, "b", None]}


@settings(max_examples=40, deadline=None)
@given(strings=st.lists(st.none() | st.text(max_size=5).filter(lambda s: s.isprintable()), max_size=8))
def test_a_categorical_column_is_the_list_it_was_made_of(strings: list[str | None]) -> None:
    column = Categorical.of(strings)
    assert column.strings() == strings
    assert [column[row] for row in range(len(column))] == strings


@settings(max_examples=30, deadline=None)
@given(strings=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6))
def test_packed_strings_are_the_strings(tmp_path_factory: pytest.TempPathFactory, strings: list[str]) -> None:
    path = tmp_path_factory.mktemp("strings") / "f.h5"
    write_arrays(path, pack_strings("s", strings))
    packed = FlatFile(path, remedy="-").strings("s", len(strings))
    assert list(packed) == strings
    assert [packed[row] for row in range(len(packed))] == strings


@settings(max_examples=30, deadline=None)
@given(magnitude=st.floats(1e-20, 1e20), seed=st.integers(0, 99))
def test_maps_keep_half_precision_whatever_their_scale(magnitude: float, seed: int) -> None:
    maps = (np.random.default_rng(seed).standard_normal((2, 3, 4, 4)) * magnitude).astype(np.float32)
    packed, scale = pack_maps(maps)
    np.testing.assert_allclose(unpack_maps(packed, scale), maps, rtol=2**-10, atol=magnitude * 1e-8)


def test_a_map_of_zeros_stays_zero() -> None:
    assert not unpack_maps(*pack_maps(np.zeros((1, 2, 3, 3), np.float32))).any()


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("/photos/cat/1.jpg", "cat/1.jpg"),
        ("/photos/../photos/./cat//1.jpg", "cat/1.jpg"),
        ("/photos2/1.jpg", "/photos2/1.jpg"),
        ("/photos/../1.jpg", "/1.jpg"),
    ],
)
def test_paths_are_relative_under_the_root_and_absolute_elsewhere(file: str, path: str) -> None:
    assert stored_path(file, Path("/photos")) == path


def test_a_root_behind_a_link_is_the_same_root(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert stored_path(tmp_path / "link" / "a.jpg", tmp_path / "real") == "a.jpg"
    assert stored_path(tmp_path / "real" / "a.jpg", tmp_path / "link") == "a.jpg"


def test_a_stored_path_never_leads_out_of_the_root() -> None:
    assert located("a/b.jpg", Path("/photos")) == Path("/photos/a/b.jpg")
    with pytest.raises(CorruptGalleryError, match="leads out of /photos"):
        located("../../etc/passwd", Path("/photos"))


# --- Hostile files ----------------------------------------------------------------------------------------------------


def _replace(name: str, make: Callable[[Any, str], None]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        make(file, name)

    return change


def _external_storage(file: Any, name: str) -> None:
    file.create_dataset(name, shape=(5, 6), dtype="<f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: Any, name: str) -> None:
    layout = h5py.VirtualLayout(shape=(5, 6), dtype="<f4")
    layout[...] = h5py.VirtualSource("other.h5", "pooled", shape=(5, 6))
    file.create_virtual_dataset(name, layout)


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return _replace(name, lambda file, name: file.create_dataset(name, data=value))


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "external link": (
        _replace("pooled", lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/"))),
        "pooled is a link to somewhere else",
    ),
    "soft link": (
        _replace("pooled", lambda file, name: file.__setitem__(name, h5py.SoftLink("/embedding"))),
        "pooled is a link to somewhere else",
    ),
    "external raw storage": (_replace("pooled", _external_storage), "takes its data from another file"),
    "virtual dataset": (_replace("pooled", _virtual), "takes its data from another file"),
    "group": (_replace("pooled", lambda file, name: file.create_group(name)), "pooled is not a dataset"),
    "compressed": (
        _replace("pooled", lambda file, name: file.create_dataset(name, (5, 6), "<f4", compression="gzip")),
        "is chunked or compressed",
    ),
    "chunked": (
        _replace("pooled", lambda file, name: file.create_dataset(name, (5, 6), "<f4", chunks=(1, 6))),
        "is chunked or compressed",
    ),
    "never written": (
        _replace("pooled", lambda file, name: file.create_dataset(name, (5, 6), "<f4")),
        "more than the file holds",
    ),
    "4 TiB that are not there": (
        _replace("pooled", lambda file, name: file.create_dataset(name, (2**38, 6), "<f4")),
        "more than the file holds",
    ),
    "wrong type": (_set("pooled", np.zeros((5, 6), np.float64)), "should be float32 of 5×6, is float64 of 5×6"),
    "strings of variable length": (_set("pooled", ["a"] * 5), "has the type object"),
    "big-endian": (_set("pooled", np.zeros((5, 6), ">f4")), "has the type >f4"),
    "wrong length": (_set("pooled", np.zeros((4, 6), np.float32)), "should be float32 of 5×6"),
    "wrong rank": (_set("pooled", np.zeros(30, np.float32)), "should be float32 of 5×6"),
    "scalar": (_set("pooled", np.float32(1)), "should be float32 of 5×6"),
    "missing": (lambda file: file.__delitem__("pooled"), "holds no pooled"),
    "unknown dataset": (
        lambda file: file.create_dataset("extra", data=np.zeros(3)),
        "holds extra, which no segment has",
    ),
    "odd name": (lambda file: file.create_dataset("../up", data=np.zeros(3)) and None, "holds"),
    "text that is no text": (_set("path_blob", np.full(75, 255, np.uint8)), "path holds text that is not UTF-8"),
    "offsets out of order": (
        _set("path_offsets", np.array([0, 15, 14, 45, 60, 75], "<u8")),
        "path_offsets do not cut path_blob",
    ),
    "offsets beyond the text": (
        _set("path_offsets", np.array([0, 15, 30, 45, 60, 2**63], "<u8")),
        "path_offsets do not cut path_blob",
    ),
    "codes without a value": (_set("column_0_codes", np.full(5, 7, "<i4")), "column_0_codes point outside"),
    "columns of one name": (
        lambda file: [_set(name, value)(file) for name, value in pack_strings("column_names", ["label"] * 2).items()],
        "column names are not unique",
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_segment_is_refused_by_name(tmp_path: Path, attack: str) -> None:
    change, message = HOSTILE[attack]
    _write(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        change(file)
    with pytest.raises(CorruptGalleryError, match=message) as caught:
        Segment(tmp_path / "s.h5", spec=SPEC, count=5).entries(np.arange(5))
    assert str(tmp_path / "s.h5") in str(caught.value)
    assert "build the gallery again" in str(caught.value)


def test_cut_files_are_refused_or_keep_every_byte(tmp_path: Path) -> None:
    _write(tmp_path / "s.h5")
    whole = (tmp_path / "s.h5").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        with pytest.raises(CorruptGalleryError):
            Segment(tmp_path / "cut.h5", spec=SPEC, count=5)


def test_changed_bits_raise_our_error_or_nothing(tmp_path: Path) -> None:
    """Wrong numbers are the checksum's business; here it is that nothing else than our error comes out."""
    _write(tmp_path / "s.h5")
    whole = (tmp_path / "s.h5").read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[position] ^= 1 << rng.integers(8)
        (tmp_path / "flipped.h5").write_bytes(changed)
        try:
            segment = Segment(tmp_path / "flipped.h5", spec=SPEC, count=5)
            segment.entries(np.arange(5))
            segment.vectors(np.arange(5))
        except DistcamError:
            pass


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "s.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "s.h5")
    (tmp_path / "folder.h5").mkdir()
    for name in ("link.h5", "folder.h5"):
        with pytest.raises(CorruptGalleryError, match="is not a plain file"):
            Segment(tmp_path / name, spec=SPEC, count=5)
    with pytest.raises(FileNotFoundError):
        Segment(tmp_path / "nothing.h5", spec=SPEC, count=5)
