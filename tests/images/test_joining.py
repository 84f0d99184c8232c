"""Tables as people save them, names as computers write them, and what is said of what does not fit."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from distcam.errors import InputError
from distcam.images import joining, labelling, list_images, load_dataset, tables
from distcam.images.joining import FactsByName, beside, likely_cause, plain, spelled
from distcam.images.labelling import BOX_COLUMNS, is_placeholder, twins
from distcam.remarks import DistcamWarning

Seen = list[tuple[str, str | None]]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(source: object, **options: object) -> Seen:
    return [(record.path, record.label) for record in list_images(source, **options)]  # type: ignore[arg-type]


def of_dataset(file: Path) -> Seen:
    return [(record.path, record.label) for record in load_dataset(file).records]


def of_labels(file: Path) -> Seen:
    return [pair for pair in listed(file.parent, labels=file) if pair[1] is not None]


READERS: dict[str, Callable[[Path], Seen]] = {"listing": listed, "data set": of_dataset, "labels": of_labels}
ROWS = "path,label\na/é 1.jpg,cät\na/2.jpg,dog\n"


# --- how tables are written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "assumed"),
    [
        (ROWS.encode(), None),
        (ROWS.encode("utf-8-sig"), None),
        (ROWS.replace("\n", "\r\n").encode(), None),
        (ROWS.replace(",", " ,  ").encode(), None),
        (ROWS.replace("path,label", " path, label ").encode(), None),
        (ROWS.replace("\n", ",,\n").encode(), None),
        (ROWS.replace("\n", "\n , \n").encode(), None),
        (ROWS.replace(",", ";").encode(), "with ';' between its cells"),
        (f"sep=;\n{ROWS.replace(',', ';')}".encode(), "with ';' between its cells"),
        (f"sep=,\n{ROWS}".encode(), None),
        (ROWS.replace(",", "\t").encode(), r"with '\\t' between its cells"),
        (ROWS.replace(",", "|").encode(), r"with '\|' between its cells"),
        (ROWS.encode("utf-16"), "as UTF-16"),
        (ROWS.encode("utf-16-le"), "as UTF-16"),
        (ROWS.encode("utf-16-be"), "as UTF-16"),
        (ROWS.encode("utf-32"), "as UTF-32"),
        (ROWS.encode("cp1252"), "as Windows-1252"),
        (ROWS.replace(",", ";").encode("cp1252"), "as Windows-1252 and with ';'"),
        (ROWS.replace(",", "\t").encode("utf-16"), r"as UTF-16 and with '\\t'"),
    ],
)
def test_tables_are_read_as_they_are_saved(tmp_path: Path, reader: str, content: bytes, assumed: str | None) -> None:
    touch(tmp_path, "a/é 1.jpg", "a/2.jpg")
    (tmp_path / "t.csv").write_bytes(content)
    expected = {("a/é 1.jpg", "cät"), ("a/2.jpg", "dog")}
    if assumed is None:
        assert set(READERS[reader](tmp_path / "t.csv")) == expected
    else:
        with pytest.warns(DistcamWarning, match=f"t.csv is read {assumed}"):
            assert set(READERS[reader](tmp_path / "t.csv")) == expected


def test_a_table_of_tabs_may_be_called_tsv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("path\tlabel\na.jpg\tcat\n")
    with pytest.warns(DistcamWarning, match="t.tsv is read with"):
        assert listed(tmp_path / "t.tsv") == [("a.jpg", "cat")]


@pytest.mark.parametrize("name", ["Path", "FILENAME", "file", "Image Path", "img_path", "image", "file_name"])
def test_a_column_of_files_under_another_name_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"label,{name}\ncat,a.jpg\n")
    with pytest.raises(InputError, match=f"expected a column 'path'; got .*; rename '{name}', if that is it"):
        list_images(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["Label", "LABEL", "class", "Class Name", "category", "identity", "target", "species"])
def test_a_column_of_labels_under_another_name_is_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.jpg")
    file = tmp_path / "t.csv"
    file.write_text(f"path,{name},camera\na.jpg,cat,1\n")
    with pytest.warns(DistcamWarning, match=f"none of the 1 images in t.csv has a label: .*'{name}' looks like one"):
        assert listed(file) == [("a.jpg", None)]
    with pytest.raises(InputError, match=f"'{name}' looks like one"):
        list_images(file, strict=True)
    for refuses in (load_dataset, lambda given: list_images(tmp_path, labels=given)):
        with pytest.raises(InputError, match=f"expected a column 'label'; got .*; rename '{name}', if that is it"):
            refuses(file)


def test_labels_that_some_lines_lack_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    file = tmp_path / "t.csv"
    file.write_text("path,label\na.jpg,cat\nb.jpg,\nc.jpg, \n")
    with pytest.warns(DistcamWarning, match=r"2 of 3 images in t.csv have no label, such as b\.jpg"):
        list_images(file)
    assert load_dataset(file).problems == ("2 of 3 images have no label and are left out, such as b.jpg",)
    with pytest.warns(DistcamWarning, match=r"1 of 3 images have a label \(b.jpg has none\)$"):
        list_images(tmp_path, labels=file)
    assert len(list_images(file, labels="column")) == 3  # asked not to speak of it
    assert len(list_images(file, labels="none")) == 3


# --- names ------------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "as it is": lambda path: path,
    "Windows": lambda path: path.replace("/", "\\"),
    "from here": lambda path: f"./{path}",
    "from here on Windows": lambda path: ".\\" + path.replace("/", "\\"),
    "composed": lambda path: normalize("NFC", path),
    "decomposed": lambda path: normalize("NFD", path),
    "decomposed on Windows": lambda path: normalize("NFD", path).replace("/", "\\"),
    "with a blank behind": lambda path: f"{path} ",
    "with a blank before": lambda path: f" {path}",
}


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("reader", READERS)
def test_names_fit_however_computers_write_them(tmp_path: Path, reader: str, spelling: str, on_disk: str) -> None:
    name = normalize(on_disk, "Bär/é/ü 1.jpg")
    touch(tmp_path, name)
    (tmp_path / "t.csv").write_text(f'label,path\ncat,"{SPELLINGS[spelling]("Bär/é/ü 1.jpg")}"\n', encoding="utf-8")
    assert READERS[reader](tmp_path / "t.csv") == [(name, "cat")]


def test_a_file_of_exactly_that_name_comes_first(tmp_path: Path) -> None:
    touch(tmp_path, "a\\1.jpg", "a/1.jpg", "b .jpg", normalize("NFD", "é.jpg"), normalize("NFC", "é.jpg"))
    for name in ("a\\1.jpg", "a/1.jpg", "b .jpg", normalize("NFD", "é.jpg"), normalize("NFC", "é.jpg"), "gone\\1.jpg"):
        assert spelled(tmp_path, name) == name
    assert spelled(tmp_path, f"{tmp_path}\\a\\1.jpg".replace("/", "\\")) == f"{tmp_path}/a/1.jpg"
    names = FactsByName({"a\\1.jpg": "odd", "a/1.jpg": "plain"})
    assert [names.key(name) for name in ("a\\1.jpg", "a/1.jpg", "./a\\1.jpg", "c")] == [*names, "a\\1.jpg", None]


def test_a_counterpart_lies_under_the_same_path_or_by_its_name_alone(tmp_path: Path) -> None:
    touch(tmp_path, normalize("NFD", "Bär/1.png"))
    assert beside(tmp_path, "cat/1.x.jpg") == tmp_path / "cat/1.x.png"
    assert beside(tmp_path, "/far/cat/1.jpg") == beside(tmp_path, "../cat/1.jpg") == tmp_path / "1.png"
    assert beside(tmp_path, "Bär/1.jpg").is_file()


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("a/2.JPG", "a/2.JPG and a/2.jpg differ in upper and lower case"),
        ("A/2.jpg", "A/2.jpg and a/2.jpg differ in upper and lower case"),
        ("a/2.png", "a/2.png and a/2.jpg differ in the suffix"),
        ("a/2", "a/2 and a/2.jpg differ in the suffix"),
        ("photos/2020/a/2.jpg", "photos/2020/a/2.jpg and a/2.jpg count from different folders"),
        ("2.jpg", "2.jpg and a/2.jpg count from different folders"),
        ("C:\\photos\\a\\2.jpg", r"C:\\photos\\a\\2.jpg and a/2.jpg count from different folders"),
    ],
)
def test_what_does_not_fit_is_counted_with_the_likely_cause(tmp_path: Path, line: str, cause: str) -> None:
    photos = touch(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "a/3.jpg")
    file = tmp_path / "labels.csv"
    file.write_text(f'path,label\na/1.jpg,cat\n"{line}",dog\na/9.jpg,dog\n')
    message = r"1 of 3 images have a label \(a/2.jpg has none\); 2 of 3 lines of labels.csv fit no image, such as "
    with pytest.warns(DistcamWarning, match=f"{message}.*; {cause}".replace("\\\\", "\\\\")):
        assert [label for _, label in listed(photos, labels=file)] == ["cat", None, None]
    with pytest.raises(InputError, match="2 of 3 lines"):
        list_images(photos, labels=file, strict=True)
    file.write_text(f'path,label\n"{line}",dog\n')
    with pytest.raises(InputError, match=f"^0 of 3 images have a label .*labels.csv fit no image.*; {cause}"):
        list_images(photos, labels=file)


@pytest.mark.parametrize("reader", [listed, of_dataset, lambda file: listed(file, labels="column")])
@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("photos/a/2.JPG", "photos/a/2.jpg, which is, differ in upper and lower case"),
        ("Photos/A/2.jpg", "photos/a/2.jpg, which is, differ in upper and lower case"),
        ("photos/a/2.png", "photos/a/2.jpg, which is, differ in the suffix"),
        ("C:\\mine\\photos\\a\\2.jpg", "photos/a/2.jpg, which is, count from different folders"),
        ("/mine/photos/a/2.jpg", "photos/a/2.jpg, which is, count from different folders"),
    ],
)
def test_files_that_are_probably_meant_are_named(tmp_path: Path, line: str, cause: str, reader: object) -> None:
    touch(tmp_path / "photos", "a/1.jpg", "a/2.jpg")
    file = tmp_path / "t.csv"
    file.write_text(f"path,label\nphotos/a/1.jpg,cat\n{line},dog\n")
    with pytest.warns(DistcamWarning) as said:
        reader(file)  # type: ignore[operator]
    assert str(said[0].message) == f"1 of the first 2 files in t.csv are not there; {line} and {cause}"


def test_a_table_that_fits_says_nothing(tmp_path: Path) -> None:
    photos = touch(tmp_path / "photos", "a/1.jpg", "a/2.jpg")
    (tmp_path / "labels.csv").write_text("path,label\na/1.jpg,cat\na/2.jpg,dog\n")
    assert len(list_images(photos, labels=tmp_path / "labels.csv", strict=True)) == 2
    assert likely_cause(["x"], ["y"]) is None
    assert plain("a\\..\\b") == "b"


# --- placeholders and boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["unknown", "Unknown", "nan", "None", "NULL", "?", "n/a", "unidentified", "tbd", "-1", "no_id"]
)
def test_labels_that_look_like_placeholders_are_remarked_on(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    file = tmp_path / "t.csv"
    file.write_text(f"path,label\na.jpg,{name}\nb.jpg,{name}\nc.jpg,cat\n")
    for reader in READERS.values():
        with pytest.warns(DistcamWarning, match=r"\(2 images\) looks like a placeholder rather than a class"):
            reader(file)


def test_a_folder_called_unknown_is_remarked_on_when_it_is_counted(tmp_path: Path) -> None:
    listing = list_images(touch(tmp_path, "unknown/a.jpg", "cat/b.jpg"))
    with pytest.warns(DistcamWarning, match=r"'unknown' \(1 images\) looks like a placeholder"):
        assert len(listing) == 2


@pytest.mark.parametrize("nobody", ["Unbekannt", "inconnu", "Desconhecida", "НЕИЗВЕСТНО", "不明", "new_whale", "Okänd"])
def test_placeholders_are_known_in_other_languages(nobody: str) -> None:
    assert is_placeholder(nobody)
    assert is_placeholder(normalize("NFD", nobody))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("3", "3.0"),
        ("7", "007"),
        ("cat", "Cat"),
        ("red fox", "red_fox"),
        (normalize("NFC", "käfer"), normalize("NFD", "käfer")),
    ],
)
def test_labels_that_differ_in_spelling_alone_are_remarked_on(
    tmp_path: Path, reader: str, first: str, second: str
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\na.jpg,{first}\nb.jpg,{second}\nc.jpg,{first}\n", "utf-8")
    with pytest.warns(DistcamWarning, match="1 labels differ from another in their spelling alone, such as .* and "):
        assert {label for _, label in READERS[reader](table)} == {first, second}


def test_labels_that_are_others_are_no_twins() -> None:
    assert not twins(["a", "A", "1", "2", "1.5", "10", "class 1", "class 11", "cat", "cats", "-1", ""])


def test_names_are_no_placeholders() -> None:
    assert not any(map(is_placeholder, ["0", "1", "7", "nana", "nan1", "unknown pleasures", "none of these", "a"]))


@pytest.mark.parametrize("columns", BOX_COLUMNS)
@pytest.mark.parametrize("reader", [listed, of_dataset, lambda file: listed(file, labels="column")])
def test_boxes_in_columns_are_said_not_to_be_cut_out(tmp_path: Path, columns: tuple[str, ...], reader: object) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    file = tmp_path / "t.csv"
    file.write_text(
        f"path,label,{','.join(columns)}\na.jpg,cat,{','.join('1' * len(columns))}\nb.jpg,dog{',' * len(columns)}\n"
    )
    with pytest.warns(DistcamWarning, match=r"boxes of 1 images \(columns .*\) are kept as columns and NOT cut out"):
        assert len(reader(file)) == 2  # type: ignore[operator]


@pytest.mark.parametrize("module", [joining, labelling, tables])
def test_the_doctests_are_right(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
