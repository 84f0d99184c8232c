"""What of a backbone is trained, and how fast: last blocks, a head alone, rates by depth, low-rank adapters."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from foreign import folder_of_transformers
from torch import nn

from distcam.encoders import Encoder
from distcam.encoders.heads import BNNeck, Linear
from distcam.errors import InputError
from distcam.images import Transform
from distcam.training import Objective, OptimiserSettings, Settings, Term, fit
from distcam.training.engine.backbone_parts import adapted, blocks_of, layers_with_adapters, merge_adapters
from distcam.training.engine.optimisation import Optimisation, training_mode, what_is_trained
from distcam.training.recipes.settings import LoraSettings

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "shared" / "tiny_run.py"), run_name="tiny"))
QUICK = Settings(epochs=2, precision="fp32", device="cpu")
PROBE = QUICK.changed(freeze="backbone")


class Unchanged(tiny.Images):
    """Images that are the same in every epoch, and say so."""

    def unchanged(self):
        return len(self.images), iter(self.images.split(10))


def named(name: str = "timm:test_vit") -> Encoder:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="needs the extra timm")
    return Encoder.load(name, weights="random", transform=Transform(32), seed=4)


def weights_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


class Larger(Unchanged):
    """The same, of 32 pixels."""

    def __init__(self, count: int = 12) -> None:
        super().__init__(count, batch_size=6)
        self.images = nn.functional.interpolate(self.images, 32)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "coarse", "fine", "before", "behind"),
    [
        ("conv4", ("encoder.0", "encoder.3"), 4, (), ()),
        ("timm:test_vit", ("blocks.0", "blocks.5"), 6, ("cls_token", "pos_embed", "patch_embed"), ("norm",)),
        ("timm:test_convnext", ("stages.0", "stages.3"), 9, ("stem",), ("head",)),
        ("timm:test_efficientnet", ("blocks.0", "blocks.4"), 5, ("conv_stem", "bn1"), ("conv_head", "bn2")),
        ("resnet18", ("layer1", "layer4"), 8, ("conv1", "bn1"), ()),
    ],
)
def test_a_backbone_is_a_sequence_of_blocks(name: str, coarse, fine: int, before, behind) -> None:
    backbone = named(name).backbone
    blocks = blocks_of(backbone)
    assert (blocks.names[0], blocks.names[-1], blocks.parts[0], blocks.parts[-1]) == (*coarse, before, behind)
    assert len(blocks_of(backbone, fine=True).names) == fine


def test_blocks_behind_the_layer_that_is_read_do_not_count() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    encoder = Encoder.load(
        "timm:test_resnet", weights="random", transform=Transform(32), layer="layer2", readout="mean"
    )
    blocks = blocks_of(encoder.backbone)
    assert (blocks.names, blocks.unused) == (("layer1", "layer2"), ("layer3", "layer4"))
    with training_mode(encoder, tiny.make_objective(encoder), QUICK.changed(train_blocks=1)):
        trained = {name.split(".")[3] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"layer2"}


def test_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="Linear has no list of blocks or stages"):
        blocks_of(nn.Linear(2, 2))
    encoder = tiny.make_encoder()
    with pytest.raises(InputError, match=r"conv4 has 4 blocks .*encoder.0, encoder.1, .* got 5"):
        fit(encoder, tiny.Images(8), tiny.make_objective(encoder), QUICK.changed(train_blocks=5))
    with pytest.raises(InputError, match=r"run.freeze and run.train_blocks both say what is trained"):
        Settings(freeze="backbone", train_blocks=1)
    with pytest.raises(InputError, match=r"layer_decay: the whole backbone is frozen"):
        fit(
            encoder,
            tiny.Images(8),
            tiny.make_objective(encoder),
            PROBE.changed(optimiser=OptimiserSettings(layer_decay=0.5)),
        )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_rates_and_decays_by_depth_are_timms(name: str) -> None:
    """All but those of the norm behind the blocks, which BEiT counts with the head and timm with the last block."""
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    groups = pytest.importorskip("timm.optim._param_groups").param_groups_layer_decay
    encoder, model = named(f"timm:{name}"), timm.create_model(name, num_classes=10)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    expected = {
        names[id(p)]: (pytest.approx(0.1 * group["lr_scale"]), group["weight_decay"])
        for group in groups(model, 0.05, getattr(model, "no_weight_decay", set)(), layer_decay=0.5)
        for p in group["params"]
    }
    settings = OptimiserSettings(learning_rate=0.1, weight_decay=0.05, layer_decay=0.5, norm_decay=0.0)
    optimiser = Optimisation(
        encoder, tiny.make_objective(encoder), QUICK.changed(optimiser=settings), steps_per_epoch=1
    ).optimiser
    own = {id(parameter): key for key, parameter in encoder.backbone.source.named_parameters()}
    found = {
        own[id(p)]: (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"] if id(p) in own
    }
    differ = {key for key, value in found.items() if value != expected[key]}
    assert set(found) == set(own.values())
    assert differ == ({"norm.weight", "norm.bias"} if name == "test_vit" else set())
    assert optimiser.param_groups[0]["lr"] == max(rate for rate, _ in found.values())


# --- last blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_only_the_last_block_and_what_is_behind_it_are_trained(name: str) -> None:
    encoder = named(name)
    before, said = weights_of(encoder), []
    settings = QUICK.changed(train_blocks=1, optimiser=OptimiserSettings(learning_rate=0.01))
    fit(encoder, Larger(), tiny.make_objective(encoder), settings, announce=said.append)
    last = ("backbone.source.blocks.5.", "backbone.source.norm.", "backbone.source.layer4.")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith(last), key  # statistics of batch norms included
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert said[0].startswith("trained: ")
    assert "frozen: cls_token, pos_embed, patch_embed" in said[0] or "frozen: conv1, bn1, layer1" in said[0]


def test_frozen_weights_have_no_gradient_and_no_place_in_the_optimiser() -> None:
    encoder = named()
    settings = QUICK.changed(train_blocks=2)
    objective = tiny.make_objective(encoder)
    with training_mode(encoder, objective, settings):
        held = Optimisation(encoder, objective, settings, steps_per_epoch=1).parameters
        trained = {name for name, p in encoder.backbone.source.named_parameters() if any(p is own for own in held)}
        encoder(torch.randn(2, 3, 32, 32)).embedding.sum().backward()
    assert {name.split(".")[0] + name.partition(".")[2][:1] for name in trained} == {
        "blocks4",
        "blocks5",
        "normw",
        "normb",
    }
    for name, parameter in encoder.backbone.source.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_all_is_trained_and_nothing_said_without_such_settings() -> None:
    encoder = tiny.make_encoder()
    assert what_is_trained(encoder, QUICK) == ""


# --- a linear probe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [lambda: Linear(64, 5), lambda: BNNeck(64)])
def test_a_probe_computes_every_image_once_and_learns_the_same(head) -> None:
    weights, calls = [], []
    for source in (tiny.Images(20), Unchanged(20)):
        torch.manual_seed(0)
        encoder = tiny.make_encoder(width=64)
        encoder.head = head()
        objective, seen = tiny.make_objective(encoder), [0]

        def count(_module, inputs, _output, seen=seen) -> None:
            seen[0] += len(inputs[0])

        before = weights_of(encoder)
        encoder.backbone.register_forward_hook(count)
        fit(encoder, source, objective, PROBE.changed(epochs=3))
        calls.append(seen[0])
        weights.append(encoder.head.state_dict())
        assert all(torch.equal(encoder.state_dict()[key], before[key]) for key in before if key.startswith("backbone."))
    assert calls == [60, 20]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-6)


def test_a_term_that_may_look_at_images_gets_them_and_one_of_maps_whole_maps() -> None:
    seen = []

    class Watch(Term):
        def forward(self, step):
            seen.append(step.encoding.feature_map.shape[-2:])
            return step.encoding.embedding.sum() * 0

    class WatchMaps(Watch):
        reads = "map"

    for watch, calls in ((Watch, 24), (WatchMaps, 12)):
        encoder, count = tiny.make_encoder(), []
        objective = Objective({**tiny.make_objective(encoder).terms, "watch": watch()})
        encoder.backbone.register_forward_hook(lambda _m, inputs, _o, count=count: count.append(len(inputs[0])))
        fit(encoder, Unchanged(12), objective, PROBE)
        assert sum(count) == calls
    assert len(set(seen)) == 1


# --- adapters ---------------------------------------------------------------------------------------------------------


def lora(**options) -> Settings:
    pytest.importorskip("peft", reason="needs the extra lora")
    fast = OptimiserSettings(learning_rate=0.05)
    return QUICK.changed(lora=LoraSettings(rank=2, **options), optimiser=fast, checkpoint_every_steps=1)


def test_adapters_learn_beside_frozen_weights_and_are_merged_into_an_ordinary_encoder(tmp_path: Path) -> None:
    settings, encoder, said = lora(alpha=4, dropout=0.1), named(), []
    before, images = weights_of(encoder), Larger().images
    fit(encoder, Larger(), tiny.make_objective(encoder), settings, folder=tmp_path, announce=said.append)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {f"backbone.source.blocks.{i}.attn.{part}.weight" for i in range(6) for part in ("qkv", "proj")}
    for key in changed:
        assert torch.linalg.matrix_rank(after[key] - before[key], atol=1e-5) == 2
    assert [text.partition("; ")[2] for text in said] == [
        "frozen: backbone, but for adapters of 12 layers: attn.proj, attn.qkv"
    ]
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    again = Encoder.load(tmp_path / "encoder.safetensors")
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again(images).embedding, encoder(images).embedding)


def test_adapters_teach_the_attention_of_a_network_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    folder, settings = folder_of_transformers("dinov2", tmp_path / "model"), lora()
    encoder = Encoder.load(f"hf:{folder}", weights="pretrained")
    before, images = weights_of(encoder), Larger().images
    fit(encoder, Larger(), tiny.make_objective(encoder), settings, folder=tmp_path / "run")
    changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert len(changed) == 4 * encoder.backbone.source.config.num_hidden_layers  # query, key, value and output
    assert all("attention" in key and key.endswith("weight") and "mlp" not in key for key in changed)
    again = Encoder.load(tmp_path / "run" / "encoder.safetensors")
    torch.testing.assert_close(again(images).embedding, encoder(images).embedding)


def test_a_run_with_adapters_that_was_stopped_resumes_to_the_same_bits(tmp_path: Path) -> None:
    digests = []
    for stop in (None, 3):
        folder = tmp_path / str(stop)
        for resume in (False, True)[: 1 if stop is None else 2]:
            encoder = named()
            objective = tiny.make_objective(encoder, "memory")

            def halt(done: int, _of: int, stop=None if resume else stop) -> None:
                if done == stop:
                    raise KeyboardInterrupt

            try:
                fit(encoder, Larger(), objective, lora(dropout=0.2), folder=folder, resume=resume, progress=halt)
            except KeyboardInterrupt:
                assert not layers_with_adapters(encoder)
        digests.append(tiny.digest(encoder, objective))
    assert digests[0] == digests[1]


def test_maps_beside_adapters_are_those_of_the_merged_weights() -> None:
    settings, encoder, images = lora().lora, named(), torch.randn(2, 3, 32, 32)
    with adapted(encoder, settings, seed=0):
        for layer in layers_with_adapters(encoder):
            nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
        beside = encoder.eval()(images).detach()
        unmerged = encoder.fingerprint
        merge_adapters(encoder)
        assert encoder.fingerprint != unmerged
    merged = encoder(images)
    torch.testing.assert_close(beside.feature_map, merged.feature_map, rtol=1e-4, atol=1e-4)


def test_a_fingerprint_that_was_taken_before_is_not_that_of_the_merged_weights() -> None:
    settings, encoder = lora().lora, named()
    before = encoder.fingerprint
    with adapted(encoder, settings, seed=0):
        for layer in layers_with_adapters(encoder):
            nn.init.normal_(layer.lora_B["default"].weight)
    assert encoder.fingerprint != before


class Packed(nn.Module):
    """A block whose attention takes the weights of its output and never runs it as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attn = nn.Conv2d(3, 8, 8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        grid = self.stem(images)
        tokens = grid.flatten(2).mT
        return self.attn(tokens, tokens, tokens)[0].mT.reshape(grid.shape)


def test_layers_that_no_adapter_can_teach_are_refused() -> None:
    packed = Encoder.load(Packed(), transform=Transform(32))
    cases = [
        (tiny.make_encoder(), {}, "conv4 has no attention whose projections run as layers"),
        (packed, {}, "Packed has no attention whose projections run"),
        (
            packed,
            {"targets": ("out_proj",)},
            "no linear layer or convolution that runs as a layer of its own is called 'out_proj'",
        ),
        (packed, {"targets": ("attn",)}, "is called 'attn'"),
        (packed, {"targets": ("stom",)}, r"run.lora.targets: .* is called 'stom'; nearest: 'stem'"),
    ]
    for encoder, options, message in cases:
        with pytest.raises(InputError, match=message), adapted(encoder, lora(**options).lora, seed=0):
            pass
    with adapted(packed, lora(targets=("stem",)).lora, seed=0):
        assert len(layers_with_adapters(packed)) == 1
    assert isinstance(packed.backbone.stem, nn.Conv2d)
