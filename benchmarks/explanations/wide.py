"""Maps of elongated images: which of two photographs side by side, where the network's input is a square.

    python benchmarks explanations/wide [--data FOLDER] [--encoder mobilenet_v2] [--composites 60]

FOLDER (else DISTCAM_DATA) is that of `explanations.py`. Two photographs of imagenette are joined to one of 448×224, and
asked for by class prototypes and by the nearest image of each class. The vector that ranks is always that of the padded
image; the map is that of the same pass, of the passes of `detail`, or of the photograph without margins at its own
proportions; "no options" is what `Matches.explain` answers from a gallery of the same images. Passes are the map's own,
processor time beside that of the padded image; intervals are paired 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from explanations.methods import ENCODERS
from machine import describe_machine
from PIL import Image
from torch import Tensor

from distcam.encoders import Encoder, Inference
from distcam.encoders.fine import WithoutMargins, with_detail
from distcam.explain import fold, ratio_maps
from distcam.images import list_images
from distcam.index import Gallery
from distcam.retrieval import References, Retriever
from distcam.retrieval.localisation.composites import TWO, ObjectImage, draw_composites, pointing, split_off
from distcam.retrieval.localisation.references import photographs

SIDE = 224  # of a photograph
DEFAULT = "no options"


def variants(encoder: Encoder) -> dict[str, Encoder]:
    """The encoder with other inputs, by what its maps are of."""
    made = {"the pass that ranks": encoder, "detail fine": with_detail(encoder, "fine")}
    made["detail finer"] = finer = with_detail(encoder, "finer")
    if isinstance(finer.backbone, WithoutMargins):
        made["the same with margins"] = Encoder(finer.backbone.source, transform=finer.transform)
    height = encoder.transform.height
    for name, scale in (("own proportions, equal area", 0.5**0.5), ("own proportions, twice the area", 1.0)):
        size = round(height * scale / 32) * 32, round(2 * height * scale / 32) * 32
        made[name] = Encoder(encoder.backbone, transform=encoder.transform.adapted(size=size, fit="squash"))
    return made


def halves(encoder: Encoder) -> Tensor:
    """The pixels (2, rows, columns) of the network's input that show the left and the right photograph."""
    transform, cells = encoder.transform, torch.zeros(2, encoder.transform.height, encoder.transform.width)
    view = transform.view(2 * SIDE, SIDE)
    top, bottom = ((edge - view.top) / view.height * transform.height for edge in (0, SIDE))
    edges = [round((edge - view.left) / view.width * transform.width) for edge in (0, SIDE, 2 * SIDE)]
    for place in range(2):
        cells[place, round(top) : round(bottom), edges[place] : edges[place + 1]] = 1
    return cells


def gallery_of(photographs: Sequence[ObjectImage], encoder: Encoder, folder: Path) -> Retriever:
    """A gallery of these photographs, with its retriever."""
    for photograph in photographs:
        file = folder / "set" / photograph.label / photograph.file.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(photograph.file.absolute())
    return Retriever(Gallery.build(folder / "set", encoder, out=folder / "gallery", precision="fp32"), encoder)


def explained(retriever: Retriever, image: Image.Image, labels: Sequence[str], kind: str) -> Tensor:
    """The maps (1, 2, h, w) that the library answers without options, for prototypes or nearest images of labels."""
    matches = retriever.query(image, k=len(retriever.gallery))
    first = {match.label: match.rank for match in reversed(matches.matches)}
    asked = [f"label:{label}" if kind == "prototypes" else first[label] for label in labels]
    return torch.stack([matches.explain(against=each).query_maps[0] for each in asked])[None]


def measure(encoder: Encoder, data: Path, count: int, seed: int) -> None:
    """Print the table."""
    generator = torch.Generator().manual_seed(seed)
    kept, _ = split_off(photographs(list_images(data / "imagenette/gallery")), 200, generator=generator)
    references = References.encode(kept, Inference(encoder, precision="fp32"))
    folder = tempfile.TemporaryDirectory()
    retriever = gallery_of(kept, encoder, Path(folder.name))
    asked = photographs(list_images(data / "imagenette/query"))
    seen, kinds = variants(encoder), ("prototypes", "nearest")
    found: dict[str, list[list[float]]] = {name: [] for name in (*seen, DEFAULT)}
    seconds: dict[str, list[float]] = {name: [] for name in seen}
    for composite in draw_composites(asked, count, TWO, generator=generator):
        wide = Image.new("RGB", (2 * SIDE, SIDE))
        for place, photograph in enumerate(composite):
            wide.paste(Image.open(photograph.file).convert("RGB").resize((SIDE, SIDE)), (place * SIDE, 0))
        classes = torch.tensor([[references.labels.index(photograph.label) for photograph in composite]])
        embedding = torch.empty(0)
        for name, each in seen.items():
            start, images = time.process_time(), each.transform.normalise(each.transform(wide)[None])
            with torch.no_grad():
                encoding = each(images)
            seconds[name].append(time.process_time() - start)
            embedding = encoding.embedding if each is encoder else embedding
            response, row = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head).map, list[float]()
            for kind in kinds:
                vectors = references.of_classes(embedding, classes, reference=kind)
                around, is_class = references.surroundings, kind == "prototypes"
                maps = ratio_maps(response, vectors, around, metric="cosine", is_class=is_class).maps
                row += [float(part.mean()) for part in pointing(maps, halves(each))]
            found[name].append(row)
        labels = [photograph.label for photograph in composite]
        maps = [explained(retriever, wide, labels, kind) for kind in kinds]
        found[DEFAULT].append([float(part.mean()) for each in maps for part in pointing(each, halves(encoder))])
    folder.cleanup()
    plain, draws = next(iter(found.values())), np.random.default_rng(0)
    base = np.mean(next(iter(seconds.values())))
    print("| map of | passes | right, prototypes | − the first | energy | right, nearest | − the first | energy |")
    print("|---|--:|--:|---|--:|--:|---|--:|")
    for name, rows in found.items():
        values, cells = np.array(rows), [f"{np.mean(seconds.get(name, seconds['detail finer'])) / base:.2f}"]
        for column in (0, 2):
            gain = values[:, column] - np.array(plain)[:, column]
            low, high = np.quantile(draws.choice(gain, (2000, len(gain))).mean(1), [0.025, 0.975])
            means = values[:, column].mean(), values[:, column + 1].mean()
            cells += [f"{means[0]:.3f}", f"[{low:.3f}, {high:.3f}]", f"{means[1]:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DISTCAM_DATA"))
    parser.add_argument("--encoder", choices=ENCODERS, default="mobilenet_v2")
    parser.add_argument("--composites", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of photographs with --data, or set DISTCAM_DATA")
    torch.set_num_threads(1)
    print(f"{describe_machine('torch')}, 1 thread, {options.composites} composites, seed {options.seed}\n")
    measure(
        ENCODERS[options.encoder](Path(options.data) / "weights")[0],
        Path(options.data),
        options.composites,
        options.seed,
    )
