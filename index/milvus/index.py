"""Milvus' indexes of the embeddings: FAISS factory strings outside, Milvus' names and parameters inside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ...errors import InputError

FLAT_UP_TO = 100_000  # images; "auto" means a graph above
_GRAPH = {"M": 16, "efConstruction": 200}


@dataclass(frozen=True)
class IndexKind:
    """A kind of index.

    Attributes:
        name: Milvus' name of it.
        build: Milvus' parameters of it.
    """

    name: str
    build: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, count: int = 0) -> Self:
        """The kind that `--index` means for a gallery of `count` images.

        >>> IndexKind.parse("IVF1024,PQ64")
        IndexKind(name='IVF_PQ', build={'nlist': 1024, 'm': 64, 'nbits': 8})
        """
        if text == "auto":
            return cls("FLAT") if count <= FLAT_UP_TO else cls("HNSW", _GRAPH)
        if text.lower() in ("flat", "diskann"):
            return cls(text.upper())
        if found := re.fullmatch(r"HNSW(\d{1,3})?(,Flat)?", text):
            return cls("HNSW", {**_GRAPH, "M": int(found[1] or _GRAPH["M"])})
        if found := re.fullmatch(r"IVF(\d{1,5}),(Flat|SQ8|PQ(\d{1,4}))", text):
            lists = {"nlist": int(found[1])}
            if found[3]:
                return cls("IVF_PQ", {**lists, "m": int(found[3]), "nbits": 8})
            return cls("IVF_FLAT" if found[2] == "Flat" else "IVF_SQ8", lists)
        raise InputError(
            f"index {text!r}: with Milvus use auto, flat, HNSW, HNSW32, DISKANN, or IVF1024,Flat (or SQ8, or PQ64)"
        )

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Self:
        """The kind that Milvus describes."""
        names = ("M", "efConstruction", "nlist", "m", "nbits")
        return cls(
            str(description.get("index_type", "FLAT")),
            {name: int(description[name]) for name in names if name in description},
        )

    def is_like(self, other: Self) -> bool:
        """True if the same index is meant, as far as both say."""
        shared = self.build.keys() & other.build.keys()
        return self.name == other.name and all(self.build[name] == other.build[name] for name in shared)

    @property
    def is_exact(self) -> bool:
        """True if every vector is looked at, in single precision."""
        return self.name == "FLAT"

    def effort(self, n: int) -> dict[str, int]:
        """The parameters of a search for n candidates; twice as many are looked at where the kind allows it."""
        match self.name:
            case "HNSW":
                return {"ef": max(64, 2 * n)}
            case "DISKANN":
                return {"search_list": max(100, 2 * n)}
            case "FLAT":
                return {}
            case _:
                lists = self.build.get("nlist", 128)
                return {"nprobe": min(lists, max(16, lists // 32))}
