"""Readouts: the mean of the map is the library's own vector, whatever the family; class tokens against slow oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distcam.encoders import Encoder, Inference
from distcam.encoders.contribution_rules import RULES, _factor
from distcam.encoders.contributions import Following
from distcam.encoders.encoding import fold
from distcam.encoders.heads import Linear
from distcam.encoders.readouts import ReadOut, making_maps, read_out, telling_constants
from distcam.errors import InputError
from distcam.images import Transform
from distcam.remarks import DistcamWarning

VIT = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
SWIN = {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
TIMM: dict[str, tuple[dict[str, Any], bool]] = {  # options, and whether something comes from no place
    "vit_tiny_patch16_224": (VIT, True),
    "vit_small_patch14_reg4_dinov2": (VIT | {"img_size": 56}, True),
    "vit_small_patch16_dinov3": (VIT, False),
    "vit_base_patch16_siglip_224": (VIT, True),
    "vit_base_patch16_clip_224": (VIT, True),
    "deit_tiny_distilled_patch16_224": (VIT, True),
    "swin_tiny_patch4_window7_224": (SWIN, False),
    "convnext_tiny": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, False),
    "tf_efficientnetv2_b0": ({}, False),
    "mobilenetv4_conv_small": ({}, False),
    "beit_base_patch16_224": (VIT, False),
    "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 2}, False),
    "cait_xxs24_224": (VIT | {"embed_dim": 48}, True),
}


def perturbed(model: nn.Module) -> nn.Module:
    """No scale, bias or residual weight is left at the 0 or 1 that it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=generator) * (parameter.std() + 0.2).nan_to_num(0.2)
            )
    return model.eval()


def images(*size: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, own: Callable[[Tensor], Tensor], *, size: tuple[int, int], has_rest: bool) -> ReadOut:
    """The mean of the map is the model's vector, twice: as it is found out, and as it is known."""
    readout, pixels = read_out(model), images(*size)
    with torch.no_grad():
        vector = own(pixels)
        for _ in range(2):
            with telling_constants() as told:
                feature_map = readout(pixels)
            assert feature_map.shape[2] * size[1] == feature_map.shape[3] * size[0] or min(feature_map.shape[2:]) > 1
            assert (feature_map.mean((2, 3)) - vector).abs().max() <= 1e-5 * vector.abs().max()
            assert bool(told) == has_rest
            assert feature_map.flatten(2).std(-1).amax() > 0  # places differ
        with making_maps(False):
            plain = readout(pixels)
        assert plain.shape[2:].numel() == 1 if has_rest else plain.equal(feature_map) or not readout.is_exact
        assert (plain.mean((2, 3)) - vector).abs().max() <= 1e-5 * vector.abs().max()
    return readout


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.filterwarnings("ignore::distcam.remarks.DistcamWarning")
def test_the_mean_of_a_timm_models_map_is_its_pre_logits(name: str) -> None:
    timm = pytest.importorskip("timm")
    options, has_rest = TIMM[name]
    torch.manual_seed(0)
    model = perturbed(timm.create_model(name, num_classes=0, **options))
    side = options.get("img_size", 64)
    readout = check(
        model,
        lambda pixels: model.forward_head(model.forward_features(pixels), pre_logits=True),
        size=(side, side),
        has_rest=has_rest,
    )
    assert readout.is_exact == (name != "mobilenetv4_conv_small")  # whose activation lies behind the pooling


def transformers_cases() -> dict[str, Callable[[Any], nn.Module]]:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    tokens = {"image_size": 64, "patch_size": 16, **sizes}
    return {
        "Dinov2": lambda t: t.Dinov2Model(t.Dinov2Config(**tokens)),
        "Dinov2 written out": lambda t: t.Dinov2Model(t.Dinov2Config(attn_implementation="eager", **tokens)),
        "Dinov2 registers": lambda t: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**tokens)),
        "Dinov3": lambda t: t.DINOv3ViTModel(t.DINOv3ViTConfig(num_register_tokens=4, **tokens)),
        "Siglip": lambda t: t.SiglipVisionModel(t.SiglipVisionConfig(**tokens)),
        "Clip": lambda t: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(projection_dim=32, **tokens)),
    }


@pytest.mark.parametrize("case", transformers_cases())
def test_the_mean_of_a_transformers_models_map_is_what_it_pools(case: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = perturbed(transformers_cases()[case](transformers))

    def own(pixels: Tensor) -> Tensor:
        output = model(pixels)
        return output.image_embeds if "image_embeds" in output else output.pooler_output

    check(model, own, size=(64, 64), has_rest=True)


def test_siglip2_gets_its_patches() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Siglip2VisionConfig(
        num_patches=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96
    )
    model = perturbed(transformers.Siglip2VisionModel(config))

    def own(pixels: Tensor) -> Tensor:
        patches = functional.unfold(pixels, 16, stride=16).mT.unflatten(-1, (3, 256)).transpose(2, 3).flatten(2)
        mask, shapes = torch.ones(2, 8, dtype=torch.long), torch.tensor([[2, 4]] * 2)
        return model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes).pooler_output

    check(model, own, size=(32, 64), has_rest=True)


def test_images_of_other_sizes_and_proportions_are_read_where_the_model_takes_them() -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT))
    check(model, model, size=(48, 80), has_rest=True)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    clip = perturbed(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=64, patch_size=16, **sizes)))
    check(clip, lambda x: clip(x, interpolate_pos_encoding=True).pooler_output, size=(96, 48), has_rest=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"final_ln_after_pool": True}, {"ls_init_value": 0.1}, {"attentional_pool": True}, {"pool_type": "avg"}],
)
def test_the_mean_of_an_open_clip_towers_map_is_its_vector(options: dict[str, Any]) -> None:
    transformer = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    sizes = {"image_size": 64, "patch_size": 16, "width": 48, "layers": 2, "heads": 3, "mlp_ratio": 2, "output_dim": 32}
    model = perturbed(transformer.VisionTransformer(**sizes, **options))
    check(model, model, size=(64, 64), has_rest="pool_type" not in options)


def test_clips_resnet_is_read_by_its_attention_pooling() -> None:
    resnet = pytest.importorskip("open_clip.modified_resnet")
    torch.manual_seed(0)
    model = perturbed(resnet.ModifiedResNet([1, 1, 1, 1], output_dim=32, heads=4, image_size=64, width=8))
    check(model, model, size=(64, 64), has_rest=True)
    with pytest.raises(InputError, match="no attention pooling"):
        read_out(nn.Conv2d(3, 4, 1), "attention")


class Tiny(nn.Module):
    """A transformer of two blocks written out by hand, which can be run with most of it held at an earlier run."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.start = nn.Parameter(torch.randn(2, width))  # a class token and a register
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)),
                }
            )
            for _ in range(2)
        )
        self.scale = nn.Parameter(torch.rand(width))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, pixels: Tensor, cleared: int | None = None, held: list[Tensor] | None = None) -> Tensor:
        """The vector; with the values that place `cleared` hands to the class token at 0, all else `held` as it was."""
        notes = iter(held or [])
        self.notes: list[Tensor] = []

        def hold(value: Tensor) -> Tensor:
            value = next(notes) if held else value
            self.notes.append(value)
            return value

        x = self.patch(pixels).flatten(2).mT
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            q, k, v = (
                part.unflatten(-1, (2, -1)).transpose(1, 2) for part in block["qkv"](block["norm"](x)).chunk(3, -1)
            )
            q, k, v = hold(q), hold(k), hold(v)
            if held is None:
                read = functional.scaled_dot_product_attention(q, k, v)
            else:
                shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
                v = v.clone()
                v[:, :, 2 + (cleared or 0)] = 0
                read = shares @ v
            x = x + self.scale * block["out"](read.transpose(1, 2).flatten(2))
            x = x + hold(block["mlp"](block["norm2"](x)))
        if held is None:
            return self.project(self.norm(x)[:, 0])
        spread = hold(torch.zeros(()))
        centred = x[:, 0] - x[:, 0].mean(-1, keepdim=True)
        return self.project(centred / spread * self.norm.weight + self.norm.bias)


def test_a_places_part_is_what_the_vector_loses_without_its_values() -> None:
    torch.manual_seed(0)
    model, pixels = perturbed(Tiny()), images(12, 16)
    assert isinstance(model, Tiny)
    spreads: list[Tensor] = []
    model.norm.register_forward_hook(
        lambda _norm, given, _out: spreads.append((given[0][:, 0].var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
    )
    with torch.no_grad():
        vector = model(pixels)
        held = [*model.notes, spreads[0]]
        with telling_constants() as told:
            feature_map = read_out(model)(pixels)
        parts = (feature_map - told[0][:, :, None, None]).flatten(2) / 12  # 3 × 4 places
        for place in range(12):
            torch.testing.assert_close(parts[:, :, place], vector - model(pixels, place, held), rtol=1e-4, atol=1e-6)


def test_attention_pooling_shares_what_it_reads() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    pool = perturbed(timm_layers.AttentionPoolLatent(8, num_heads=2, mlp_ratio=2.0))

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.pool = nn.Conv2d(3, 8, 4, 4), pool

        def forward(self, pixels: Tensor) -> Tensor:
            return self.pool(self.patch(pixels).flatten(2).mT)

    model, pixels = Pooled(), images(8, 8)
    with torch.no_grad():
        with telling_constants() as told:
            feature_map = read_out(model)(pixels)
        tokens = model.patch(pixels).flatten(2).mT
        key, value = pool.kv(tokens).chunk(2, -1)
        query = pool.q(pool.latent)
        expected = []
        for place in range(4):
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                shares = (key[..., head] @ query[0, 0, head] / 2).softmax(1)
                heads.append(shares[:, place, None] * value[:, place, head])
            expected.append(torch.cat(heads, -1) @ pool.proj.weight.mT)
    parts = (feature_map - told[0][:, :, None, None]).flatten(2) / 4
    torch.testing.assert_close(parts, torch.stack(expected, -1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("readout", ["mean", "class", "class+mean"])
def test_readouts_other_than_the_authors_can_be_chosen(readout: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, pixels = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)), images(64, 64)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        expected = {"mean": tokens[:, 1:].mean(1), "class": tokens[:, 0]}
        expected["class+mean"] = torch.cat([expected["class"], expected["mean"]], -1)
        feature_map = read_out(model, readout)(pixels)
    torch.testing.assert_close(feature_map.mean((2, 3)), expected[readout], rtol=1e-5, atol=1e-5)
    assert feature_map.shape[2:] == (4, 4)


def test_an_encoder_tells_the_constant_and_folding_keeps_it() -> None:
    torch.manual_seed(0)
    encoder = Encoder(read_out(perturbed(Tiny())), head=Linear(5, 3)).eval()
    with torch.no_grad():
        encoding = encoder(images(8, 8))
        assert encoding.constant is not None
        response = fold(encoding.feature_map, pooling=encoder.pooling, head=encoder.head, constant=encoding.constant)
        torch.testing.assert_close(response.map.mean((2, 3)), encoding.embedding)
        torch.testing.assert_close(response.constant, encoder.head(encoding.constant))
    assert encoding[1].constant.shape == (1, 5)
    assert type(encoding).cat([encoding[0], encoding[1]]).constant.equal(encoding.constant)


def test_bfloat16_keeps_the_mean() -> None:
    torch.manual_seed(0)
    readout = read_out(perturbed(Tiny()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        feature_map = readout(images(8, 8))
        vector = readout.vector(images(8, 8)).float()
    assert feature_map.dtype == torch.float32
    torch.testing.assert_close(feature_map.mean((2, 3)), vector, rtol=1e-5, atol=1e-5)


def test_a_vector_that_no_place_reaches_is_searched_by_and_said_to_have_no_map() -> None:
    class Opaque(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.amax((2, 3)).sort(-1).values

    readout = read_out(Opaque())
    with pytest.warns(DistcamWarning, match="no map"):
        feature_map = readout(images(8, 8))
    assert feature_map.shape == (2, 3, 1, 1)
    assert not readout.has_places


def test_an_activation_behind_the_pooling_makes_the_map_one_of_first_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.Tanh())
    readout, pixels = read_out(model), images(8, 8)
    with torch.no_grad(), pytest.warns(DistcamWarning, match="first order"):
        feature_map = readout(pixels)
    torch.testing.assert_close(feature_map.mean((2, 3)), model(pixels))
    assert not readout.is_exact
    slopes = 1 - model(pixels) ** 2  # of tanh
    pre = model[0](pixels).flatten(2).mT @ model[3].weight.mT
    expected = (pre - pre.mean(1, keepdim=True)) * slopes[:, None] + model(pixels)[:, None]
    torch.testing.assert_close(feature_map.flatten(2).mT, expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_reordering_of_an_attentions_output_is_no_contribution() -> None:
    class Shuffled(Tiny):
        def forward(self, pixels: Tensor, *_: Any) -> Tensor:
            x = self.patch(pixels).flatten(2).mT
            x = torch.cat([self.start[:1].expand(len(x), -1, -1), x], 1)
            each = x.unflatten(-1, (2, -1)).transpose(1, 2)
            read = functional.scaled_dot_product_attention(each, each, each)
            mixed = read.transpose(1, 2).transpose(2, 3).flatten(2)  # features of the heads interleaved
            return self.project(self.norm(x + self.blocks[0]["out"](mixed))[:, 0])

    readout = read_out(perturbed(Shuffled()))
    with pytest.warns(DistcamWarning, match="no map"):
        assert readout(images(8, 8)).shape == (2, 5, 1, 1)


class Read(nn.Module):
    """One attention with its class token in front, and tokens before or behind the images of a batch."""

    def __init__(self, *, tokens_first: bool, width: int = 8) -> None:
        super().__init__()
        self.tokens_first, self.start = tokens_first, nn.Parameter(torch.randn(1, 1, width))
        self.patch, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=not tokens_first)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(pixels), -1, -1), self.patch(pixels).flatten(2).mT], 1)
        x = x.transpose(0, 1) if self.tokens_first else x
        y = self.norm(x)
        x = self.norm(x + self.attention(y, y, y, need_weights=False)[0])
        return x[0] if self.tokens_first else x[:, 0]


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("n_images", [2, 4, 5, 6, 10])
def test_maps_are_each_images_own_whatever_the_batch_and_the_number_of_tokens(
    n_images: int, tokens_first: bool
) -> None:
    torch.manual_seed(0)
    readout = read_out(perturbed(Read(tokens_first=tokens_first)))
    pixels = images(8, 8, n=n_images)  # of five tokens each
    with torch.no_grad():
        with telling_constants() as alone:
            expected = torch.cat([readout(pixel[None]) for pixel in pixels])
        with telling_constants() as together:
            found = readout(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_a_factor_for_each_token_is_none_for_each_feature_even_of_as_many() -> None:
    mode, tokens = Following(images(8, 8), RULES), torch.randn(2, 8, 8)
    assert _factor(mode, tokens, torch.rand(8, 1)) is None
    assert _factor(mode, tokens, torch.rand(1, 8, 1)) is None
    for factor in (torch.rand(8), torch.rand(1, 8), torch.rand(1, 1, 8)):
        assert _factor(mode, tokens, factor).equal(factor.flatten())
    channels = torch.rand(8, 1, 1)  # of a map pooled to one place
    assert _factor(mode, torch.randn(2, 8, 1, 1), channels).equal(channels.flatten())


def test_unknown_readouts_name_the_nearest() -> None:
    with pytest.raises(InputError, match="nearest: 'class'"):
        read_out(nn.Identity(), "clas")


def test_streams_without_maps_run_the_model_alone_where_maps_cost() -> None:
    torch.manual_seed(0)
    encoder = Encoder(read_out(perturbed(Tiny())), transform=Transform(16)).eval()
    inference = Inference(encoder, device="cpu", precision="fp32")
    pixels = [torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8) for _ in range(3)]
    (with_maps,) = inference.stream(pixels, load=lambda each: each)
    (without,) = inference.stream(pixels, load=lambda each: each, maps=False)
    assert with_maps.encoding is not None
    assert without.encoding is not None
    assert with_maps.encoding.feature_map.shape == (3, 5, 4, 4)
    assert without.encoding.feature_map.shape == (3, 5, 1, 1)
    assert without.encoding.constant is None
    torch.testing.assert_close(without.encoding.embedding, with_maps.encoding.embedding)
