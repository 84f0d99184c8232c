"""Pseudo masks from maps: cues, random walk, CRF, affinity."""
