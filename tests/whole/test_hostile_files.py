"""Pickles, archives and checkpoints from strangers: small files that claim much, and headers that hold anything."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from safetensors.torch import save_file

from distcam.datasets.archives.arrays import Npz, open_zip, read_member, read_pickled_images
from distcam.datasets.archives.restricted_pickle import array_of, read_pickle
from distcam.encoders import Encoder
from distcam.errors import DistcamError, InputError, WeightsError

# --- Pickles ----------------------------------------------------------------------------------------------------------


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


TEXT = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
BUFFER = b"\x96" + struct.pack("<Q", 100_000) + bytes(100_000)  # a bytearray
DTYPE = call("numpy", "dtype", b"X\x02\0\0\0u1")
PICKLES = {
    "nine bytes that take 46 GB": b"Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "the same in text": b"Np2147483646\n.",
    "a negative place": b"Np-5\n.",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "text that is not there": b"\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "a bytearray that is not there": b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "tuples in tuples as a key": b"}" + b")" + b"\x85" * 200_000 + b"Ns.",
    "tuples through the memory": b"})q\x00" + b"0h\x00\x85q\x00" * 200 + b"h\x00Ns.",
    "a key that is a tuple in itself, twice, and so on": b"}N" + b"2\x86" * 60 + b"Ns.",
    "the same through the memory": b"}Nq\x00" + b"h\x00\x86q\x00".replace(b"h\x00", b"h\x00h\x00") * 60 + b"h\x00Ns.",
    "the same in a set": b"\x80\x04\x8f(N" + b"2\x86" * 60 + b"\x90.",
    "copied tuples in tuples as a key": b"}N" + b"2\x86" * 200_000 + b"Ns.",
    "keys of one hash": b"}("
    + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(20_000)) + b"u.",
    "many tuples as keys": b"}("
    + b"".join(b"M" + struct.pack("<H", i) + b"\x85N" for i in range(20_000)) + b"u.",
    "a text made into bytes over and over": b"(" + TEXT + b"q\x00"
    + call("_codecs", "encode", b"h\x00", b"X\x06\0\0\0latin1") * 50 + b"t.",
    "an array made of a buffer over and over": b"(" + BUFFER + b"q\x00"
    + call("numpy._core.numeric", "_frombuffer", b"h\x00", DTYPE, b")", b"X\x01\0\0\0C") * 50 + b"t.",
    "nothing": b"",
    "no end": b"(lp0\n",
    "an extension": b"\x82\x01.",
    "a thing of elsewhere": b"Pabc\n.",
    "an operation that is none": b"\xff.",
    "a mark that is missing": b"t.",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_small_pickle_stays_small(tmp_path, name):
    (tmp_path / "x.pkl").write_bytes(PICKLES[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="no pickle of plain arrays"):
            read_pickle(tmp_path / "x.pkl")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


DEEP = b")" + b"\x85" * 200_000
WIDE = b"N" + b"2\x86" * 60  # a tuple in itself, twice, and so on
IMAGES = pickle.dumps(np.zeros((2, 4, 4, 3), np.uint8), protocol=2)[2:-1]


@pytest.mark.parametrize("value", [DEEP, WIDE], ids=["deep", "wide"])
def test_values_that_never_end_are_neither_hashed_nor_shown(tmp_path, value):
    file = tmp_path / "x.pkl"
    file.write_bytes(b"}(Vdata\n" + IMAGES + b"Vlabels\n](K\x00K\x00eVcatname2label\n}Va\n" + value + b"su.")
    assert list(read_pickled_images(file)[1]) == ["0", "0"]
    for program in (
        call("numpy", "dtype", value),
        call("numpy._core.numeric", "_frombuffer", b"C\x01a", DTYPE, value, b"X\x01\0\0\0C"),
        call("numpy._core.multiarray", "scalar", call("numpy", "dtype", value), b"C\x01a"),
    ):
        file.write_bytes(program + b".")
        with pytest.raises(InputError, match="an array"):
            array_of(read_pickle(file), "x")


def test_what_a_pickle_is_refused_for_is_said_briefly(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"F" + b"9" * 1_000_000 + b"x\n.")
    with pytest.raises(InputError) as caught:
        read_pickle(tmp_path / "x.pkl")
    assert len(str(caught.value)) < 1_000 + len(str(tmp_path))


def test_tuples_are_keys_where_they_are_few(tmp_path):
    value = {("a", 1): [1, 2], frozenset({("b", 2)}): (3, (4, 5))}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    assert read_pickle(tmp_path / "x.pkl") == value


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_itself_writes_is_read(tmp_path, protocol):
    arrays = [np.full((3, 4), i, np.int32) for i in range(600)]
    value = {"data": arrays[0], "names": [f"name {i}" for i in range(2000)], "list": arrays, "shared": [arrays[1]] * 9}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    content = read_pickle(tmp_path / "x.pkl")
    assert content["names"] == value["names"]
    for own, there in zip(arrays, content["list"], strict=True):
        np.testing.assert_array_equal(array_of(there, "x"), own)


def test_no_change_of_a_pickle_ends_in_anything_else(tmp_path):
    generator = np.random.default_rng(0)
    whole = pickle.dumps(
        {"image_data": np.zeros((2, 8, 8, 3), np.uint8), "class_dict": {"a": [0], "b": [1]}}, protocol=2
    )
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(int(generator.integers(1, 6))):
            data[int(generator.integers(len(data)))] = int(generator.integers(256))
        (tmp_path / "x.pkl").write_bytes(bytes(data))
        try:
            content = read_pickle(tmp_path / "x.pkl")
            if isinstance(content, dict):
                array_of(content.get("image_data"), "x")
        except InputError:
            pass


# --- Archives ---------------------------------------------------------------------------------------------------------


def header(text: str) -> bytes:
    packed = text.encode().ljust(118 - 10) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(packed)) + packed


def zipped(members: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def array(value) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def encrypted(data: bytes) -> bytes:
    """The same zip, whose members say that they are encrypted."""
    changed = bytearray(data)
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(magic) + at] |= 1
    return bytes(changed)


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (7000, 1000, 1000, 3), }"
NPZ = {
    "a header that claims 21 GB": zipped({"images.npy": header(HUGE) + bytes(100)}),
    "a negative side": zipped({"images.npy": header(HUGE.replace("7000", "-7")) + bytes(100)}),
    "a side that is no number": zipped({"images.npy": header(HUGE.replace("7000", "'a'")) + bytes(100)}),
    "a side of 400 digits": zipped({"images.npy": header(HUGE.replace("7000", "9" * 30)) + bytes(100)}),
    "a type that is none": zipped({"images.npy": header(HUGE.replace("|u1", "|z9")) + bytes(100)}),
    "a header that is code": zipped({"images.npy": header("__import__('os').system('true')") + bytes(100)}),
    "a header without end": zipped({"images.npy": header("{" * 90)}),
    "objects": zipped({"images.npy": array(np.array([{}], dtype=object))}),
    "a member that is no array": zipped({"images.npy": b"hello"}),
    "a member of another name": zipped({"other.npy": array(np.zeros(3))}),
    "a member without the suffix": zipped({"images": b"hello"}),
    "an empty member": zipped({"images.npy": b""}),
    "a newer version": zipped({"images.npy": b"\x93NUMPY\x09\x00" + bytes(100)}),
    "a member that unfolds without end": zipped({"images.npy": array(np.zeros(80 << 20, np.uint8))}),
    "an encrypted member": encrypted(zipped({"images.npy": array(np.zeros(3))})),
    "a damaged member": zipped({"images.npy": array(np.arange(1000))}).replace(b"images.npy", b"images.npz", 1),
    "no zip": b"hello",
    "nothing": b"",
    "an array alone": array(np.zeros(3)),
    "a pickle": pickle.dumps({"images": 1}),
}


@pytest.mark.parametrize("name", NPZ)
def test_an_npz_is_not_believed(tmp_path, name):
    (tmp_path / "x.npz").write_bytes(NPZ[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError), Npz(tmp_path / "x.npz") as arrays:
            _ = arrays["images"]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_sound_npz_is_read_as_numpy_reads_it(tmp_path):
    values = {
        "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "turned": np.asfortranarray(np.ones((3, 5))),
        "labels": np.array(["a", "bcd"]), "one": np.array(7), "none": np.zeros((0, 3)), "yes": np.tri(9, dtype=bool),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **values)
        with Npz(tmp_path / "x.npz") as arrays:
            assert sorted(arrays.files) == sorted(values)
            for name, value in values.items():
                np.testing.assert_array_equal(arrays[name], value)
                assert arrays[name].dtype == value.dtype


def test_a_member_of_a_zip_is_bounded(tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(zipped({"bomb.png": bytes(80 << 20), "small.png": b"hello"}))
    archive = open_zip(file, "it")
    assert read_member(archive, "small.png", file=file) == b"hello"
    for name, options in (("bomb.png", {}), ("small.png", {"most": 4}), ("missing.png", {})):
        with pytest.raises(InputError, match=name):
            read_member(archive, name, file=file, **options)
    file.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match=r"expected it$"):
        open_zip(file, "it")


# --- Headers of checkpoints -------------------------------------------------------------------------------------------

ANYTHING = ["a text", "", 7, -1, 1e308, True, None, [], ["a"], [[1]], {}, {"a": 1}, {"type": "x"}, 10**30, [10**9] * 2]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The header and tensors of a small encoder with every part."""
    from distcam.encoders import BNNeck
    from distcam.encoders.checkpoint import read_checkpoint
    from distcam.images import Transform

    file = tmp_path_factory.mktemp("checkpoint") / "sound.safetensors"
    options = {"weights": "random", "pooling": "gem", "head": BNNeck(64), "transform": Transform(64)}
    Encoder.load("conv4", **options).save(file)
    return read_checkpoint(file)


def places(value, at=()):
    """The paths to everything inside nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(config, path, value):
    copy = json.loads(json.dumps(config))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return copy


def test_a_header_may_hold_anything_anywhere(sound, tmp_path):
    config, tensors = sound
    file = tmp_path / "x.safetensors"
    said = []
    for number, path in enumerate(places(config)):
        for value in [*ANYTHING, ...][number % 2 :: 2]:  # every second thing, the others in the next place
            save_file(tensors, file, metadata={"distcam": json.dumps(changed(config, path, value))})
            try:
                Encoder.load(file)
            except WeightsError as error:
                said.append(str(error))
    assert len(said) > 100
    assert all(str(file) in text for text in said)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "null", "[]", '"distcam"', "7", '{"format": []}', '{"format": 1}', "9" * 5000]
)
def test_a_header_that_is_no_configuration_is_refused(sound, tmp_path, text):
    save_file(sound[1], tmp_path / "x.safetensors", metadata={"distcam": text})
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        Encoder.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "weak segmenter", "training run"])
def test_other_checkpoints_end_in_our_errors_too(sound, tmp_path, kind):
    from distcam.segmentation import load_segmenter
    from distcam.segmentation.pseudo_masks.sources import WeakSegmenter
    from distcam.training.engine.outcome import STATE, read_state
    from distcam.training.losses.classifier import load_classifier

    read = {
        "classifier": load_classifier,
        "segmenter": load_segmenter,
        "weak segmenter": WeakSegmenter.load,
        "training run": lambda file: read_state(file.parent),
    }[kind]
    keys = ("class_names", "options", "transform", "architecture", "head", "multi_label", "encoder", "refinement",
            "stages", "metadata", "tree")  # fmt: skip
    config = {"format": 1, "kind": kind} | dict.fromkeys(keys, "x") | {"options": {}, "transform": {}, "metadata": {}}
    config |= {"class_names": ["a"], "tree": {"$tensor": "missing"}}
    file = tmp_path / STATE
    file.parent.mkdir(exist_ok=True)
    for key in keys:
        for value in [*ANYTHING, ...]:
            save_file(sound[1], file, metadata={"distcam": json.dumps(changed(config, (key,), value))})
            with suppress(DistcamError):  # any plain value is the state of a run
                read(file)
