"""Names that stand for nobody: as identities they make one individual of all unknown ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..datasets.reid_records import Protocol, ReidData, ReidImage
from ..images.labelling import is_placeholder, remark_on_twins
from ..remarks import remark

_NAMED = ("csv", "folder")  # elsewhere identities and cameras are numbers
_CROWD = 5  # times as many images as any other identity has, before the number 0 is suspected


def placeholders(data: ReidData, protocol: Protocol) -> dict[str, int]:
    """Identities and cameras that look like "unknown", with how many images have them.

    What the protocol declares junk or a distractor is known to be nobody. The numbers 0 and -1 are individuals in many
    sets; of a table they are listed if -1 is the only negative number, or if 0 has far more images than anybody else.
    """
    declared = {str(name) for name in (*protocol.junk, *protocol.distractors)}
    images = [image for image in data.images if str(image.identity) not in declared]
    found = {f"identity {name!r}": n for name, n in _crowds(images, is_numbered=data.format not in _NAMED).items()}
    cameras = Counter(str(image.camera) for image in data.images if isinstance(image.camera, str))
    return found | {f"camera {name!r}": n for name, n in cameras.items() if is_placeholder(name)}


def _crowds(images: Iterable[ReidImage], *, is_numbered: bool) -> dict[str, int]:
    counts = Counter(str(image.identity) for image in images)
    found = {} if is_numbered else {name: n for name, n in counts.items() if is_placeholder(name)}
    most = max((n for name, n in counts.items() if name != "0"), default=0)
    if not is_numbered and counts["0"] > _CROWD * most > 0:
        found["0"] = counts["0"]
    return found


def remark_on_placeholders(data: ReidData, protocol: Protocol, *, strict: bool = False) -> None:
    """Say which identities and cameras look like placeholders, and how to leave them out."""
    if data.format in _NAMED:
        people = Counter(str(image.identity) for image in data.images)
        remark_on_twins(people, f"{data.root}, individuals", what="individual", strict=strict)
        cameras = Counter(str(image.camera) for image in data.images if image.camera is not None)
        remark_on_twins(cameras, f"{data.root}, cameras", what="camera", strict=strict)
    found = placeholders(data, protocol)
    if found:
        listed = ", ".join(f"{name} ({n:,} images)" for name, n in list(found.items())[:4])
        names = [name.partition(" ")[2].strip("'") for name in found if name.startswith("identity")]
        remedy = f"; --protocol junk={'+'.join(names)} leaves such identities out" if names else ""
        remark(
            f"{listed} look like placeholders, but count as one individual or one camera each{remedy}",
            strict=strict,
            stacklevel=4,
        )
