"""Dense CRF: masks drawn to the edges of the image. Needs the extra `crf`, which a C++ compiler builds.

Source: Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, 2011.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

from ...errors import MissingExtraError, ShapeError
from ...training.recipes.tables import Natural, Positive, Table


class CrfSettings(Table):
    """The two pairwise terms: pixels of similar colour nearby, and pixels nearby.

    The defaults are those of DeepLab and of most weakly supervised work, for images of about 500 pixels a side; for
    others `scaled` makes the distances as large a part of the image.

    Attributes:
        steps: of mean field inference.
        colour_weight: of the term of position and colour.
        colour_position: its standard deviation in pixels.
        colour: its standard deviation in grey levels.
        smooth_weight: of the term of position alone.
        smooth_position: its standard deviation in pixels.
        least: probabilities are raised to this much, so that nothing is impossible.
    """

    steps: Natural = 10
    colour_weight: float = 10.0
    colour_position: Positive = 80.0
    colour: Positive = 13.0
    smooth_weight: float = 3.0
    smooth_position: Positive = 3.0
    least: Positive = 1e-4

    def scaled(self, factor: float) -> CrfSettings:
        """The same with both distances multiplied; a quarter for images of a quarter of the size."""
        return self.changed(
            colour_position=self.colour_position * factor, smooth_position=self.smooth_position * factor
        )


def dense_crf(
    image: Image.Image, scores: Float[np.ndarray, "c h w"], *, settings: CrfSettings | None = None
) -> Float[np.ndarray, "c h w"]:
    """The classes' probabilities after mean field inference, in [0, 1]; they sum to 1 over the classes.

    Scores, the background's first, are not negative; divided by their sum they are the unary probabilities. A class
    that is 0 everywhere is left out and stays 0. MissingExtraError: pydensecrf2 is not installed; ShapeError: scores
    of another size than the image.
    """
    try:
        from pydensecrf import densecrf
        from pydensecrf.utils import unary_from_softmax
    except ImportError:
        raise MissingExtraError("the dense CRF needs pydensecrf2: pip install 'distcam[crf]'") from None
    settings = settings or CrfSettings()
    if scores.shape[1:] != (image.height, image.width):
        raise ShapeError(f"expected scores of {image.height} x {image.width} pixels, got {scores.shape[1:]}")
    shown = np.flatnonzero(scores.max((1, 2)) > 0)
    result = np.zeros_like(scores, dtype=np.float32)
    if len(shown) < 2 or not settings.steps:
        total = scores.sum(0)
        np.divide(scores, total, out=result, where=total > 0)
        return result
    raised = np.clip(scores[shown].astype(np.float32), settings.least, None)
    field = densecrf.DenseCRF2D(image.width, image.height, len(shown))
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(raised / raised.sum(0))))
    field.addPairwiseGaussian(sxy=settings.smooth_position, compat=settings.smooth_weight)
    field.addPairwiseBilateral(
        sxy=settings.colour_position,
        srgb=settings.colour,
        rgbim=np.array(image.convert("RGB"), order="C"),  # it must be writable
        compat=settings.colour_weight,
    )
    found = np.asarray(field.inference(settings.steps), dtype=np.float32)
    result[shown] = found.reshape(len(shown), image.height, image.width)
    return result
