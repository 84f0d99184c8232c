"""Weakly supervised segmentation: from image-level labels to masks, and what the maps of a segmenter mean."""
