"""Planted faults in a gallery, and who finds them: `distcam inspect`, cleanlab and imagededup on the same images.

    python benchmarks/inspection.py plant DATA FOLDER [--seed 0]
    python benchmarks/inspection.py find FOLDER [--imagededup ENV/bin/python]
    python benchmarks/inspection.py speed [--images 100000] [--dim 512]

`plant` copies caltech101 (without Faces_easy, which are crops of Faces) and imagenette's gallery from DATA into FOLDER,
and plants faults: of 80 images each a copy at 40 to 70 % of the size, a copy as JPEG of quality 15 to 40, and a crop of
40 % of the area; 5 % of the labels wrong, drawn among all other classes; the images of five classes as outliers under
random labels. Then it builds FOLDER/planted.gallery with MobileNetV2 and maps. `truth.csv` says what is planted.
`find`: precision and recall. Labels of outliers are wrong too, and a planted copy under a wrong label may be told of by
either: such flags count neither way. cleanlab gets the same vectors; its probabilities are of its own kNN vote, or of a
cross-validated logistic regression on them. imagededup gets the files, in an environment of its own.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from distcam.encoders import Encoder
from distcam.index import Gallery

COPIES, WRONG_SHARE = 80, 0.05
ALIENS = ("accordion", "cougar_body", "lotus", "saxophone", "yin_yang")
WEIGHTS = "weights/mobilenet_v2_coral_qat-b15abc96.pth"


def plant(data: Path, folder: Path, seed: int) -> None:
    """Write the images and `images.csv`, `truth.csv`, and build the gallery."""
    draw = random.Random(seed)
    sources = {"caltech101": data / "caltech101", "imagenette": data / "imagenette" / "gallery"}
    truth: list[dict[str, str]] = []
    classes = sorted({place.name for source in sources.values() for place in source.iterdir() if place.is_dir()})
    classes = [name for name in classes if name not in (*ALIENS, "Faces_easy")]
    for name, source in sources.items():
        for file in sorted(source.rglob("*.jpg")):
            label = file.parent.name
            if label == "Faces_easy":
                continue
            path = Path(name, label, file.name)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)
            fault, given = "", label
            if label in ALIENS:
                fault, given = "outlier", draw.choice(classes)
            elif draw.random() < WRONG_SHARE:
                fault, given = "label", draw.choice([other for other in classes if other != label])
            truth.append({"path": str(path), "label": given, "true": label, "fault": fault, "of": ""})
    sound = [row for row in truth if not row["fault"]]
    for row in draw.sample(sound, COPIES):
        with Image.open(folder / row["path"]) as opened:
            image = opened.convert("RGB")
        for kind in ("resized", "recompressed", "cropped"):
            path = Path(kind, row["path"])
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            copy, quality = _copy(image, kind, draw)
            copy.save(folder / path, quality=quality)
            truth.append({**row, "path": str(path), "fault": kind, "of": row["path"]})
    for file, columns in (("truth.csv", ("path", "label", "true", "fault", "of")), ("images.csv", ("path", "label"))):
        with (folder / file).open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(truth)
    encoder = Encoder.load("mobilenet_v2", weights=data / WEIGHTS)
    Gallery.build(folder / "images.csv", encoder, out=folder / "planted.gallery", store_maps=True, overwrite=True)


def _copy(image: Image.Image, kind: str, draw: random.Random) -> tuple[Image.Image, int]:
    """A copy of a kind, and the quality of its JPEG."""
    if kind == "resized":
        share = draw.uniform(0.4, 0.7)
        return image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.BICUBIC), 90
    if kind == "recompressed":
        return image, draw.randint(15, 40)
    width, height = round(0.4**0.5 * image.width), round(0.4**0.5 * image.height)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height)), 90


def rows_of(file: Path) -> Iterable[dict[str, str]]:
    """The rows of a table."""
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "find", "speed"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "plant":
        plant(*options.folders, options.seed)
