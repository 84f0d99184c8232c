"""Where the parts of a gallery meet: building anew under a reader, tuning beside writers, exports of every kind."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import distcam, fails
from PIL import Image

from distcam import DistcamWarning
from distcam.encoders import Encoder
from distcam.errors import (
    CorruptGalleryError,
    FingerprintMismatchError,
    GalleryError,
    GalleryLockedError,
    InputError,
)
from distcam.images import Transform
from distcam.index import Gallery, export_gallery, import_gallery, verify_gallery
from distcam.index.backends import opened_for_writing
from distcam.index.storage import manifest as manifests
from distcam.index.storage.manifest import EncoderEntry, Manifest, MaskEntry, Spec
from distcam.index.storage.segments import Entries, RowVectors
from distcam.index.storage.writer import CommitLimits, GalleryWriter
from distcam.index.sync.sync import LazyEncoder

# The galleries here are of vectors without an encoder, which an export and an import remark upon.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no copy of.*:distcam.DistcamWarning"),
    pytest.mark.usefixtures("own_state"),
]


def _rows(paths: list[str], labels: list[str | None], seed: int, columns: dict[str, Any] | None = None) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(len(paths), 4)).astype(np.float32)
    entries = Entries(
        ids=np.zeros(len(paths), np.uint64),
        paths=paths,
        sha256=np.zeros((len(paths), 32), np.uint8),
        size=np.zeros(len(paths), np.uint64),
        mtime_ns=np.zeros(len(paths), np.int64),
        columns={"label": labels, **(columns or {})},
    )
    return entries, RowVectors(vectors, vectors)


def _gallery(folder: Path, *, count: int = 40, seed: int = 0, old: Manifest | None = None, **options: Any) -> Gallery:
    """A gallery of made-up vectors, or another one over it as `--overwrite` writes it."""
    folder.mkdir(exist_ok=True)
    encoder = EncoderEntry("f" * 64, "fake", precision="bf16")
    generation = 0 if old is None else old.generation + 1
    given = {"root": str(folder.parent), "gallery_id": f"{seed:032x}", "generation": generation, **options}
    writer = GalleryWriter(folder, Manifest(Spec("l2", 4, 4, None, True), encoder, **given), on_disk=old)
    mask = {"mask": ["none"] * count} if "masks" in options else None
    labels: list[str | None] = ["ab"[(number + seed) % 2] for number in range(count)]
    writer.append(*_rows([f"{number}.png" for number in range(count)], labels, seed, mask))
    writer.commit(complete=True)
    return Gallery.open(folder)


# --- Another gallery in the place of one that is open -----------------------------------------------------------------


@pytest.mark.parametrize("is_deleted_first", [False, True])
def test_a_reader_notices_that_a_gallery_was_built_anew_though_its_ids_are_the_same(
    tmp_path: Path, is_deleted_first: bool
) -> None:
    reader = _gallery(tmp_path / "g")
    reader.search(np.zeros((1, 4)), 1)
    assert reader.prototypes.total == 40
    old: Manifest | None = reader.manifest
    if is_deleted_first:
        with opened_for_writing(tmp_path / "g") as writer:
            writer.delete_gallery()
        old = None
    new = _gallery(tmp_path / "g", seed=1, old=old)
    assert reader.refresh()
    queries = new.embeddings(new.ids)
    assert [int(hits.ids[0]) for hits in reader.search(queries, 1)] == new.ids.tolist()
    np.testing.assert_allclose(reader.prototypes.all_embeddings(), new.prototypes.all_embeddings())


def test_tuning_does_not_go_into_a_gallery_that_was_built_anew_meanwhile(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path / "g")
    with pytest.raises(InputError, match="built anew"):
        gallery.tune(
            candidates=["SQfp16"],
            recall=0.5,
            queries=5,
            progress=lambda done, total: (
                done == total and _gallery(tmp_path / "g", seed=1, old=gallery.manifest) and None
            ),
        )
    assert Manifest.load(tmp_path / "g").tuning is None


def test_nothing_measured_or_encoded_for_the_old_gallery_goes_into_the_new_one(tmp_path: Path) -> None:
    first, second = (Encoder.load("conv4", weights="random", transform=Transform(32), seed=seed) for seed in (0, 1))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    opened = Gallery.build(tmp_path / "red.png", first, out=tmp_path / "g")
    load = LazyEncoder(opened, None)  # as a watch keeps it
    assert load().fingerprint == first.fingerprint
    Gallery.build(tmp_path / "red.png", second, out=tmp_path / "g", overwrite=True)
    Image.new("RGB", (32, 32), "green").save(tmp_path / "green.png")
    with pytest.raises(FingerprintMismatchError):
        opened.add(tmp_path / "green.png", first)
    assert len(Gallery.open(tmp_path / "g")) == 1
    assert load().fingerprint == second.fingerprint

    calibrated = _gallery(tmp_path / "made-up")
    _gallery(tmp_path / "made-up", seed=1, old=calibrated.manifest)
    with pytest.raises(InputError, match="built anew"):
        calibrated.calibrate(false_alarm_rate=0.5)
    assert Manifest.load(tmp_path / "made-up").rejection is None


# --- Tuning beside other writers --------------------------------------------------------------------------------------


def test_a_finished_tuning_waits_for_another_writer_instead_of_being_lost(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path / "g")
    is_held, may_go = threading.Event(), threading.Event()

    def write() -> None:
        with opened_for_writing(tmp_path / "g") as writer:
            is_held.set()
            may_go.wait(10)
            time.sleep(0.3)
            writer.append(*_rows(["new.png"], ["a"], 7))
            writer.commit()

    other = threading.Thread(target=write)
    other.start()
    is_held.wait(10)
    gallery.tune(
        candidates=["IVF2,Flat"], recall=0.5, queries=5, progress=lambda done, total: may_go.set() if done else None
    )
    other.join()
    assert gallery.manifest.index == "IVF2,Flat"
    assert len(gallery) == 41
    assert gallery.search(gallery.embeddings([40]), 1)[0].ids.tolist() == [40]
    assert verify_gallery(tmp_path / "g").problems == ()


def test_whoever_does_not_wait_is_told_at_once(tmp_path: Path) -> None:
    _gallery(tmp_path / "g")
    start = time.monotonic()
    with opened_for_writing(tmp_path / "g"), pytest.raises(GalleryLockedError):
        Gallery.open(tmp_path / "g").compact()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("change", ["remove", "compact", "merge", "repair"])
def test_a_tuned_gallery_stays_sound_through_every_change(tmp_path: Path, change: str) -> None:
    gallery = _gallery(tmp_path / "g")
    gallery.tune(candidates=["IVF2,SQfp16"], recall=0.5, queries=5)
    reader = Gallery.open(gallery.folder)
    queries = gallery.embeddings(gallery.ids)
    assert reader.searcher.is_mapped  # type: ignore[union-attr]
    gallery.remove(paths=["3.png", "4.png"])
    if change == "compact":
        gallery.compact()
    elif change == "merge":
        with opened_for_writing(gallery.folder, limits=CommitLimits(files=1)) as writer:
            for number in range(3):
                writer.append(*_rows([f"new{number}.png"], ["a"], number))
                writer.commit()
            writer.merge_small()
    elif change == "repair":
        entry = gallery.manifest.index_cache
        assert entry is not None
        file = gallery.folder / entry.file.name
        file.write_bytes(file.read_bytes()[:-1])
        report = gallery.verify(repair=True)
        assert [problem.is_loss for problem in report.problems] == [False]
    assert reader.search(queries[3:4], 1)[0].ids.tolist() == [3]  # the old generation, whose files are gone, goes on
    reader.refresh()
    for opened in (reader, Gallery.open(gallery.folder)):
        found = [int(hits.ids[0]) for hits in opened.search(queries, 1)]
        assert not {3, 4} & set(found)
        assert sum(number == place for place, number in enumerate(found)) == 38
    assert verify_gallery(gallery.folder).problems == ()
    assert Manifest.load(gallery.folder).tuning is not None


# --- What a verify costs ----------------------------------------------------------------------------------------------


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(("what", "status"), [("prototypes", 0), ("tombstone", 1), ("segment", 1)])
def test_repairing_ends_with_status_0_only_when_nothing_was_lost(tmp_path: Path, what: str, status: int) -> None:
    gallery = _gallery(tmp_path / "g")
    gallery.remove(paths=["3.png"])
    _flip(next(gallery.folder.glob(f"{what}-*")))
    distcam("index", "verify", gallery.folder, status=1)
    report = json.loads(distcam("index", "verify", gallery.folder, "--repair", "--json", status=status))
    assert report["is_sound"]
    assert report["has_losses"] == bool(status)
    distcam("index", "verify", gallery.folder)  # and now it is sound


def test_a_damaged_segment_whose_images_are_elsewhere_is_no_loss(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path / "g")
    first, vector = gallery.manifest.segments[0].name, gallery.embeddings([7]).tobytes()
    with opened_for_writing(gallery.folder) as writer:
        writer.append(*_rows([f"{number}.png" for number in range(40)], ["a"] * 40, 5), replaces=range(40))
        writer.commit()
    data = (gallery.folder / first).read_bytes()
    (gallery.folder / first).write_bytes(data.replace(vector, b"\xff" * len(vector)))
    report = verify_gallery(gallery.folder, repair=True)
    assert (report.has_losses, report.images) == (False, 40)


# --- Out and in again -------------------------------------------------------------------------------------------------


def test_an_export_remembers_the_masks_that_vectors_were_pooled_under(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pip install 'distcam[parquet]'")
    masks = MaskEntry(str(tmp_path / "masks"), 12)
    gallery = _gallery(tmp_path / "g", masks=masks)
    export_gallery(gallery, tmp_path / "e", index="none", encoder=False)
    with pytest.warns(DistcamWarning, match="brings no copy of fake"):
        again = import_gallery(tmp_path / "e", tmp_path / "again")
    assert again.manifest.masks == masks
    assert again.info()["masks"] == {**asdict(masks), "images": 0}
    with pytest.raises(InputError, match="pools its images under masks"):
        again.sync(tmp_path, dry_run=True)
    assert again.manifest.encoder == gallery.manifest.encoder  # with its precision


@pytest.mark.parametrize("masks", [{"folder": 3}, {}, [], {"folder": "/m", "category": True}])
def test_masks_that_an_export_does_not_describe_are_refused(tmp_path: Path, masks: object) -> None:
    pytest.importorskip("pyarrow", reason="needs pip install 'distcam[parquet]'")
    export_gallery(_gallery(tmp_path / "g"), tmp_path / "e", index="none", encoder=False)
    file = tmp_path / "e" / "export.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "masks": masks}))
    with pytest.raises(InputError, match="export again"):
        import_gallery(tmp_path / "e", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_import_checks_the_index_before_it_writes_anything(tmp_path: Path) -> None:
    (tmp_path / "clip" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "clip" / "img_emb" / "img_emb_0.npy", np.eye(4, dtype=np.float32))
    with pytest.raises(InputError, match="IVX"):
        import_gallery(tmp_path / "clip", tmp_path / "g", index="IVX4,Flat")
    assert not (tmp_path / "g").exists()


def test_a_clip_retrieval_folder_that_lacks_a_table_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pip install 'distcam[parquet]'")
    export_gallery(_gallery(tmp_path / "g"), tmp_path / "e", index="none", rows_per_file=15, encoder=False)
    (tmp_path / "e" / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(InputError, match=r"no table .* img_emb_1\.npy"):
        import_gallery(tmp_path / "e", tmp_path / "again")


def test_an_imported_gallery_that_was_tuned_goes_out_and_in_again(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pip install 'distcam[parquet]'")
    gallery = _gallery(tmp_path / "g")
    gallery.tune(candidates=["IVF2,SQfp16"], recall=0.5, queries=5)
    written = export_gallery(gallery, tmp_path / "e", index="auto", encoder=False)
    assert written.index == "IVF2,SQfp16"
    with pytest.warns(DistcamWarning, match="brings no copy of fake"):
        again = import_gallery(tmp_path / "e", tmp_path / "again")
    assert (again.manifest.index, again.manifest.tuning) == ("auto", None)
    queries = gallery.embeddings(gallery.ids)
    assert [hits.ids[0] for hits in again.search(queries, 1)] == [hits.ids[0] for hits in gallery.search(queries, 1)]


def test_addresses_are_in_no_folder_and_survive_its_sync(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path / "g", count=1)
    with opened_for_writing(gallery.folder) as writer:
        writer.append(*_rows(["https://example.org/a.jpg", "gone.png"], ["a", "a"], 3))
        writer.commit()
    report = gallery.sync(tmp_path, force=True)
    assert [(change.kind, change.path) for change in report.changes] == [
        ("removed", "0.png"),
        ("removed", "gone.png"),
    ]
    assert [record.path for record in gallery.records(gallery.ids)] == ["https://example.org/a.jpg"]


# --- Old and new manifests --------------------------------------------------------------------------------------------


def _rewrite(folder: Path, change: Any) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    content.pop("checksum")
    change(content)
    file.write_text(json.dumps({**content, "checksum": manifests._checksum(content)}))


def test_a_gallery_from_before_masks_tuning_and_gallery_ids_opens_changes_and_verifies(tmp_path: Path) -> None:
    _gallery(tmp_path / "g")
    _rewrite(tmp_path / "g", lambda content: [content.pop(name) for name in ("backend", "masks", "tuning", "birth")])
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.info()["tuning"] is None
    gallery.remove(paths=["0.png"])
    gallery.tune(candidates=["SQfp16"], recall=0.5, queries=5)
    assert verify_gallery(gallery.folder).problems == ()


@pytest.mark.parametrize("where", ["manifest", "encoder"])
def test_a_manifest_of_the_future_is_not_called_damaged(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _gallery(tmp_path / "g")
    _rewrite(
        tmp_path / "g", lambda content: (content if where == "manifest" else content[where]).update(colour="green")
    )
    before = (tmp_path / "g" / "manifest.json").read_bytes()
    for action in (Gallery.open, verify_gallery, lambda folder: verify_gallery(folder, repair=True)):
        with pytest.raises(GalleryError, match=r"newer distcam wrote it .*colour.*upgrade") as caught:
            action(tmp_path / "g")
        assert not isinstance(caught.value, CorruptGalleryError)
    assert "upgrade" in fails(monkeypatch, capsys, "index", "info", tmp_path / "g")
    assert (tmp_path / "g" / "manifest.json").read_bytes() == before


# --- What is said when a gallery has changed --------------------------------------------------------------------------


def test_a_threshold_says_whether_the_gallery_is_still_the_one_it_was_chosen_on(tmp_path: Path) -> None:
    gallery = _gallery(tmp_path / "g")
    gallery.calibrate(false_alarm_rate=0.5)
    assert gallery.info()["rejection"]["is_current"]
    gallery.compact()
    assert gallery.info()["rejection"]["is_current"]
    gallery.remove(paths=["3.png"])
    assert json.loads(distcam("index", "info", gallery.folder, "--json"))["rejection"]["is_current"] is False


def test_removing_and_syncing_say_that_tuning_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("distcam.cli.console.err.print", lambda text, **_: said.append(str(text)))
    gallery = _gallery(tmp_path / "g")
    gallery.tune(candidates=["SQfp16"], recall=0.5, queries=5)
    distcam("index", "remove", gallery.folder, "--path", "0.png")
    assert said == []
    gallery.remove(paths=[f"{number}.png" for number in range(1, 25)])
    assert gallery.info()["tuning"]["is_due"]
    distcam("index", "remove", gallery.folder, "--path", "39.png")
    distcam("index", "sync", gallery.folder, tmp_path, "--keep-missing")
    assert [f"index tune {gallery.folder}" in text for text in said] == [True, True]
