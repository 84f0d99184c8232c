"""Masks in retrieval: galleries pooled under masks, region queries by a mask, prototypes of objects, masks of maps."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from commands import distcam, fails
from PIL import Image

from distcam import Encoder, Gallery, Retriever
from distcam.encoders import GAP, Inference, Linear
from distcam.encoders.regions import MaskPooling, pooled_under, region_weights
from distcam.errors import GalleryExistsError, ImageError, InputError, ShapeError
from distcam.explain import fold
from distcam.images import Box, Transform, list_images
from distcam.images.boxes.fitting import LabelledBox
from distcam.images.boxes.joined import BoxedImage, BoxedImages
from distcam.images.masks import MaskFolder, read_mask
from distcam.remarks import DistcamWarning
from distcam.retrieval import References, localise
from distcam.retrieval.evidence import region_of_file

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:20 of 24 images have a mask"),  # as the masks here are
    pytest.mark.usefixtures("own_state"),
]


@pytest.fixture
def masks(photos, tmp_path):
    """A mask for every picture: its left upper quarter; of the first picture of a class none."""
    folder = tmp_path / "masks"
    for file in sorted(photos.rglob("*.jpg")):
        if file.stem != "0000":
            write_mask(quarter(), folder / file.relative_to(photos).with_suffix(".png"))
    return folder


def write_mask(mask, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)


def quarter():
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32, :32] = True
    return mask


def built(photos, encoder, out, **options):
    return Gallery.build(photos, encoder, out=out, precision="fp32", **options)


# ----------------------------------------------------------------------------------------------------------- the files


def test_a_mask_is_what_is_not_black_or_what_has_a_number(tmp_path):
    numbers = np.zeros((10, 12), dtype=np.uint8)
    numbers[2:4] = 1
    numbers[5:9, :6] = 7
    palette = Image.fromarray(numbers).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, *[0, 0, 9] * 254])
    palette.save(tmp_path / "p.png")
    Image.fromarray(numbers).save(tmp_path / "l.png")
    for name in ("p.png", "l.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), numbers > 0)
        np.testing.assert_array_equal(read_mask(tmp_path / name, category=7), numbers == 7)
    Image.fromarray(numbers > 0).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png"), numbers > 0)


def test_what_is_no_mask_is_refused(tmp_path):
    Image.new("RGB", (12, 12), "red").save(tmp_path / "c.png")
    with pytest.raises(ImageError, match="expected a mask of class numbers"):
        read_mask(tmp_path / "c.png", category=1)
    (tmp_path / "x.png").write_bytes(b"no picture")
    for category in (None, 3):
        with pytest.raises(ImageError):
            read_mask(tmp_path / "x.png", category=category)
    Image.new("L", (12, 12)).save(tmp_path / "e.png")
    with pytest.raises(InputError, match="nothing but black"):
        region_of_file(tmp_path / "e.png")
    with pytest.raises(InputError, match="no pixel with the number 4"):
        region_of_file(tmp_path / "e.png", category=4)
    with pytest.raises(InputError, match="expected a folder of masks"):
        MaskFolder.given(tmp_path / "none")
    with pytest.raises(InputError, match="0 to 255, got 300"):
        MaskFolder.given(tmp_path, 300)


def test_masks_lie_beside_pictures_and_never_outside_their_folder(tmp_path):
    folder = MaskFolder.given(tmp_path)
    assert folder.file("cat/1.jpg") == tmp_path / "cat/1.png"
    assert folder.file("/elsewhere/cat/1.jpg") == tmp_path / "1.png"
    assert folder.file("../../1.jpg") == tmp_path / "1.png"
    assert folder.digest("cat/1.jpg") is None


# --------------------------------------------------------------------------------------------------------- the pooling


def test_images_of_a_batch_are_pooled_under_their_own_weights(small_encoder):
    pixels = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoding = small_encoder.eval()(small_encoder.transform.normalise(pixels))
    one = torch.zeros(4, 4)
    one[1, 2] = 0.5
    found = pooled_under(small_encoder, encoding, [None, region_weights(one), region_weights(torch.ones(4, 4))])
    torch.testing.assert_close(found.pooled[0], encoding.pooled[0], rtol=0, atol=0)
    torch.testing.assert_close(found.pooled[1], encoding.feature_map[1, :, 1, 2])
    torch.testing.assert_close(found.pooled[2], encoding.pooled[2])
    assert pooled_under(small_encoder, encoding, [None] * 3) is encoding
    with pytest.raises(ShapeError, match="3 images need as many weights"):
        pooled_under(small_encoder, encoding, [None])


def test_the_folded_maps_of_a_batch_have_the_vectors_under_the_masks_as_means(small_encoder):
    maps = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    weights = region_weights(torch.tensor([[1.0, 0, 0, 0]] * 3)), region_weights(torch.tensor([[0.0, 0, 0.5, 1]] * 3))
    both = fold(maps, pooling=GAP(), head=Linear(5, 2).eval(), weights=torch.stack(weights)).map
    for row, weight in enumerate(weights):
        torch.manual_seed(0)
        alone = (maps[row] * weight).mean((1, 2))
        identity = fold(maps, pooling=GAP(), head=torch.nn.Identity(), weights=torch.stack(weights)).map[row]
        torch.testing.assert_close(identity.mean((1, 2)), alone)
        assert both[row][:, weight == 0].eq(0).all()


# --------------------------------------------------------------------------------------------------------- the gallery


def test_a_gallery_holds_the_vectors_under_the_masks(photos, masks, small_encoder, tmp_path):
    gallery = built(photos, small_encoder, tmp_path / "g", masks=masks)
    whole = built(photos, small_encoder, tmp_path / "w")
    records = gallery.records(gallery.ids)
    inference = Inference(small_encoder, precision="fp32")
    for row, maps in enumerate(inference.encode_images([gallery.file(record) for record in records]).feature_map):
        is_whole = records[row].path.endswith("0000.jpg")
        expected = maps.mean((1, 2)) if is_whole else maps[:, :2, :2].mean((1, 2))
        np.testing.assert_allclose(gallery.embeddings([gallery.ids[row]])[0], expected.numpy(), atol=1e-5)
    plain = [record.path for record in records if record.columns["mask"] == "none"]
    assert plain == [record.path for record in records if record.path.endswith("0000.jpg")]
    ids = gallery.ids_where("mask=none")
    np.testing.assert_allclose(gallery.pooled(ids), whole.pooled(ids), atol=1e-6)
    facts = gallery.info()["masks"]
    assert facts == {"folder": str(masks), "category": None, "images": 20}
    assert whole.info()["masks"] is None
    assert whole.masks is None
    assert Gallery.open(tmp_path / "g").masks == MaskFolder(masks)
    assert gallery.verify().is_sound


def test_what_is_added_later_is_pooled_under_the_same_folder_and_another_mask_is_news(
    photos, masks, small_encoder, tmp_path
):
    gallery = built(photos, small_encoder, tmp_path / "g", masks=masks)
    assert str(gallery.add(photos, small_encoder)) == "0 added, 0 replaced, 24 unchanged, 0 skipped"
    changed, gone, new = (sorted(photos.rglob(name))[0] for name in ("0001.jpg", "0002.jpg", "0000.jpg"))
    paths = [file.relative_to(photos).as_posix() for file in (changed, gone, new)]
    before = {record.path: record.columns["mask"] for record in gallery.records(gallery.ids)}
    write_mask(~quarter(), masks / paths[0].replace(".jpg", ".png"))
    (masks / paths[1].replace(".jpg", ".png")).unlink()
    write_mask(quarter(), masks / paths[2].replace(".jpg", ".png"))
    assert str(gallery.add(photos, small_encoder)) == "0 added, 3 replaced, 21 unchanged, 0 skipped"
    after = {record.path: record.columns["mask"] for record in gallery.records(gallery.ids)}
    assert {path for path in after if after[path] != before[path]} == set(paths)
    assert after[paths[1]] == "none"
    masks.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"under the masks in .* which is not there"):
        gallery.add(photos, small_encoder)


def test_with_strict_every_image_needs_a_mask_with_a_pixel(photos, masks, small_encoder, tmp_path):
    with pytest.raises(ImageError, match=r"0000.jpg: it has no mask; expected .*0000.png"):
        built(photos, small_encoder, tmp_path / "g", masks=masks, strict=True)
    for file in sorted(photos.rglob("0000.jpg")):
        write_mask(np.zeros((64, 64), dtype=bool), masks / file.relative_to(photos).with_suffix(".png"))
    with pytest.raises(ImageError, match="its mask holds no pixel"):
        built(photos, small_encoder, tmp_path / "h", masks=masks, strict=True)
    with pytest.warns(
        DistcamWarning, match=r"4 images are pooled as a whole, .*; the first: .*0000.jpg: its mask holds"
    ):
        empty = built(photos, small_encoder, tmp_path / "i", masks=masks)  # as if it had none
    whole = built(photos, small_encoder, tmp_path / "w")
    ids = [int(i) for i in empty.ids if empty.records([i])[0].path.endswith("0000.jpg")]
    np.testing.assert_allclose(empty.pooled(ids), whole.pooled(ids), atol=1e-6)


def test_a_mask_of_another_size_is_listed_among_what_could_not_be_used(photos, masks, small_encoder, tmp_path):
    wrong = sorted(masks.rglob("*.png"))[0]
    write_mask(np.ones((12, 9), dtype=bool), wrong)
    gallery = built(photos, small_encoder, tmp_path / "g", masks=masks)
    assert len(gallery) == 23
    (skipped,) = gallery.skipped
    assert "64x64 pixels, its mask" in skipped.reason
    assert skipped.reason.endswith("9x12, which has other proportions")


def test_masks_that_fit_partly_are_counted_with_the_likely_cause(photos, masks, small_encoder, tmp_path):
    odd = sorted(masks.rglob("*.png"))[0]
    odd.rename(odd.with_suffix(".PNG"))
    (masks / "strange.png").touch()
    with pytest.warns(DistcamWarning) as said:
        built(photos, small_encoder, tmp_path / "g", masks=masks)
    (text,) = (str(one.message) for one in said)
    assert text.startswith("19 of 24 images have a mask (")
    assert f"2 of 21 masks in {masks} fit no image, such as" in text
    assert "differ in upper and lower case" in text
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="0 of 24 images have a mask"):
        built(photos, small_encoder, tmp_path / "h", masks=tmp_path / "none")


def test_masks_that_mark_everything_are_remarked_on(photos, masks, small_encoder, tmp_path):
    for place, file in enumerate(sorted(masks.rglob("*.png"))):
        if place:
            Image.new("L", (64, 64), 3 if place % 2 else 255).save(file)
    with pytest.warns(DistcamWarning, match="19 of 20 masks in .* mark every pixel, as that of .* they change nothing"):
        built(photos, small_encoder, tmp_path / "g", masks=masks)


@pytest.mark.parametrize("kind", ["inverted", "palette", "right"])
def test_masks_of_the_background_are_remarked_on(photos, masks, small_encoder, tmp_path, kind):
    middle = np.zeros((64, 64), np.uint8)
    middle[16:48, 20:44] = 1
    pixels = Image.fromarray(255 * (1 - middle) if kind == "inverted" else middle)
    if kind == "palette":  # 0 is white and 1 is black
        pixels = Image.fromarray(1 - middle)
        pixels.putpalette([0, 0, 0, 255, 255, 255])
    for file in masks.rglob("*.png"):
        pixels.save(file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        built(photos, small_encoder, tmp_path / "g", masks=masks)
    told = [str(each.message) for each in said if "may be inverted" in str(each.message)]
    assert len(told) == (kind != "right")
    assert all("20 of 20 masks" in text and "mark the rim and not the middle" in text for text in told)


@pytest.fixture(scope="module")
def references(photos, small_encoder):
    return References.encode(list_images(photos), Inference(small_encoder, precision="fp32"))


def boxed(photos, box):
    """The first two images of each class, with a box around the object."""
    listing = list_images(photos)
    records = [record for record in listing if record.path.endswith(("0000.jpg", "0001.jpg"))]
    boxes = (LabelledBox(box),)
    return BoxedImages(tuple(BoxedImage(one.path, listing.file(one), one.label, boxes) for one in records))


@pytest.mark.parametrize("kind", ["inverted", "full", "palette"])
def test_masks_that_contradict_the_boxes_are_remarked_on(photos, masks, small_encoder, references, kind):
    images = boxed(photos, Box(0, 0, 32, 32))
    pixels = Image.fromarray(quarter().astype(np.uint8))
    if kind == "palette":  # 0 is white and 1 is black
        pixels.putpalette([255, 255, 255, 0, 0, 0])
    else:
        pixels = Image.fromarray(~quarter() | (kind == "full"))
    pixels.save(masks / "wrong.png")
    wrong, right = (lambda _: read_mask(masks / "wrong.png")), (lambda _: quarter())
    options = {"methods": ["dist"], "n_samples": 0, "precision": "fp32"}
    with pytest.warns(DistcamWarning, match="8 of 8 masks mark more outside of the boxes than inside, as that of"):
        localise(images, small_encoder, references, masks=wrong, **options)
    localise(images, small_encoder, references, masks=right, **options)


def test_masks_that_mark_every_pixel_are_remarked_on_where_boxes_cover_most_of_the_image(
    photos, small_encoder, references
):
    with pytest.warns(DistcamWarning, match="8 of 8 masks mark every pixel, as that of .*no pixel of theirs is black"):
        localise(
            boxed(photos, Box(0, 0, 64, 48)),
            small_encoder,
            references,
            masks=lambda _: np.ones((64, 64), bool),
            methods=["dist"],
            n_samples=0,
            precision="fp32",
        )


def test_a_number_that_no_mask_holds_is_named_with_those_it_holds(photos, masks, small_encoder, tmp_path):
    with pytest.warns(DistcamWarning) as said:
        built(photos, small_encoder, tmp_path / "g", masks=masks, mask_class=3)
    assert "20 images are pooled as a whole" in str(said[-1].message)
    assert "no pixel with the number 3, only 0, 255" in str(said[-1].message)


def test_masks_belong_to_a_build_from_its_beginning(photos, masks, small_encoder, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(photos, small_encoder, tmp_path / "g", masks=masks, batch_size=4, progress=stop)
    with pytest.raises(GalleryExistsError, match="masks"):
        built(photos, small_encoder, tmp_path / "g")
    assert len(built(photos, small_encoder, tmp_path / "g", masks=masks)) == 24
    with pytest.raises(InputError, match="belongs to a folder of masks"):
        built(photos, small_encoder, tmp_path / "h", mask_class=3)
    table = tmp_path / "t.csv"
    table.write_text(f"path,label,mask\n{next(photos.rglob('*.jpg'))},a,mine\n")
    with pytest.raises(InputError, match="rename yours"):
        built(table, small_encoder, tmp_path / "h", masks=masks)


def test_the_match_is_explained_under_its_own_mask(photos, masks, tmp_path):
    torch.manual_seed(0)
    encoder = Encoder.load("conv4", weights="random", head=Linear(64, 8).eval(), transform=Transform(64, fit="squash"))
    for store in (False, True):
        gallery = built(photos, encoder, tmp_path / f"g{store}", masks=masks, store_maps=store)
        query = sorted(photos.rglob("0003.jpg"))[1]
        matches = Retriever(gallery, encoder, precision="fp32").query(query, k=24, region=quarter())
        assert matches[0].file == query
        assert matches[0].distance == pytest.approx(0, abs=1e-5)  # both under the same mask
        maps = matches.explain(weighting="dot").reference_maps
        similarities = torch.tensor([match.similarity for match in matches])
        torch.testing.assert_close(maps.sum((1, 2)), similarities, atol=2e-3, rtol=0)
        masked = torch.tensor([match.columns["mask"] != "none" for match in matches])
        assert maps[masked][:, 2:].eq(0).all()
        assert maps[~masked][:, 2:].abs().max() > 0
        assert matches.correspondence(2).parts.total == pytest.approx(matches[1].similarity, abs=2e-3)
    stored = Retriever(gallery, encoder, precision="fp32").query_stored(int(matches[0].id), k=2)
    assert stored.explain(weighting="dot").query_maps[:, 2:].eq(0).all()
    file = gallery.masks.file(matches[0].path)
    write_mask(~quarter(), file)
    with pytest.raises(InputError, match="pooled under a mask that is not at"):
        _ = matches.explain(weighting="dot").reference_maps


# ---------------------------------------------------------------------------------------------- prototypes and vectors


def test_references_under_masks_are_what_a_gallery_under_masks_holds(photos, masks, small_encoder, tmp_path):
    listing = list_images(photos)
    inference = Inference(small_encoder, precision="fp32")
    references = References.encode(listing, inference, masks=MaskFolder(masks))
    under = built(photos, small_encoder, tmp_path / "g", masks=masks)
    np.testing.assert_allclose(references.embeddings.numpy(), under.embeddings(under.ids), atol=1e-6)
    np.testing.assert_allclose(references.prototypes.numpy(), under.prototypes.all_embeddings(), atol=1e-6)
    with pytest.raises(ImageError, match="it has no mask"):
        References.encode(listing, inference, masks=MaskFolder(masks), strict=True)


def test_a_mask_outside_of_what_the_encoder_sees_is_as_none(tmp_path):
    encoder = Encoder.load("conv4", weights="random", transform=Transform((32, 32), fit="crop"))
    Image.new("RGB", (96, 32), "red").save(tmp_path / "wide.png")
    mask = np.zeros((32, 96), dtype=bool)
    mask[:, :3] = True
    write_mask(mask, tmp_path / "masks/wide.png")
    folder = MaskFolder(tmp_path / "masks")
    assert MaskPooling.of(folder, encoder.eval()).weights("wide.png", (96, 32)) is None
    with pytest.raises(ImageError, match="outside what the encoder sees"):
        MaskPooling.of(folder, encoder.eval(), strict=True).weights("wide.png", (96, 32))


# ------------------------------------------------------------------------------------------------------- masks of maps


def test_galleries_are_built_and_searched_under_masks_from_the_command_line(photos, masks, tmp_path):
    encoder = ["--encoder", "conv4", "--weights", "random", "--image-size", "64", "--fit", "squash"]
    printed = distcam("index", "build", photos, "--out", tmp_path / "g", *encoder, "--masks", masks)
    assert f"20 of them have one in {masks}" in printed.replace("\n", " ")
    assert json.loads(distcam("index", "info", tmp_path / "g", "--json"))["masks"]["images"] == 20
    assert "0 replaced" in distcam("index", "add", tmp_path / "g", photos)
    query = sorted(photos.rglob("0001.jpg"))[0]
    mask = masks / query.relative_to(photos).with_suffix(".png")
    ask = ["query", tmp_path / "g", query, "-k", "1", "--json"]
    (asked,) = json.loads(distcam(*ask, "--mask", mask, "--explain", tmp_path / "why"))
    assert asked["matches"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert len(list((tmp_path / "why").iterdir())) == 2
    (same,) = json.loads(distcam(*ask, "--mask", mask.parent))
    assert same["matches"] == asked["matches"]
    (numbered,) = json.loads(distcam(*ask, "--region", "0,0,32,32"))
    assert numbered["matches"][0]["id"] == asked["matches"][0]["id"]


def test_a_class_of_a_palette_mask_is_searched_for(photos, masks, small_gallery, tmp_path):
    numbers = np.full((64, 64), 3, dtype=np.uint8)
    numbers[:32, :32] = 5
    Image.fromarray(numbers).convert("P").save(tmp_path / "m.png")
    query = sorted(photos.rglob("*.jpg"))[0]
    matches = Retriever(small_gallery).query(query, k=3, region=region_of_file(tmp_path / "m.png", category=5))
    (asked,) = json.loads(
        distcam(
            "query", small_gallery.folder, query, "-k", "3", "--mask", tmp_path / "m.png", "--mask-class", 5, "--json"
        )
    )
    assert [match["id"] for match in asked["matches"]] == [match.id for match in matches]
    assert [match.id for match in Retriever(small_gallery).query(query, k=3, region=Box(0, 0, 32, 32))] == [
        match.id for match in matches
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-class", "3"], "add --mask"),
        (["--mask", "{masks}", "--region", "0,0,9,9"], "give one of them"),
        (["--mask", "{masks}"], "holds no mask 0000.png"),
        (["--mask", "gone.png"], "no such file"),
    ],
)
def test_a_query_that_cannot_be_masked_says_why(photos, masks, small_gallery, monkeypatch, capsys, arguments, message):
    query = sorted(photos.rglob("*.jpg"))[0]
    given = [argument.format(masks=masks) for argument in arguments]
    assert message in fails(monkeypatch, capsys, "query", small_gallery.folder, query, *given)


def test_localisation_takes_prototypes_of_objects(photos, masks, tmp_path):
    boxes = tmp_path / "boxes.csv"
    images = f"{photos}/*/0001.jpg"
    boxes.write_text("path,x1,y1,x2,y2\n" + "".join(f"{file.path},8,8,50,50\n" for file in list_images(images)))
    base = ["localize", images, "--boxes", boxes, "--references", photos, "--encoder", "conv4", "--weights", "random"]
    base += ["--image-size", "64", "--fit", "squash", "--methods", "dot_centered", "--json"]
    whole, pooled = (json.loads(distcam(*base, *more)) for more in ([], ["--reference-masks", masks]))
    assert whole["rows"] != pooled["rows"]
