"""Names of architectures, known without importing torch."""

from __future__ import annotations

__all__ = ["OWN_ARCHITECTURES", "needs_weights"]

OWN_ARCHITECTURES = ("conv4", "resnet12", "resnet38", "wrn28_10")
"""Built here, beside torchvision's; there are no weights of them to download."""


def needs_weights(name: str) -> str:
    """What is said where a network is named and its weights are not."""
    return f"{name} needs weights: a FILE, 'imagenet' (downloads them), or 'random' (for trials)"
