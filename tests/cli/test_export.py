"""`distcam encoders export`: of a gallery's encoder or a named one, on drawn images or given ones."""

from __future__ import annotations

import json

from commands import distcam, fails


def test_the_encoder_of_a_gallery_is_written_and_the_difference_said(small_gallery, photos, tmp_path) -> None:
    file = tmp_path / "e.pt2"
    said = distcam("encoders", "export", small_gallery.folder, "--torch", file, "--images", photos)
    assert "described in e.json: the largest difference on 8 images is" in said.replace("\n", " ")
    (told,) = json.loads(
        distcam("encoders", "export", "conv4", "--weights", "random", "--image-size", 32, "--torch", file, "--json")
    )
    assert told["difference"] <= 1e-4
    assert told["input"]["pixels"].startswith("uint8, (batch, 3, 32, 32), RGB")


def test_nothing_to_write_and_wrong_endings_are_refused(small_gallery, tmp_path, monkeypatch, capsys) -> None:
    assert "nothing to write" in fails(monkeypatch, capsys, "encoders", "export", small_gallery.folder)
    said = fails(monkeypatch, capsys, "encoders", "export", "conv4", "--onnx", tmp_path / "e.pt2")
    assert "expected a file name that ends in .onnx" in said
