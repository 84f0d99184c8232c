"""`distcam reproduce`."""

from __future__ import annotations
