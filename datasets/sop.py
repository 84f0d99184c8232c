"""Stanford Online Products. Source: Oh Song et al., Lifted Structured Feature Embedding, CVPR 2016."""

from __future__ import annotations

from pathlib import Path

from .layouts import DatasetRecord, Layout, fields_of


def _read(root: Path) -> tuple[DatasetRecord, ...]:
    columns = ("image_id", "class_id", "super_class_id", "path")
    return tuple(
        DatasetRecord(path, number, split)
        for split in ("train", "test")
        for _, number, _, path in fields_of(root / f"Ebay_{split}.txt", *columns, skip=1)
    )


SOP = Layout(
    "Stanford Online Products",
    "Stanford_Online_Products",
    (("Ebay_train.txt", "Ebay_test.txt"),),
    {"train": ("train", 59_551, 11_318), "test": ("test", 60_502, 11_316)},
    _read,
    "the folders of the archive, bicycle_final/ to toaster_final/",
)
