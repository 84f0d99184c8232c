"""Vectors from other tools and for them: what is read, what is refused, and that a round trip changes no answer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pytest
import torch
from commands import distcam, fails
from PIL import Image

from distcam import DistcamWarning, Retriever
from distcam.encoders import Encoder, Inference, Linear
from distcam.errors import (
    FingerprintMismatchError,
    GalleryError,
    GalleryExistsError,
    InputError,
    MissingExtraError,
    NotAGalleryError,
    WeightsError,
)
from distcam.files import Storage
from distcam.images import Transform, list_images
from distcam.index import Gallery, export_gallery, import_gallery
from distcam.index.interop import tables as reading
from distcam.index.storage.writer import GalleryWriter

pytestmark = pytest.mark.usefixtures("own_state")

pa = pytest.importorskip("pyarrow", reason="needs pip install 'distcam[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")


def _paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(10):
        _paint(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def encoder() -> Encoder:
    return Encoder.load("conv4", weights="random", transform=Transform(32, fit="squash"))


def _vectors(count: int, dim: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def _clip_folder(folder: Path, shards: list[Any], tables: list[dict[str, list[Any]] | None]) -> Path:
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, (vectors, table) in enumerate(zip(shards, tables, strict=True)):
        np.save(folder / "img_emb" / f"img_emb_{number + 9}.npy", vectors)
        if table is not None:
            pq.write_table(pa.table(table), folder / "metadata" / f"metadata_{number + 9}.parquet")
    return folder


# --- There and back ---------------------------------------------------------------------------------------------------


def test_an_export_may_leave_its_encoder_out_and_the_import_says_so(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    assert export_gallery(gallery, tmp_path / "whole").encoder
    assert not export_gallery(gallery, tmp_path / "bare", encoder=False).encoder
    assert not (tmp_path / "bare" / "encoder.safetensors").exists()
    assert "the encoder" not in (tmp_path / "bare" / "README.md").read_text()
    with pytest.warns(DistcamWarning, match=f"bare brings no copy of {encoder.short_name}, which made its vectors: "):
        again = import_gallery(tmp_path / "bare", tmp_path / "again")
    with pytest.raises(GalleryError, match=f"keeps no copy of its encoder {encoder.short_name} .*pass encoder"):
        Retriever(again)
    assert Retriever(again, encoder).query(photos / "a" / "0.png", k=1)[0].path == "a/0.png"
    (tmp_path / "whole" / "encoder.safetensors").unlink()
    with pytest.warns(DistcamWarning, match="its description names one, which is not there"):
        import_gallery(tmp_path / "whole", tmp_path / "third")


def test_an_encoder_in_an_export_is_checked_before_anything_is_imported(
    tmp_path: Path, photos: Path, encoder: Encoder
) -> None:
    export_gallery(Gallery.build(photos, encoder, out=tmp_path / "g"), tmp_path / "e")
    other = Encoder.load("conv4", weights="random", transform=encoder.transform, seed=5)
    other.save(tmp_path / "e" / "encoder.safetensors")
    with pytest.raises(FingerprintMismatchError, match=f"was made with {encoder.short_name}"):
        import_gallery(tmp_path / "e", tmp_path / "again")
    (tmp_path / "e" / "encoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"encoder\.safetensors: .*delete it to import without"):
        import_gallery(tmp_path / "e", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_gallery_of_ones_own_network_is_exported_without_it(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, Encoder(encoder.backbone, transform=encoder.transform), out=tmp_path / "g")
    with pytest.warns(DistcamWarning, match="g keeps no copy of its encoder custom/.*, so none is exported"):
        assert not export_gallery(gallery, tmp_path / "e").encoder


@pytest.mark.parametrize(("metric", "index"), [("cosine", "flat"), ("l2", "HNSW8"), ("l1", "auto"), ("dot", "none")])
def test_a_round_trip_changes_no_answer(
    tmp_path: Path, photos: Path, encoder: Encoder, metric: Any, index: str
) -> None:
    table = photos / "table.csv"
    lines = [
        f"{r.path},{'' if r.path == 'a/0.png' else r.label},{n},x{n % 3}" for n, r in enumerate(list_images(photos))
    ]
    table.write_text("\n".join(["path,label,id,camera", *lines]))
    headed = Encoder(encoder.backbone, transform=encoder.transform, head=Linear(64, 5))
    headed.options, headed.architecture, headed.layer = encoder.options, "conv4", encoder.layer
    with pytest.warns(DistcamWarning, match="1 of 10 images in table.csv have no label"):
        gallery = Gallery.build(table, headed, out=tmp_path / "g", metric=metric)
    gallery.remove(paths=["b/3.png"])
    calls: list[tuple[int, int]] = []
    export = export_gallery(gallery, tmp_path / "e", index=index, rows_per_file=4, progress=lambda *a: calls.append(a))
    assert (export.images, calls[-1]) == (9, (9, 9))
    assert sorted(path.name for path in (tmp_path / "e" / "img_emb").iterdir()) == [
        f"img_emb_{n}.npy" for n in range(3)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "g", "photos"]
    again = import_gallery(tmp_path / "e", tmp_path / "again")
    assert again.verify().is_sound
    assert again.manifest.complete
    assert again.spec == gallery.spec
    assert again.root == gallery.root
    assert [(r.path, r.label, r.columns) for r in again.records(again.ids)] == [
        (r.path, r.label, r.columns) for r in gallery.records(gallery.ids)
    ]
    assert gallery.records(gallery.ids)[0].columns == {"id": "0", "camera": "x0"}  # a column called like one of ours
    np.testing.assert_array_equal(again.pooled(again.ids), gallery.pooled(gallery.ids))
    queries = _vectors(5, 5)
    for mine, theirs in zip(again.search(queries, 4), gallery.search(queries, 4), strict=True):
        assert [r.path for r in again.records(mine.ids)] == [r.path for r in gallery.records(theirs.ids)]
        np.testing.assert_array_equal(mine.distances, theirs.distances)
    assert [again.snapshot.file_state(place) for place in range(9)] == [
        gallery.snapshot.file_state(place) for place in range(9)
    ]
    again.check_encoder(headed)  # an export says which encoder it was
    assert again.encoder_path is not None  # and brings it along
    assert Retriever(again).encoder.fingerprint == headed.fingerprint
    (photos / "b" / "3.png").unlink()
    assert again.sync(photos).changes == ()


def test_the_exported_index_is_read_by_faiss_with_row_numbers(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    gallery.remove(paths=["a/0.png"])
    export_gallery(gallery, tmp_path / "e", rows_per_file=4)
    index = faiss.read_index(str(tmp_path / "e" / "image.index"))
    query = gallery.embeddings(gallery.ids[6:7])
    score, rows = index.search(query / np.linalg.norm(query), 3)
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((tmp_path / "e" / "metadata").iterdir())
    ).to_pylist()
    (hits,) = gallery.search(query, 3)
    assert [table[row]["id"] for row in rows[0]] == hits.ids.tolist()
    np.testing.assert_allclose(1 - score[0], hits.distances, atol=1e-6)
    assert Path(table[6]["image_path"]).is_file()
    assert table[6]["label"] == Path(table[6]["path"]).parent.name
    about = json.loads((tmp_path / "e" / "export.json").read_text())
    assert about["index"] == {"file": "image.index", "factory": "Flat", "ids": "row numbers"}
    assert "distance = 1 - score" in (tmp_path / "e" / "README.md").read_text()


def test_an_exported_index_need_not_be_one_that_can_be_filtered(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    export_gallery(gallery, tmp_path / "e", index="PQ1x2")
    assert faiss.read_index(str(tmp_path / "e" / "image.index")).ntotal == len(gallery)


def test_half_precision_halves_the_arrays(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    export_gallery(gallery, tmp_path / "e", half=True, index="none")
    assert np.load(tmp_path / "e" / "img_emb" / "img_emb_0.npy").dtype == np.float16
    again = import_gallery(tmp_path / "e", tmp_path / "again")
    np.testing.assert_allclose(again.pooled(again.ids), gallery.pooled(gallery.ids), rtol=1e-3, atol=1e-6)


def test_an_export_appears_whole_or_not_at_all(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    left = tmp_path / "e.partial"
    left.mkdir()
    with pytest.raises(GalleryExistsError, match="in the way and not ours"):
        export_gallery(gallery, tmp_path / "e")
    (left / ".distcam-export").touch()  # as an export that was killed leaves it
    (left / "junk").touch()

    def full(self: Storage, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "sync", full)
        with pytest.raises(GalleryError, match=r"No space left on device.*is the disk full"):
            export_gallery(gallery, tmp_path / "e")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "photos"]
    export_gallery(gallery, tmp_path / "e")
    assert not any(path.name.startswith((".", "junk")) for path in (tmp_path / "e").rglob("*"))
    with pytest.raises(GalleryExistsError, match="is there already"):
        export_gallery(gallery, tmp_path / "e")
    with pytest.raises(InputError, match="FAISS cannot make index"):
        export_gallery(gallery, tmp_path / "f", index="nonsense")
    gallery.remove(where="label in a,b")
    with pytest.raises(InputError, match="holds no image"):
        export_gallery(gallery, tmp_path / "f")


# --- clip-retrieval ---------------------------------------------------------------------------------------------------


def test_a_clip_retrieval_folder_becomes_a_gallery(tmp_path: Path) -> None:
    vectors = _vectors(5)
    vectors[3] = 0
    nan = vectors[:2].copy()
    nan[1] = np.nan
    folder = _clip_folder(
        tmp_path / "laion",
        [vectors.astype(np.float16), nan],  # numbers 9 and 10: not in the order of their names
        [
            {
                "image_path": [f"/data/{n}.jpg" for n in range(4)] + ["/data/0.jpg"],
                "caption": ["a cat", None, "", "zero", "again"],
                "width": [640, 480, None, 1, 2],
                "exif": [{"iso": 100}, None, None, None, None],
                "score": [0.5, float("nan"), 1.0, 1.0, 1.0],
                "label": ["cat", None, "dog", "dog", "cat"],
            },
            {"image_path": ["relative/x.jpg", "relative/y.jpg"], "caption": ["x", "y"]},
        ],
    )
    gallery = import_gallery(folder, tmp_path / "g")
    assert [(r.path, r.label, r.columns) for r in gallery.records(gallery.ids)] == [
        ("/data/0.jpg", "cat", {"caption": "a cat", "width": "640", "exif": '{"iso": 100}', "score": "0.5"}),
        ("/data/1.jpg", None, {"width": "480"}),
        ("/data/2.jpg", "dog", {"caption": "", "score": "1.0"}),
        ("relative/x.jpg", None, {"caption": "x"}),
    ]
    assert {item.path: item.reason for item in gallery.skipped} == {
        "/data/3.jpg": "its embedding is zero, which no cosine compares",
        "/data/0.jpg": "its path occurs twice; the first is kept",
        "relative/y.jpg": "its vectors are not finite",
    }
    np.testing.assert_array_equal(gallery.pooled(gallery.ids)[:3], vectors[:3].astype(np.float16).astype(np.float32))
    assert gallery.spec.embedding_is_pooled
    assert gallery.root == folder
    assert gallery.verify().is_sound
    assert gallery.search(vectors[2:3], 1)[0].ids.tolist() == [2]
    assert len(Gallery.open(tmp_path / "g").prototypes) == 2


def test_a_folder_without_tables_gets_names_and_many_rows_come_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 4)
    most = 0
    append = GalleryWriter.append

    def watched(self: GalleryWriter, entries: Any, vectors: Any, **options: Any) -> None:
        nonlocal most
        most = max(most, len(entries))
        append(self, entries, vectors, **options)

    monkeypatch.setattr(GalleryWriter, "append", watched)
    vectors = _vectors(10)
    gallery = import_gallery(
        _clip_folder(tmp_path / "f", [vectors], [None]), tmp_path / "g", metric="l2", name="model X"
    )
    assert [record.path for record in gallery.records(gallery.ids)][-1] == "img_emb_9/00000009"
    assert most == 4
    assert gallery.manifest.encoder.description["imported"] == "model X"
    other = import_gallery(tmp_path / "f", tmp_path / "h", name="model X")
    assert other.manifest.encoder.fingerprint == gallery.manifest.encoder.fingerprint
    with pytest.raises(GalleryExistsError, match="holds a gallery"):
        import_gallery(tmp_path / "f", tmp_path / "h")
    assert len(import_gallery(tmp_path / "f", tmp_path / "h", overwrite=True)) == 10
    with pytest.raises(GalleryExistsError, match="holds other files"):
        import_gallery(tmp_path / "f", tmp_path / "f", overwrite=True)


def test_an_interrupted_import_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_ROWS", 4)
    folder = _clip_folder(tmp_path / "f", [_vectors(10)], [None])

    def interrupted(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    commit = GalleryWriter.append

    def committing(self: GalleryWriter, *arguments: Any, **options: Any) -> None:
        commit(self, *arguments, **options)
        self.commit()

    monkeypatch.setattr(GalleryWriter, "append", committing)
    with pytest.raises(KeyboardInterrupt):
        import_gallery(folder, tmp_path / "g", progress=interrupted)
    half = Gallery.open(tmp_path / "g", verify=True)
    assert (len(half), half.manifest.complete) == (8, False)
    gallery = import_gallery(folder, tmp_path / "g")
    assert (len(gallery), gallery.manifest.complete) == (10, True)
    assert gallery.verify().is_sound
    assert len(list((tmp_path / "g").glob("segment-*"))) == len(gallery.manifest.segments)


def test_which_encoder_made_the_vectors_is_tried_on_the_images(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    files = [photos / record.path for record in list_images(photos)]
    vectors = Inference(encoder, precision="fp32").encode_images(files).embedding.numpy()
    paths = {"image_path": [str(file) for file in files]}
    folder = _clip_folder(tmp_path / "f", [vectors.astype(np.float16)], [paths])
    unknown = import_gallery(folder, tmp_path / "unknown")
    with pytest.raises(FingerprintMismatchError, match="stored images and vectors can be queried, other images cannot"):
        unknown.check_encoder(encoder)
    encoder.save(tmp_path / "encoder.safetensors")
    gallery = import_gallery(folder, tmp_path / "g", encoder=tmp_path / "encoder.safetensors", root=photos)
    gallery.check_encoder(encoder)
    assert gallery.encoder_path is not None
    assert gallery.records([0])[0].path == "a/0.png"  # under the root that was given
    other = Encoder.load("conv4", weights="random", transform=Transform(32, fit="squash"), seed=5)
    with pytest.raises(FingerprintMismatchError, match=r"did not make the vectors of .*f: encoding .* again gives one"):
        import_gallery(folder, tmp_path / "h", encoder=other)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised = _clip_folder(tmp_path / "n", [unit], [paths])
    with pytest.raises(FingerprintMismatchError, match="were normalised, and explaining needs raw ones"):
        import_gallery(normalised, tmp_path / "h", encoder=encoder)
    headed = Encoder.load("conv4", weights="random", transform=Transform(32), head=Linear(64, 5))
    with pytest.raises(FingerprintMismatchError, match="has vectors of 64 numbers"):
        import_gallery(folder, tmp_path / "h", encoder=headed)
    shutil.rmtree(photos)
    with pytest.raises(InputError, match="cannot be tried on them; say where they are with --root"):
        import_gallery(folder, tmp_path / "h", encoder=encoder)
    assert not (tmp_path / "h").exists()


def test_an_export_of_another_encoder_is_refused(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    export_gallery(Gallery.build(photos, encoder, out=tmp_path / "g"), tmp_path / "e", index="none")
    other = Encoder.load("conv4", weights="random", transform=Transform(32), seed=5)
    with pytest.raises(FingerprintMismatchError, match=rf"made with {encoder.short_name}, the encoder given is"):
        import_gallery(tmp_path / "e", tmp_path / "h", encoder=other)
    again = import_gallery(tmp_path / "e", tmp_path / "h", encoder=encoder)
    assert again.encoder_path is not None


def test_broken_and_hostile_folders_are_refused(tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            import_gallery(tmp_path / "f", tmp_path / "g", **options)
        with pytest.raises(NotAGalleryError):
            Gallery.open(tmp_path / "g")
        if (tmp_path / "f").is_dir():
            shutil.rmtree(tmp_path / "f")

    refused("nothing is at")
    (tmp_path / "f").mkdir()
    refused("expected a folder with img_emb")
    array = np.array([[{"a": 1}]], object)
    (tmp_path / "f" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "f" / "img_emb" / "img_emb_0.npy", array, allow_pickle=True)
    refused("no readable .npy array without pickle")
    (tmp_path / "f" / "img_emb").mkdir(parents=True)
    refused("holds no .npy file")
    _clip_folder(tmp_path / "f", [_vectors(3), _vectors(3, 7)], [None, None])
    refused("different widths")
    _clip_folder(tmp_path / "f", [_vectors(3)], [{"image_path": ["a", "b"]}])
    refused(r"have \[2, 3\] rows")
    _clip_folder(tmp_path / "f", [_vectors(3).astype(int)], [None])
    refused("floating-point")
    _clip_folder(tmp_path / "f", [_vectors(3)], [None])
    (tmp_path / "f" / "metadata" / "metadata_9.parquet").write_bytes(b"PAR1 no")
    refused("cannot be read as Parquet")
    _clip_folder(tmp_path / "f", [np.zeros((2, 3), np.float32)], [None])
    refused("none of 2 rows")
    _clip_folder(tmp_path / "f", [_vectors(1)], [{"image_path": ["../../etc/passwd"]}])
    assert import_gallery(tmp_path / "f", tmp_path / "p").records([0])[0].path.startswith("/")  # never relative upwards
    (tmp_path / "f" / "export.json").write_text('{"format": "distcam-export", "version": 1}')
    refused("is not what `distcam index export` writes")
    _clip_folder(tmp_path / "f", [_vectors(3)], [None])
    header = (tmp_path / "f" / "img_emb" / "img_emb_9.npy").read_bytes()
    (tmp_path / "f" / "img_emb" / "img_emb_9.npy").write_bytes(header.replace(b"(3, 6)", b"(9999999999, 6)")[:200])
    refused("no readable .npy")


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery.build(photos, encoder, out=tmp_path / "g")
    folder = _clip_folder(tmp_path / "f", [_vectors(1)], [{"image_path": ["a"]}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'distcam\[parquet\]'"):
        export_gallery(gallery, tmp_path / "e")
    with pytest.raises(MissingExtraError):
        import_gallery(folder, tmp_path / "h")


# --- Open Metric Learning, hloc ---------------------------------------------------------------------------------------

OML = "label,path,split,is_query,is_gallery,category,sequence,x_1,x_2,y_1,y_2"


def _oml_table(photos: Path) -> Path:
    rows = [
        f"{number % 2},{record.path},validation,{number % 2 == 0},{number % 2 == 1},bird,seq{number},1,30,2,31"
        for number, record in enumerate(list_images(photos))
    ]
    table = photos / "df.csv"
    table.write_text("\n".join([OML, *rows]))
    return table


def test_omls_table_is_a_listing_and_its_boxes_are_columns(tmp_path: Path, photos: Path, encoder: Encoder) -> None:
    with pytest.warns(DistcamWarning, match="NOT cut out"):
        gallery = Gallery.build(_oml_table(photos), encoder, out=tmp_path / "g", boxes="none")
    record = gallery.records([3])[0]
    assert (record.label, record.columns["category"], record.columns["sequence"]) == ("1", "bird", "seq3")
    assert [record.columns[name] for name in ("x_1", "x_2", "y_1", "y_2")] == ["1", "30", "2", "31"]
    assert len(gallery.ids_where("is_query=True and x_2>=30")) == 5


@pytest.mark.parametrize("name", ["embeddings.npy", "embeddings.pth"])
def test_omls_saved_embeddings_are_read_beside_the_table(tmp_path: Path, photos: Path, name: str) -> None:
    table, vectors = _oml_table(photos), _vectors(10)
    if name.endswith("npy"):
        np.save(photos / name, vectors)
    else:
        torch.save(torch.from_numpy(vectors), photos / name)
    gallery = import_gallery(photos, tmp_path / "g")
    np.testing.assert_array_equal(gallery.embeddings(gallery.ids), vectors)
    assert gallery.file(3).is_file()
    assert gallery.records([3])[0].columns["y_2"] == "31"
    assert len(import_gallery(table, tmp_path / "h", embeddings=photos / name, label_column="category").labels) == 1
    np.save(photos / "other.npy", vectors[:4])
    with pytest.raises(InputError, match=r"expected one file \*\.npy or \*\.pt or \*\.pth, found"):
        import_gallery(photos, tmp_path / "i")
    with pytest.raises(InputError, match=r"has 10 lines and other\.npy 4 rows"):
        import_gallery(table, tmp_path / "i", embeddings=photos / "other.npy")


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo taken over",)


def test_a_tensor_file_runs_nothing_and_cannot_lie_about_its_size(tmp_path: Path, photos: Path) -> None:
    table = _oml_table(photos)
    torch.save(_Evil(), photos / "e.pt")
    with pytest.raises(InputError, match="cannot be read safely as a tensor"):
        import_gallery(table, tmp_path / "g")
    torch.save(torch.zeros(1).expand(10, 1 << 40), photos / "e.pt")
    with pytest.raises(InputError, match="more than it holds"):
        import_gallery(table, tmp_path / "g")
    torch.save({"weights": torch.zeros(1)}, photos / "e.pt")
    with pytest.raises(InputError, match="got dict"):
        import_gallery(table, tmp_path / "g")


def test_hlocs_descriptors_are_read_and_links_are_not_followed(tmp_path: Path) -> None:
    vectors = _vectors(4)
    with h5py.File(tmp_path / "global.h5", "w") as file:
        for number in (2, 0, 1, 3):
            file[f"db/{number}.jpg/global_descriptor"] = vectors[number].astype(np.float16)
            file[f"db/{number}.jpg/image_size"] = [640, 480]
    gallery = import_gallery(tmp_path / "global.h5", tmp_path / "g", root=tmp_path / "images")
    assert [record.path for record in gallery.records(gallery.ids)] == [f"db/{number}.jpg" for number in range(4)]
    np.testing.assert_allclose(gallery.embeddings(gallery.ids), vectors, rtol=1e-3)
    with h5py.File(tmp_path / "global.h5", "a") as file:
        file["x.jpg/global_descriptor"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(InputError, match="is a link to somewhere else"):
        import_gallery(tmp_path / "global.h5", tmp_path / "h")
    (tmp_path / "global.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as hloc's HDF5"):
        import_gallery(tmp_path / "global.h5", tmp_path / "h")


# --- Command line -----------------------------------------------------------------------------------------------------


def test_the_commands_export_and_import(
    tmp_path: Path, photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gallery.build(photos, encoder, out=tmp_path / "g")
    assert "10 images in" in distcam("index", "export", tmp_path / "g", "--out", tmp_path / "e", "--index", "none")
    value = json.loads(distcam("index", "import", tmp_path / "e", "--out", tmp_path / "again", "--json"))
    assert (value["images"], value["complete"], value["skipped"]) == (10, True, [])
    vectors = _clip_folder(tmp_path / "f", [_vectors(3)], [None])
    assert "3 images in" in distcam("index", "import", vectors, "--out", tmp_path / "h")
    assert "which encoder made them is not known" in fails(
        monkeypatch, capsys, "query", tmp_path / "h", photos / "a" / "0.png",
        "--encoder", next((tmp_path / "g").glob("encoder-*")),
    )  # fmt: skip
