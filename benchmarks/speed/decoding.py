"""What it costs to make a network's input of a large JPEG, decoded in full and at the size that the network sees.

    python benchmarks speed/decoding [--rounds 7] [IMAGE.jpg …]

Without images it draws noise of 12 and 3 megapixels (seed 0) whose spectrum falls as that of sharp photographs does
(1/f), and as that of soft ones (1/f^1.5), whose files have the size of a phone's. Prints CPU milliseconds (median
[least, most]), how many times quicker scaled decoding is, and by how many grey levels the two differ. Reach: soft
photographs of 12 megapixels in a third of the time, two grey levels apart at most.
"""

from __future__ import annotations

import argparse
import io
import statistics
from functools import partial
from pathlib import Path

import numpy as np
from machine import REACH_HEAD, describe_machine, interleave, reach_row
from PIL import Image

from distcam.images.geometry import Fitting
from distcam.images.loading import image_size, read_levels


def drawn(width: int, height: int, power: float, *, seed: int = 0) -> bytes:
    """A JPEG of noise with a spectrum of 1/f^power in light, and less of it in colour."""
    generator = np.random.default_rng(seed)
    across, down = np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None]
    amplitude = 1 / np.maximum(np.hypot(across, down), 1 / max(width, height)) ** power

    def noise() -> np.ndarray:
        field = np.fft.irfft2(amplitude * np.exp(2j * np.pi * generator.random(amplitude.shape)), s=(height, width))
        return np.asarray(field / field.std())

    light = noise()
    levels = np.stack([np.clip(128 + 50 * (light + 0.3 * noise()), 0, 255) for _ in range(3)], -1)
    stream = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def spread(values: list[float]) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    files = {file.name: file.read_bytes() for file in options.images}
    files = files or {
        f"1/f^{power} of {width}×{height}": drawn(width, height, power)
        for power in (1.0, 1.5)
        for width, height in ((4032, 3024), (2016, 1512))
    }

    print(describe_machine("pillow", "numpy"))
    shares: dict[str, list[float]] = {}
    print("| image | fit | decoded at | full, ms | scaled, ms | quicker | difference: mean, most |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name, data in files.items():
        for fit in ("pad", "crop"):
            ways = {decoding: Fitting(fit=fit, decoding=decoding) for decoding in ("full", "scaled")}
            methods = {decoding: partial(read_levels, data, way) for decoding, way in ways.items()}
            seconds = interleave(methods, rounds=options.rounds)
            milliseconds = {way: [1000 * value for value in values] for way, values in seconds.items()}
            ratios = [a / b for a, b in zip(seconds["full"], seconds["scaled"], strict=True)]
            shares[f"{name}, {fit}: scaled decoding, × in full"] = [1 / ratio for ratio in ratios]
            full, scaled = (read_levels(data, way)[0].astype(int) for way in ways.values())
            off = np.abs(full - scaled)
            print(
                f"| {name}, {len(data) / 1e6:.1f} MB | {fit} | 1/{ways['scaled'].reduction(*image_size(data))} | "
                f"{spread(milliseconds['full'])} | {spread(milliseconds['scaled'])} | {spread(ratios)} | "
                f"{off.mean():.2f}, {off.max()} |"
            )
    print(f"\n{REACH_HEAD}")
    for name, values in shares.items():
        if "4032" in name:
            print(reach_row(name, values, 0.215))
