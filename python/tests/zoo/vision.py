"""Vision: torchvision's own classes, narrow, after ``bastionai.fix`` where they have BatchNorm."""

from __future__ import annotations

import functools
from collections.abc import Callable

import transformers
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from bastionai import Column, DataContract, fix
from zoo.case import Case, Model

CLASSES = 3
#: Pixels of a side of the images that torchvision's architectures are made for.
SIDE = 224


def contract(side: int, name: str = "image") -> DataContract:
    """Square images of three channels."""
    image = Column(name, "float32", (3, side, side), range=(0, 1))
    return DataContract([image, Column("label", "int64", classes=CLASSES)], declared_size=16)


def _model(build: Callable[[], nn.Module], side: int, batchnorm: str | None = None) -> Model:
    module = build()
    if batchnorm is not None:
        _with_statistics(module)
        module = fix(module, batchnorm=batchnorm, verbose=False)
    return Model(module, contract(side), "cross_entropy")


def _with_statistics(module: nn.Module) -> None:
    """As after training: a normalisation that is frozen to mean 0 and variance 1 would show nothing."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)


def _fixed(name: str, shows: str, build: Callable[[], nn.Module], side: int, **more: object) -> list[Case]:
    """One case for each way to fix BatchNorm."""
    ways = {"group": "GroupNorm", "freeze": "frozen BatchNorm"}
    return [
        Case(
            f"{name}-{way}",
            f"{shows}, {said}",
            functools.partial(_model, build, side, way),
            **more,
        )
        for way, said in ways.items()
    ]


def _plain(name: str, shows: str, build: Callable[[], nn.Module], side: int, **more: object) -> Case:
    return Case(name, shows, functools.partial(_model, build, side), **more)


# ---- narrow configurations of the same classes ----


def _two_stages(block: type[nn.Module], width: int) -> nn.Module:
    """The first two stages: the widths of a ResNet's stages are not arguments."""
    net = models.ResNet(block, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=width)
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(128 * block.expansion, CLASSES)
    return net


def _efficientnet() -> nn.Module:
    settings = [
        FusedMBConvConfig(2, 3, 1, 8, 8, 1),
        MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0),
        MBConvConfig(4, 5, 2, 8, 12, 2, 1.0, 1.0),
    ]
    return models.EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.2, num_classes=CLASSES, last_channel=24)


def _mobilenet() -> nn.Module:
    block = functools.partial(InvertedResidualConfig, width_mult=1.0)
    settings = [
        block(8, 3, 8, 8, True, "RE", 2, 1),
        block(8, 5, 16, 8, True, "HS", 1, 1),
        block(8, 3, 24, 16, False, "HS", 2, 2),
    ]
    return models.MobileNetV3(settings, last_channel=24, num_classes=CLASSES)


def _convnext() -> nn.Module:
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)]
    return models.ConvNeXt(stages, stochastic_depth_prob=0.2, layer_scale=0.5, num_classes=CLASSES)


def _vit() -> nn.Module:
    return models.VisionTransformer(16, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES)


def _swin(**more: object) -> nn.Module:
    return models.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], 2.0, 0.1, 0.1, 0.2, CLASSES, **more)


def _swin_v2() -> nn.Module:
    return _swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def _of_transformers(library: str, **settings: object) -> Callable[[], Model]:
    """Hugging Face's classes, on 16 × 16 pixels."""

    def build() -> Model:
        config = getattr(transformers, f"{library}Config")(image_size=16, num_labels=CLASSES, **settings)
        module = getattr(transformers, f"{library}ForImageClassification")(config)
        return Model(module, contract(16, "pixel_values"), "cross_entropy")

    return build


_PATCHES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
_WINDOWS = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}


def _whole(name: str, batchnorm: str | None) -> Model:
    return _model(functools.partial(getattr(models, name), num_classes=CLASSES), SIDE, batchnorm)


CASES = [
    *_fixed("resnet-basic", "`ResNet(BasicBlock)`, `resnet18`", lambda: _two_stages(BasicBlock, 64), 16),
    *_fixed("resnet-bottleneck", "`ResNet(Bottleneck)`, `resnet50`", lambda: _two_stages(Bottleneck, 16), 16),
    *_fixed("efficientnet", "`EfficientNet`: squeeze and excitation, stochastic depth", _efficientnet, 16),
    *_fixed("mobilenet-v3", "`MobileNetV3`: depthwise and dilated, hard activations", _mobilenet, 16),
    _plain("convnext", "`ConvNeXt`: depthwise, layer scale, `LayerNorm2d`", _convnext, 32),
    _plain("vit", "`VisionTransformer`: class token, positions, packed attention", _vit, 16),
    _plain("swin", "`SwinTransformer`: shifted windows, a table of relative positions", _swin, 16),
    Case("vit-transformers", "`ViTForImageClassification` of Hugging Face", _of_transformers("ViT", **_PATCHES)),
    Case(
        "swin-transformers",
        "`SwinForImageClassification` of Hugging Face: a table of positions added to the scores",
        _of_transformers("Swin", **_WINDOWS),
        opacus="none of a table that is a layer without an input",
        slow=True,
    ),
    _plain("swin-v2", "`SwinTransformer` V2: cosine attention, positions by an MLP", _swin_v2, 16),
]

#: Architectures and images as torchvision has them: see ``test_zoo_whole.py``.
WHOLE = [
    Case(f"{name}-{batchnorm}" if batchnorm else name, f"`{name}`", functools.partial(_whole, name, batchnorm), rows=2)
    for name, ways in {
        "resnet18": ("group", "freeze"),
        "resnet50": ("group", "freeze"),
        "efficientnet_b0": ("group", "freeze"),
        "mobilenet_v3_small": ("group", "freeze"),
        "mobilenet_v3_large": ("group", "freeze"),
        "convnext_tiny": (None,),
        "vit_b_16": (None,),
        "swin_t": (None,),
    }.items()
    for batchnorm in ways
]
