"""`list_images`: which images there are, in which order, with which labels."""

from __future__ import annotations

import errno
import os
import pickle
import random
from itertools import product
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.errors import InputError
from distcam.images import ImageRecord, image_sources, list_images
from distcam.images.image_sources import _matches
from distcam.remarks import DistcamWarning


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def paths(source: object, **options: object) -> list[str]:
    return [record.path for record in list_images(source, **options)]  # type: ignore[arg-type]


def labels(source: object, **options: object) -> list[str | None]:
    return [record.label for record in list_images(source, **options)]  # type: ignore[arg-type]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_the_order_of_the_sorted_paths(tmp_path: Path) -> None:
    names = ["a/z.jpg", "a-b/1.jpg", "a.jpg", "b/c/d.PNG", "b/c.webp", "B/x.JPEG", "é/ü.tiff", "ab/\n.gif"]
    random.Random(0).shuffle(names)
    touch(tmp_path, *names, "notes.txt", "b/Thumbs.db", "jpg")
    assert paths(tmp_path) == sorted(names)
    assert paths(str(tmp_path)) == sorted(names)


@pytest.mark.parametrize("together", [1, 2, image_sources.RUN])
def test_labels_are_the_first_sub_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(image_sources, "RUN", together)  # images of a folder that come at a time
    touch(tmp_path, "cat/1.jpg", "cat/young/2.jpg", "dog/1.jpg", "top.jpg")
    touch(tmp_path / "dog", *(files := ["2.jpg", "3.jpg", "4.jpg"]))
    assert labels(tmp_path / "dog") == [None] * 4
    for file in files:
        (tmp_path / "dog" / file).unlink()
    listing = list_images(tmp_path)
    assert listing.survey() == list(listing)
    assert [(r.path, r.label) for r in listing] == [
        ("cat/1.jpg", "cat"),
        ("cat/young/2.jpg", "cat"),
        ("dog/1.jpg", "dog"),
        ("top.jpg", None),
    ]
    assert listing.has_labels
    assert not list_images(tmp_path, labels="none").has_labels
    assert (len(listing), listing.root, listing.column_names) == (4, tmp_path, ())
    assert all(listing.file(record).is_file() for record in listing)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "d/._e.jpg")
    listing = list_images(tmp_path)
    assert [record.path for record in listing] == ["a.jpg"]
    assert listing.problems == ()


def test_links_are_followed_once_and_cannot_loop(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "x.jpg")
    root = touch(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "c").symlink_to(outside)
    (root / "d").symlink_to(outside)
    (root / "e.jpg").symlink_to(root / "a" / "1.jpg")
    listing = list_images(root)
    assert [record.path for record in listing] == ["a/1.jpg", "b/2.jpg", "c/x.jpg", "e.jpg"]
    assert listing.problems == (
        "a/self/: the same folder as a/, listed once",
        "a/up/: the same folder as the root, listed once",
        "d/: the same folder as c/, listed once",
    )


def test_what_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg", "z.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    odd = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).touch()
    real_scandir = os.scandir

    def scandir(path: os.PathLike[str]) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_images(tmp_path)
    assert [record.path for record in listing] == ["a.jpg", "z.jpg"]
    assert sorted(listing.problems) == [
        "broken.jpg: a broken link",
        r"caf\udce9.jpg: the name is not UTF-8, which galleries store; rename it",
        "locked/: folder cannot be read: Permission denied",
        f"loop.jpg: cannot be looked up: {os.strerror(errno.ELOOP)}",
        "pipe.jpg: not a regular file",
    ]


def test_a_listing_is_lazy_repeatable_and_can_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{folder}/{i}.jpg" for folder in "abc" for i in range(3)))
    visited: list[str] = []
    real_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (visited.append(Path(path).name), real_scandir(path))[1])

    listing = list_images(tmp_path)
    # is a folder, or one in the first two, named like a split? and is there an image?
    assert visited == [tmp_path.name, "a", "b", tmp_path.name, "a"]
    passes = iter(listing)
    next(passes)
    assert visited.count("b") == 1
    assert list(listing) == list(listing) == list(pickle.loads(pickle.dumps(listing)))
    assert pickle.loads(pickle.dumps(next(passes))) == ImageRecord("a/1.jpg", "a")
    assert (len(listing), len(list(listing))) == (9, 9)


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "clip.mp4")
    with pytest.raises(
        InputError, match=rf"no image in {tmp_path}; looked for the suffixes .*\.jpg .*\.webp in any case"
    ):
        list_images(tmp_path)


def test_nothing_there_is_said_with_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("gone", "", Path("gone.jpg")):
        with pytest.raises(InputError, match=rf"nothing is at .* \(in {tmp_path}\)"):
            list_images(source)


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_match_segment_by_segment_from_their_fixed_folder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "p/a/1.jpg",
        "p/a/1.png",
        "p/b/c/2.jpg",
        "p/3.jpg",
        "p/.h/4.jpg",
        "q/5.jpg",
        "p/a/notes.txt",
        "p/a/x.raw",
    )
    assert paths(f"{tmp_path}/p/**/*.jpg") == ["3.jpg", "a/1.jpg", "b/c/2.jpg"]
    assert labels(f"{tmp_path}/p/**/*.jpg") == [None, "a", "b"]
    assert paths(f"{tmp_path}/p/*.jpg") == ["3.jpg"]
    assert paths(f"{tmp_path}/p/[ab]/*") == ["a/1.jpg", "a/1.png"]  # no text files without being asked
    assert paths(f"{tmp_path}/p/**") == ["3.jpg", "a/1.jpg", "a/1.png", "b/c/2.jpg"]
    assert paths(f"{tmp_path}/p/a/*.raw") == ["x.raw"]
    assert list_images(Path(f"{tmp_path}/?/**/*.jpg")).root == tmp_path
    with pytest.raises(InputError, match=r"no image in .*jpeg"):
        list_images(f"{tmp_path}/p/*.jpeg")
    with pytest.raises(InputError, match="expected a folder before the first wildcard"):
        list_images(f"{tmp_path}/gone/*.jpg")


def test_a_pattern_opens_no_folder_that_cannot_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "cat/x/1.jpg", "dog/x/2.jpg", "cat/x/deep/3.jpg")
    visited: list[str] = []
    real_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (visited.append(Path(path).name), real_scandir(path))[1])
    assert list(list_images(f"{tmp_path}/c*/x/*.jpg")) == [ImageRecord("cat/x/1.jpg", "cat")]
    assert set(visited) == {tmp_path.name, "cat", "x"}


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "photos [2020]/1.jpg", "photos [2020]/a[1].jpg")
    assert paths(tmp_path / "photos [2020]") == ["1.jpg", "a[1].jpg"]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4),
    st.lists(st.sampled_from(["a", "*", "?", "**", "[b]", "a*"]), min_size=1, max_size=3),
)
def test_matching_agrees_with_pathlib(parts: list[str], pattern: list[str]) -> None:
    """`PurePath.match` takes `**` for `*`; so every `**` is spelled out as zero to four stars."""
    choices = [["*/" * n for n in range(5)] if part == "**" else [f"{part}/"] for part in pattern]
    spelled = {"".join(choice).strip("/") for choice in product(*choices)}
    path = PurePosixPath("/", *parts)
    expected = any(path.match(f"/{text}") if text else not parts for text in spelled if text.count("/") < 4)
    assert _matches(parts, pattern) == expected


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_keeps_its_order_and_its_other_columns(tmp_path: Path) -> None:
    file = table(
        tmp_path / "images.csv",
        "\ufefflabel,path,split,is_query,x_1\ncat,z.jpg,train,,3\n\n,a/b.jpg,test,True,\n"
        f'dog,"{tmp_path}/a,c.jpg",test,,\nfox,../up.jpg,,,\nfox,./a/../d.jpg,,,\n',
    )
    with pytest.warns(DistcamWarning, match=r"1 of 5 images in images.csv have no label, such as a/b.jpg"):
        listing = list_images(file)
    assert next(iter(listing)) == ImageRecord("z.jpg", "cat", {"split": "train", "is_query": "", "x_1": "3"})
    assert [record.path for record in listing] == ["z.jpg", "a/b.jpg", "a,c.jpg", f"{tmp_path.parent}/up.jpg", "d.jpg"]
    assert [record.label for record in listing] == ["cat", None, "dog", "fox", "fox"]
    assert listing.column_names == ("split", "is_query", "x_1")
    assert (len(listing), listing.root) == (5, tmp_path)
    assert listing.file(list(listing)[3]) == tmp_path.parent / "up.jpg"
    assert labels(file, labels="none") == [None] * 5
    assert labels(file, labels="folder") == [None, "a", None, None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "paths,label\na.jpg,x\n",
            "line 1: expected a column 'path'; got 'paths', 'label'; rename 'paths', if that is it",
        ),
        ("", "line 1: expected a column 'path'"),
        ("path,label,label\na.jpg,x,y\n", "line 1: expected every column once; got 'label' twice"),
        ("path,label\nb.jpg\nc.jpg,y,z\n", "line 2: expected 2 cells; got 1"),
        ("path,label\n,x\n", "line 2: expected a path; got an empty cell"),
        ('path\na.jpg\n"b.jpg\n', "line 3 or after: expected comma-separated values; unexpected end of data"),
        ("path,label\n", "no image in .*: it is empty"),
    ],
)
def test_a_table_with_a_mistake_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_images(table(tmp_path / "images.csv", text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.jpg", "line 3: expected 2 cells; got 1"),
        ("c.jpg,y,z", "line 3: expected 2 cells; got 3"),
        (",y", "line 3: expected a path; got an empty cell"),
        ("./a.jpg,x", "line 3: 'a.jpg' is in line 2 already"),
        ("a.jpg,other", "line 3: 'a.jpg' is in line 2 already"),
    ],
)
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_line_that_cannot_be_used_costs_only_itself(tmp_path: Path, kind: str, line: str, message: str) -> None:
    file = table(tmp_path / "images.csv", f"path,label\na.jpg,x\n{line}\nb.jpg,y\n")
    touch(tmp_path, "a.jpg", "b.jpg")
    options = {"labels": file} if kind == "labels" else {}
    source = tmp_path if kind == "labels" else file
    with pytest.warns(DistcamWarning, match=f"1 of 3 lines of images.csv cannot be used and are left out.*{message}"):
        listing = list_images(source, **options)
    assert list(listing) == [ImageRecord("a.jpg", "x"), ImageRecord("b.jpg", "y")]
    with pytest.raises(InputError, match=f"1 of 3 lines of images.csv cannot be used.*{message}"):
        list_images(source, **options, strict=True)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_named_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/a.jpg", "there/b.img")
    monkeypatch.chdir(tmp_path / "here")
    assert paths("a.jpg") == ["a.jpg"]
    assert paths(tmp_path / "there" / "b.img") == [f"{tmp_path}/there/b.img"]
    listing = list_images([Path("gone.jpg"), "./a.jpg", "../there/b.img"])
    assert list(listing) == [ImageRecord("gone.jpg"), ImageRecord("a.jpg"), ImageRecord(f"{tmp_path}/there/b.img")]
    assert (len(listing), listing.has_labels) == (3, False)


def test_a_file_named_twice_and_no_file_at_all_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected every file once; got '\./a\.jpg' as number 1 and 3"):
        list_images(["a.jpg", "b.jpg", "./a.jpg"])
    with pytest.raises(InputError, match=r"no image in .*: it is empty"):
        list_images([])


# --- label files ------------------------------------------------------------------------------------------------------


def test_a_label_file_joins_by_path_from_the_root_or_from_itself(tmp_path: Path) -> None:
    photos = touch(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "3.jpg")
    beside = table(tmp_path / "beside.csv", "path,label,more\nphotos/a/1.jpg,cat,\nphotos/3.jpg,dog,\n")
    inside = table(photos / "labels.csv", "path,label\n./a/1.jpg,cat\n3.jpg,dog\na/2.jpg,\nother.jpg,eel\n")
    with pytest.warns(DistcamWarning, match=r"^2 of 3 images have a label \(a/2.jpg has none\)$"):
        assert labels(photos, labels=beside) == ["dog", "cat", None]
    for file in (inside, str(inside)):
        with pytest.warns(DistcamWarning, match=r"2 of 3 .*; 1 of 4 lines of labels.csv fit no image, such as other"):
            assert labels(photos, labels=file) == ["dog", "cat", None]
    with pytest.warns(DistcamWarning, match="1 of 2 images have a label"):
        assert labels(f"{photos}/a/*.jpg", labels=inside) == ["cat", None]


def test_label_files_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    photos = touch(tmp_path / "photos", "a/1.jpg")
    other = table(tmp_path / "other.csv", "path,label\nb/1.jpg,cat\n")
    with pytest.raises(InputError, match=r"0 of 1 .* label \(a/1.jpg has none\); 1 of 1 lines of other.csv .*b/1.jpg"):
        list_images(photos, labels=other)
    with pytest.raises(InputError, match="expected a column 'label'; got 'path', 'class'; rename 'class', if"):
        list_images(photos, labels=table(tmp_path / "bad.csv", "path,class\na/1.jpg,cat\n"))
    with pytest.raises(
        InputError, match="expected labels to be 'folder', 'split', 'none', or a CSV file; got 'folders'"
    ):
        list_images(photos, labels="folders")
