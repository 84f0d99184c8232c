"""`distcam fewshot predict`: the class of each image by a folder of a few labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...images import item_of
from ...images.given.remote import fetched
from ...remarks import remark, remark_on_skipped
from .. import library
from ..console import listed_images, progress_bar
from ..options import AnswersCsv, AsJson, Device, EncoderName, Labels, Loading, Strict, argument, option
from ..writing import require_place, write_answers

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ...encoders import Inference
    from ...fewshot.prediction import Support

EXAMPLE = (
    "Example: `distcam fewshot predict support/ new_photos/ --encoder resnet50 --weights imagenet --csv answers.csv`"
)


def predict(
    support: str = argument(..., "A folder with a folder of a few images for each class, or a CSV."),
    images: list[str] = argument(..., "Images, folders, CSVs or quoted globs.", show_default=False),
    *,
    encoder: EncoderName,
    loading: Loading,
    labels: Labels = None,
    method: str = option("proto-cosine", "One of `fewshot evaluate --method`; bdcspn judges images by each other too."),
    csv: AnswersCsv = None,
    explain: Path | None = option(None, "A folder for the map of each answer, beside the support image nearest to it."),
    device: Device = "auto",
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Name the class of each image by a few labelled ones: no gallery, no episodes."""
    loading.require(encoder)
    if explain is not None and explain.suffix:
        raise InputError(f"--explain writes a folder, not {explain.name}")
    import torch

    from ...fewshot.methods import classifier_of
    from ...fewshot.prediction import Support

    classifier, queries = classifier_of(method), listed_images(images)
    if explain is not None:
        require_place(explain, len(queries))
    listing = library.images.list_items(support, labels=labels, strict=strict)
    items = [(item_of(listing.file(record), record.box), record.label) for record in listing]
    known = [(item, label) for item, label in items if label is not None]
    if bare := len(listing) - len(known):
        remark(f"{bare:,} of {len(listing):,} support images have no label and are left out", strict=strict)
    inference = library.encoders.Inference(loading.load(encoder), device=device)
    label_of = dict(known)
    vectors, bad = _encoded(inference, list(label_of), "encoding the support")
    remark_on_skipped(bad, len(label_of), "the others are the support")
    members = {label: [file for file in vectors if label_of[file] == label] for label in sorted(set(label_of.values()))}
    if lost := [label for label, files in members.items() if not files]:
        remark(f"{len(lost)} classes have no usable image and cannot be answered, such as {lost[0]!r}", strict=strict)
    classes = [label for label, files in members.items() if files]
    ways = tuple(torch.stack([vectors[file] for file in members[label]]) for label in classes)
    known_support = Support(classifier, ways)
    known_support.say_repeats(strict=strict)
    asked, problems = _encoded(inference, queries, "encoding the images")
    remark_on_skipped(problems, len(queries), "they have no class")
    if not asked:
        raise InputError(f"none of the {len(queries)} images can be used")
    calibration, query = known_support.calibration(), torch.stack(list(asked.values()))
    if not calibration.n:
        remark(str(calibration), strict=strict)
    shares = calibration.probabilities(known_support.evidence(query))
    answers = {}
    for row, file in enumerate(asked):
        order = (-shares[row]).argsort(kind="stable")
        nearest = known_support.nearest(query[row], int(order[0]))
        top = [(classes[place], float(shares[row, place])) for place in order[:5]]
        answers[file] = _answer(file, top, members[top[0][0]][nearest])
    if explain is not None:
        _explain(known_support, inference, query, answers, explain)
    rows = [answers.get(file) or _answer(file, [], "", problems.get(file)) for file in queries]
    about = {"support": support, "method": method, "calibration": calibration.to_dict()}
    write_answers(rows, about, str(calibration), csv=csv, as_json=as_json)


def _encoded(inference: Inference, files: list[str], doing: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The vector (d,) of each image that can be used, and why each other cannot."""
    found: dict[str, Tensor] = {}
    problems: dict[str, str] = {}
    with progress_bar(doing) as progress:
        for batch in inference.stream(files, load=lambda file: inference.read(fetched(file)), maps=False):
            if batch.encoding is not None:
                found.update(zip(batch.items, batch.encoding.embedding.cpu().double(), strict=True))
            problems |= {bad.item: bad.error.reason for bad in batch.failures}
            progress(len(found) + len(problems), len(files))
    return found, problems


def _answer(file: str, top: list[tuple[str, float]], nearest: str, problem: str | None = None) -> dict[str, Any]:
    """The answer for an image, in the columns of `distcam classify`."""
    (best, sure), (second, less) = [*top, (None, None), (None, None)][:2]
    return {
        "path": file, "label": best, "confidence": sure, "best": best, "second": second,
        "second_confidence": less, "nearest": nearest or None, "decided_by": best and f"label:{best}",
        "problem": problem, "probabilities": dict(top),
    }  # fmt: skip


def _explain(
    support: Support, inference: Inference, query: Tensor, answers: dict[str, dict[str, Any]], folder: Path
) -> None:
    """A panel for each image: the map towards its class, and the support image of it that is nearest."""
    known = support.answers(query)
    if known is None:
        raise InputError(f"no map is exact for {support.classifier.name}; leave --explain out")
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar("explaining") as progress:
        for row, (file, answer) in enumerate(answers.items()):
            source, name = fetched(file), Path(file)
            encoding, encoder = inference.encode_images([source]), inference.encoder
            response = library.explain.fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head)
            maps = known[row].maps(response.map.detach().cpu().double())[0]
            won = int(known[row].logits()[0].argmax())
            image: Image = library.images.read_image(source)
            view = inference.transform.view(*image.size)
            (tile,) = library.explain.map_tiles(
                [image], maps[won][None].float(), views=[view], title=f"{answer['best']}"
            )
            beside = library.explain.Tile(
                library.images.read_image(answer["nearest"]),
                title=f"support of {answer['best']}",
                caption="the nearest",
            )
            plain = library.explain.Tile(image, title=name.name, caption=f"confidence {answer['confidence']:.3f}")
            library.explain.grid([[plain, tile, beside]], tile_size=224).save(folder / f"{row + 1:03d}-{name.stem}.png")
            progress(row + 1, len(answers))
