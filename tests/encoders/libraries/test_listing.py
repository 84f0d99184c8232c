"""Names of encoders: by word and pattern, of libraries that are there."""

from __future__ import annotations

import json
import sys

import pytest
from commands import distcam

from distcam.encoders.libraries.listing import Listed, listed
from distcam.errors import InputError, MissingExtraError

EXTRAS = ("timm", "transformers", "open_clip")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_the_libraries_torchvisions_names_are_listed_and_the_extras_named(alone: None) -> None:
    found, absent = listed("googl*")
    assert found == [Listed("googlenet")]
    assert absent == list(EXTRAS)
    with pytest.raises(MissingExtraError, match=r"distcam\[timm\]"):
        listed(None, "timm")


def test_a_word_that_no_name_holds_lists_the_nearest(alone: None) -> None:
    with pytest.raises(InputError, match=r"holds 'resnet5o'; nearest: .*'resnet50'"):
        listed("resnet5o")


def test_timm_tells_width_size_readout_and_licence() -> None:
    timm = pytest.importorskip("timm", reason="networks of timm need pip install 'distcam[timm]'")
    names = json.loads(distcam("encoders", "test_vit.*", "--library", "timm", "--json"))
    width = timm.create_model("test_vit").num_features
    assert names == [
        {
            "name": "timm:test_vit.r160_in1k",
            "width": width,
            "size": [160, 160],
            "readout": "class",
            "licence": "apache-2.0",
        }
    ]


def test_open_clip_tells_width_size_and_readout() -> None:
    pytest.importorskip("open_clip", reason="networks of open_clip need pip install 'distcam[open_clip]'")
    (found,) = listed("vit-b-16-siglip2", "open_clip")[0][:1]
    assert found == Listed("open_clip:ViT-B-16-SigLIP2", 768, (224, 224), "attention")
    assert listed("rn50", "open_clip")[0][0].readout == "attention"
