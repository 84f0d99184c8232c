"""torchvision, imported without torch's compiler, which costs as much as torch and which RoI align alone asks for."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


class _Deferred(ModuleType):
    """The compiler's module while torchvision is imported; it makes way for that one if anything is asked of it."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """What RoI align asks when it is called, which nothing here does."""
        return bool(import_module(_COMPILER).is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(import_module(_COMPILER), name)


_deferred = _Deferred(_COMPILER)
sys.modules.setdefault(_COMPILER, _deferred)
try:
    from torchvision import models as models
    from torchvision import transforms as transforms
    from torchvision.ops import StochasticDepth as StochasticDepth
finally:
    if sys.modules[_COMPILER] is _deferred:
        del sys.modules[_COMPILER]
