"""How fast an atlas is made and drawn: `python benchmarks speed/atlas [--images 50000] [--dim 128]`.

Vectors of twelve clusters are imported as a gallery without images. Measured are the coordinates (principal
components), writing the page and its size; then, in headless Chromium without a GPU at two sizes of window, the time
from one frame to the next while the wheel zooms and the view is dragged, one step a frame, the script's part of it, and
how long it takes to find the point under the pointer.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from distcam.index import Gallery, import_gallery
from distcam.retrieval.atlas import write_atlas

SIZES = ((390, 844), (1400, 900))
WATCHED = """{
  window.frame = window.requestAnimationFrame.bind(window);
  window.painted = [];
  window.requestAnimationFrame = (paint) => window.frame(() => {
    const start = performance.now();
    paint();
    window.painted.push(performance.now() - start);
  });
}"""
FRAMES = """async (frames) => {
  const canvas = document.querySelector("#atlas canvas"), {left, top, width, height} = canvas.getBoundingClientRect();
  const middle = [left + width / 2, top + height / 2], next = () => new Promise(window.frame);
  const send = (kind, name, clientX, clientY, more = {}) =>
    canvas.dispatchEvent(new kind(name, {clientX, clientY, bubbles: true, cancelable: true, pointerId: 1, ...more}));
  const measured = {zoom: [], drag: []};
  canvas.setPointerCapture = () => {};
  window.painted.length = 0;
  const watch = async (times, step) => {
    for (let i = 0, before = await next(); i < frames; i++) {
      step(i);
      const now = await next();
      times.push(now - before);
      before = now;
    }
  };
  await watch(measured.zoom, (i) => send(WheelEvent, "wheel", ...middle, {deltaY: i < frames / 2 ? -40 : 40}));
  send(PointerEvent, "pointerdown", ...middle);
  await watch(measured.drag, (i) =>
    send(PointerEvent, "pointermove", middle[0] + 60 * Math.sin(i / 5), middle[1] + 40 * Math.cos(i / 5)));
  send(PointerEvent, "pointerup", ...middle);
  measured.paint = window.painted.slice();
  const start = performance.now();
  for (let i = 0; i < 500; i++)
    send(PointerEvent, "pointermove", left + (width * (i % 20)) / 20, top + (height * i) / 500);
  measured.point = [(performance.now() - start) / 500];
  return measured;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--frames", type=int, default=40, help="of each round and each movement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(describe_machine("numpy", "playwright"))
    with tempfile.TemporaryDirectory() as folder:
        gallery = _gallery(Path(folder), arguments.images, arguments.dim, seed=arguments.seed)
        seconds = []
        for _ in range(arguments.rounds):
            start = time.process_time()
            atlas = gallery.atlas(outliers=False)
            seconds.append(time.process_time() - start)
        start = time.process_time()
        page = write_atlas(Path(folder) / "atlas.html", gallery, atlas, thumbnails=0)
        print(f"{arguments.images:,} × {arguments.dim}, seed {arguments.seed}: CPU s, median [least, most]")
        seconds_of_page, size = time.process_time() - start, page.stat().st_size / 1e6
        print(f"coordinates {_spread(seconds)}; page {seconds_of_page:.2f}, {size:.1f} MB")
        _drawn(page, frames=arguments.frames, rounds=arguments.rounds)


def _gallery(folder: Path, images: int, dim: int, *, seed: int) -> Gallery:
    draw = np.random.default_rng(seed)
    cluster = np.sort(draw.integers(0, 12, images))
    vectors = draw.standard_normal((12, dim))[cluster] + 0.9 * draw.standard_normal((images, dim))
    np.save(folder / "v.npy", vectors.astype(np.float32))
    rows = [f"{place}.jpg,cluster {number},{place % 31}" for place, number in enumerate(cluster)]
    (folder / "t.csv").write_text("\n".join(["path,label,year", *rows]), encoding="utf-8")
    return import_gallery(folder / "t.csv", folder / "g", embeddings=folder / "v.npy")


def _drawn(page: Path, *, frames: int, rounds: int) -> None:
    from playwright.sync_api import sync_playwright

    print("| window | zoom, ms a frame | slowest 5 % | drag | slowest 5 % | its script, ms | pointer's point, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        for width, height in SIZES:
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.add_init_script(WATCHED)
            tab.goto(page.as_uri())
            tab.wait_for_timeout(500)
            found: list[dict[str, Any]] = [tab.evaluate(FRAMES, frames) for _ in range(rounds)]
            assert all(len(each["paint"]) >= 1.8 * frames for each in found), "a frame was not painted"
            quantiles = (("zoom", 0.5), ("zoom", 0.95), ("drag", 0.5), ("drag", 0.95), ("paint", 0.5), ("point", 0.5))
            cells = [_spread([float(np.quantile(each[name], share)) for each in found]) for name, share in quantiles]
            print(f"| {width} × {height} | {' | '.join(cells)} |")
        print(f"Chromium {browser.version}, no GPU; median [least, most] of {rounds} rounds of {frames} frames")
        browser.close()


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
