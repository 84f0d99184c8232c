"""Boxes of images: file formats, tables, fitting."""
