"""Images with the boxes that people drew on them: `boxed_images(list_images("photos/"), read_boxes("boxes.csv"))`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...remarks import remark
from ..geometry import Box
from ..joining import Join, likely_cause
from ..listing import Listing
from .fitting import Annotation, BoxTable, Drawn, LabelledBox, fitted


@dataclass(frozen=True)
class BoxedImage:
    """An image with its class and its boxes."""

    path: str  # as its listing has it
    file: Path
    label: str
    boxes: tuple[LabelledBox, ...]  # of its class and of others
    size: tuple[int, int] | None = None  # (width, height) of the image they were drawn on; None for the file's own

    def boxes_of(self, label: str, width: int, height: int) -> list[Box]:
        """The boxes of a class in pixels of the image at this size; boxes without a class are of the image's own."""
        across, down = (1.0, 1.0) if self.size is None else (width / self.size[0], height / self.size[1])
        own = [each.box for each in self.boxes if (self.label if each.label is None else each.label) == label]
        return [box.scaled(across, down) for box in own]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that have boxes, the image's own first."""
        return tuple(dict.fromkeys([self.label, *(each.label for each in self.boxes if each.label is not None)]))


@dataclass(frozen=True)
class BoxedImages:
    """The images of a listing that have a class and boxes of it, in the listing's order."""

    images: tuple[BoxedImage, ...]
    without_boxes: int = 0  # images of the listing that have no box, or none of their class
    without_label: int = 0  # that have boxes but no class

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[BoxedImage]:
        return iter(self.images)

    @property
    def labels(self) -> tuple[str, ...]:
        """The images' classes, sorted."""
        return tuple(sorted({image.label for image in self.images}))


def boxed_images(
    listing: Listing, boxes: BoxTable, *, labels: Mapping[str, str] | None = None, strict: bool = False
) -> BoxedImages:
    """The images of a listing that have boxes, in pixels of the upright image, see `fitted`.

    An image's class is, first found: what `labels` says for its stem, the listing's label, the one class of its boxes.
    What fits on one side only is remarked on: images without boxes, boxes without an image, boxes of other classes.
    """
    found: list[BoxedImage] = []
    unlabelled: list[str] = []
    strange: list[str] = []
    drawn = drawn_on(listing, boxes, strict=strict)
    known = {listing.file(record): record.label for record in listing}
    if labels is not None:
        join = Join()
        for file in known:
            join.add(file.name, file.stem if file.stem in labels else None)
        if (fit := join.fit(labels)).fitting:
            fit.tell(what="a class in the list", lines="lines of the list of classes", strict=strict)
    for path, file, annotation in drawn:
        own = {each.label for each in annotation.boxes}
        given = (labels or {}).get(file.stem)
        label = given or (known[file] if own == {None} or known[file] in own else None)
        label = label or (next(iter(own)) if len(own) == 1 else None)
        if label is None:
            unlabelled.append(path)
        elif label not in own and None not in own:
            strange.append(
                f"{path}, whose class is {label!r} and whose boxes are of {', '.join(sorted(map(str, own)))}"
            )
        else:
            found.append(BoxedImage(path, file, label, annotation.boxes, annotation.size))
    messages = []
    if unlabelled:
        messages.append(
            f"{len(unlabelled):,} images have boxes in {boxes.source} and no class, such as {unlabelled[0]}; put them "
            "into a folder for each class, or say which class each has"
        )
    if strange:
        messages.append(f"{len(strange):,} images have boxes of other classes only, such as {strange[0]}")
    if not found:
        raise InputError(messages[0])
    for message in messages:
        remark(message, strict=strict)
    return BoxedImages(tuple(found), len(known) - len(drawn) + len(strange), len(unlabelled))


def drawn_on(
    listing: Listing, boxes: BoxTable, *, strict: bool = False, left_out: list[str] | None = None
) -> list[Drawn]:
    """The images of a listing that have a usable box, as `fitted` leaves them."""
    join = Join()
    drawn: list[Drawn] = []
    fitting: dict[str, str] = {}
    shared: list[tuple[str, str]] = []
    for record in listing:
        file = listing.file(record)
        key = boxes.key(file, relative=record.path)
        annotation = Annotation(()) if key is None else boxes.annotations[key]
        wanted = file.stem if boxes.is_by_stem else None
        if wanted and key is not None and (first := fitting.setdefault(key, record.path)) != record.path:
            shared.append((first, record.path))
        join.add(record.path, key, wanted=wanted, is_empty=not annotation.boxes)
        if annotation.boxes:
            drawn.append(Drawn(record.path, file, annotation))
    if not drawn:
        raise InputError(_no_match(listing, boxes))
    fit = join.fit(boxes.annotations, shown=boxes.shown, is_there=os.path.lexists)
    fit.tell(what="a box", lines=f"names in {boxes.source.name}", strict=strict)
    if shared:
        remark(
            f"{len(shared):,} images share an annotation of {boxes.source} with another of the same name, such as "
            f"{' and '.join(shared[0])}; it can be right for one of them only",
            strict=strict,
        )
    kept = [each for each in fitted(drawn, boxes.source, strict=strict, left_out=left_out) if each.annotation.boxes]
    if not kept:
        raise InputError(
            f"{boxes.source}: no box lies in its image; see the remarks before, and whether boxes are in pixels"
        )
    return kept


def _no_match(listing: Listing, boxes: BoxTable) -> str:
    if not any(boxes.boxes):
        return f"{boxes.source}: there is no box in it, in {len(boxes):,} annotations"
    known = next(iter(boxes.annotations))
    paths = [record.path for record, _ in zip(listing, range(500), strict=False)]
    seen = str(listing.root / paths[0]) if paths else "no image"
    pair = likely_cause(map(boxes.shown, boxes.annotations), paths)
    return f"{boxes.source} has boxes for {known}, …, but the images are {seen}, …: no image has a box of its class" + (
        "" if pair is None else f"; {pair[2]}"
    )
