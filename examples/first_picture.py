"""The image of the README: a query of two photographs, its two nearest images, a map and lines for each.

    python examples/first_picture.py OUT [--encoder mobilenet_v2] [--weights imagenet]

The photographs come with scikit-image (`pip install 'distcam[segment]'`): Chelsea by Stéfan van der Walt, a cup of
coffee by Rachel Michetti, a launch by SpaceX (all CC0), and Eileen Collins by NASA (public domain). The gallery holds
another view of each.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image
from skimage import data

VIEWS = {  # share of the photograph that is seen, degrees it is turned by
    "cat": (data.chelsea, (0.12, 0.1, 0.88, 0.9), 8),
    "coffee": (data.coffee, (0.1, 0.1, 0.85, 0.9), -10),
    "rocket": (data.rocket, (0.2, 0.1, 0.8, 0.9), 0),
    "astronaut": (data.astronaut, (0.1, 0.05, 0.9, 0.9), 0),
}


def draw(folder: Path) -> None:
    """`photos/<name>/view.jpg`, and `query.jpg`: the cat and the cup side by side, 360×300 pixels each."""
    for name, (read, share, degrees) in VIEWS.items():
        photo = Image.fromarray(read()).rotate(degrees, Image.Resampling.BICUBIC)
        box = [round(part * length) for part, length in zip(share, photo.size * 2, strict=True)]
        view = photo.crop(box)
        view.thumbnail((360, 360), Image.Resampling.LANCZOS)
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        view.save(folder / "photos" / name / "view.jpg", quality=92)
    query = Image.new("RGB", (720, 300))
    for side, read in enumerate((data.chelsea, data.coffee)):
        photo = Image.fromarray(read())
        photo = photo.resize((round(photo.width * 300 / photo.height), 300), Image.Resampling.LANCZOS)
        query.paste(photo.crop(((photo.width - 360) // 2, 0, (photo.width + 360) // 2, 300)), (360 * side, 0))
    query.save(folder / "query.jpg", quality=92)


def distcam(*words: object) -> None:
    command = [sys.executable, "-m", "distcam", *map(str, words)]
    print("distcam", *command[3:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    given = parser.parse_args()
    draw(given.out)
    gallery = given.out / "g.gallery"
    named = ("--encoder", given.encoder, "--weights", given.weights)
    distcam("index", "build", given.out / "photos", "--out", gallery, *named, "--store-maps")
    distcam("query", gallery, given.out / "query.jpg", "-k", 2, "--explain", given.out / "why.png", "--lines")
