"""torchvision without torch's compiler, which is there as soon as something asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_compiler_is_loaded_when_it_is_asked_for_and_not_before() -> None:
    python(
        "import sys; from distcam.encoders.backbones.torchvisions import models, transforms\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
        "import torch; from torchvision import ops\n"
        "boxes = torch.tensor([[0, 0, 0, 2.0, 2.0]])\n"
        "assert ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 1).item() == 1\n"
        "import torch._dynamo.utils as real; assert real.__file__ and hasattr(real, 'is_compile_supported')\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2"
    )


@pytest.mark.parametrize("first", ["torch._dynamo", "torchvision"])
def test_what_is_loaded_already_stays(first: str) -> None:
    python(
        f"import sys, {first}; before = sys.modules['torch._dynamo.utils']\n"
        "import distcam.encoders.backbones.torchvisions; assert sys.modules['torch._dynamo.utils'] is before"
    )


def test_whoever_asks_while_torchvision_is_imported_gets_the_compiler_itself() -> None:
    python(
        "import sys; from distcam.encoders.backbones.torchvisions import _Deferred\n"
        "sys.modules['torch._dynamo.utils'] = stand_in = _Deferred('torch._dynamo.utils')\n"
        "from torch._dynamo.utils import counters\n"
        "assert sys.modules['torch._dynamo.utils'] is not stand_in"
    )
