"""Planted faults in a gallery, and who finds them: `distcam inspect`, cleanlab and imagededup on the same images.

    python benchmarks ranking/inspection plant DATA FOLDER [--seed 0]
    python benchmarks ranking/inspection find FOLDER [--imagededup ENV/bin/python]
    python benchmarks ranking/inspection speed [--images 100000] [--dim 512]

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
import json
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from PIL import Image

from distcam.encoders import Encoder
from distcam.index import Gallery, import_gallery

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


_DEDUP = """
import json, sys
from imagededup.methods import DHash, PHash
found = {}
for method in (PHash, DHash):
    hasher = method(verbose=False)
    codes = hasher.encode_images(image_dir=sys.argv[1], recursive=True)
    found[method.__name__] = hasher.find_duplicates(encoding_map=codes)
print(json.dumps(found))
"""


class Truth:
    """The planted faults of a folder."""

    def __init__(self, folder: Path) -> None:
        with (folder / "truth.csv").open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        self.fault = {row["path"]: row["fault"] for row in rows}
        self.family = {row["path"]: row["of"] or row["path"] for row in rows}
        self.true = {row["path"]: row["true"] for row in rows}

    def copies(self, name: str, groups: Iterable[Sequence[str]]) -> str:
        """A row of the table of copies: recall of each kind, and the share of copies with their like in the group."""
        found: set[str] = set()
        said: set[str] = set()
        for group in groups:
            said |= set(group[1:])
            families = Counter(self.family[path] for path in group)
            found |= {path for path in group if families[self.family[path]] > 1}
        cells = []
        for kind in ("resized", "recompressed", "cropped"):
            planted = [path for path, fault in self.fault.items() if fault == kind]
            cells.append(f"{sum(path in found for path in planted) / len(planted):.3f}")
        return f"| {name} | {' | '.join(cells)} | {len(said & found) / max(len(said), 1):.3f} | {len(said):,} |"

    def flags(self, name: str, paths: Iterable[str], fault: str, *, neutral: str) -> str:
        """A row of the tables of labels and outliers; flags on `neutral` faults count neither way."""
        said = {path for path in paths if self.fault[path] != neutral}
        right = {path for path in said if self.fault[path] == fault}
        planted = sum(kind == fault for kind in self.fault.values())
        recall, precision = len(right) / planted, len(right) / max(len(said), 1)
        return f"| {name} | {recall:.3f} | {precision:.3f} | {len(said):,} |"


def find(folder: Path, dedup: str | None) -> None:
    """Print the tables."""
    truth, gallery = Truth(folder), Gallery.open(folder / "planted.gallery")
    print(describe_machine("faiss-cpu", "cleanlab"), f"{len(gallery)} images")
    start = time.process_time()
    asked = gallery.inspect()
    answers = {"labels": asked.mislabels(), "outliers": asked.outliers()}
    middle = time.process_time()
    groups = asked.duplicates()
    print(f"CPU seconds: neighbours, labels, outliers {middle - start:.1f}, copies {time.process_time() - middle:.1f}")
    by_vectors = gallery.duplicates(look=False)
    peers = datalab(gallery)
    print("\n| copies | resized | recompressed | cropped | precision | copies named |\n|---|---:|---:|---:|---:|---:|")
    for name, found in (("distcam inspect", groups), ("distcam inspect --no-look", by_vectors)):
        print(truth.copies(name, [[record.path for record in item.images] for item in found]))
    print(truth.copies("cleanlab Datalab, same vectors", peers["near"]))
    if dedup is not None:
        script = [dedup, "-c", _DEDUP, str(folder)]
        printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        for method, by_path in json.loads(printed.splitlines()[-1]).items():
            pairs = [(path, other) for path, others in by_path.items() for other in others]
            print(truth.copies(f"imagededup {method}", [pair for pair in pairs if set(pair) <= truth.family.keys()]))
    for what, fault, neutral in (("labels", "label", "outlier"), ("outliers", "outlier", "label")):
        print(f"\n| {what} | recall | precision | flags |\n|---|---:|---:|---:|")
        print(truth.flags("distcam inspect", [item.images[0].path for item in answers[what]], fault, neutral=neutral))
        for name, paths in peers[what].items():
            print(truth.flags(name, paths, fault, neutral=neutral))


def datalab(gallery: Gallery) -> dict[str, Any]:
    """The answers of cleanlab's Datalab to the same vectors and labels, with two kinds of probabilities."""
    from cleanlab import Datalab
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    vectors, records = gallery.ranking_vectors(gallery.ids), gallery.records(gallery.ids)
    labels, paths = [str(record.label) for record in records], [record.path for record in records]
    found: dict[str, Any] = {"labels": {}, "outliers": {}}
    models = {"kNN": KNeighborsClassifier(20, metric="cosine"), "logistic regression": LogisticRegression(C=10.0)}
    for name, model in models.items():
        chances = cross_val_predict(model, vectors, labels, cv=5, method="predict_proba")
        lab = Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(
            features=vectors, pred_probs=chances, issue_types={"label": {}, "outlier": {}, "near_duplicate": {}}
        )
        issues = lab.get_issues()
        for what, column in (("labels", "is_label_issue"), ("outliers", "is_outlier_issue")):
            flagged = np.flatnonzero(issues[column].to_numpy())
            found[what][f"cleanlab Datalab, {name}"] = [paths[row] for row in flagged]
    sets = lab.get_issues("near_duplicate")["near_duplicate_sets"]
    found["near"] = [(paths[row], paths[other]) for row, others in enumerate(sets) for other in others]
    return found


def speed(images: int, dim: int) -> None:
    """CPU seconds of the questions about made-up vectors: 1,000 clusters of unit spread, files that do not exist."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(1000, dim)).astype(np.float32)
    classes = draw.integers(1000, size=images)
    vectors = centres[classes] + draw.normal(size=(images, dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "vectors.npy"), vectors)
        with Path(folder, "rows.csv").open("w", encoding="utf-8") as out:
            out.write("path,label\n" + "".join(f"{row}.jpg,{name}\n" for row, name in enumerate(classes)))
        del vectors
        gallery = import_gallery(Path(folder, "rows.csv"), Path(folder, "g"), embeddings=Path(folder, "vectors.npy"))
        asked = gallery.inspect(look=False)
        for name in ("mislabels", "outliers", "hard_negatives", "confusions", "duplicates"):
            start, wall = time.process_time(), time.perf_counter()
            found = getattr(asked, name)()
            cpu, taken = time.process_time() - start, time.perf_counter() - wall
            print(f"{name}: {cpu:.1f} s of CPU, {taken:.1f} s, {len(found)} findings", flush=True)
        print(f"largest resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "find", "speed"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--imagededup")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    if options.what == "plant":
        plant(*options.folders, options.seed)
    elif options.what == "find":
        find(*options.folders, options.imagededup)
    else:
        speed(options.images, options.dim)
