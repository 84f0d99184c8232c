"""Which FAISS is installed: `faiss-cpu` and `faiss-gpu` write the same files, and pip lets both in without a word.

Whichever came last answers; removing either takes files of both. A package cannot ask pip for one *instead of* the
other, so what is wrong has to be seen here and said.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from importlib.util import find_spec

from ...remarks import remark

__all__ = ["describe", "fault", "fault_behind", "installed", "note_search_on_cpu", "why_no_gpu"]

_NAME = re.compile(r"faiss(-(cpu|gpu)[\w.-]*)?")
_FOR_GPU = "pip install faiss-gpu (Linux on x86-64)"


def installed() -> dict[str, str]:
    """The distributions of FAISS by name, each with its version; more than one is a fault."""
    found = ((one.metadata["Name"] or "", one.version) for one in distributions())
    return {name: version for name, version in sorted(found) if _NAME.fullmatch(name)}


def describe() -> str:
    """The distributions with their versions, as in "faiss-cpu 1.15.1"."""
    return " and ".join(f"{name} {version}" for name, version in installed().items()) or "a FAISS not from pip"


def fault() -> str | None:
    """What is wrong with FAISS here, and how to mend it: two in one place, none, or one without files; else None."""
    names = installed()
    if len(names) > 1:
        remove = f"pip uninstall -y {' '.join(names)}"
        return (
            f"{describe()} are both installed and overwrite each other's files; keep one: {remove}, "
            f"then pip install faiss-cpu, or for a GPU {_FOR_GPU}"
        )
    spec = find_spec("faiss")
    if spec is not None and spec.origin is not None:
        return None
    if not names:
        return f"FAISS is not installed: pip install faiss-cpu, or for a GPU {_FOR_GPU}"
    return (
        f"the files of {describe()} are gone, as after removing another FAISS beside it: "
        f"pip install --force-reinstall --no-deps {next(iter(names))}"
    )


def fault_behind(error: ImportError | AttributeError) -> str | None:
    """What is wrong with FAISS where an error misses it or something in it; None for any other error."""
    about = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
    return fault() if str(about).partition(".")[0] == "faiss" else None


def why_no_gpu() -> str:
    """Why FAISS sees no GPU, and what would help."""
    if (wrong := fault()) is not None:
        return wrong
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        remove = f"pip uninstall -y {' '.join(installed())}".rstrip()
        return f"{describe()} is made for the CPU alone; for a GPU: {remove}, then {_FOR_GPU}"
    return f"{describe()} could use one, and CUDA shows it none"


def note_search_on_cpu(device: str) -> None:
    """Remark that searches run on the CPU though `device` asks for a GPU, or "auto" lost one to a second FAISS."""
    import torch

    is_asked = device.startswith("cuda")
    if not (is_asked or (device == "auto" and torch.cuda.is_available())):
        return
    import faiss

    if not faiss.get_num_gpus() and (is_asked or len(installed()) > 1):
        remark(f"searches run on the CPU, FAISS sees no GPU: {why_no_gpu()}", stacklevel=4)
