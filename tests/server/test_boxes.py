"""A gallery of boxes behind the server: crops as pictures, and files that are not shown stay hidden."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from distcam.encoders import Encoder
from distcam.index import Gallery
from distcam.server import create_app
from distcam.server.settings import ServerSettings

pytestmark = pytest.mark.usefixtures("own_state")


def test_the_picture_of_a_box_is_its_crop_and_only_that_of_a_shown_folder(
    tmp_path: Path, small_encoder: Encoder
) -> None:
    for name in ("shown/one.png", "hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 48), (200, 30, 40)).save(tmp_path / name)
    (tmp_path / "shown" / "t.csv").write_text("path,x,y,w,h\none.png,0,0,40,30\n../hidden.png,40,8,40,30\n")
    Gallery.build(tmp_path / "shown" / "t.csv", small_encoder, out=tmp_path / "g", box_margin=0.2)
    app = create_app(ServerSettings(gallery=tmp_path / "g", root=tmp_path / "shown"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        images = client.get("/api/v1/images").json()["images"]
        assert [image["path"] for image in images] == ["one.png#xywh=0,0,40,30", "…/" + _short(tmp_path)]
        shown = client.get(f"/api/v1/images/{images[0]['id']}/picture")
        assert Image.open(io.BytesIO(shown.content)).size == (48, 36)  # with its margin
        whole = client.get(f"/api/v1/images/{images[0]['id']}/picture", params={"whole": True})
        assert Image.open(io.BytesIO(whole.content)).size == (80, 48)
        for options in ({}, {"whole": True}):
            assert client.get(f"/api/v1/images/{images[1]['id']}/picture", params=options).status_code == 404
        sent = {"image": ("one.png", (tmp_path / "shown" / "one.png").read_bytes())}
        found = {match["path"]: match for match in client.post("/api/v1/search", files=sent).json()["matches"]}
        assert found[images[0]["path"]]["photograph"] == {
            "size": [80, 48],
            "box": [0, 0, 40, 30],
            "cut": [0, 0, 48, 36],
        }
        assert found[images[1]["path"]]["photograph"] is None


def _short(folder: Path) -> str:
    return f"{folder.name}/hidden.png#xywh=40,8,40,30"
