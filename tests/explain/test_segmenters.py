"""Segmentation networks: torchvision's and a small U-Net, every method, every set of pixels, and batches of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distcam.encoders.backbones.networks import load_network
from distcam.explain import METHODS, ComponentAt, PixelScore, explain_image
from distcam.images import Box

SLOW = {"ablationcam", "scorecam", "liftcam", "fullgrad"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class UNet(nn.Module):
    """Two levels with a skip connection that is concatenated, batch norms, and a 1×1 head."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(14, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        wide = nn.functional.interpolate(self.deep(fine), scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.up(torch.cat([fine, wide], 1)))


def unet() -> tuple[nn.Module, str, int]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet().eval(), "deep", 16


def torchvisions(name: str, layer: str) -> Callable[[], tuple[nn.Module, str, int]]:
    def make() -> tuple[nn.Module, str, int]:
        # the narrow layers: Ablation-CAM and Score-CAM run the network once for each of their channels
        return load_network(name, weights="random", n_classes=3).model, layer, 32

    return make


NETWORKS = {
    "unet": unet,
    "deeplabv3": torchvisions("deeplabv3_mobilenet_v3_large", "backbone.1"),
    "lraspp": torchvisions("lraspp_mobilenet_v3_large", "backbone.1"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, str, Tensor, Tensor]:
    """A network, its layer, one image, and the logits for it."""
    model, layer, size = NETWORKS[request.param]()
    images = drawn(1, 3, size, size, seed=1)
    with torch.no_grad():
        output = model(images)
    return model, layer, images, output["out"] if isinstance(output, dict) else output


def sets_of_pixels(logits: Tensor) -> dict[str, object]:
    rows, columns = logits.shape[2:]
    predicted = logits.argmax(1)
    row, column = divmod(int((predicted[0] == predicted[0, 0, 0]).flatten().int().argmax()), columns)
    return {
        "all": "all",
        "predicted": "predicted",
        "component": "component",
        "component at a point": ComponentAt(row, column),
        "box": Box(2, 3, columns - 4, rows - 2),
        "point": (rows // 2, columns // 3),
        "mask": drawn(rows, columns, seed=2) > 0,
        "labels": predicted[0],
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_every_set_of_pixels(network, method: str) -> None:
    model, layer, images, logits = network
    category = int(logits.argmax(1)[0, 0, 0])
    places = sets_of_pixels(logits)
    if method in SLOW and layer != "deep":  # every set on the small network only
        places = {"predicted": "predicted"}
    for name, pixels in places.items():
        target = PixelScore(category, pixels)
        found = explain_image(model, images, target=target, method=method, layer=layer)
        assert found.maps.shape[:2] == (1, 1), name
        assert bool(torch.isfinite(found.maps).all()), name
        assert found.scores[0, 0] == pytest.approx(
            expected_score(logits[0, category], logits, pixels, category), rel=1e-3
        )


def expected_score(plane: Tensor, logits: Tensor, pixels: object, category: int) -> float:
    """The sum over the pixels, counted in another way."""
    own = logits.argmax(1)[0] == category
    if pixels in ("all",):
        return float(plane.sum())
    if isinstance(pixels, Box):
        return float(plane[int(pixels.top) : int(pixels.bottom), int(pixels.left) : int(pixels.right)].sum())
    if isinstance(pixels, Tensor):
        return float(plane[pixels if pixels.dtype == torch.bool else pixels == category].sum())
    if isinstance(pixels, tuple) and not isinstance(pixels, ComponentAt):
        return float(plane[pixels].item())
    if pixels == "predicted":
        return float(plane[own].sum())
    return float(plane[grown(own, pixels)].sum())


def grown(mask: Tensor, start: object) -> Tensor:
    """The component at a pixel, or the largest one, by a flood fill."""
    todo, regions = {tuple(p) for p in mask.nonzero().tolist()}, []
    while todo:
        region, edge = set(), [min(todo)]
        while edge:
            row, column = edge.pop()
            if (row, column) in todo:
                todo.discard((row, column))
                region.add((row, column))
                edge += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        regions.append(region)
    if isinstance(start, ComponentAt):
        chosen = next(region for region in regions if (start.row, start.column) in region)
    else:
        chosen = max(regions, key=len)
    found = torch.zeros_like(mask)
    found[tuple(torch.tensor(sorted(chosen)).T)] = True
    return found


def test_seg_hires_at_the_last_layer_is_the_logit_without_bias_on_the_pixels() -> None:
    """A 1×1 head: the map is the class's logit where the pixels are, and 0 elsewhere."""
    model, images = unet()[0], drawn(1, 3, 16, 16, seed=1)
    box = Box(3, 4, 9, 12)
    found = explain_image(model, images, target=PixelScore(1, box), method="seg-hires-grad-cam", layer="up", relu=False)
    expected = torch.zeros(16, 16)
    expected[4:12, 3:9] = (model(images) - model.head.bias[:, None, None])[0, 1, 4:12, 3:9].detach()
    torch.testing.assert_close(found.maps[0, 0], expected)


def test_the_map_moves_with_the_object_that_is_asked_about() -> None:
    """HiRes with a point looks at the point's surroundings, where Seg-Grad-CAM shows the same channels everywhere."""
    model, images = unet()[0], drawn(1, 3, 32, 32, seed=1)
    for point in ((4, 5), (26, 27)):
        found = explain_image(
            model, images, target=PixelScore(1, point), method="seghirescam", layer="deep", relu=False
        )
        far = found.maps[0, 0].clone()
        far[max(point[0] // 2 - 3, 0) : point[0] // 2 + 4, max(point[1] // 2 - 3, 0) : point[1] // 2 + 4] = 0
        assert far.abs().max() == 0
        assert found.maps.abs().max() > 0


def test_images_and_classes_in_one_batch_are_those_one_by_one(network) -> None:
    model, layer, images, _ = network
    batch = torch.cat([images, -images])
    classes = torch.tensor([[0, 2], [1, 1]])
    together = explain_image(model, batch, target=PixelScore(classes, "all"), method="hirescam", layer=layer)
    for i in range(2):
        for j in range(2):
            alone = explain_image(
                model, batch[i : i + 1], target=PixelScore(int(classes[i, j]), "all"), method="hirescam", layer=layer
            )
            scale = float(alone.maps.abs().max())
            torch.testing.assert_close(together.maps[i, j], alone.maps[0, 0], rtol=1e-3, atol=1e-4 * scale + 1e-12)
