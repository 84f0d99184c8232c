"""The rules of `auto` one by one, what each setting takes off by hand, and that no map is blank."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch import Tensor

from distcam.errors import InputError
from distcam.explain import MEANS, Surroundings, dist_cam, ratio_maps
from distcam.explain.methods.surroundings import Setting

MEAN, BORDER = torch.tensor([0.4, 0.1, 0.2]), torch.tensor([0.2, 0.5, 0.2])
BOTH = Surroundings(MEAN, border=BORDER, images=30, classes=3)
OLD = Surroundings(MEAN, images=30, classes=3)
SIGNED = Surroundings(MEAN * torch.tensor([1, -1, 1]), MEAN + 0.3, BORDER, images=30, classes=3)


def names(settings: list[Setting]) -> list[str]:
    return [setting.name for setting in settings]


@pytest.mark.parametrize(
    ("surroundings", "of_class", "of_image"),
    [
        (BOTH, ["max", "half", "dot"], ["half", "dot"]),  # rules 1, 2 and 5
        (SIGNED, ["max", "half", "dot"], ["gallery", "half", "dot"]),  # rule 2: the space has signs
        (Surroundings(MEAN, border=BORDER, images=30, classes=1), ["dot"], ["half", "dot"]),  # rule 3: one label
        (Surroundings(MEAN, border=BORDER, images=1, classes=1), ["dot"], ["dot"]),  # rule 3: one image
        (OLD, ["gallery", "dot"], ["gallery", "dot"]),  # rule 4
    ],
)
def test_the_rules_of_auto(surroundings: Surroundings, of_class: list[str], of_image: list[str]) -> None:
    assert names(surroundings.settings(is_class=True)) == of_class
    assert names(surroundings.settings(is_class=False)) == of_image


@pytest.mark.parametrize(
    ("mean", "vector", "magnitude"),
    [
        ("gallery", [0.4, 0.1, 0.2], [0.4, 0.1, 0.2]),
        ("border", [0.2, 0.5, 0.2], [0.2, 0.5, 0.2]),
        ("max", [0.4, 0.5, 0.2], [0.4, 0.5, 0.2]),
        ("half", [0.3, 0.3, 0.2], [0.3, 0.3, 0.2]),
    ],
)
def test_what_each_setting_takes_off(mean: str, vector: list[float], magnitude: list[float]) -> None:
    setting = BOTH.settings(mean, is_class=False)[0]
    torch.testing.assert_close(setting.mean, torch.tensor(vector))
    torch.testing.assert_close(setting.magnitude, torch.tensor(magnitude))


def test_the_larger_of_two_signed_vectors_keeps_its_sign() -> None:
    surroundings = Surroundings(torch.tensor([-0.4, 0.1]), torch.tensor([0.6, 0.2]), torch.tensor([0.3, -0.5]))
    setting = surroundings.settings("max", is_class=True)[0]
    torch.testing.assert_close(setting.mean, torch.tensor([-0.4, -0.5]))
    torch.testing.assert_close(setting.magnitude, torch.tensor([0.6, 0.5]))


def test_without_a_border_four_fifths_of_the_mean_are_taken_off_one_image() -> None:
    of_class, of_image = (OLD.settings(is_class=is_class)[0] for is_class in (True, False))
    torch.testing.assert_close(of_class.mean, MEAN)
    torch.testing.assert_close(of_image.mean, 0.8 * MEAN)


def maps_of(response: Tensor, reference: Tensor, surroundings: Surroundings | None, **options: object) -> Tensor:
    return ratio_maps(response, reference[None], surroundings, metric="l2", is_class=False, **options).maps


def test_a_map_without_a_positive_place_is_made_by_the_next_setting() -> None:
    response = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    surroundings = Surroundings(torch.full((3,), 9.0), border=torch.full((3,), 9.0))
    found = ratio_maps(response, torch.full((2, 3), 0.1), surroundings, metric="l2", is_class=True)
    torch.testing.assert_close(found.maps, dist_cam(response, torch.full((2, 3), 0.1), metric="l2", weighting="dot"))
    assert found.chosen.tolist() == [2, 2]
    assert "there is nothing to set it apart from" in found.words(2)


def test_only_blank_maps_are_made_anew_and_the_words_are_those_of_the_maps_that_are_shown() -> None:
    response, references = torch.ones(3, 1, 1), torch.tensor([[5.0, 0.1, 0.2], [0.0, 0.0, 0.1]])
    found = ratio_maps(response, references, BOTH, metric="l2", is_class=False)
    assert found.chosen.tolist() == [0, 1]
    assert "where that leaves nothing" in found.words(2)
    assert "where that leaves nothing" not in found.words(1)


def test_no_statistics_are_said_to_set_nothing_apart() -> None:
    found = ratio_maps(torch.rand(3, 2, 2), torch.rand(2, 3), None, is_class=True)
    assert found.words(2) == "there is nothing to set it apart from"


def test_an_old_gallery_says_so_in_the_words() -> None:
    response, references = torch.rand(3, 2, 2), torch.rand(2, 3)
    assert "build it again" in ratio_maps(response, references, OLD, is_class=True).words(2)
    assert "build it again" not in ratio_maps(response, references, BOTH, is_class=True).words(2)


def test_a_mean_that_is_not_kept_or_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    with pytest.raises(InputError, match="needs the gallery's background, and this gallery keeps no"):
        OLD.settings("border", is_class=True)
    with pytest.raises(InputError, match=f"mean='median' is not known; choose one of {', '.join(MEANS)}"):
        BOTH.settings("median", is_class=True)
