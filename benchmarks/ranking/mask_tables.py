"""Tables of `ranking/masks`: retrieval and boxes of maps, with pictures as a whole and under their masks, paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distcam.encoders import Encoder
from distcam.explain.targets import distances
from distcam.images.boxes.joined import BoxedImages
from distcam.retrieval import LocalisationTable, References, localise

WEIGHTINGS = ("dist", "dist*s", "dist*excess", "log_ratio", "dot", "dot_centered")
THRESHOLDS = tuple(step / 20 for step in range(20))
WAYS = ("whole", "masked")


@dataclass(frozen=True, eq=False)
class EncodedBothWays:
    """Pictures as a whole and under their masks, each as pooled vectors and embeddings."""

    files: tuple[Path, ...]
    whole: tuple[Tensor, Tensor]
    masked: tuple[Tensor, Tensor]
    masks: float  # share of the pictures that have one


# --- retrieval --------------------------------------------------------------------------------------------------------


def retrieval_table(
    queries: EncodedBothWays,
    query_labels: Sequence[str],
    gallery: EncodedBothWays,
    labels: Sequence[str],
    *,
    is_same: bool,
    seed: int,
) -> str:
    """R@1 and the nearest prototype's class, for both ways on both sides."""
    hits: dict[tuple[str, str], Tensor] = {}
    for of_query in WAYS:
        for of_gallery in WAYS:
            vectors, others = getattr(queries, of_query)[1], getattr(gallery, of_gallery)[1]
            found = distances(vectors, others, "cosine")
            if is_same:
                found.fill_diagonal_(torch.inf)
            nearest = [labels[row] == own for row, own in zip(found.argmin(1).tolist(), query_labels, strict=True)]
            prototype = prototype_hits(vectors, others, query_labels, labels, is_same=is_same)
            hits[of_query, of_gallery] = torch.stack([torch.tensor(nearest).double(), prototype])
    lines = [
        "| query | gallery | R@1 | minus whole/whole | nearest prototype | minus whole/whole |",
        "|---|---|---:|---:|---:|---:|",
    ]
    base = hits["whole", "whole"]
    for (of_query, of_gallery), found in hits.items():
        cells = [
            cell for one, own in zip(found, base, strict=True) for cell in (shown(one, seed), shown(one - own, seed))
        ]
        lines.append(f"| {of_query} | {of_gallery} | {' | '.join(cells)} |")
    return "\n".join(lines)


def prototype_hits(
    vectors: Tensor, others: Tensor, query_labels: Sequence[str], labels: Sequence[str], *, is_same: bool
) -> Tensor:
    """Whether the nearest class mean is of the query's class; a query among the gallery leaves its own class's mean."""
    names = sorted(set(labels))
    unit = torch.nn.functional.normalize(others, dim=1)
    member = torch.tensor([[name == label for label in labels] for name in names], dtype=unit.dtype)
    total, count = member @ unit, member.sum(1)
    own = torch.tensor([names.index(label) for label in query_labels])
    hits = []
    for row, vector in enumerate(torch.nn.functional.normalize(vectors, dim=1)):
        means = total.clone()
        if is_same:
            means[own[row]] -= unit[row]
        means = torch.nn.functional.normalize(means / count[:, None], dim=1)
        hits.append(float((means @ vector).argmax() == own[row]))
    return torch.tensor(hits, dtype=torch.float64)


def shown(values: Tensor, seed: int) -> str:
    """Mean with its bootstrap interval."""
    drawn = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{float(values.mean()):.3f} [{low:.3f}, {high:.3f}]"


# --- localisation -----------------------------------------------------------------------------------------------------


def localisation_table(
    boxed: BoxedImages, encoder: Encoder, gallery: EncodedBothWays, labels: Sequence[str], *, seed: int
) -> str:
    """The boxes of the maps against prototypes of pictures and against prototypes of objects, paired."""
    tables: dict[str, LocalisationTable] = {}
    for way in WAYS:
        references = References.of(list(labels), *getattr(gallery, way), files=gallery.files)
        tables[way] = localise(
            boxed, encoder, references, methods=WEIGHTINGS, thresholds=THRESHOLDS, precision="fp32", seed=seed
        )
    whole = tables["whole"]
    scores = {f"{name}|{way}": table.scores[name] for way, table in tables.items() for name in table.scores}
    both = replace(whole, scores=scores)
    measures = {"max_box_acc": "MaxBoxAcc", "energy": "energy in box"}
    heads = [f"{title}, {what}" for title in measures.values() for what in ("whole", "masked", "masked − whole")]
    if both[f"{WEIGHTINGS[0]}|whole"].two_objects is not None:
        heads += ["two objects, whole", "two objects, masked"]
    lines = [f"| map | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name in [*WEIGHTINGS, "caam", "centre", "full"]:
        rows = [both[f"{name}|{way}"] for way in WAYS]
        cells = []
        for measure in measures:
            cells += [str(getattr(row, measure)) for row in rows]
            cells.append(str(both.difference(f"{name}|masked", f"{name}|whole", measure)))
        cells += [str(row.two_objects) for row in rows] if len(heads) > 3 * len(measures) else []
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
