"""`distcam reid explain`: why two images match, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...errors import ImageError, InputError
from ...files import replacing
from ...remarks import remark
from ..checks import require_encoder, require_images
from ..command import refuse_unused
from ..console import print_json, say
from ..options import AsJson, Device, EncoderName, Layer, Weights
from .reid import CropFit, CropSize, crop_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...reid.pairs import Part

EXAMPLE = (
    "Example: `distcam reid explain probe.jpg match.jpg --different other.jpg --encoder reid.safetensors --out why.png`"
)
PairWeighting = Literal["dist", "dist*s", "dot", "gradcam_cos", "caam"]  # those that need no gallery's mean


def explain(
    probe: Annotated[Path, typer.Argument(help="The picture that was asked for.")],
    match: Annotated[Path, typer.Argument(help="The picture it is compared with.")],
    different: Annotated[
        list[Path] | None, typer.Option(help="Another picture to set beside it, of another identity; repeatable.")
    ] = None,
    encoder: EncoderName = "resnet50",
    weights: Weights = None,
    layer: Layer = None,
    fit: CropFit = None,
    image_size: CropSize = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Stripes from the top, e.g. `head:0-0.2,torso:0.2-0.55`; or `body`: head, torso, legs, feet. Default: "
            "body for images in the folders and names of a set of people, else four equal stripes."
        ),
    ] = None,
    weighting: Annotated[PairWeighting, typer.Option(help="Of the Dist-CAM maps.")] = "dist",
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Write OUT.png (a panel) or OUT.npz (raw maps).")
    ] = None,
    device: Device = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Stop if one of --different cannot be read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Divide the similarity of two pictures among their places and parts, and draw Dist-CAM on both."""
    if out_path is not None and out_path.suffix.lower() not in (".png", ".jpg", ".npz"):
        raise InputError(f"--out writes OUT.png, OUT.jpg or OUT.npz, not {out_path.name}")
    if out_path is None:
        refuse_unused("where no map is written", "weighting", remedy="add --out OUT.png")
    require_encoder(encoder, weights, layer)
    require_images([probe, match, *(different or ())])
    from ...datasets.reid_benchmarks import shows_people
    from ...encoders import Inference
    from ...reid.pairs import BODY_PARTS, STRIPES, explain_pair, pairs_panel

    is_body = parts == "body" or (parts is None and all(map(shows_people, (probe, match, *(different or ())))))
    wanted = BODY_PARTS if is_body else STRIPES if parts is None else stripes(parts)
    inference = Inference(crop_encoder(encoder, weights, layer, image_size, fit), device=device)
    others = {f"different: {path.name}": path for path in different or ()}
    files = {"same" if others else "pair": match, **others}
    pairs = {}
    for title, file in files.items():
        try:
            pairs[title] = explain_pair(inference, probe, file, parts=wanted, weighting=weighting)
        except ImageError as error:
            if title not in others or error.path == str(probe):
                raise
            remark(f"{error}; it is left out", strict=strict)
    if out_path is not None:
        with replacing(out_path) as aside:
            if out_path.suffix.lower() != ".npz":
                pairs_panel(pairs).save(aside)
            else:
                import numpy as np

                maps = {f"{i}/{name}": m for i, p in enumerate(pairs.values()) for name, m in p.to_arrays().items()}
                np.savez_compressed(aside, allow_pickle=False, **maps)
    if as_json:
        print_json([{"title": title, "match": str(files[title]), **pair.to_dict()} for title, pair in pairs.items()])
        return
    for title, pair in pairs.items():
        say(f"{title}\n{pair.table()}\n")
    if out_path is not None:
        say(f"explanation: {out_path}")


def stripes(text: str) -> Mapping[str, Part]:
    """`name:top-bottom,…` as parts.

    >>> stripes("upper:0-0.5,lower:0.5-1")
    {'upper': (0.0, 0.5), 'lower': (0.5, 1.0)}
    """
    parts: dict[str, Part] = {}
    for item in text.split(","):
        name, _, span = item.partition(":")
        top, _, bottom = span.partition("-")
        try:
            parts[name.strip()] = (float(top), float(bottom))
        except ValueError:
            raise InputError(f"--parts reads `name:top-bottom,…` in fractions of the height, not {item!r}") from None
    return parts
