"""Shared test set-up: shapes are checked at run time, one thread, and where the real photographs lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["distcam.encoders", "distcam.explain"], "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs, or a skip that says how to provide it."""
    folder = os.environ.get("DISTCAM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DISTCAM_DATA is not set to a folder with the real photographs")
    return Path(folder)


class _PlainRoot:
    """The root is the package, and pytest would import it by its folder's name, which may be none: distcam-0.2.0."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PlainRoot())  # hooks of this file itself see what lies beside and below it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 classes × 6 small scenes, `photos/<class>/<number>.jpg`."""
    from distcam.synthetic.blueprint import blueprints
    from distcam.synthetic.scene_set import write_scenes

    folder = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(folder, classes=blueprints(4), splits={"photos": 6}, size=64, two_object_share=0.0)
    return folder / "photos"


@pytest.fixture(scope="session")
def small_encoder():
    """A Conv-4 with random weights on 64×64 pixels, and no head."""
    from distcam.encoders import Encoder
    from distcam.images import Transform

    return Encoder.load("conv4", weights="random", transform=Transform(size=64, fit="squash"))


@pytest.fixture(scope="session")
def small_gallery(photos: Path, small_encoder, tmp_path_factory: pytest.TempPathFactory):
    """The gallery of `photos`; tests that change a gallery build their own."""
    from distcam.index import Gallery

    out = tmp_path_factory.mktemp("gallery") / "photos.gallery"
    return Gallery.build(photos, small_encoder, out=out, precision="fp32")


@pytest.fixture
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder for one test: whose cached indexes are trusted hangs on the key in it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
