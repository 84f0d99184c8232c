"""The fast path: the same numbers, the encoder untouched, streams that survive bad images and end cleanly."""

from __future__ import annotations

import copy
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distcam.encoders import BNNeck, Encoder, Inference, Linear, Sequential
from distcam.encoders.devices import fuse_batch_norms, resolved_precision
from distcam.errors import ImageError, InputError
from distcam.images import Transform

SMALL = Transform(64)


def lived_in(name: str, **options: Any) -> Encoder:
    """An encoder whose batch norms have statistics and weights of their own."""
    encoder = Encoder.load(name, weights="random", transform=SMALL, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                    assert tensor is not None
                    tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return encoder


def pixels(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def check_same_numbers(name: str) -> Inference:
    encoder = lived_in(name)
    inference = Inference(encoder, device="cpu", precision="fp32")
    with torch.no_grad():
        expected = encoder(SMALL.normalise(pixels(3)))
    got = inference(pixels(3))
    scale = expected.feature_map.abs().max()
    assert (got.feature_map - expected.feature_map).abs().max() < 1e-5 * scale
    torch.testing.assert_close(got.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in (got.feature_map, got.pooled, got.embedding))
    return inference


@pytest.mark.parametrize("name", ["conv4", "resnet18", "mobilenet_v2"])
def test_the_fast_path_gives_the_encoders_numbers_without_its_batch_norms(name: str) -> None:
    assert batch_norms(check_same_numbers(name).encoder) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "resnet12", "efficientnet_b0", "vgg11_bn", "regnet_y_400mf", "swin_t"])
def test_the_fast_path_gives_the_encoders_numbers_in_more_families(name: str) -> None:
    check_same_numbers(name)


def test_a_network_that_takes_one_size_alone_is_watched_at_that_size() -> None:
    class Rigid(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 96:
                raise ValueError("expected 96 pixels")
            return super().forward(x)  # type: ignore[no-any-return]

    encoder = Encoder(Rigid(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), transform=Transform(96), options={})
    assert batch_norms(Inference(encoder, device="cpu").encoder) == 0


def test_a_batch_norm_whose_convolution_is_used_elsewhere_too_stays() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_mean = torch.ones(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    fork, image = Fork().eval(), torch.randn(1, 3, 8, 8)
    weight, norm, before = fork.conv.weight, fork.norm, fork(image)
    fuse_batch_norms(fork, image)
    assert fork.conv.weight is weight
    assert fork.norm is norm
    assert torch.equal(fork(image), before)


def test_a_batch_norm_that_serves_two_convolutions_stays() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.ones(3)
    shared = nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.Conv2d(3, 3, 3), norm).eval()
    fuse_batch_norms(shared, torch.randn(1, 3, 8, 8))
    assert batch_norms(shared) == 1


def test_bfloat16_stays_close_and_pools_in_float32() -> None:
    encoder = lived_in("resnet18", head=Sequential(BNNeck(512), Linear(512, 16)))
    full, half = (Inference(encoder, device="cpu", precision=p)(pixels(2)) for p in ("fp32", "bf16"))
    assert torch.cosine_similarity(full.pooled, half.pooled).min() > 0.999
    assert half.pooled.dtype == half.embedding.dtype == half.feature_map.dtype == torch.float32
    torch.testing.assert_close(half.feature_map.mean((2, 3)), half.pooled)


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = lived_in("conv4", head=Linear(64, 8)).train()
    calls = []
    encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    encoder(torch.randn(2, 3, 64, 64)).embedding.sum().backward()
    modes = [module.training for module in encoder.modules()]
    before = copy.deepcopy(encoder.state_dict())
    gradients = [p.grad for p in encoder.parameters()]
    state = torch.get_rng_state()
    Inference(encoder, device="cpu")(pixels(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in encoder.modules()] == modes
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(old is p.grad for old, p in zip(gradients, encoder.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert len(encoder.backbone._forward_hooks) == 1


def test_the_fast_path_keeps_the_fingerprint_of_its_encoder() -> None:
    encoder = lived_in("conv4")
    inference = Inference(encoder, device="cpu")
    assert (inference.fingerprint, inference.short_name) == (encoder.fingerprint, encoder.short_name)


def test_an_encoder_stored_in_half_precision_runs_in_float32() -> None:
    encoder = lived_in("conv4").half()
    torch.testing.assert_close(
        Inference(encoder, device="cpu", precision="fp32")(pixels(1)).pooled,
        Inference(encoder.float(), device="cpu", precision="fp32")(pixels(1)).pooled,
    )


def test_results_carry_no_gradient_but_may_enter_one() -> None:
    got = Inference(lived_in("conv4"), device="cpu")(pixels(1))
    assert not got.feature_map.requires_grad
    weight = torch.ones(64, requires_grad=True)
    (got.pooled * weight).sum().backward()  # would fail on tensors made in inference mode


def test_many_images_are_encoded_in_several_passes() -> None:
    inference = Inference(lived_in("conv4"), device="cpu", precision="fp32", batch_size=2)
    torch.testing.assert_close(inference(pixels(5)).pooled, torch.cat([inference(p[None]).pooled for p in pixels(5)]))


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inference() -> Inference:
    return Inference(lived_in("conv4"), device="cpu", precision="fp32", batch_size=4)


def numbered(item: int) -> Tensor:
    """Pixels that tell which item they are; every seventh item is no image."""
    if item % 7 == 6:
        raise ImageError(item, "is a seventh")
    return torch.full((3, 64, 64), item, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_keeps_the_order_and_steps_over_bad_images(inference: Inference, workers: int) -> None:
    batches = list(inference.stream(range(23), load=numbered, workers=workers))
    assert [item for batch in batches for item in batch.items] == [i for i in range(23) if i % 7 != 6]
    assert [(f.item, f.error.reason) for b in batches for f in b.failures] == [(i, "is a seventh") for i in (6, 13, 20)]
    for items, _, encoding in batches:
        assert encoding is not None
        expected = inference(torch.stack([numbered(item) for item in items]))
        torch.testing.assert_close(encoding.pooled, expected.pooled)


def test_a_batch_of_nothing_but_bad_images_has_no_encoding(inference: Inference) -> None:
    (batch,) = inference.stream([6, 13], load=numbered)
    assert (batch.items, len(batch.failures), batch.encoding) == ([], 2, None)
    assert list(inference.stream([], load=numbered)) == []


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("distcam-decode")]


def test_a_stream_reads_only_a_little_ahead(inference: Inference) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield 0

    stream = inference.stream(endless(), load=numbered, workers=2)
    for step in range(1, 6):
        next(stream)
        assert taken <= 4 * step + 8
    stream.close()
    assert not decoders()


@pytest.mark.parametrize("stop", [GeneratorExit, KeyboardInterrupt])
def test_a_stream_that_is_interrupted_ends_its_threads_at_once(inference: Inference, stop: type[BaseException]) -> None:
    def slow(item: int) -> Tensor:
        time.sleep(0.02)
        return numbered(0)

    stream = inference.stream(range(10_000), load=slow, workers=2)
    assert len(next(stream).items) == 4
    began = time.monotonic()
    with pytest.raises(stop):
        stream.throw(stop())
    assert not decoders()
    assert time.monotonic() - began < 5


def test_an_error_that_is_no_bad_image_ends_the_stream_with_it(inference: Inference) -> None:
    def broken(item: int) -> Tensor:
        if item == 5:
            raise ZeroDivisionError
        return numbered(0)

    stream = inference.stream(range(9), load=broken, workers=2)
    assert len(next(stream).items) == 4
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert not decoders()


def test_threads_may_share_the_fast_path_even_at_a_tapped_layer() -> None:
    tapped = Inference(lived_in("conv4", layer="encoder.1"), device="cpu", precision="fp32")
    expected = [tapped(pixels(1, seed)).pooled for seed in range(4)]
    got: dict[int, list[Tensor]] = {seed: [] for seed in range(4)}

    def work(seed: int) -> None:
        got[seed] = [tapped(pixels(1, seed)).pooled for _ in range(10)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in got.items():
        assert len(results) == 10
        assert all(torch.allclose(result, expected[seed]) for result in results)


def test_files_bytes_and_pillow_images_are_encoded_alike(inference: Inference, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    memory = io.BytesIO()
    image.save(memory, "PNG")
    got = inference.encode_images([tmp_path / "image.png", str(tmp_path / "image.png"), memory.getvalue(), image])
    torch.testing.assert_close(got.pooled, inference(SMALL(image)[None]).pooled.expand(4, -1))


def test_encoding_a_bad_image_or_none_is_refused(inference: Inference, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        inference.encode_images([tmp_path / "bad.jpg"])
    with pytest.raises(InputError, match="got none"):
        inference.encode_images([])
    with pytest.raises(InputError, match="got an empty batch"):
        inference(pixels(0))


@pytest.mark.parametrize("thing", [np.zeros((9, 9, 3), np.uint8), None], ids=["array", "None"])
def test_what_is_no_image_at_all_is_refused_with_what_may_come(inference: Inference, thing: Any) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # as users run it: nothing checks annotations
    try:
        with pytest.raises(InputError, match=r"path, bytes, a binary file, or, .* Pillow image .*; got"):
            inference.encode_images([thing])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"precision": "fp16"}, "unknown precision 'fp16': expected 'auto', 'fp32', or 'bf16'"),
        ({"batch_size": 0}, "batch size of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Inference(Encoder.load("conv4", weights="random"), **options)


def test_a_negative_number_of_threads_is_refused(inference: Inference) -> None:
    with pytest.raises(InputError, match="0 or more decoding threads, got -1"):
        next(inference.stream([1], load=numbered, workers=-1))


def test_cuda_without_cuda_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use 'cpu' or 'auto'"):
        Inference(Encoder.load("conv4", weights="random"), device="cuda")
    assert Inference(Encoder.load("conv4", weights="random")).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_gives_the_cpus_numbers(precision: str) -> None:
    encoder = lived_in("resnet18")
    on_cpu = Inference(encoder, device="cpu", precision="fp32")(pixels(3))
    on_gpu = Inference(encoder, device="cuda", precision=precision)(pixels(3))
    assert on_gpu.pooled.device.type == "cuda"
    assert torch.cosine_similarity(on_gpu.pooled.cpu(), on_cpu.pooled).min() > 0.999


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bfloat16_where_a_cpu_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolved_precision("auto", torch.device("cpu")) == precision


def test_frozen_weights_are_cast_once() -> None:
    encoder = lived_in("resnet18")
    inference = Inference(encoder, device="cpu", precision="bf16")
    casts = []
    for _ in range(2):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            inference(pixels(1))
        casts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy"))
    n_convolutions = sum(isinstance(part, nn.Conv2d) for part in encoder.modules())
    assert casts[0] == casts[1] < n_convolutions  # of images alone, none of weights
    images = SMALL.normalise(pixels(2)).contiguous(memory_format=torch.channels_last)
    full = Inference(encoder, device="cpu", precision="fp32").encoder
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = full(images)
    assert torch.equal(inference(pixels(2)).feature_map, plain.feature_map)
