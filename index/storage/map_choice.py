"""The weighting that explains matches of a gallery by default, where measuring found a better one than distcam's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MapChoice:
    """A weighting and the measurements it was chosen by; `distcam benchmark explanations` says what they mean.

    Attributes:
        weighting: one of `WEIGHTINGS`.
        mean: what of the gallery `root_ratio` takes off, see `Surroundings`; "auto" for the others.
        right_of_two: share of composites of two in which its map was higher on the photograph asked for.
        default_right_of_two: the same of distcam's default.
        lead_low, lead_high: ends of the paired 95 % interval of the difference.
        composites: how many there were.
        generation: of the gallery at that time.
    """

    weighting: str
    mean: str
    right_of_two: float
    default_right_of_two: float
    lead_low: float
    lead_high: float
    composites: int
    generation: int

    def __str__(self) -> str:
        """One sentence."""
        words = self.weighting + (f" (mean {self.mean})" if self.mean != "auto" else "")
        return (
            f"matches are explained by {words}: right in {self.right_of_two:.3f} of {self.composites} composites of "
            f"two, distcam's default in {self.default_right_of_two:.3f} (difference [{self.lead_low:+.3f}, "
            f"{self.lead_high:+.3f}])"
        )
