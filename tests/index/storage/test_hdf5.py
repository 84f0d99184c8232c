"""Strings of a flat file are found by what they end in, whatever they are."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.index.storage.hdf5 import FlatFile, pack_strings, write_arrays

TEXT = st.text("abü/\udc80", max_size=40)


@given(st.lists(st.text("abü/", max_size=40), max_size=12), st.sets(TEXT, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_strings_are_found_in_every_row_that_holds_one(
    tmp_path_factory, stored: list[str], wanted: set[str], data: st.DataObject
) -> None:
    wanted |= set(data.draw(st.lists(st.sampled_from(stored), max_size=4))) if stored else set()
    path: Path = tmp_path_factory.mktemp("strings") / "file.h5"
    write_arrays(path, pack_strings("path", stored))
    found = FlatFile(path, remedy="-").strings("path", None).find(wanted)
    assert found == [(row, string) for row, string in enumerate(stored) if string in wanted]
