"""Small segmenters, drawn crowds and judges of their maps, which benchmarks of segmentation share."""
