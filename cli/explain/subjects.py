"""The subject of `distcam explain`: a classifier or segmentation network about a class, an encoder about a match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError
from .. import library
from ..options import Metric, class_names, read_box, read_point

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from ...encoders import Encoder
    from ...encoders.backbones.networks import Network
    from ...explain import Target
    from ...images import Transform

TARGETS = (
    "`class:CAT` (name or number; `class` alone is the best one), `segment:CAT@PLACE` with a PLACE of `all`, "
    "`predicted`, `component`, `box:x1,y1,x2,y2`, `point:x,y`, `component:x,y` or `mask:FILE`, `match:OTHER.jpg`, or "
    "`prototype:LABEL` (with --gallery; `prototype` alone is the nearest). Places are in pixels of the image."
)


@dataclass(frozen=True)
class TargetText:
    """A target as it was written: its kind, of what, and where."""

    kind: str
    value: str
    place: str

    @classmethod
    def parse(cls, text: str) -> TargetText:
        """The parts of `kind:value@place`."""
        kind, _, rest = text.partition(":")
        value, _, place = rest.partition("@") if kind == "segment" else (rest, "", "")
        if kind not in ("class", "segment", "match", "prototype"):
            raise InputError(f"--target {text!r} is not known; expected {TARGETS.replace('`', '')}")
        if not value and kind in ("segment", "match"):
            raise InputError(f"--target {kind} needs a value: segment:CAT@PLACE, match:OTHER.jpg")
        return cls(kind, value, place)


@dataclass(frozen=True)
class NetworkSubject:
    """A classifier or a segmentation network, and a class of it."""

    model: nn.Module
    transform: Transform
    layer: str | None
    asked: TargetText
    classes: tuple[str, ...]
    category: int | None
    method_options: Mapping[str, Any]

    @property
    def has_place(self) -> bool:
        """True if it asks about a place in the image's own pixels, which then is not read at a reduced size."""
        return self.asked.place.partition(":")[2] != ""

    def question(self, image: Image, pixels: Tensor) -> tuple[Target, str]:
        """The class, or its pixels at the place asked for."""
        import torch

        category = self.category
        if category is None:
            with torch.no_grad():
                category = int(self.model(pixels).argmax(1))
        name = f"{category} {self.classes[category]}" if self.classes else str(category)
        if self.asked.kind == "class":
            return library.explain.ClassScore(category), name
        score = library.explain.PixelScore(category, self._pixels(image.size))
        return score, f"{name} @ {self.asked.place or 'predicted'}"

    def _pixels(self, size: tuple[int, int]) -> Any:
        from ...explain import places
        from ...images.masks import read_mask

        kind, _, text = (self.asked.place or "predicted").partition(":")
        if kind in ("all", "predicted", "component") and not text:
            return kind
        if kind == "box":
            return places.box_in_input(read_box(text), self.transform, size)
        if kind == "mask":
            return places.mask_in_input(read_mask(text), self.transform, size)
        if kind in ("point", "component"):
            point = places.point_in_input(read_point(text), self.transform, size)
            return point if kind == "point" else library.explain.ComponentAt(*point)
        raise InputError(
            f"the place {self.asked.place!r} is not known; expected all, predicted, component, component:x,y, "
            "box:x1,y1,x2,y2, point:x,y or mask:FILE"
        )


@dataclass(frozen=True)
class EncoderSubject:
    """An encoder, and the vectors of references by name, of which the nearest is asked about."""

    model: Encoder
    names: tuple[str, ...]
    references: Tensor
    metric: Any
    method_options: Mapping[str, Any]
    layer: str | None = None
    has_place: bool = False

    @property
    def transform(self) -> Transform:
        """From an image to its pixels."""
        return self.model.transform

    def question(self, _image: Image, pixels: Tensor) -> tuple[Target, str]:
        """The similarity to the reference that is nearest."""
        import torch

        every = library.explain.Similarity(self.references, self.metric)
        with torch.no_grad():
            output = self.model(pixels)
            nearest = int(every.fix(output)(output)[0].argmax())
        return library.explain.Similarity(self.references[nearest], self.metric), self.names[nearest]


Subject = NetworkSubject | EncoderSubject


def network_subject(
    asked: TargetText, name: str | None, weights: str | None, classes: Path | None, *, fit: Any, size: int | None
) -> NetworkSubject:
    """The classifier or segmentation network, and the class asked for."""
    from ...encoders.backbones.networks import find_class

    own = None if name is None else _trained_file(asked, name)
    network = _torchvisions(asked, name, weights, classes) if own is None else _trained(asked, own, weights, classes)
    category = find_class(asked.value, network.classes, network.n_classes) if asked.value else None
    transform = network.transform.adapted(size=size, fit=fit)
    fixed = getattr(network.model, "image_size", None)  # a ViT is built for one size
    if isinstance(fixed, int) and (transform.height, transform.width) != (fixed, fixed):
        raise InputError(f"{name} takes images of {fixed}×{fixed} pixels only; leave --image-size out")
    return NetworkSubject(network.model, transform, network.layer, asked, network.classes, category, {})


def _torchvisions(asked: TargetText, name: str | None, weights: str | None, classes: Path | None) -> Network:
    """A network of torchvision's, by its name."""
    from ...encoders.backbones.networks import available_networks, load_network

    if name is None or weights is None:
        raise InputError(
            f"--target {asked.kind} needs --encoder NAME and --weights FILE, `imagenet`, or `random`; or as --encoder "
            "the FILE.safetensors or RUN that training left"
        )
    kind: Literal["classifier", "segmenter"] = "classifier" if asked.kind == "class" else "segmenter"
    if name not in (known := available_networks(kind)):
        raise InputError(
            f"--target {asked.kind} needs a torchvision {kind}, and {name} is none; some are {', '.join(known[:4])}, …"
        )
    return load_network(name, weights=weights, classes=None if classes is None else class_names(classes))


def _trained_file(asked: TargetText, name: str) -> Path | None:
    """The file that training left, or the one in a run's folder that answers such a question."""
    path = Path(name)
    if name.endswith(".safetensors"):
        return path
    inside = ["segmenter", "weak_segmenter"]
    if asked.kind != "segment":
        inside = ["weak/weak_segmenter", "weak/encoder", "weak_segmenter", "encoder"]
    return next((file for part in inside if (file := path / f"{part}.safetensors").is_file()), None)


def _trained(asked: TargetText, file: Path, weights: str | None, classes: Path | None) -> Network:
    """A network of our own, with its weights and the names of its classes: one that scores pixels, or images."""
    from ...encoders.checkpoint import read_checkpoint
    from ...segmentation import load_segmenter, load_source, network_of

    for option, given in {"--weights": weights, "--classes": classes}.items():
        if given is not None:
            raise InputError(f"{file} brings its own weights and classes; leave {option} out")
    kind = read_checkpoint(file)[0].get("kind")
    if asked.kind == "segment":
        if kind == "weak segmenter":
            raise InputError(
                f"{file} learnt from labels alone and scores whole images: ask for --target class:{asked.value}, or "
                "about a network that was trained on its masks"
            )
        return load_segmenter(file).network()
    if kind == "segmenter":
        raise InputError(f"{file} scores pixels: ask for --target segment:{asked.value or 'CLASS'}@PLACE")
    return network_of(load_source(file))


def encoder_subject(
    asked: TargetText, own: Encoder | None, gallery: Path | None, metric: Metric | None
) -> EncoderSubject:
    """The encoder, and the vector of the other image or of the prototypes."""
    import torch

    from ...retrieval.evidence import surroundings_of

    opened = None if gallery is None else library.index.Gallery.open(gallery)
    if opened is not None and metric not in (None, opened.metric):
        raise InputError(f"{gallery} compares by {opened.metric}; leave --metric out, or leave out --gallery")
    encoder = own if opened is None else library.retrieval.Retriever(opened, own, device="cpu").encoder
    assert encoder is not None
    encoder.eval()
    metric = opened.metric if opened is not None else metric or "cosine"
    options: dict[str, Any] = {}
    if opened is not None:
        around = surroundings_of(opened.prototypes, opened.background)
        options = {"mean": around.mean, "surroundings": around, "is_class": asked.kind == "prototype"}
    if asked.kind == "match" or opened is None:
        with library.encoders.evaluating(encoder), torch.no_grad():
            pixels = encoder.transform.normalise(encoder.transform.read(asked.value)[0][None])
            return EncoderSubject(encoder, (asked.value,), encoder(pixels).embedding, metric, options)
    if not opened.prototypes.labels:
        raise InputError(f"{gallery} has no labels, so it has no class prototypes; use match:OTHER.jpg")
    labels = (asked.value,) if asked.value else opened.prototypes.labels
    references = torch.stack([torch.from_numpy(opened.prototypes.embedding(label)) for label in labels])
    return EncoderSubject(encoder, tuple(f"prototype of {label}" for label in labels), references, metric, options)
