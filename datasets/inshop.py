"""In-Shop Clothes Retrieval, of DeepFashion: the test split has queries and a gallery. Source: Liu et al. 2016."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .layouts import DatasetRecord, Layout, fields_of


def _read(root: Path) -> tuple[DatasetRecord, ...]:
    file = next(file for place in ("Eval", "Anno", ".") if (file := root / place / "list_eval_partition.txt").exists())
    inside = "Img/" if (root / "Img" / "img").is_dir() else ""
    records = []
    for path, item, status in fields_of(file, "image_name", "item_id", "evaluation_status", skip=2):
        if status == "train":
            records.append(DatasetRecord(inside + path, item, "train"))
        elif status == "query" or status == "gallery":
            records.append(DatasetRecord(inside + path, item, "test", status))  # type: ignore[arg-type]
        else:
            raise InputError(f"{file}: expected train, query or gallery, got {status[:80]!r} for {path}")
    return tuple(records)


INSHOP = Layout(
    "In-Shop Clothes Retrieval",
    "In-shop Clothes Retrieval Benchmark",
    tuple((f"{place}list_eval_partition.txt",) for place in ("Eval/", "Anno/", "")),
    {
        "train": ("train", 25_882, 3_997),
        "query": ("test", 14_218, 3_985),
        "gallery": ("test", 12_612, 3_985),
    },
    _read,
    "img/, or Img/img/, which the archive holds as img.zip",
)
