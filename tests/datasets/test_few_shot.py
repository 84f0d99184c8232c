"""Few-shot data sets: every layout as a miniature tree, every split by name, hostile pickles, and the real Omniglot."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from distcam.datasets import FewShotData, FileImages, Split, open_data
from distcam.datasets.archives.restricted_pickle import array_of, read_pickle
from distcam.errors import ImageError, InputError
from distcam.fewshot import sample_episodes
from distcam.images import Transform
from distcam.remarks import DistcamWarning

COLOURS = np.random.default_rng(0).integers(0, 255, (300, 3), dtype=np.uint8)


def draw(file, number=0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), tuple(COLOURS[number % 300].tolist())).save(file)


def class_tree(root, names, n=2) -> None:
    for number, name in enumerate(names):
        for i in range(n):
            draw(root / name / f"{i}.png", number)


def counts(data: FewShotData) -> dict[str, tuple[int, int]]:
    return {part: (len(split), len(split.class_names)) for part, split in data.parts.items()}


# --- any folder -------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_split_is_all_novel(tmp_path) -> None:
    class_tree(tmp_path / "photos", "abc")
    data = open_data(str(tmp_path / "photos"))
    assert counts(data) == {"novel": (6, 3)}
    assert data["novel"].names.tolist() == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png"]
    assert data["novel"].images[2].getpixel((0, 0)) == tuple(COLOURS[1].tolist())
    assert sample_episodes(
        data["novel"].labels, names=data["novel"].names, n_way=2, n_query=1, n_episodes=2
    ).split_hash == (data["novel"].split_hash)


@pytest.mark.parametrize(
    "split", ["class,part\nc,test\na,train\n", "path,part\na/0.png,base\na/1.png,base\nc/0.png,novel\nc/1.png,novel\n"]
)
def test_a_split_file_divides_a_folder_by_classes_or_paths(tmp_path, split) -> None:
    class_tree(tmp_path / "photos", "abc")
    (tmp_path / "photos" / "split.csv").write_text(split)
    half = pytest.warns(DistcamWarning, match="split.csv names no part for 2 of 6 images, such as b/0.png")
    with half if "path" in split else nullcontext():
        data = open_data(f"folder:split.csv@{tmp_path / 'photos'}")
    assert counts(data) == {"base": (2, 1), "novel": (2, 1)}
    assert set(data["novel"].labels) == {"c"}


def test_two_orders_of_the_same_split_have_the_same_hash_and_another_split_has_not(tmp_path) -> None:
    class_tree(tmp_path, "abc")
    hashes = []
    for split in (
        {"base": ["a"], "novel": ["b", "c"]},
        {"novel": ["c", "b"], "train": ["a"]},
        {"base": ["b"], "novel": ["a", "c"]},
    ):
        (tmp_path / "split.json").write_text(json.dumps(split))
        hashes.append(open_data(f"folder:split.json@{tmp_path}").split_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("class,part\na,base\na,novel\n", "'a' is in base and in novel"),
        ("class,part\nz,base\na,novel\n", "1 of its entries are not in .* 'z'"),
        ("class,part\na,tset\n", "expected a part out of base, train"),
        ("name,part\na,base\n", "expected the columns class,part or path,part; got name, part"),
        ("path,part\na/0.PNG,base\n", "1 of its entries are not in .*; a/0.PNG and a/0.png differ in upper and lower"),
    ],
)
def test_wrong_split_files_are_refused(tmp_path, split, message) -> None:
    class_tree(tmp_path / "photos", "abc")
    (tmp_path / "split.csv").write_text(split)
    with pytest.raises(InputError, match=message):
        open_data(f"folder:{tmp_path / 'split.csv'}@{tmp_path / 'photos'}")


def test_a_split_file_is_read_as_it_was_saved(tmp_path) -> None:
    class_tree(tmp_path, "ab")
    lines = "a\\0.png;base\na\\1.png;base\nb\\0.png;novel\n.\\b\\1.png;novel\n"
    (tmp_path / "split.csv").write_bytes(f"path; part\n{lines}".encode("utf-16"))
    with pytest.warns(DistcamWarning, match="split.csv is read as UTF-16 and with ';' between"):
        data = open_data(f"folder:split.csv@{tmp_path}")
    assert counts(data) == {"base": (2, 1), "novel": (2, 1)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("omniglott:lake@{}", "did you mean omniglot"),
        ("omniglot@{}", "Omniglot has several splits"),
        ("omniglot:lake", "say where the files are, as in omniglot:lake@FOLDER"),
        ("miniimagenet@{}", "two splits of the same sizes"),
        ("miniimagenet:ravi@{}", "expected train.csv, val.csv and test.csv, or mini-imagenet-cache"),
        ("cifar-fs@{}", "expected data/ with splits/bertinetto"),
        ("tieredimagenet:x@{}", "one split only"),
        ("mini-to-cub@{}", "expected the folders of miniImageNet and CUB"),
        ("cub:chen@{}/nowhere", "is no folder"),
    ],
)
def test_specs_that_say_too_little_are_refused(tmp_path, spec, message) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec.format(tmp_path))


def test_a_missing_part_names_those_that_exist(tmp_path) -> None:
    class_tree(tmp_path, "ab")
    with pytest.raises(InputError, match="has no part 'val'; it has novel"):
        open_data(str(tmp_path))["val"]


def test_pixels_are_those_of_the_transform(tmp_path) -> None:
    class_tree(tmp_path, "ab")
    split = open_data(str(tmp_path))["novel"]
    pixels = split.pixels(Transform(size=8, fit="squash"))
    assert pixels.shape == (4, 3, 8, 8)
    assert pixels[3, :, 0, 0].tolist() == COLOURS[1].tolist()


def test_a_file_that_vanished_is_a_clear_error(tmp_path) -> None:
    split = Split(
        "x/novel", np.array(["a.png", "b.png"]), np.array(["a", "b"]), FileImages(tmp_path, ("a.png", "b.png"))
    )
    with pytest.raises(ImageError, match=r"a.png"):
        split.images[0]
    with pytest.raises(ImageError, match="cannot be read"):
        split.images.content(0)


# --- CUB --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cub_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cub") / "CUB_200_2011"
    class_tree(root / "images", [f"{i:03d}.Bird_{i}" for i in range(1, 201)], n=1)
    return root


def test_a_bare_cub_is_refused_with_the_named_splits(cub_root) -> None:
    with pytest.raises(
        InputError, match=r"a bare CUB says too little.*cub:chen.*cub:hilliard.*cub:easyfsl.*cub:cam-loss"
    ):
        open_data(f"cub@{cub_root}")


def test_the_rule_of_chen_divides_sorted_folders(cub_root) -> None:
    data = open_data(f"cub:chen@{cub_root}")
    assert counts(data) == {"base": (100, 100), "val": (50, 50), "novel": (50, 50)}
    assert [data[part].class_names[0] for part in ("base", "val", "novel")] == [
        "001.Bird_1",
        "002.Bird_2",
        "004.Bird_4",
    ]
    assert data["novel"].class_names[1] == "008.Bird_8"


def test_the_drawn_split_has_the_papers_sizes_and_never_changes(cub_root) -> None:
    data = open_data(f"cub:cam-loss@{cub_root}")
    assert counts(data) == {"base": (120, 120), "val": (30, 30), "novel": (50, 50)}
    assert data["val"].class_names[:3].tolist() == ["005.Bird_5", "008.Bird_8", "011.Bird_11"]


@pytest.mark.parametrize(
    "content", [["001.Bird_1"], {"class_names": ["Bird 1"], "class_roots": ["x/images/001.Bird_1/"]}]
)
def test_class_lists_of_both_forms_are_read(cub_root, tmp_path, content) -> None:
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "test.json").write_text(json.dumps(["002.Bird_2", "003.Bird_3"]))
    data = open_data(f"cub:{tmp_path}@{cub_root}")
    assert counts(data) == {"base": (1, 1), "novel": (2, 2)}


def test_a_named_split_without_its_lists_says_where_they_belong(cub_root) -> None:
    with pytest.raises(InputError, match=r"cub:easyfsl needs its class lists.*splits/easyfsl"):
        open_data(f"cub:easyfsl@{cub_root}")


# --- miniImageNet, tieredImageNet, CIFAR-FS ---------------------------------------------------------------------------

N_MINI = {"train": 64, "val": 16, "test": 20}


def mini_tree(root, layout: str) -> None:
    number = 0
    for stem, n in N_MINI.items():
        rows = ["filename,label" if layout == "ravi" else "class_name,image_name"]
        for _ in range(n):
            label = f"n{number:08d}"
            name = f"{label}00000001.jpg" if layout == "ravi" else f"{label}_20457.JPEG"
            draw(root / "images" / name if layout == "ravi" else root / label / name, number)
            rows.append(f"{name},{label}" if layout == "ravi" else f"{label},{name}")
            number += 1
        (root / f"{stem}.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("layout", ["ravi", "easyfsl"])
def test_both_layouts_of_the_tables_are_read(tmp_path, layout) -> None:
    mini_tree(tmp_path, layout)
    data = open_data(f"miniimagenet:ravi@{tmp_path}")
    assert counts(data) == {"base": (64, 64), "val": (16, 16), "novel": (20, 20)}
    assert data["novel"].images[0].size == (8, 8)


def test_tables_with_other_counts_are_another_split(tmp_path) -> None:
    mini_tree(tmp_path, "ravi")
    lines = (tmp_path / "test.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"'novel': 20} classes, found .*'novel': 19}"):
        open_data(f"miniimagenet:ravi@{tmp_path}")


def test_mini_to_cub_has_all_mini_classes_as_base(tmp_path, cub_root) -> None:
    mini_tree(tmp_path, "ravi")
    data = open_data(f"mini-to-cub@{tmp_path},{cub_root}")
    assert counts(data) == {"base": (100, 100), "val": (50, 50), "novel": (50, 50)}
    assert data["base"].images[70].size == data["novel"].images[3].size == (8, 8)
    assert len(data["base"].images.content(99)) > 0


def pixels_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_pickled_cache_of_mini_imagenet_is_read(tmp_path, protocol) -> None:
    start = 0
    for stem, n in N_MINI.items():
        images = pixels_of(2 * n)
        classes = {f"n{start + i:08d}": [2 * i, 2 * i + 1] for i in range(n)}
        (tmp_path / f"mini-imagenet-cache-{stem}.pkl").write_bytes(
            pickle.dumps({"image_data": images, "class_dict": classes}, protocol=protocol)
        )
        start += n
    data = open_data(f"miniimagenet:ravi@{tmp_path}")
    assert counts(data) == {"base": (128, 64), "val": (32, 16), "novel": (40, 20)}
    np.testing.assert_array_equal(np.asarray(data["novel"].images[5]), pixels_of(40)[5])
    assert data["novel"].names[1] == "n00000080/00001"


def test_tiered_imagenet_reads_encoded_images_with_red_and_blue_exchanged(tmp_path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(file, "png")
    encoded = np.frombuffer(file.getvalue(), np.uint8)
    for stem in ("train", "val", "test"):
        (tmp_path / f"{stem}_images_png.pkl").write_bytes(pickle.dumps([encoded] * 4))
        labels = {"label_specific": np.array([0, 0, 1, 1]), "label_specific_str": ["cat", "dog"]}
        (tmp_path / f"{stem}_labels.pkl").write_bytes(pickle.dumps(labels))
    data = open_data(f"tieredimagenet@{tmp_path}")
    assert counts(data) == {"base": (4, 2), "val": (4, 2), "novel": (4, 2)}
    assert data["novel"].images[0].getpixel((0, 0)) == (30, 20, 10)
    assert data["novel"].class_names.tolist() == ["test/000 cat", "test/001 dog"]


def test_tiered_imagenet_reads_folders(tmp_path) -> None:
    for stem, names in (("train", "ab"), ("val", "c"), ("test", "de")):
        class_tree(tmp_path / stem, names)
    assert counts(open_data(f"tieredimagenet@{tmp_path}")) == {"base": (4, 2), "val": (2, 1), "novel": (4, 2)}


def test_cifar_fs_reads_folders_with_lists_and_pickles(tmp_path) -> None:
    class_tree(tmp_path / "files" / "cifar100" / "data", ["apple", "bee", "cat"])
    lists = tmp_path / "files" / "cifar100" / "splits" / "bertinetto"
    lists.mkdir(parents=True)
    for stem, name in (("train", "apple"), ("val", "bee"), ("test", "cat")):
        (lists / f"{stem}.txt").write_text(name + "\n")
        content = {"data": pixels_of(4), "labels": [np.int64({"apple": 0, "bee": 1, "cat": 2}[name])] * 4}
        (tmp_path / f"CIFAR_FS_{stem}.pickle").write_bytes(pickle.dumps(content))
    assert counts(open_data(f"cifar-fs@{tmp_path / 'files'}")) == {"base": (2, 1), "val": (2, 1), "novel": (2, 1)}
    assert counts(open_data(f"cifar-fs@{tmp_path}")) == {"base": (4, 1), "val": (4, 1), "novel": (4, 1)}


# --- hostile pickles --------------------------------------------------------------------------------------------------


class Runs:
    """A pickle of this runs a command when it is read as pickles usually are."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "argument"), [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')")]
)
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol, function, argument) -> None:
    evil = tmp_path / "evil"
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"image_data": Runs(function, argument.format(str(evil)))}, protocol=protocol)
    )
    with pytest.raises(
        InputError, match=r"it asks for (posix|nt|builtins|__builtin__)\..*nothing of it was run.*numpy.savez"
    ):
        read_pickle(tmp_path / "x.pkl")
    assert not evil.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n}S'__setstate__'\nS'x'\nsb.",  # state of a function of ours
        b"cnumpy\nndarray\n(N}S'__class__'\nI1\nstb.",
        b"cnumpy\ndtype\nN\x81.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"Pnowhere\n.",  # a persistent id
        b"r\xff\xff\xff\x7f.",
        b"(" * 1000,
        b"",
    ],
)
def test_programs_that_reach_for_more_are_refused(tmp_path, program) -> None:
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(InputError, match="no pickle of plain arrays"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "array",
    [np.array([object()], dtype=object), np.array([(1, 2)], dtype=[("a", "i4"), ("b", "f4")]), np.array(["text"])],
    ids=["object", "structured", "text"],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array) -> None:
    if array.dtype == object:
        array[0] = "text"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(InputError, match=r"plain numbers|without shape|plain arrays"):
        array_of(read_pickle(tmp_path / "x.pkl"), "x")


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8", "f4", "<f8", "?"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_plain_arrays_survive(tmp_path, dtype, protocol) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    for value in (array, np.asfortranarray(array), array[:, ::2], array[:0]):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        np.testing.assert_array_equal(array_of(read_pickle(tmp_path / "x.pkl"), "x"), value)


def test_an_npz_is_never_unpickled(tmp_path) -> None:
    for stem in ("train", "test"):
        np.savez(tmp_path / f"{stem}_images.npz", images=np.array([{}], dtype=object))
        (tmp_path / f"{stem}_labels.pkl").write_bytes(pickle.dumps({"label_specific": [0]}))
    with pytest.raises(InputError, match="holds no array 'images' that can be read"):
        open_data(f"tieredimagenet@{tmp_path}")


# --- Omniglot ---------------------------------------------------------------------------------------------------------


def omniglot_tree(root, *, as_zip: bool) -> None:
    """Two characters in the background set, one in the evaluation set; the first row of each drawing says which."""
    drawings = np.ones((3, 20, 105, 105), dtype=bool)
    for character in range(3):
        drawings[character, :, 0, : 10 * (character + 1)] = False
    characters = ["Greek/character01", "Greek/character02", "Futurama/character01"]
    root.mkdir(parents=True, exist_ok=True)
    if as_zip:
        for group, rows in (("background", (0, 1)), ("evaluation", (2,))):
            with zipfile.ZipFile(root / f"images_{group}.zip", "w") as archive:
                archive.writestr(f"images_{group}/../../evil.png", b"")
                for row in rows:
                    for drawer in range(20):
                        file = io.BytesIO()
                        Image.fromarray(drawings[row, drawer]).save(file, "png")
                        name = f"images_{group}/{characters[row]}/{row + 1:04d}_{drawer + 1:02d}.png"
                        archive.writestr(name, file.getvalue())
    else:
        np.savez_compressed(root / "images_background.npz", images=drawings[:2])
        np.savez_compressed(root / "images_evaluation.npz", images=drawings[2:])
        (root / "alphabets.csv").write_text(
            "first_id,last_id,n,alphabet,set\n1,2,2,Greek,background\n3,3,1,Futurama,evaluation\n"
        )
    lists = root / "splits_vinyals"
    lists.mkdir()
    for stem, names in (("train", [0]), ("val", [2]), ("trainval", [0, 2]), ("test", [1])):
        lines = [f"{characters[i]}/rot{turn:03d}" for i in names for turn in (0, 90, 180, 270)]
        (lists / f"{stem}.txt").write_text("\n".join(lines) + "\n")


def test_zips_and_npz_hold_the_same_omniglot(tmp_path) -> None:
    for as_zip in (False, True):
        omniglot_tree(tmp_path / str(as_zip), as_zip=as_zip)
    for split in ("vinyals", "vinyals-trainval", "vinyals-upright", "lake"):
        a, b = (open_data(f"omniglot:{split}@{tmp_path / str(as_zip)}") for as_zip in (False, True))
        assert a.split_hash == b.split_hash
        for part in a.parts:
            assert a[part].images.content(7) == b[part].images.content(7)


def test_rotations_are_classes_of_their_own_and_turn_counter_clockwise(tmp_path) -> None:
    omniglot_tree(tmp_path, as_zip=False)
    novel = open_data(f"omniglot:vinyals@{tmp_path}")["novel"]
    assert novel.class_names.tolist() == [f"Greek/character02/rot{turn:03d}" for turn in (0, 90, 180, 270)]
    assert novel.names[21] == "Greek/character02/rot090/0002_02"
    upright, turned = (np.asarray(novel.images[i])[:, :, 0] for i in (0, 20))
    assert upright[0, :20].min() == 255  # ink is white
    assert upright.sum() == 20 * 255
    np.testing.assert_array_equal(turned, np.rot90(upright))
    assert turned[85:, 0].min() == 255  # what was on top is on the left


def test_a_runs_archive_is_one_manifest(tmp_path) -> None:
    png = io.BytesIO()
    Image.new("1", (105, 105), 1).save(png, "png")
    with zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as archive:
        for run in ("run01", "run02"):
            pairs = [(f"{run}/test/item0{i}.png", f"{run}/training/class0{4 - i}.png") for i in (1, 2, 3)]
            for entry in [each for pair in pairs for each in pair]:
                archive.writestr(entry, png.getvalue())
            archive.writestr(f"{run}/class_labels.txt", "\n".join(" ".join(pair) for pair in pairs))
    data = open_data(f"omniglot:runs@{tmp_path}")
    assert data.episodes is not None
    assert (data.episodes.n_episodes, data.episodes.n_way, data.episodes.n_shot, data.episodes.n_query) == (2, 3, 1, 1)
    names = data.episodes.names
    assert names[data.episodes.support[1, 0, 0]] == "run02/training/class01.png"
    assert names[data.episodes.query[1, 0]] == "run02/test/item03.png"
    assert not np.asarray(data["novel"].images[0]).any()  # paper is black


def test_broken_omniglot_files_are_refused(tmp_path) -> None:
    omniglot_tree(tmp_path, as_zip=False)
    (tmp_path / "splits_vinyals" / "train.txt").write_text("Greek/character1\n")
    with pytest.raises(InputError, match="line 1: expected Alphabet/characterNN/rotRRR"):
        open_data(f"omniglot:vinyals@{tmp_path}")
    (tmp_path / "splits_vinyals" / "train.txt").write_text("Klingon/character01/rot000\n")
    with pytest.raises(InputError, match="names Klingon/character01, which is not among the images"):
        open_data(f"omniglot:vinyals@{tmp_path}")
    (tmp_path / "splits_vinyals" / "train.txt").unlink()
    with pytest.raises(InputError, match="list of the Vinyals split cannot be read"):
        open_data(f"omniglot:vinyals@{tmp_path}")
    np.savez(tmp_path / "images_background.npz", images=np.ones((1, 20, 8, 8), dtype=bool))
    with pytest.raises(InputError, match=r"expected booleans \(2, 20, rows, columns\), got bool \(1, 20, 8, 8\)"):
        open_data(f"omniglot:lake@{tmp_path}")["base"].images[0]


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "known"),
    [
        ("vinyals-upright", {"base": (20560, 1028), "val": (3440, 172), "novel": (8460, 423)}),
        ("lake", {"base": (19280, 964), "novel": (13180, 659)}),
        ("runs", {"novel": (800, 400)}),
        *(  # a hundred thousand names
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("vinyals", {"base": (82240, 4112), "val": (13760, 688), "novel": (33840, 1692)}),
                ("vinyals-trainval", {"base": (96000, 4800), "novel": (33840, 1692)}),
            )
        ),
    ],
)
def test_the_real_omniglot_has_the_known_sizes(real_data, split, known) -> None:
    data = open_data(f"omniglot:{split}@{real_data / 'omniglot'}")
    assert counts(data) == known
    assert data.episodes is None if split != "runs" else data.episodes.n_episodes == 20
    ink = np.asarray(data["novel"].images[0])
    assert ink.shape == (105, 105, 3)
    assert 0.01 < (ink > 0).mean() < 0.2
