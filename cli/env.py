"""`distcam env`: what a bug report should hold."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from .._version import __version__
from .console import out, print_json
from .options import AsJson

EXAMPLE = "Example: `distcam env --json`"
PACKAGES = (
    "torch",
    "torchvision",
    "faiss-gpu",
    "faiss-cpu",
    "pytorch-metric-learning",
    "numpy",
    "h5py",
    "pillow",
    "safetensors",
)


def env(as_json: AsJson = False) -> None:
    """Print versions, devices and threads: paste this into a bug report."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    table = Table("what", "value", title="distcam environment", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, str(value))
    out.print(table)


def _facts() -> dict[str, Any]:
    import faiss
    import torch

    return {
        "distcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "cuda devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "faiss gpus": faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0,
        "torch threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
