from __future__ import annotations

import copy
import hashlib
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from noisybsd.errors import UserError
from noisybsd.models import networks
from noisybsd.models.networks import (
    NETWORKS,
    PreActBlock,
    UncountedBatchNorm,
    _takes,
    build_network,
    uncounted,
)

PARAMETERS = {  # encoder and classifier, 10 classes, 3 channels
    # 11,171,146 of the usual PreAct-ResNet-18 without a last batch norm, and its 2 x 512
    "preact_resnet18": 11_172_170,
    "preact_resnet34": 21_280_330,
    # torchvision's own count, less the stem's 64 x 3 x (49 - 9) weights and 990 classes
    "resnet18": 11_689_512 - 7_680 - 990 * 513,
    "resnet34": 21_797_672 - 7_680 - 990 * 513,
    "resnet50": 25_557_032 - 7_680 - 990 * 2049,
    "resnet50_imagenet": 25_557_032 - 990 * 2049,
    "densenet121": 7_978_856 - 7_680 - 990 * 1025,
    # 12 layers of 12 d^2 weights and 13 d others, patches, positions, class token, last norm
    "vit_small": 12 * (12 * 384**2 + 13 * 384) + 49 * 384 + 65 * 384 + 384 + 2 * 384 + 385 * 10,
    "small_cnn": 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 129 * 10,
    # timm's count, less 990 classes
    "efficientnet_lite0": 4_652_008 - 990 * 1281,
    # whitening and its bias, three groups of two convolutions, four numbers a pair of norms, classifier
    "fast_resnet": 24 * 13
    + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    + 4 * (64 + 256 + 256)
    + 257 * 10,
}


def _images(name: str, count: int, channels: int = 3) -> Tensor:
    pixels = 64 if name == "resnet50_imagenet" else 32
    return torch.randn(count, channels, pixels, pixels, generator=torch.Generator().manual_seed(0))


def _is_large(name: str) -> bool:
    """Whether the network has no width that makes it small."""
    return not _takes(NETWORKS[name], "width")


def _count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, num_classes=10)
    assert _count(network.encoder, network.classifier) == PARAMETERS[name]


def test_parameter_counts_cover_all_networks() -> None:
    assert PARAMETERS.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_unit_length(name: str) -> None:
    network = build_network(name, num_classes=7, embedding_dim=24)
    pixels = 224 if name == "resnet50_imagenet" else 32
    logits, z = network(torch.randn(2, 3, pixels, pixels))
    assert logits.shape == (2, 7)
    assert z.shape == (2, 24) and network.embedding_dim == 24
    assert network.classifier.in_features == network.feature_dim
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build_network(name, num_classes=3, embedding_dim=8)
    logits, z = network(_images(name, 4))
    (F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])) + z[0] @ z[1]).backward()
    without = [
        key
        for key, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_mode_does_not_mix_the_batch(name: str) -> None:
    network = build_network(name, num_classes=3).eval()
    x = _images(name, 3)
    with torch.no_grad():
        together, alone = network(x), network(x[1:2])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_gives_the_same(name: str) -> None:
    network = build_network(name, num_classes=3).eval()
    x = _images(name, 2)
    with torch.no_grad():
        expected = network(x)
        network.to(memory_format=torch.channels_last)
        actual = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_takes_one_channel(name: str) -> None:
    network = build_network(name, num_classes=3, channels=1)
    logits, _ = network(_images(name, 2, channels=1))
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [4, 8, 28, 32])
def test_small_cnn_sizes(channels: int, pixels: int) -> None:
    network = build_network("small_cnn", num_classes=10, channels=channels)
    logits, z = network(torch.randn(2, channels, pixels, pixels))
    assert logits.shape == (2, 10) and z.shape == (2, 128)


def test_small_images_keep_their_resolution_in_the_stem() -> None:
    images = torch.randn(1, 3, 32, 32)
    for name in ("resnet18", "densenet121"):
        encoder = build_network(name, num_classes=3).encoder
        seen: list[Tensor] = []
        first = encoder.layer1 if name == "resnet18" else encoder.features.denseblock1
        first.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        encoder.eval()(images)
        assert seen[0].shape == (1, 64, 32, 32), name


@pytest.mark.parametrize("name", ["small_cnn", "preact_resnet18"])
def test_width_scales_the_network(name: str) -> None:
    small, smaller = (build_network(name, num_classes=3, width=width) for width in (16, 8))
    assert small.feature_dim == 2 * smaller.feature_dim
    # Convolutions between stages have all but a few of the weights.
    assert 3.5 < _count(small.encoder) / _count(smaller.encoder) < 4.1
    logits, _ = smaller(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 3)


def test_mlp_projection_has_two_layers_and_a_batch_norm() -> None:
    network = build_network("small_cnn", num_classes=3, embedding_dim=24)
    assert _count(network.projection) == 128 * 128 + 2 * 128 + 128 * 24 + 24


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18", "densenet121", "small_cnn"])
def test_batch_norms_are_torchs_but_do_not_count(name: str) -> None:
    """Same outputs, gradients and statistics, bit for bit, of our layers and of torchvision's."""
    width = {"width": 8} if name in ("preact_resnet18", "small_cnn") else {}
    torchs = build_network(name, num_classes=3, embedding_dim=4, **width)
    ours = uncounted(copy.deepcopy(torchs))
    assert any(type(module) is UncountedBatchNorm for module in ours.modules())
    for network in (ours, torchs):
        for _ in range(2):
            logits, z = network(_images(name, 4))
            (logits.square().sum() + z[:, 0].sum()).backward()
    counted = 0
    for (key, one), other in zip(
        ours.state_dict().items(), torchs.state_dict().values(), strict=True
    ):
        if key.endswith("num_batches_tracked"):
            counted += 1
            assert (one.item(), other.item()) == (0, 2)
        else:
            assert torch.equal(one, other), key
    assert counted > 2
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    ours.eval(), torchs.eval()
    for one, other in zip(ours(_images(name, 2)), torchs(_images(name, 2)), strict=True):
        assert torch.equal(one, other)
    ours.load_state_dict(torchs.state_dict())  # of a version that counted


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if _is_large(name) else ()) for name in NETWORKS],
)
def test_networks_compile_to_one_graph(name: str) -> None:
    """Forward and backward, under autocast as on a GPU."""
    width = {} if _is_large(name) else {"width": 8}
    network = uncounted(build_network(name, num_classes=3, embedding_dim=4, **width))
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    images = _images(name, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (logits, z), (expected, _) = compiled(images), network(images)
    torch.testing.assert_close(logits, expected)
    (logits.sum() + z[:, 0].sum()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    torch.compiler.reset()


def test_identity_projection_normalises_the_features() -> None:
    network = build_network("small_cnn", num_classes=3, projection="identity").eval()
    x = torch.randn(4, 3, 8, 8)
    assert network.embedding_dim == network.feature_dim == 128
    assert _count(network.projection) == 0
    _, z = network(x)
    features = network.encoder(x)
    torch.testing.assert_close(z, features / features.norm(dim=1, keepdim=True))


def test_a_width_that_crashes_torch_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.width=4: a PreAct-ResNet needs at least 8"):
        build_network("preact_resnet18", num_classes=3, width=4)
    network = build_network("preact_resnet18", num_classes=3, width=8)
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    network(images)[0].sum().backward()  # below 8, on some machines, the process ends here


@pytest.mark.parametrize("projection", ["mlp", "identity"])
def test_bf16_autocast_returns_float32(projection: str) -> None:
    network = build_network("small_cnn", num_classes=3, projection=projection)
    inside: list[torch.dtype] = []
    network.projection.register_forward_hook(lambda *args: inside.append(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits, z = network(torch.randn(4, 3, 16, 16))
    assert inside == [torch.bfloat16]  # else nothing is tested
    assert logits.dtype == z.dtype == torch.float32
    assert not torch.equal(
        logits, logits.bfloat16().float()
    )  # nor rounded on the way: classes would tie
    # Lengths rounded to bf16 would be off by up to 2^-9.
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_autocast_on_a_gpu(name: str) -> None:
    network = build_network(name, num_classes=3).cuda().to(memory_format=torch.channels_last)
    x = _images(name, 4).cuda().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits, z = network(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert logits.dtype == z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1).cpu(), torch.ones(4), rtol=0, atol=1e-6)


# --- pre-activation units (He et al. 2016) ---


def test_preact_unit_shortcut_is_the_identity() -> None:
    block = PreActBlock(4, 4, stride=1, shared=False)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5)  # negative values too: no ReLU after the sum
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 2)])
def test_preact_unit_at_a_stage_start_shares_the_activation(width: int, stride: int) -> None:
    block = PreActBlock(4, width, stride, shared=True)
    x = torch.randn(2, 4, 6, 6)
    active = F.relu(F.batch_norm(x, None, None, training=True))
    skip = active if stride == 1 else F.conv2d(active, block.shortcut.weight, stride=2)
    inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    inner = F.relu(F.batch_norm(inner, None, None, training=True))
    expected = skip + F.conv2d(inner, block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)


def test_preact_resnet_ends_with_batch_norm_and_relu() -> None:
    encoder = build_network("preact_resnet18", num_classes=3, width=8).encoder.eval()
    assert encoder(torch.randn(8, 3, 8, 8)).min() >= 0


def test_preact_resnet_stages() -> None:
    encoder = build_network("preact_resnet18", num_classes=3, width=8).encoder.eval()
    shared, shapes = [], []
    x = torch.randn(1, 3, 32, 32)
    for layer in encoder:
        x = layer(x)
        if isinstance(layer, PreActBlock):
            shared.append(layer.shared)
            shapes.append(tuple(x.shape[1:3]))
    assert shared == [True, False] * 4
    assert shapes[1::2] == shapes[::2] == [(8, 32), (16, 16), (32, 8), (64, 4)]


# --- ImageNet weights ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache on a machine without a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return tmp_path / "checkpoints"


def test_pretrained_weights_are_loaded_from_the_cache(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = models.resnet50().state_dict()
    hub.mkdir()
    file = hub / "weights.pth"
    torch.save(weights, file)
    # Random weights cannot have the official hash, so that theirs takes its place.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file.rename(hub / f"resnet50-{digest}.pth")
    official = networks.IMAGENET_URL
    url = official.replace(official.rpartition("-")[2].removesuffix(".pth"), digest)
    monkeypatch.setattr(networks, "IMAGENET_URL", url)

    network = build_network("resnet50_imagenet", num_classes=14, pretrained=True)
    assert network.classifier.out_features == 14
    loaded = network.encoder.state_dict()
    assert loaded.keys() == weights.keys() - {"fc.weight", "fc.bias"}
    for key, value in loaded.items():
        assert torch.equal(value, weights[key]), key


def test_wrong_file_under_the_official_name_is_refused(hub: Path) -> None:
    hub.mkdir()
    file = hub / "resnet50-0676ba61.pth"
    torch.save({"fc.bias": torch.zeros(1000)}, file)
    with pytest.raises(UserError, match="SHA-256") as error:
        build_network("resnet50_imagenet", num_classes=14, pretrained=True)
    assert str(file) in str(error.value)
    assert file.exists()


def test_failed_download_says_which_file_to_put_where(hub: Path) -> None:
    with pytest.raises(UserError, match="no network") as error:
        build_network("resnet50_imagenet", num_classes=14, pretrained=True)
    assert str(hub / "resnet50-0676ba61.pth") in str(error.value)
    assert "network.pretrained" in str(error.value)
    assert list(hub.iterdir()) == []


def test_download_with_a_wrong_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resnet50-00000000.pth"
    file.write_bytes(b"not the weights")
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    monkeypatch.setattr(networks, "IMAGENET_URL", file.as_uri())
    with pytest.raises(UserError, match="invalid hash"):
        build_network("resnet50_imagenet", num_classes=14, pretrained=True)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "preact_resnet81"}, ["network.name", "preact_resnet81", "preact_resnet18?"]),
        ({"name": "small_cnn", "projection": "mpl"}, ["network.projection", "'mpl'", "identity"]),
        ({"name": "vit_small", "width": 64}, ["network.width=64", "vit_small", "small_cnn"]),
        (
            {"name": "resnet50", "pretrained": True},
            ["network.pretrained", "resnet50", "resnet50_imagenet"],
        ),
        (
            {"name": "resnet50_imagenet", "pretrained": True, "channels": 1},
            ["network.pretrained", "3 channels", "got 1"],
        ),
        ({"name": "small_cnn", "width": 0}, ["network.width", "got 0"]),
        ({"name": "small_cnn", "embedding_dim": 0}, ["network.embedding_dim", "got 0"]),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build_network(**{"num_classes": 3, **arguments})  # type: ignore[arg-type]
    assert [word for word in words if word not in str(error.value)] == []


def test_vit_names_the_size_it_takes() -> None:
    network = build_network("vit_small", num_classes=3)
    with pytest.raises(UserError, match="32 x 32 pixels, got 28 x 28"):
        network(torch.randn(1, 3, 28, 28))


def test_the_first_convolution_of_the_fast_network_whitens_patches() -> None:
    """Half of its outputs, the filters of positive sign, have the identity as their covariance."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(64, 3, 20, 20, generator=generator), 3, stride=1)
    network = build_network("fast_resnet", 10, width=4)
    network.encoder.fit(smooth)
    out = network.encoder[0](smooth).permute(1, 0, 2, 3).flatten(1)  # (24,P)
    positive, negative = out[:12], out[12:]
    second_moments = positive @ positive.T / positive.shape[1]
    # eigenvalues here are not small beside the 5e-4 that steadies the smallest
    values = torch.linalg.eigvalsh(_patches(smooth).T @ _patches(smooth) / len(_patches(smooth)))
    expected = (values / (values + 5e-4)).flip(0)
    torch.testing.assert_close(second_moments, torch.diag(expected), atol=2e-3, rtol=0)
    torch.testing.assert_close(positive, -negative)


def _patches(images: Tensor) -> Tensor:
    """All 2x2 patches (P,4C), one by one."""
    count, _, height, width = images.shape
    return torch.stack(
        [
            images[i, :, y : y + 2, x : x + 2].flatten()
            for i in range(count)
            for y in range(height - 1)
            for x in range(width - 1)
        ]
    )


def test_the_fast_network_starts_as_the_identity_and_learns_shifts_only_in_its_norms() -> None:
    network = build_network("fast_resnet", 10, width=32)
    first, second = network.encoder[2], network.encoder[6]
    x = torch.randn(2, 24, 9, 9)
    torch.testing.assert_close(first(x)[:, :24], x)
    x = torch.randn(2, 32, 9, 9)
    torch.testing.assert_close(second(x), x)
    frozen = {name for name, p in network.encoder.named_parameters() if not p.requires_grad}
    norms = {
        f"{name}.weight"
        for name, part in network.encoder.named_modules()
        if isinstance(part, torch.nn.BatchNorm2d)
    }
    assert frozen == {"0.weight", *norms}
