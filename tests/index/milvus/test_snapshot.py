"""Galleries in Milvus: addresses, filters as expressions, and whole galleries that answer like those in a folder.

Everything runs on milvus-lite; with DISTCAM_MILVUS_URI (`milvus://HOST:19530/any_name`) on that server too.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pymilvus", reason="Milvus needs pip install 'distcam[milvus]'")

from distcam.encoders import Encoder
from distcam.errors import (
    CorruptGalleryError,
    GalleryError,
    GalleryExistsError,
    InputError,
)
from distcam.files import Storage
from distcam.index import Gallery, parse_filter, verify_gallery
from distcam.index.backends import newest_snapshot, opened_for_writing
from distcam.index.filters.matching import Categorical, matching
from distcam.index.filters.tree import And, In, Ne, Not, Or, Range
from distcam.index.milvus.connection import TOKEN_VARIABLE, Address, connected
from distcam.index.milvus.dialect import IndexKind, compiled, key_of
from distcam.index.milvus.search import MAX_K, MilvusSearch, RowSet
from distcam.index.milvus.snapshot import MilvusSnapshot
from distcam.index.milvus.table import MAX_DIM, MilvusTable, TableSpec
from distcam.index.milvus.writer import MilvusWriter
from distcam.index.storage.manifest import BackendEntry, EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import GalleryWriter
from distcam.metrics.distances import SearchSpec

LITE = importlib.util.find_spec("milvus_lite") is not None
needs_lite = pytest.mark.skipif(not LITE, reason="needs pip install milvus-lite")


@pytest.fixture(
    scope="module",
    params=[pytest.param("lite", marks=needs_lite), pytest.param("server", marks=pytest.mark.slow)],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Addresses of collections that nobody has used yet, all on one engine."""
    if request.param == "lite":
        form = f"milvus+lite://{tmp_path_factory.mktemp('milvus') / 'rows.db'}?collection={{}}"
    elif uri := os.environ.get("DISTCAM_MILVUS_URI"):
        form = uri.rpartition("/")[0] + "/{}"
    else:
        pytest.skip("DISTCAM_MILVUS_URI names no server")
    given: list[str] = []

    def another() -> str:
        given.append(form.format(f"t{uuid.uuid4().hex}"))
        return given[-1]

    yield another
    for address in map(Address.parse, given):
        connection = connected(address)  # closes with its last user
        for name in (address.collection, f"{address.collection}_pooled"):
            if connection.client.has_collection(name):
                connection.client.drop_collection(name)
    gc.collect()


@pytest.fixture(scope="module")
def with_head() -> Encoder:
    """An encoder whose embeddings are not its pooled vectors."""
    from distcam.encoders.heads import Linear
    from distcam.images import Transform

    return Encoder.load("conv4", weights="random", head=Linear(64, 16), transform=Transform(size=64, fit="squash"))


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("milvus://10.0.0.7/photos", "milvus://10.0.0.7:19530/photos"),
        ("milvus+tls://db.example:443/main/photos", "milvus+tls://db.example:443/main/photos"),
        ("milvus://[::1]:1234/p?consistency=bounded", "milvus://[::1]:1234/p?consistency=bounded"),
        ("/tmp/a b.db", "milvus+lite:///tmp/a%20b.db"),
        ("milvus+lite:///tmp/x.db?collection=cats", "milvus+lite:///tmp/x.db?collection=cats"),
    ],
)
def test_an_address_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(Address.parse(text)) == canonical
    assert Address.parse(canonical) == Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "milvus://host",
        "milvus://host/",
        "milvus://host/a/b/c",
        "milvus://host/drop table",
        "milvus://host/x?consistency=eventual",
        "milvus://host/x?token=1",
        "milvus://host:port/x",
        "http://host/x",
        "milvus+lite:///tmp/x",
        "milvus+lite://host/x.db",
        "photos",
    ],
)
def test_an_address_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="backend"):
        Address.parse(text)


def test_a_password_in_an_address_is_refused_because_addresses_are_stored() -> None:
    with pytest.raises(InputError, match=f"{TOKEN_VARIABLE}=TOKEN@HOST"):
        Address.parse("milvus://root:secret@host/x")


def test_the_token_goes_to_the_host_it_is_for_and_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "root:p@ss@db.example")
    assert Address.parse("milvus://db.example/x").token() == "root:p@ss"
    assert Address.parse("milvus://evil.example/x").token() == ""
    monkeypatch.setenv(TOKEN_VARIABLE, "root:pass@db.example:19530")
    assert Address.parse("milvus://db.example:19530/x").token() == "root:pass"
    assert Address.parse("milvus://db.example:1/x").token() == ""
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    with pytest.raises(InputError, match="TOKEN@HOST"):
        Address.parse("milvus://db.example/x").token()


def test_a_server_that_is_not_there_is_named() -> None:
    manifest = Manifest(
        Spec("l2", 2, 2, None, True),
        EncoderEntry("f", "e"),
        "/",
        next_id=1,
        backend=BackendEntry("milvus://127.0.0.1:1/x", "o"),
    )
    with pytest.raises(GalleryError, match=r"milvus://127\.0\.0\.1:1/x.*is the server there"):
        assert MilvusSnapshot(Path(), manifest, verify=False).table


# --- Kinds of index ---------------------------------------------------------------------------------------------------


def test_factory_strings_become_milvus_kinds_of_index() -> None:
    assert IndexKind.parse("auto", count=100_000) == IndexKind.parse("flat") == IndexKind("FLAT")
    assert IndexKind.parse("auto", count=100_001).name == "HNSW"
    assert IndexKind.parse("HNSW32").build["M"] == 32
    assert IndexKind.parse("IVF64,SQ8") == IndexKind("IVF_SQ8", {"nlist": 64})
    with pytest.raises(InputError, match="with Milvus use auto, flat, HNSW"):
        IndexKind.parse("OPQ16,IVF64,PQ16")


# --- Filters ----------------------------------------------------------------------------------------------------------


def test_no_text_of_a_user_stands_in_an_expression() -> None:
    hostile = '"] or id >= 0 or array_contains(keys, [" \\'
    expression = compiled(And((Ne(hostile, "x"), In("label", (hostile, "b")), Not(Range(hostile, high=3)))))
    assert expression is not None
    assert f"array_contains_any(keys, [{key_of('label', hostile)}, {key_of('label', 'b')}])" in expression
    words = {"array_contains", "array_contains_any", "keys", "not", "and", "or", "record", "numbers"}
    left = "".join(character if character.isalnum() or character == "_" else " " for character in expression)
    assert all(word in words or word.isdigit() or word.startswith("n") for word in left.split())


def test_a_pattern_has_no_expression() -> None:
    assert compiled(parse_filter("label=a or path~'*.jpg'")) is None


_texts = st.sampled_from(["", "a", "b", "3", "-2.5", "1e3", "nan", "inf", "ä'\"\\", "x] or id >= 0", "3 "])
_columns = st.sampled_from(["label", "camera", "odd \"name'"])
_leaves = st.one_of(
    st.builds(lambda c, v: parse_filter(f"{_q(c)}={_q(v)}"), _columns, _texts),
    st.builds(lambda c, v: parse_filter(f"{_q(c)}!={_q(v)}"), _columns, _texts),
    st.builds(lambda c, v: parse_filter(f"{_q(c)} in {_q(v[0])},{_q(v[1])}"), _columns, st.tuples(_texts, _texts)),
    st.builds(
        lambda c, o, v: parse_filter(f"{_q(c)}{o}{v}"),
        _columns,
        st.sampled_from(["<", "<=", ">", ">="]),
        st.sampled_from(["3", "-2.5", "0", "1e3", "inf", "-inf"]),
    ),
)


def _q(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _trees() -> Any:
    return st.recursive(
        _leaves,
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.builds(lambda parts: And(tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda parts: Or(tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        ),
        max_leaves=5,
    )


VALUES = ["", "a", "b", "3", "-2.5", "1e3", "nan", "ä'\"\\", "x] or id >= 0", None]


@dataclasses.dataclass
class _Columns:
    columns: dict[str, list[str | None]]

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def column(self, name: str) -> Categorical:
        return Categorical.of(self.columns[name])

    def __len__(self) -> int:
        return len(VALUES) ** 2


@pytest.fixture(scope="module")
def columns(place: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[MilvusSnapshot, _Columns]:
    """A gallery with every pair of odd values in two columns, and the same columns in memory."""
    pairs = [(label, camera) for label in VALUES for camera in VALUES]
    table = _Columns(
        {
            "path": [f"{number}" for number in range(len(pairs))],
            "label": [label for label, _ in pairs],
            "camera": [camera for _, camera in pairs],
            "odd \"name'": [camera if number % 2 else label for number, (label, camera) in enumerate(pairs)],
        }
    )
    folder = tmp_path_factory.mktemp("columns")
    with _new_writer(folder, place()) as writer:
        entries = _entries({str(number): 1.0 for number in range(len(pairs))})[0]
        own = {name: values for name, values in table.columns.items() if name != "path"}
        writer.append(dataclasses.replace(entries, columns=own), _vectors(len(pairs)))
        writer.commit(complete=True)
    snapshot = newest_snapshot(folder)
    assert isinstance(snapshot, MilvusSnapshot)
    return snapshot, table


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(where=_trees())
def test_an_expression_keeps_the_rows_that_the_filter_keeps(
    columns: tuple[MilvusSnapshot, _Columns], where: Any
) -> None:
    snapshot, table = columns
    np.testing.assert_array_equal(snapshot.ids_where(where), np.flatnonzero(matching(where, table)))


# --- The search -------------------------------------------------------------------------------------------------------


def test_limits_of_milvus_are_checked_before_milvus_is_asked(place: Callable[[], str]) -> None:
    with pytest.raises(InputError, match=f"up to {MAX_DIM} numbers"):
        TableSpec(MAX_DIM + 1, "l2", None, "o")
    table = MilvusTable(Address.parse(place()), TableSpec(2, "l2", None, "o"))
    search = MilvusSearch(SearchSpec(2, "l2"), table, rows=RowSet(4, np.empty(0, np.uint64)))
    with pytest.raises(InputError, match=f"up to {MAX_K} neighbours"):
        search.search(np.ones((1, 2)), MAX_K + 1)


def test_an_index_of_another_kind_gives_the_same_answer(place: Callable[[], str]) -> None:
    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    table = MilvusTable(Address.parse(place()), TableSpec(8, "cosine", None, "o"))
    table.create()
    search = MilvusSearch(SearchSpec(8, "cosine"), table, rows=RowSet(600, np.empty(0, np.uint64)))
    table.upsert(np.arange(600), vectors)
    exact = search.search(vectors[:4], 5)
    table.reindex(IndexKind.parse("HNSW"))
    assert not table.kind.is_exact
    for hits, same in zip(search.search(vectors[:4], 5), exact, strict=True):
        np.testing.assert_array_equal(hits.ids, same.ids)
        np.testing.assert_array_equal(hits.distances, same.distances)
    table.drop()


# --- Whole galleries --------------------------------------------------------------------------------------------------


def assert_same(one: Gallery, other: Gallery) -> None:
    """Bit for bit, except for the rounding of prototypes."""
    np.testing.assert_array_equal(one.ids, other.ids)
    assert one.records(one.ids) == other.records(other.ids)
    assert one.labels == other.labels
    np.testing.assert_array_equal(one.pooled(one.ids), other.pooled(other.ids))
    np.testing.assert_array_equal(one.embeddings(one.ids), other.embeddings(other.ids))
    queries = one.embeddings(one.ids[:3])
    for where in (None, f"label={one.labels[0]}", f"not label in {one.labels[0]},{one.labels[-1]}", "path~'*1*'"):
        for hits, same in zip(one.search(queries, 7, where=where), other.search(queries, 7, where=where), strict=True):
            np.testing.assert_array_equal(hits.ids, same.ids)
            np.testing.assert_array_equal(hits.distances, same.distances)
    np.testing.assert_allclose(one.prototypes.all_pooled(), other.prototypes.all_pooled(), rtol=1e-4, atol=1e-6)


def test_a_gallery_in_milvus_lives_like_one_in_a_folder(
    place: Callable[[], str], photos: Path, with_head: Encoder, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*.jpg"))
    leaving = files[-1].parent.name
    options: dict[str, Any] = {"precision": "fp32", "metric": "l2"}
    local = Gallery.build(tmp_path / "photos", with_head, out=tmp_path / "local", **options)
    address = place()
    remote = Gallery.build(tmp_path / "photos", with_head, out=tmp_path / "remote", backend=address, **options)
    assert_same(local, remote)
    assert remote.info()["backend"] == str(Address.parse(address))
    assert not list((tmp_path / "remote").glob("segment*"))

    files[3].write_bytes(files[4].read_bytes())  # another picture under a known path
    files[5].with_name("new.jpg").write_bytes(files[6].read_bytes())
    for gallery in (local, remote):
        assert str(gallery.add(tmp_path / "photos", with_head)).startswith("1 added, 1 replaced, 23 unchanged")
        assert gallery.remove(paths=[files[0], files[8]]) == 2
        assert gallery.remove(where=f"label={leaving}") == 6
    reopened = Gallery.open(tmp_path / "remote")
    for gallery in (remote, reopened):
        assert_same(local, gallery)
        assert gallery.verify().is_sound
    remote.compact()
    assert remote.info()["removed_rows"] == 0
    assert_same(local, remote)
    with pytest.raises(InputError, match="keeps no feature maps"):
        remote.maps([int(remote.ids[0])])
    with pytest.raises(InputError, match="has its rows in Milvus; `sync` is not for them"):
        remote.sync(tmp_path / "photos")


def test_the_maps_of_a_match_are_the_same(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, small_gallery: Gallery, tmp_path: Path
) -> None:
    from distcam.retrieval import Retriever

    remote = Gallery.build(photos, small_encoder, out=tmp_path / "g", precision="fp32", backend=place())
    query = next(photos.rglob("*.jpg"))
    for against in ("match", "prototype"):
        explained = [
            Retriever(gallery, small_encoder, device="cpu").query(str(query), k=3).explain(against=against)
            for gallery in (small_gallery, remote)
        ]
        np.testing.assert_allclose(
            *(np.asarray(explanation.query_maps) for explanation in explained), rtol=1e-5, atol=1e-7
        )


def test_boxes_in_milvus_are_classified_inspected_and_drawn_as_those_of_a_folder(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.rglob("*.jpg"))[:12]
    table: dict[str, Any] = {"path": [file for file in files for _ in "ab"], "x1": [0, 20] * 12, "y1": [0, 10] * 12}
    table |= {"x2": [40, 64] * 12, "y2": [60, 64] * 12, "label": [file.parent.name for file in files for _ in "ab"]}
    options: dict[str, Any] = {"precision": "fp32", "box_margin": 0.1}
    local = Gallery.build(table, small_encoder, out=tmp_path / "local", **options)
    remote = Gallery.build(table, small_encoder, out=tmp_path / "remote", backend=place(), **options)
    asked = {key: values[:4] for key, values in table.items() if key != "label"}
    known, found = ([each.to_dict() for each in gallery.classify(asked, k=3)] for gallery in (local, remote))
    assert found == known
    assert {answer["distance"] for answer in found} == {0}  # the boxes are cut with the gallery's margin
    for question in ("duplicates", "outliers", "mislabels", "hard_negatives", "confusions"):
        known, found = (getattr(gallery, question)().to_dict() for gallery in (local, remote))
        assert found == known
    assert remote.leaks(local).to_dict()["findings"] == local.leaks(local).to_dict()["findings"]
    np.testing.assert_array_equal(remote.atlas().points, local.atlas().points)
    np.testing.assert_allclose(remote.atlas().outliers, local.atlas().outliers, rtol=1e-6)
    monkeypatch.setattr(IndexKind, "is_exact", False)
    assert "finds a share that is not known of the true neighbours" in remote.confusions().note


def test_a_collection_of_another_gallery_is_refused(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    address = place()
    Gallery.build(photos, small_encoder, out=tmp_path / "one", backend=address)
    with pytest.raises(GalleryExistsError, match="belongs to another gallery"):
        Gallery.build(photos, small_encoder, out=tmp_path / "two", backend=address)
    assert not (tmp_path / "two" / "manifest.json").exists()
    manifest = Manifest.load(tmp_path / "one")
    assert manifest.backend is not None
    for entry in (
        dataclasses.replace(manifest.backend, owner="somebody"),
        dataclasses.replace(manifest.backend, address=str(Address.parse(place()))),
    ):
        dataclasses.replace(manifest, backend=entry).save(tmp_path / "one", Storage())
        with pytest.raises(CorruptGalleryError, match=r"belongs to another gallery|there is no collection"):
            Gallery.open(tmp_path / "one")
    other = dataclasses.replace(manifest.spec, embedding_dim=7, pooled_dim=7)
    dataclasses.replace(manifest, spec=other, background=None).save(tmp_path / "one", Storage())
    with pytest.raises(CorruptGalleryError, match="vectors of 64 numbers, the gallery's have 7"):
        Gallery.open(tmp_path / "one")
    manifest.save(tmp_path / "one", Storage())
    again = Gallery.build(photos, small_encoder, out=tmp_path / "one", backend=address, overwrite=True)
    assert again.verify().is_sound


def test_feature_maps_and_kinds_that_milvus_lacks_are_refused_at_once(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="leave --store-maps out"):
        Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=place(), store_maps=True)
    with pytest.raises(InputError, match="with Milvus use"):
        Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=place(), index="PQ8")


# --- Interruptions ----------------------------------------------------------------------------------------------------

SPEC = Spec("l2", embedding_dim=2, pooled_dim=3)
Model = dict[str, float]


def _vectors(count: int, value: float = 1.0) -> RowVectors:
    return RowVectors(np.full((count, 3), value, np.float32), np.full((count, 2), value, np.float32))


def _entries(model: Model) -> tuple[Entries, RowVectors]:
    n = len(model)
    values = np.array(list(model.values()), np.float32)[:, None]
    entries = Entries(
        ids=np.zeros(n, np.uint64),
        paths=list(model),
        sha256=np.zeros((n, 32), np.uint8),
        size=np.full(n, 2**40 + 1, np.uint64),
        mtime_ns=np.full(n, 1_763_000_000_123_456_789, np.int64),
        columns={"label": [f"class {path[0]}" for path in model]},
    )
    return entries, RowVectors(np.repeat(values, 3, axis=1), np.repeat(values, 2, axis=1))


class _new_writer:
    """A writer for a new gallery in Milvus."""

    def __init__(self, folder: Path, address: str, storage: Storage | None = None) -> None:
        folder.mkdir(exist_ok=True)
        backend = BackendEntry(str(Address.parse(address)), uuid.uuid4().hex)
        manifest = Manifest(SPEC, EncoderEntry("f", "e"), "/", backend=backend)
        self.writer = MilvusWriter(folder, manifest, on_disk=None, storage=storage)
        self.writer.begin(manifest)

    def __enter__(self) -> GalleryWriter:
        return self.writer

    def __exit__(self, *_: object) -> None:
        self.writer.delete_removed_rows()


def _content(folder: Path) -> Model:
    snapshot = newest_snapshot(folder)
    if not len(snapshot):
        return {}
    vectors = snapshot.embeddings(snapshot.ids)
    np.testing.assert_array_equal(snapshot.pooled(snapshot.ids)[:, 0], vectors[:, 0])
    return dict(zip(snapshot.all_paths(), vectors[:, 0].tolist(), strict=True))


class _Killed(BaseException):
    """Stands for the end of the process."""


class _Doomed(Storage):
    """Dies before its operation number `fatal`; requests to Milvus count as operations too."""

    def __init__(self, fatal: int) -> None:
        self.left = fatal

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Killed

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        if path.exists():
            self.step()
            super().remove(path)


def _life(folder: Path, address: str, storage: _Doomed) -> Iterator[Model]:
    """A gallery grows, changes and shrinks; yields what it holds after each acknowledged step."""
    model: Model = {"a": 1.0, "b": 2.0, "c": 3.0}
    yield {}
    with _new_writer(folder, address, storage) as writer:
        writer.append(*_entries(model))
        writer.commit()
        yield dict(model)
        ids = dict(zip(model, range(3), strict=True))
        writer.append(*_entries({"b": 5.0, "d": 4.0}), replaces=[ids["b"]])
        model |= {"b": 5.0, "d": 4.0}
        writer.commit()
        yield dict(model)
    with opened_for_writing(folder, storage=storage) as writer:
        writer.remove([ids["a"]])
        del model["a"]
        writer.commit(complete=True)
        yield dict(model)
        writer.compact()
        yield dict(model)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[_Doomed], None]:
    """Lets every changing request to Milvus be one of the operations before which a writer may die."""

    def watch(storage: _Doomed) -> None:
        for name in ("create", "_send", "delete", "note_generation", "drop"):
            own = vars(MilvusTable).get(f"_true{name}") or getattr(MilvusTable, name)
            if not hasattr(MilvusTable, f"_true{name}"):
                monkeypatch.setattr(MilvusTable, f"_true{name}", own, raising=False)

            def stepping(self: MilvusTable, *args: Any, own: Any = own, **options: Any) -> Any:
                storage.step()
                return own(self, *args, **options)

            monkeypatch.setattr(MilvusTable, name, stepping)

    return watch


@needs_lite
@pytest.mark.slow
def test_a_writer_may_die_before_any_of_its_operations(tmp_path: Path, counted: Callable[[_Doomed], None]) -> None:
    file = tmp_path / "rows.db"
    steps = 1000
    fatal = 0
    while fatal < steps:
        storage = _Doomed(fatal)
        counted(storage)
        folder, address = tmp_path / f"g{fatal}", f"milvus+lite://{file}?collection=c{fatal}"
        states: list[Model] = []
        try:
            states.extend(_life(folder, address, storage))
            steps = fatal
        except _Killed:
            pass
        storage.left = 1 << 30
        if not (folder / "manifest.json").exists():
            assert len(states) <= 1
        else:
            _assert_survived(folder, states)
        fatal += 1
    assert 15 < steps < 100


def _assert_survived(folder: Path, states: list[Model]) -> None:
    manifest = Manifest.load(folder)
    found = _content(folder)
    following = {
        0: [{}],
        1: [{}, {"a": 1.0, "b": 2.0, "c": 3.0}],
        2: [states[-1], {"a": 1.0, "b": 5.0, "c": 3.0, "d": 4.0}],
        3: [states[-1], {"b": 5.0, "c": 3.0, "d": 4.0}],
    }
    assert found in following.get(len(states), [states[-1] if states else {}])
    with opened_for_writing(folder) as writer:  # the next writer sweeps up and goes on
        writer.append(*_entries({"z": 9.0}))
        writer.commit()
    assert _content(folder) == {**found, "z": 9.0}
    report = verify_gallery(folder)
    assert report.is_sound, str(report)
    snapshot = newest_snapshot(folder)
    assert isinstance(snapshot, MilvusSnapshot)
    np.testing.assert_array_equal(snapshot.table.ids_where(), snapshot.ids)
    np.testing.assert_array_equal(snapshot.table.ids_where(pooled=True), snapshot.ids)
    assert manifest.next_id <= Manifest.load(folder).next_id


def test_rows_that_come_twice_count_once(place: Callable[[], str], tmp_path: Path, monkeypatch: Any) -> None:
    """As after a crash of milvus-lite, whose log is replayed on top of what it had written."""
    with _new_writer(tmp_path / "g", place()) as writer:
        writer.append(*_entries({str(number): float(number) for number in range(40)}))
        writer.commit(complete=True)
    snapshot = newest_snapshot(tmp_path / "g")
    assert isinstance(snapshot, MilvusSnapshot)
    expected = snapshot.search().search(np.zeros((1, 2)), 8)[0]
    nearest = MilvusTable.nearest

    def doubled(self: MilvusTable, queries: Any, n: int, **options: Any) -> Any:
        for found in nearest(self, queries, n, **options):
            twice = np.repeat(np.arange(n), 2)[:n]
            yield type(found)(*(part[twice] for part in found))

    monkeypatch.setattr(MilvusTable, "nearest", doubled)
    hits = snapshot.search().search(np.zeros((1, 2)), 8)[0]
    np.testing.assert_array_equal(hits.ids, expected.ids)
    monkeypatch.undo()
    assert len(snapshot) == 40


def test_verify_names_rows_that_are_missing_or_too_many_and_repairs_them(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    address = place()
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=address)
    table = gallery.searcher._table
    table.delete(gallery.ids[:2])
    table.upsert(np.array([500], np.uint64), np.ones((1, 64), np.float32), records=[{"keys": []}])
    with pytest.raises(CorruptGalleryError, match=r"2 rows of the gallery, such as 0.*distcam index verify"):
        gallery.pooled(gallery.ids)
    report = verify_gallery(tmp_path / "g")
    assert "lacks the rows of 2 images" in str(report)
    assert "holds 1 row that the gallery does not know" in str(report)
    assert verify_gallery(tmp_path / "g", repair=True).is_sound
    assert verify_gallery(tmp_path / "g").is_sound
    again = Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=address)
    assert (len(again), again.manifest.complete) == (24, True)
    assert again.verify().is_sound


def test_an_older_copy_of_the_folder_may_read_but_not_write(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path
) -> None:
    gallery = Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=place())
    shutil.copytree(tmp_path / "g", tmp_path / "copy")
    gallery.remove(where=f"label={gallery.labels[0]}")
    copy = Gallery.open(tmp_path / "copy")
    assert len(copy) == 24
    with pytest.raises(GalleryError, match="changed up to 2 through another copy"):
        copy.remove(where=f"label={gallery.labels[1]}")
    assert gallery.verify().is_sound


def test_facts_that_need_no_rows_are_told_without_milvus(
    place: Callable[[], str], photos: Path, small_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gallery.build(photos, small_encoder, out=tmp_path / "g", backend=place())
    monkeypatch.setattr("distcam.index.milvus.table.connected", None)
    facts = Gallery.open(tmp_path / "g", verify=False).info()
    assert (facts["images"], facts["classes"], facts["prototypes_cached"]) == (24, 4, True)
    json.dumps(facts)


_BUILD = """
import sys
import torch
torch.set_num_threads(1)
from distcam.encoders import Encoder
from distcam.index.storage import writer
from distcam.index import Gallery
limits = writer.CommitLimits.__init__.__defaults__
writer.CommitLimits.__init__.__defaults__ = (8, *limits[1:])
images, encoder, out, backend = sys.argv[1:]
Gallery.build(images, Encoder.load(encoder), out=out, backend=backend, batch_size=4, precision="fp32")
"""


@needs_lite
@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_where_it_was(photos: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    for number in range(8):  # enough images that kills fall among commits
        shutil.copytree(photos, tmp_path / "photos" / str(number))
        for file in (tmp_path / "photos" / str(number)).rglob("*.jpg"):
            file.write_bytes(file.read_bytes() + bytes([number]))
    small_encoder.save(tmp_path / "encoder.safetensors")
    command = [sys.executable, "-c", _BUILD]
    arguments = [str(tmp_path / name) for name in ("photos", "encoder.safetensors", "g", "rows.db")]
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE)
        deadline, start = 60 + rng.uniform(0, 1.5), time.monotonic()
        while process.poll() is None and time.monotonic() - start < deadline:
            if deadline > 60 and (tmp_path / "g" / "manifest.json").exists():
                deadline = time.monotonic() - start + deadline - 60  # from its first commit on
            time.sleep(0.005)
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read().decode()[-2000:]
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    else:
        subprocess.run([*command, *arguments], check=True)
    assert kills > 0
    gallery = Gallery.open(tmp_path / "g")
    local = Gallery.build(tmp_path / "photos", small_encoder, out=tmp_path / "local", precision="fp32")
    assert gallery.verify().is_sound
    by_path = {record.path: record.id for record in gallery.records(gallery.ids)}
    records = local.records(local.ids)
    assert by_path.keys() == {record.path for record in records}
    same = [by_path[record.path] for record in records]
    np.testing.assert_allclose(gallery.pooled(same), local.pooled(local.ids), rtol=1e-5, atol=1e-6)
