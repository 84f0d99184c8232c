"""`distcam env`: what a bug report should hold."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from .._version import __version__
from .command import Commands
from .console import note, out, print_json
from .options import AsJson

app = Commands()
EXAMPLE = "Example: `distcam env --json`"
PACKAGES = (
    "torch",
    "torchvision",
    "pytorch-metric-learning",
    "numpy",
    "h5py",
    "pillow",
    "safetensors",
    "fastapi",
    "milvus-lite",
    "pyarrow",
    "pymilvus",
    "ray",
    "scikit-image",
    "timm",
    "transformers",
    "open_clip_torch",
    "onnx",
    "onnxruntime",
)


@app.command(epilog=EXAMPLE)
def env(as_json: AsJson = False) -> None:
    """Print versions, devices and threads: paste this into a bug report."""
    import torch

    from ..index.faiss import runtime

    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    gpus = 0
    with suppress(ImportError, AttributeError):  # no FAISS, or one whose files are gone
        import faiss

        gpus = int(faiss.get_num_gpus())
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts: dict[str, Any] = {
        "distcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **packages,
        **runtime.installed(),
        "cuda devices": devices,
        "faiss gpus": gpus,
        "faiss fault": runtime.why_no_gpu() if devices and not gpus else runtime.fault(),
        "torch threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    if facts["faiss fault"] is not None:
        note(facts["faiss fault"])
    if as_json:
        print_json(facts)
        return
    table = Table("what", "value", title="distcam environment", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, "none" if value is None else str(value))
    out.print(table)
