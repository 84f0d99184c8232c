"""Keeping a gallery equal to a folder: plan, apply, report, watch."""
