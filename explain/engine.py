"""Methods by name, and one function that runs any of them: a method, a layer, a target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..encoders.encoder import Encoder
from ..encoders.encoding import fold
from ..encoders.layers import closest
from ..errors import InputError, ShapeError
from ..metrics.maps import is_constant
from .inputs import Metric, Norm, Weighting, refuse_non_finite
from .layer_runs import LayerView, capture
from .methods import cam as cams
from .methods.dist_cam import WeightOptions, dist_cam
from .methods.full_grad import full_grad, full_gradient
from .methods.lift_cam import lift_weights
from .methods.perturbation import ablation_weights, score_weights
from .methods.surroundings import Surroundings, ratio_maps
from .targets import Similarity, Target, vector_of

SEGMENTATION_NAMES = {"seghirescam": "hirescam", "seghiresgradcam": "hirescam"}
ENCODERS_LAYER = "backbone"


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """The maps of b images for m questions each, raw: at the layer's resolution, unscaled."""

    maps: Float[Tensor, "b m h w"]  # `upsample` and `normalise` are for showing them
    is_constant: Bool[Tensor, "b m"]  # such a map explains nothing: all its values are alike (often 0 behind the ReLU)
    scores: Float[Tensor, "b m"]  # what was asked, on the images as they are
    method: str  # its name in `METHODS`
    layer: str  # whose activations were used; "" for FullGrad, which uses all
    target: Target  # as it was given

    def __post_init__(self) -> None:
        if not self.maps.shape[:2] == self.is_constant.shape == self.scores.shape:
            raise ShapeError(
                f"maps {tuple(self.maps.shape)}, flags {tuple(self.is_constant.shape)} and scores "
                f"{tuple(self.scores.shape)} are not of the same images and questions"
            )
        refuse_non_finite("the maps", self.maps)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps)


def explain_image(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    *,
    target: Target,
    method: str = "hirescam",
    layer: str | None = None,
    **options: Any,
) -> ActivationMaps:
    """Maps of where a network sees what is asked: one for each image and question.

    The model is run in evaluation mode and left as it was. Any method answers any target. Dist-CAM compares pooled
    vectors, so for a similarity it needs the layer that is pooled; for other scores its reference is the direction they
    take in channel space, `Σ_ij g_kij`: for a class behind average pooling the classifier's row.

    Args:
        model: a network, or an `Encoder`; its images do not depend on one another in evaluation mode.
        images: a batch, as the model wants it.
        target: `ClassScore`, `PixelScore`, or `Similarity`, with m questions for each image.
        method: one of `METHODS`; case, hyphens, and underscores do not matter, and "Seg-" names are known too.
        layer: a name from `model.named_modules()`; for an `Encoder` its feature map if left out.
        options: `relu` (False keeps the signs) and what the method's own function takes: `window` and `pooling` for
            Seg-XRes-CAM, `batch_size` for Ablation-CAM and Score-CAM, `weighting`, `tau`, `norm`, and `mean` for
            Dist-CAM, `surroundings` and `is_class` for the root ratio, `centred` for Eigen-CAM.

    Raises:
        InputError: unknown method, layer, option, or class; the message holds the nearest names.
        ShapeError: the numbers of images and questions differ, or the output is not what the target needs.

    >>> from distcam.explain import ClassScore
    >>> net = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())    # class 1 scores the mean of channel 1
    >>> image = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 2.0]]]])
    >>> explain_image(net, image, target=ClassScore(1), layer="0").maps.tolist()    # gradient 1/4 times 2
    [[[[0.0, 0.0], [0.5, 0.5]]]]
    """
    name = method_name(method)
    taken = METHODS[name].options
    for option in options:
        if option not in taken:
            raise InputError(
                f"{METHODS[name].title} takes no option {option!r}; it takes {', '.join(taken) or 'no options'}"
            )
    if name == "fullgrad":  # looks at the whole network, at no layer of it
        gradient = full_gradient(model, images, target)
        maps = full_grad(gradient, (images.shape[-2], images.shape[-1]))
        return ActivationMaps(maps, is_constant(maps), gradient.scores, name, "", target)
    if layer is None and not isinstance(model, Encoder):
        *_, last = ["", *(name for name, part in model.named_modules() if isinstance(part, nn.Conv2d))]
        hint = f" (its last convolution is {last!r})" if last else ""
        raise InputError(
            f"name the layer of {type(model).__name__} to look at{hint}; only an Encoder has one of its own"
        )
    layer = layer or ENCODERS_LAYER
    with capture(model, layer) as run:
        view = LayerView(run, run(images), target)
        maps = METHODS[name].compute(view, **options).detach()
        return ActivationMaps(maps, is_constant(maps), view.scores.detach(), name, layer, target)


class Method(NamedTuple):
    """A method by name."""

    title: str
    compute: Callable[..., Tensor]
    options: tuple[str, ...]


def _method(title: str, compute: Callable[..., Tensor], *functions: Callable[..., Tensor]) -> Method:
    """A method whose options are the keyword-only parameters of `functions`, or else of `compute`."""
    parameters = [p for each in functions or (compute,) for p in inspect.signature(each).parameters.values()]
    return Method(title, compute, tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))


def _of_gradients(title: str, function: Callable[..., Tensor]) -> Method:
    def compute(view: LayerView, **options: Any) -> Tensor:
        return function(view.activations, view.gradients, **options)

    return _method(title, compute, function)


def _of_activations(title: str, function: Callable[..., Tensor]) -> Method:
    def compute(view: LayerView, **options: Any) -> Tensor:
        maps = function(view.run.activations, **options)  # once for an image, whatever is asked
        return maps[:, None].expand(-1, view.scores.shape[1], -1, -1)

    return _method(title, compute, function)


def _of_weights(title: str, weigh: Callable[..., Tensor]) -> Method:
    """A method that sums the channels with the weights that `weigh` finds by running the network again."""

    def compute(view: LayerView, *, relu: bool = True, **options: Any) -> Tensor:
        return cams.weighted_sum(view.activations, weigh(view, **options), relu=relu)

    return _method(title, compute, compute, weigh)


def _dist_cam(
    view: LayerView, *, weighting: Weighting = "dist", tau: float = 1.0, norm: Norm = "sum", mean: Tensor | None = None
) -> Tensor:
    """Dist-CAM in the space that is searched; for other scores, against the direction they take in channel space."""
    response, references, metric = _compared(view)
    options: WeightOptions = {"metric": metric, "weighting": weighting, "tau": tau, "norm": norm, "mean": mean}
    return _where_asked(view, dist_cam(response, references, **options))


def _root_ratio(view: LayerView, *, surroundings: Surroundings | None = None, is_class: bool = True) -> Tensor:
    """`root_ratio`: what sets the reference apart from a gallery, or without one what adds to the similarity."""
    if not isinstance(surroundings, Surroundings | None):
        raise InputError(f"surroundings={surroundings!r} is no average of a gallery; name the gallery instead")
    response, references, metric = _compared(view)
    found = ratio_maps(response, references, surroundings, metric=metric, is_class=bool(is_class))
    return _where_asked(view, found.maps)


def _compared(view: LayerView) -> tuple[Tensor, Tensor, Metric]:
    """The response map, the vectors that its mean is compared with, and how."""
    if not isinstance(view.target, Similarity):
        return view.run.activations, view.gradients.sum((-2, -1)), "cosine"
    vectors, model, response = vector_of(view.output).detach(), view.run.model, view.run.activations
    if isinstance(model, Encoder) and view.run.layer == ENCODERS_LAYER:
        response = fold(response, pooling=model.pooling, head=model.head).map
    pooled = response.mean((-2, -1)).to(vectors)
    scale = float(vectors.abs().amax()) if vectors.numel() else 0.0
    if pooled.shape != vectors.shape or not torch.allclose(pooled, vectors, rtol=1e-3, atol=1e-3 * scale):
        raise InputError(
            f"Dist-CAM compares pooled vectors, but the mean over the map of layer {view.run.layer!r} is not the "
            "vector that the network returns; name the layer that is pooled, or put the network into an Encoder"
        )
    return response, view.target.for_images(vectors), view.target.metric


def _where_asked(view: LayerView, maps: Tensor) -> Tensor:
    """The maps; 0 for what has no direction, as an empty set of pixels."""
    if isinstance(view.target, Similarity):
        return maps
    return maps * (view.gradients != 0).any(-1).any(-1).any(-1)[..., None, None]


METHODS: Mapping[str, Method] = {
    "cam": _of_gradients("CAM", cams.cam),
    "caam": _of_activations("CAAM", cams.caam),
    "gradcam": _of_gradients("Grad-CAM", cams.grad_cam),
    "gradcam++": _of_gradients("Grad-CAM++", cams.grad_cam_plus_plus),
    "xgradcam": _of_gradients("XGrad-CAM", cams.xgrad_cam),
    "layercam": _of_gradients("LayerCAM", cams.layer_cam),
    "hirescam": _of_gradients("HiResCAM", cams.hires_cam),
    "segxrescam": _of_gradients("Seg-XRes-CAM", cams.seg_xres_cam),
    "eigencam": _of_activations("Eigen-CAM", cams.eigen_cam),
    "ablationcam": _of_weights("Ablation-CAM", ablation_weights),
    "scorecam": _of_weights("Score-CAM", score_weights),
    "fullgrad": Method("FullGrad", full_grad, ()),
    "liftcam": _of_weights("LIFT-CAM", lift_weights),
    "rootratio": _method("Root ratio", _root_ratio),
    "distcam": _method("Dist-CAM", _dist_cam),
}


def method_name(method: str) -> str:
    """The method's name in `METHODS`; "Seg-Grad-CAM" is Grad-CAM with a target of pixels, and so on."""
    name = method.lower().replace("-", "").replace("_", "").replace(" ", "")
    name = SEGMENTATION_NAMES.get(name, name if name in METHODS else name.removeprefix("seg"))
    if name not in METHODS:
        raise InputError(f"method={method!r} is not known; nearest: {closest(name, list(METHODS))}")
    return name
