"""The vectors of a gallery that `root_ratio` sets a reference apart from, and the rules that choose among them.

A reference shows its class, and it shows a photograph's background. The gallery's mean says what is common to all
images; the mean of the borders of its response maps, what lies around the objects. Measurements: docs/results/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import InputError
from ..inputs import Metric
from ..weightings import MEANS, Mean, Weighting
from .dist_cam import WeightOptions, dist_cam

_ALONE = 0.8  # of the gallery's mean, for one image where no border is known

_SAYS = {
    "max": "what is common in this gallery, and what lies at the edges of its images, is taken off",
    "half": "half of what is common in this gallery, and of what lies at the edges of its images, is taken off",
    "gallery": "what is common in this gallery is taken off",
    "border": "what lies at the edges of this gallery's images is taken off",
    "dot": "there is nothing to set it apart from",
}
_OLD = "this gallery keeps no edges of its images: build it again, with --store-maps for class tokens, for a better map"


class Setting(NamedTuple):
    """One weighting with its two vectors, named by what is taken off; `dot` has none."""

    name: str
    weighting: Weighting
    mean: Tensor | None
    magnitude: Tensor | None

    def maps(self, response_map: Tensor, references: Tensor, metric: Metric) -> Tensor:
        """The maps by this setting, see `dist_cam`."""
        options: WeightOptions = {"metric": metric, "weighting": self.weighting}
        options |= {"mean": self.mean, "magnitude": self.magnitude}
        return dist_cam(response_map, references, **options)


NOTHING = Setting("dot", "dot", None, None)


@dataclass(frozen=True, eq=False)
class RatioMaps:
    """Maps of n references, and for each the setting that made it."""

    maps: Float[Tensor, "*b n h w"]  # raw, "*b n h w"
    settings: tuple[str, ...]  # by their names, first choice first
    chosen: Int[Tensor, "*b n"]  # "*b n", the place of each map's setting among them
    is_old: bool  # True if the gallery knows no border, though one would have been used

    def words(self, n: int) -> str:
        """A phrase for what was taken off in the first n maps."""
        shown = sorted(set(self.chosen[..., :n].flatten().tolist()))
        said = [_SAYS[self.settings[place]] for place in shown]
        if shown and shown[0] == 0 and len(shown) > 1:
            said[1:] = [f"where that leaves nothing, {text}" for text in said[1:]]
        return "; ".join([*said, *([_OLD] if self.is_old else [])])


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A gallery on average, in the space that is explained.

    Attributes:
        mean: of the images' vectors, of unit length before they are averaged for the cosine.
        magnitude: the mean size of each of their numbers; None: that of `mean`, as of vectors that have no signs.
        border: mean border of the images' response maps, see `Gallery.background`; None where it is not known.
        images: how many images there are.
        classes: how many of their classes have a prototype.
    """

    mean: Float[Tensor, " d"]
    magnitude: Float[Tensor, " d"] | None = None
    border: Float[Tensor, " d"] | None = None
    images: int = 2
    classes: int = 2

    @staticmethod
    def first(surroundings: Surroundings | None, mean: Mean = "auto", *, is_class: bool) -> Setting:
        """The first choice of `settings`; without surroundings there is nothing to take off."""
        return NOTHING if surroundings is None else surroundings.settings(mean, is_class=is_class)[0]

    def settings(self, mean: Mean = "auto", *, is_class: bool) -> list[Setting]:
        """Settings to explain a reference by, first choice first: the next ones where a map would be blank.

        Of a class or its prototype `auto` takes off the larger of mean and border, channel by channel; of one image
        the average of the two, which says less about so little evidence, or the mean where vectors have signs. Without
        a border it is the mean, four fifths of it for one image; with one class, or one image, there is nothing.

        Raises:
            InputError: `mean` is not known, or needs a border that is not.
        """
        if mean not in MEANS:
            raise InputError(f"mean={mean!r} is not known; choose one of {', '.join(MEANS)}")
        if mean != "auto":
            return [self._setting(mean), NOTHING]
        if (self.classes if is_class else self.images) < 2:
            return [NOTHING]
        has_signs = bool(self._size.sum() > 1.001 * self.mean.clamp(min=0).sum())
        if self.border is None:
            return [self._setting("gallery", 1.0 if is_class or has_signs else _ALONE), NOTHING]
        first = ["max"] if is_class else ["gallery"] * has_signs
        return [*(self._setting(name) for name in (*first, "half")), NOTHING]

    @property
    def _size(self) -> Tensor:
        return self.mean.abs() if self.magnitude is None else self.magnitude

    def _setting(self, name: str, share: float = 1.0) -> Setting:
        mean, size = share * self.mean, share * self._size
        if name != "gallery" and self.border is None:
            raise InputError(f"`mean={name!r}` needs the gallery's background, and {_OLD}; or leave it out")
        if self.border is not None and name != "gallery":
            border, far = self.border, self.border.abs()
            taken_off = {
                "max": (torch.where(mean.abs() >= far, mean, border), torch.maximum(size, far)),
                "half": ((mean + border) / 2, (size + far) / 2),
                "border": (border, far),
            }
            mean, size = taken_off[name]
        return Setting(name, "root_ratio", mean, size)


def ratio_maps(
    response_map: Float[Tensor, "*b d h w"],
    references: Float[Tensor, "*b n d"],
    surroundings: Surroundings | None,
    *,
    metric: Metric = "cosine",
    mean: Mean = "auto",
    is_class: bool,
) -> RatioMaps:
    """The recommended maps of a query: `root_ratio`, set apart from the gallery as `Surroundings.settings` says.

    A map without a positive place is blank, and made by the next setting instead; the last, `dot`, divides the
    similarity itself. Other arguments and errors are those of `dist_cam`; without surroundings every map is `dot`.
    """
    settings = [NOTHING] if surroundings is None else surroundings.settings(mean, is_class=is_class)
    maps = settings[0].maps(response_map, references, metric)
    chosen = torch.zeros(maps.shape[:-2], dtype=torch.int64)
    for place, setting in enumerate(settings[1:], start=1):
        is_blank = maps.amax((-2, -1)) <= 0
        if not bool(is_blank.any()):
            break
        found = setting.maps(response_map, references, metric)
        maps, chosen = torch.where(is_blank[..., None, None], found, maps), chosen.masked_fill(is_blank.cpu(), place)
    is_old = surroundings is not None and surroundings.border is None and settings[0] is not NOTHING and mean == "auto"
    return RatioMaps(maps, tuple(each.name for each in settings), chosen, is_old)
