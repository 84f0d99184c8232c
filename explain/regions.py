"""A part of a picture as the question; the pooling itself belongs to the encoders, see `encoders/regions.py`."""

from __future__ import annotations

from ..encoders.regions import Region, coverage, pool_region, region_mask, region_weights

__all__ = ["Region", "coverage", "pool_region", "region_mask", "region_weights"]
