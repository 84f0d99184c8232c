from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.deadlines import DeadlineError, finish_by
from distcam.errors import InputError
from distcam.index import And, Eq, Gallery, Glob, In, Ne, Not, Or, Range, parse_filter
from distcam.index.filters import matching as filters
from distcam.index.filters.matching import Categorical, Verdicts, hints, matching
from distcam.index.filters.tree import Filter
from distcam.index.storage.manifest import EncoderEntry, Manifest, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.snapshot import Snapshot
from distcam.index.storage.writer import GalleryWriter


class Rows:
    """A table written row by row."""

    def __init__(self, rows: list[dict[str, str]], names: tuple[str, ...] = ("path", "label", "camera")) -> None:
        self.rows = rows
        self.column_names = names

    def column(self, name: str) -> Categorical:
        return Categorical.of([row.get(name) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)


TABLE = Rows(
    [
        {"path": "cat/1.jpg", "label": "cat", "camera": "1"},
        {"path": "cat/2.jpg", "label": "cat", "camera": "2.5"},
        {"path": "dog/1.jpg", "label": "dog", "camera": "front"},
        {"path": "golden retriever/1.jpg", "label": "golden retriever"},
        {"path": "5.jpg"},
    ]
)


def _gallery(folder: Path) -> Gallery:
    """Three images, 0.jpg to 2.jpg."""
    vectors = np.eye(3, dtype=np.float32)
    manifest = Manifest(Spec("l2", 3, 3, None, True), EncoderEntry("f" * 64, "fake"), root="/photos")
    folder.mkdir()
    entries = Entries(
        ids=np.zeros(3, np.uint64),
        paths=["0.jpg", "1.jpg", "2.jpg"],
        sha256=np.zeros((3, 32), np.uint8),
        size=np.zeros(3, np.uint64),
        mtime_ns=np.zeros(3, np.int64),
        columns={"label": ["a", "b", "b"]},
    )
    writer = GalleryWriter(folder, manifest, on_disk=None)
    writer.append(entries, RowVectors(vectors, vectors))
    writer.commit(complete=True)
    return Gallery.open(folder)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("label=cat", [0, 1]),
        ("label == cat", [0, 1]),
        ("label!=cat", [2, 3, 4]),  # no label is another label
        ("label in cat,dog", [0, 1, 2]),
        ("label in cat , 'golden retriever'", [0, 1, 3]),
        ('label="golden retriever"', [3]),
        ("camera<2", [0]),
        ("camera<=2.5", [0, 1]),
        ("camera>1", [1]),
        ("camera>=1", [0, 1]),
        ("path~'cat/*'", [0, 1]),
        ("path~*/1.jpg", [0, 2, 3]),
        ("label~[cd]*", [0, 1, 2]),
        ("path=dog/1.jpg", [2]),
        ("label=cat and camera>2", [1]),
        ("label=dog or label=cat and camera>2", [1, 2]),  # "and" binds closer
        ("(label=dog or label=cat) and camera>2", [1]),
        ("not label=cat", [2, 3, 4]),
        ("not (label=cat or label=dog) and path!=5.jpg", [3]),
        ("label=unheard-of", []),
    ],
)
def test_a_filter_keeps_these_rows(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(matching(parse_filter(text), TABLE)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("label=cat", Eq("label", "cat")),
        ("a!=1 and b~x*", And((Ne("a", "1"), Glob("b", "x*")))),
        ("a in 1,2,3", In("a", ("1", "2", "3"))),
        ("a<1 or not b>=2", Or((Range("a", high=1, high_included=False), Not(Range("b", low=2))))),
        (r"'the \'best\' column'=\"", None),
        (r"'the \'best\' column'=x", Eq("the 'best' column", "x")),
        ("and=or", None),
        ("'and'='or'", Eq("and", "or")),
    ],
)
def test_a_filter_is_this_tree(text: str, tree: Filter | None) -> None:
    if tree is not None:
        assert parse_filter(text) == tree
    elif "'" in text:
        with pytest.raises(InputError):
            parse_filter(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label=golden retriever", "unexpected 'retriever'; values with spaces need quotes"),
        ("label", "expected a comparison such as = after 'label', got 'the end'"),
        ("label=", "expected a value after '=', got 'the end'"),
        ("=cat", "expected a column name, got '='"),
        ("(label=cat", "a parenthesis is not closed"),
        ("label<cat", "'<' compares numbers, got 'cat'"),
        ("label in", "expected a value after 'in'"),
        ("label='cat", "cannot read"),
        ("", "expected a column name, got 'the end'"),
        ("not " * 100 + "a=1", "nested more than 50 deep"),
        ("(" * 100 + "a=1", "nested more than 50 deep"),
    ],
)
def test_a_text_that_is_no_filter_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse_filter(text)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"no column 'lable' in this gallery, did you mean 'label'.*path, label, camera"
    ):
        matching(parse_filter("lable=cat"), TABLE)


def test_an_empty_table_has_no_matches() -> None:
    assert matching(parse_filter("label=cat and not path~*"), Rows([])).tolist() == []


def _holds(where: Filter, row: dict[str, str]) -> bool:
    """The slow oracle: one row at a time, straight from the definitions."""
    match where:
        case And(parts):
            return all(_holds(part, row) for part in parts)
        case Or(parts):
            return any(_holds(part, row) for part in parts)
        case Not(part):
            return not _holds(part, row)
        case Eq(column, value):
            return row.get(column) == value
        case Ne(column, value):
            return row.get(column) != value
        case In(column, values):
            return row.get(column) in values
        case Range(column, low, high, low_included, high_included):
            try:
                number = float(row.get(column, "none"))
            except ValueError:
                return False
            return (low < number or (low_included and low == number)) and (
                number < high or (high_included and number == high)
            )
    raise AssertionError(where)


_columns = st.sampled_from(["path", "label", "camera"])
_values = st.sampled_from(["1", "2", "3.5", "cat", "", "nan"])
_numbers = st.sampled_from([0.0, 1.0, 2.0, 3.5])
_leaves: st.SearchStrategy[Any] = (
    st.builds(Eq, _columns, _values)
    | st.builds(Ne, _columns, _values)
    | st.builds(In, _columns, st.lists(_values, max_size=3).map(tuple))
    | st.builds(Range, _columns, _numbers, _numbers, st.booleans(), st.booleans())
)
_trees = st.recursive(
    _leaves,
    lambda inner: (
        st.builds(And, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Or, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Not, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(where=_trees, rows=st.lists(st.dictionaries(_columns, _values), max_size=6))
def test_evaluating_columns_agrees_with_evaluating_rows(where: Filter, rows: list[dict[str, str]]) -> None:
    assert matching(where, Rows(rows)).tolist() == [_holds(where, row) for row in rows]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label=cat", []),
        ("label=Cat", ["no image has label 'Cat'; did you mean 'cat'?"]),
        ("label in cat,dogs", ["no image has label 'dogs'; did you mean 'dog'?"]),
        ("not (label=dogs or label=dogs)", ["no image has label 'dogs'; did you mean 'dog'?"]),
        ("camera=zoo", ["no image has camera 'zoo'; there are 1, 2.5, front"]),
        ("label!=dogs and label~'dogs*' and camera>17", []),
        ("label>3", ["no image has a number as its label, which a range is of; there are cat, dog, golden retriever"]),
    ],
)
def test_a_value_that_no_image_has_is_told_with_the_nearest(text: str, said: list[str]) -> None:
    assert hints(text, TABLE) == said


# --- Filters from strangers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" or ".join(["path~'*'"] * 33), "holds 33 comparisons, up to 32 are allowed; `label in a,b,c` is one"),
        (" and ".join(f"label={number}" for number in range(181)), "holds 181 comparisons"),
        ("not (" * 20 + " or ".join(["label=cat"] * 40) + ")" * 20, "holds 40 comparisons"),
        ("path~'" + "*a" * 17 + "'", "a pattern may hold up to 16 stars, this one has 17"),
    ],
)
def test_a_text_may_ask_for_so_much_work_and_no_more(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_filter(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Eq("label", 3), "columns and values are text, write '3' for 3"),
        (lambda: Ne("label", None), "write 'None' for None"),
        (lambda: Eq(3, "a"), "write '3' for 3"),
        (lambda: In("label", "cat"), "expected several texts, got 'cat'"),
        (lambda: In("label", [1, 2]), "write '1' for 1"),
        (lambda: Glob("path", None), "columns and values are text"),
        (lambda: Range("camera", low="3"), "a bound is a number, got '3'"),
        (lambda: Range("camera", high=float("nan")), "a bound is a number, got nan"),
        (lambda: Not("label=cat"), "combines filters, got 'label=cat'"),
        (lambda: And(("label=cat",)), "combines filters, got 'label=cat'"),
        (lambda: Or(Eq("label", "cat")), "expected several filters"),
        (lambda: hints({"label": "cat"}, TABLE), "a filter is text such as"),
        (lambda: parse_filter("camera>nan"), "compares numbers, got 'nan'"),
    ],
)
def test_what_would_fit_nothing_in_silence_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_lists_of_values_and_of_filters_are_as_good_as_tuples() -> None:
    assert matching(And([In("label", ["cat", "cow"]), Eq("camera", "1")]), TABLE).tolist() == [True, *4 * [False]]


@pytest.mark.parametrize("where", [5, b"label=a", ["label=a"], {"label": "a"}, lambda record: True])
def test_a_gallery_asked_with_something_else_than_a_filter_says_so(tmp_path: Path, where: Any) -> None:
    gallery = _gallery(tmp_path / "g")
    for ask in (gallery.ids_where, gallery.filter_hints, lambda other: gallery.search(np.eye(3)[:1], 1, where=other)):
        with pytest.raises(InputError, match="a filter is text such as"):
            ask(where)


def test_a_list_of_values_and_a_tree_of_ones_own_may_be_as_long_as_they_like() -> None:
    assert len(parse_filter("label in " + ",".join(map(str, range(5000)))).values) == 5000  # type: ignore[union-attr]
    assert matching(Or(tuple(Eq("label", str(number)) for number in range(100))), TABLE).tolist() == [False] * 5


def test_equal_comparisons_are_evaluated_once_and_remembered_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Filter] = []
    predicate = filters._predicate
    monkeypatch.setattr(filters, "_predicate", lambda where: asked.append(where) or predicate(where))
    where = parse_filter("path~'cat*' or not path~'cat*' or (path~'cat*' and label=cat)")
    verdicts = Verdicts(max_bytes=2)
    assert matching(where, TABLE, verdicts).all()
    assert matching(where, TABLE, verdicts).all()
    assert asked == [Glob("path", "cat*"), Eq("label", "cat")]
    matching(Eq("label", "dog"), TABLE, verdicts)  # the oldest makes room
    assert verdicts.nbytes == 2
    assert matching(Glob("path", "cat*"), TABLE, verdicts).tolist() == [True, True, False, False, False]
    assert len(asked) == 4


def test_the_columns_of_a_gallery_are_read_once_for_all_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = _gallery(tmp_path / "g")
    reads = []
    all_paths = Snapshot.all_paths
    monkeypatch.setattr(Snapshot, "all_paths", lambda self: reads.append(1) or all_paths(self))
    for _ in range(3):
        assert gallery.ids_where("path~'*1*' or path~'*2*' or path~'*1*'").tolist() == [1, 2]
    assert len(reads) == 1
    assert gallery.filter_hints("label=B") == ["no image has label 'B'; did you mean 'b'?"]


@pytest.mark.parametrize("ask", ["search", "ids_where"])
def test_a_deadline_ends_a_filter_and_only_in_its_block(tmp_path: Path, ask: str) -> None:
    gallery = _gallery(tmp_path / "g")
    query = gallery.embeddings([0])

    def work() -> Any:
        return gallery.search(query, 1, where="path~'*1*'") if ask == "search" else gallery.ids_where("path~'*1*'")

    with pytest.raises(DeadlineError, match="a shorter filter"), finish_by(time.monotonic() - 1):
        work()
    with finish_by(time.monotonic() + 60):
        assert len(work()) == 1
    with ThreadPoolExecutor(1) as pool, finish_by(time.monotonic() - 1):
        assert len(pool.submit(work).result()) == 1  # another thread has its own


def _nested(wrap: Callable[[Filter], Filter], depth: int) -> Filter:
    where: Filter = Eq("label", "cat")
    for _ in range(depth):
        where = wrap(where)
    return where


WRAPS: list[Callable[[Filter], Filter]] = [
    Not,
    lambda where: And((where, Ne("label", "dog"))),
    lambda where: Or((where,)),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_tree_that_python_nests_very_deep_is_refused_in_one_line(
    wrap: Callable[[Filter], Filter],
) -> None:
    with pytest.raises(InputError, match="nested more than 128 deep; And and Or take any number of parts"):
        _nested(wrap, 100_000)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_deepest_tree_can_be_evaluated_printed_hashed_and_looked_through(wrap: Callable[[Filter], Filter]) -> None:
    where = _nested(wrap, 128)

    assert matching(where, TABLE).tolist() == matching(Eq("label", "cat"), TABLE).tolist()
    assert hints(where, TABLE) == []
    assert where == _nested(wrap, 128)
    assert hash(where) == hash(_nested(wrap, 128))
    assert len(repr(where)) > 128
