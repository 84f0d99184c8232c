"""Lines between images, against known truth and as a second look at rankings.

    python benchmarks explanations/lines crops FOLDER [--images 40]
    python benchmarks explanations/lines verify FOLDER [--queries 150]
    python benchmarks explanations/lines cost FOLDER [--rounds 9]

FOLDER holds `imagenette/`, `caltech101/`, `nyala/`, `camvid/`, and `weights/` with MobileNetV2, EfficientNet-Lite0 and
-Lite2 (timm's keys), and ResNet-18 up to layer3.

`crops`: a photograph and a crop of it with 40 % of the area, turned by up to 10° and stored as JPEG of quality 60. The
share of the 20 strongest lines that end within 16 pixels (of the network's input) of the true place, by the same lines
without the transform, by mutual pairs of shares, by PAIR-X (see `pairx`) on the first `--pairx` photographs with stride
16, and the time of a pair beside that of a forward pass.
`verify`: R@1 and mAP before and after the first 20 are sorted anew by lines, on nyala (query and gallery of different
photographs) and on two sets that took no part in any choice: synthetic walkers and crops of street scenes.
`cost`: what matching one image to twenty takes, whose maps are at hand, beside forward passes.
Intervals are 95 % bootstrap intervals over photographs or queries.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from explanations.pairx import PairX
from explanations.pairx import lines as pairx_lines
from machine import describe_machine, interleave
from PIL import Image
from torch import Tensor

from distcam.encoders import Encoder, Inference
from distcam.explain import correspondence, fold
from distcam.explain.methods.lines import Places, find_lines
from distcam.explain.verification import PlaceReader, count_alike
from distcam.images import Transform, read_image
from distcam.index import Gallery
from distcam.retrieval import Retriever
from distcam.retrieval.lines import sorted_by_lines
from distcam.synthetic.walkers import write_walkers

ENCODERS = ("mobilenet_v2", "lite0", "lite2", "resnet18_layer3")


def encoder_of(name: str, weights: Path) -> Encoder:
    """One of the four encoders with its published weights, images squashed."""
    if name == "mobilenet_v2":
        encoder = Encoder.load("mobilenet_v2", weights=weights / "mobilenet_v2_coral_qat-b15abc96.pth")
    elif name == "resnet18_layer3":
        file = weights / "resnet18_to_layer3_bnfolded-31299a69.pth"
        encoder = Encoder.load("resnet18", weights=file, layer="layer3")
    else:
        import timm

        size = 224 if name == "lite0" else 260
        (file,) = weights.glob(f"tf_efficientnet_{name}_timm-*.pth")
        model = timm.create_model(f"tf_efficientnet_{name}")
        own = Transform(size, mean=(0.5,) * 3, std=(0.5,) * 3)
        encoder = Encoder.load(model, weights=file, layer="bn2", transform=own)
    encoder.transform = encoder.transform.adapted(fit="squash")
    return encoder


def photographs(folder: Path, count: int, seed: int) -> list[Path]:
    """Half from imagenette's queries, half from caltech101."""
    draw = random.Random(seed)
    found = []
    for part in ("imagenette/query", "caltech101"):
        files = sorted(path for path in (folder / part).rglob("*.jpg"))
        found += draw.sample(files, count // 2)
    return found


def known_crop(image: Image.Image, draw: random.Random) -> tuple[Image.Image, Callable[[np.ndarray], np.ndarray]]:
    """A turned crop with 40 % of the area, and the way from its places to the image's, in fractions of both sides."""
    width, height = image.size
    side, angle = math.sqrt(0.4), math.radians(draw.uniform(-10, 10))
    w, h = side * width, side * height
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    reach = np.abs(turn) @ np.array([w, h]) / 2
    x, y = (draw.uniform(r, max(r, s - r)) for r, s in zip(reach, (width, height), strict=True))
    origin = np.array([x, y]) - turn @ np.array([w, h]) / 2
    size = (round(w), round(h))
    data = (turn[0, 0], turn[0, 1], origin[0], turn[1, 0], turn[1, 1], origin[1])
    crop = image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    kept = io.BytesIO()
    crop.save(kept, "JPEG", quality=60)

    def back(places: np.ndarray) -> np.ndarray:
        return np.asarray((places * size @ turn.T + origin) / (width, height))

    return Image.open(io.BytesIO(kept.getvalue())).convert("RGB"), back


class Eye:
    """An inference with its fine layer."""

    def __init__(self, name: str, weights: Path) -> None:
        self.inference = Inference(encoder_of(name, weights), device="cpu", precision="fp32")
        transform = self.inference.transform
        self.size = (transform.height, transform.width)
        self.layer = self.inference.fine.read()

    @torch.no_grad()
    def look(self, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """Fine maps and response maps of images."""
        encoder, encoding = self.inference.encoder, self.inference.encode_images(images)
        assert encoding.fine is not None
        return encoding.fine, fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map

    def by_pairx(self, rival: PairX, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """The ends of PAIR-X's 20 strongest lines, in cells, and the shape of the maps."""
        pixels = torch.stack([self.inference.read(image) for image in images])
        inputs = self.inference.transform.normalise(pixels)
        features, relevance = rival(inputs, self.inference(pixels).embedding.flip(0))
        query, match = pairx_lines(*features, relevance=(relevance[0], relevance[1]))
        return query.numpy(), match.numpy(), tuple(features.shape[2:])


def interval(values: list[float], *, seed: int = 0) -> str:
    """Mean with its 95 % bootstrap interval."""
    data = np.asarray(values, float)
    means = np.random.default_rng(seed).choice(data, (2000, len(data))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{data.mean():.3f} [{low:.3f}, {high:.3f}]"


def crops(folder: Path, count: int, seed: int, *, peer: int = 10, write: Callable[[str], None] = print) -> None:
    """The table of known crops."""
    files = photographs(folder, count, seed)
    peers = dict.fromkeys(random.Random(seed).sample(files, min(peer, count)))
    write(f"known crops: 40 % of the area, ±10°, JPEG 60; {count} photographs, seed {seed}; lines within 16 px\n")
    columns = (
        f"encoder, fine layer | lines + transform | lines | mutual pairs of shares (n) | PAIR-X (n = {len(peers)})"
    )
    columns += " | the same, lines + transform | median px | inliers | pair ms | forward ms | PAIR-X ms"
    write(f"| {columns} |\n|---|---|---|---|---|---|--:|--:|--:|--:|--:|")
    for name in ENCODERS:
        eye, draw = Eye(name, folder / "weights"), random.Random(seed)
        rival = PairX(eye.inference.encoder, name) if peers else None
        pairs = []
        for file in files:
            image = read_image(file)
            crop, back = known_crop(image, draw)
            start = time.process_time()
            fine, response = eye.look([crop, image])
            pairs.append((fine, response, back, (time.process_time() - start) / 2, [crop, image]))
        mean = torch.stack([fine.mean((0, 2, 3)) for fine, *_ in pairs]).mean(0)
        rows: dict[str, list[float]] = {
            key: []
            for key in ("fit", "plain", "shares", "px", "inliers", "ms", "forward", "n", "beside", "pairx", "px_ms")
        }
        for file, (fine, response, back, seconds, images) in zip(files, pairs, strict=True):
            start = time.process_time()
            one, other = (Places.of(f, r, mean) for f, r in zip(fine, response, strict=True))
            found = find_lines(one, other)
            rows["ms"].append(1000 * (time.process_time() - start))
            rows["forward"].append(1000 * seconds)
            for key, lines in (("fit", found.strongest(20)), ("plain", found.strongest(20, inliers=False))):
                off = errors(lines.query.numpy(), lines.match.numpy(), found.query_shape, back, eye.size)
                rows[key].append(float((off <= 16).mean()) if len(off) else 0.0)
                if key == "fit":
                    rows["px"] += off.tolist()
            pairs_ = correspondence(response[0], response[1]).mutual_pairs(20)
            off = errors(
                np.array([p.query for p in pairs_]),
                np.array([p.match for p in pairs_]),
                response.shape[-2:],
                back,
                eye.size,
            )
            rows["shares"].append(float((off <= 16).mean()))
            rows["n"].append(len(pairs_))
            rows["inliers"].append(found.inliers)
            if rival is not None and file in peers:
                start = time.process_time()
                ends = eye.by_pairx(rival, images)
                rows["px_ms"].append(1000 * (time.process_time() - start))
                rows["pairx"].append(float((errors(*ends, back, eye.size) <= 16).mean()))
                rows["beside"].append(rows["fit"][-1])
        medians = [f"{np.median(rows[k]):.1f}" if rows[k] else "–" for k in ("px", "inliers", "ms", "forward", "px_ms")]
        shares = [interval(rows[k]) if rows[k] else "–" for k in ("fit", "plain", "shares", "pairx", "beside")]
        shares[2] += f" ({np.mean(rows['n']):.1f})"
        write(f"| {' | '.join([f'{name}, {eye.layer}', *shares, *medians])} |")


def errors(
    query: np.ndarray,
    match: np.ndarray,
    shape: tuple[int, ...],
    back: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
) -> np.ndarray:
    """Pixels between each line's end and its true place, on a match of `size` (height, width)."""
    if not len(query):
        return np.zeros(0)
    place, end = ((cells[:, ::-1] + 0.5) / np.array(shape)[::-1] for cells in (query, match))
    return np.asarray(np.linalg.norm((back(place) - end) * np.array(size)[::-1], axis=1))


def verify(folder: Path, count: int, seed: int, names: list[str]) -> None:
    """The table of rankings sorted anew, on nyala, and on two sets that took no part in any choice."""
    print(f"the first 20 sorted anew by lines, fused by the usual calibration; at most {count} queries, seed {seed}")
    print("| set, encoder | queries | R@1 before | R@1 after | difference | AP of 20 before | after |")
    print("|---|--:|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        nyala = [row for row in csv.DictReader((folder / "nyala/images.csv").open()) if row["split"] == "test"]
        listed = [(folder / "nyala" / row["path"], row["label"], row["photo_id"]) for row in nyala]
        files = [file for file in sorted((folder / "camvid").glob("*/*")) if "masks" not in file.parent.name]
        street = [(file, file.stem, file.stem) for file in files]
        people = write_walkers(Path(work) / "walkers", identities=60, cameras=3, seed=1000 + seed).data
        crowd, asking = (
            [(people.file(image), str(image.identity), str(image.camera)) for image in images]
            for images in (people.gallery, people.queries)
        )
        for name in names:
            encoder, draw = encoder_of(name, folder / "weights"), random.Random(seed)
            views = [(known_crop(read_image(file), draw)[0], label, "crop") for file, label, _ in street]
            row_of(f"crops of street scenes, {name}", encoder, street, draw.sample(views, min(count, len(views))))
            row_of(f"walkers of another seed, {name}", encoder, crowd, draw.sample(asking, min(count, len(asking))))
            row_of(f"nyala, {name}", encoder, listed, draw.sample(listed, min(count, len(listed))))


def row_of(title: str, encoder: Encoder, gallery: list[Any], queries: list[Any], *, k: int = 20) -> None:
    """One row: queries and gallery images are (image, label, group); those of one label and group never meet."""
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Path(work) / "gallery.csv"
        lines = [f"{file},{label},{group}" for file, label, group in gallery]
        table.write_text("\n".join(["path,label,group", *lines]) + "\n")
        built = Gallery.build(table, encoder, out=Path(work) / "g", store_lines=True, device="cpu")
        retriever = Retriever(built, encoder, device="cpu")
        labels = [(label, group) for _, label, group in gallery]
        measured: list[list[float]] = []
        for image, label, group in queries:
            if not any(one == label and other != group for one, other in labels):
                continue
            found = retriever.query(image, k=2 * k)
            places = [at for at, m in enumerate(found) if m.label != label or m.columns["group"] != group][:k]
            plain = found.reordered([found[at] for at in places], places, verify="")
            anew = sorted_by_lines(plain, k)
            measured.append([part for ranking in (plain, anew) for part in scores([m.label == label for m in ranking])])
    before, ap_before, after, ap_after = (list(column) for column in zip(*measured, strict=True))
    gain = interval([new - old for new, old in zip(after, before, strict=True)])
    cells = [title, str(len(measured)), *map(interval, (before, after)), gain, *map(interval, (ap_before, ap_after))]
    print(f"| {' | '.join(cells)} |", flush=True)


def cost(folder: Path, count: int, names: list[str]) -> None:
    """What matching one image to twenty costs, in forward passes of its encoder and of ResNet-50."""
    large = Inference(Encoder.load("resnet50", weights="random"), precision="fp32")
    files = sorted((folder / "nyala").rglob("*.jpg"))[:21]
    print("twenty pairs of images of nyala with stored maps; processor time, median [least, most]")
    print("| encoder | ms | forward passes of its own | of ResNet-50 |\n|---|---|---|---|")
    for name in names:
        inference = Inference(encoder_of(name, folder / "weights"), precision="fp32")
        reader = PlaceReader(inference, "cosine")
        reader.measure_files(files)
        query, *matches = reader.places_of_files(files)
        ways: dict[str, Callable[[], object]] = {
            "own": partial(inference, inference.read(files[0])[None]),
            "large": partial(large, large.read(files[0])[None]),
            "pairs": partial(count_alike, "lines", query, matches),
        }
        seconds = {way: np.array(each) for way, each in interleave(ways, rounds=count).items()}
        shown = [1000 * seconds["pairs"], seconds["pairs"] / seconds["own"], seconds["pairs"] / seconds["large"]]
        cells = [f"{np.median(each):.3g} [{each.min():.3g}, {each.max():.3g}]" for each in shown]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def scores(is_right: list[bool]) -> tuple[float, float]:
    """Whether the first is right, and the average precision among those that were sorted."""
    right = np.asarray(is_right, float)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return float(right[0]), float((precision * right).sum() / max(right.sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["crops", "verify", "cost"])
    parser.add_argument("--rounds", type=int, default=9, help="of `cost`")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--pairx", type=int, default=10, help="of the photographs for `crops`; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--encoders", nargs="+", default=["mobilenet_v2", "lite0"], choices=ENCODERS)
    options = parser.parse_args()
    print(f"{describe_machine('torch', 'timm')}, {torch.get_num_threads()} threads")
    if options.what == "cost":
        cost(options.folder, options.rounds, options.encoders)
    elif options.what == "crops":
        crops(options.folder, options.images, options.seed, peer=options.pairx)
    else:
        verify(options.folder, options.queries, options.seed, options.encoders)
