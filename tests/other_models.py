"""Small models of other projects, with weights that no layer cancels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import Bottleneck

CLASSES = 7
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
SWIN = {"patch_size": [2, 2], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
MAXVIT = {"stem_channels": 16, "partition_size": 4, "block_channels": [16, 32], "block_layers": [1, 2]}
MAXVIT |= {"head_dim": 8, "stochastic_depth_prob": 0.2}
CONVNEXT = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
EFFICIENT = [
    FusedMBConvConfig(1, 3, 1, 24, 24, 2),
    FusedMBConvConfig(4, 3, 2, 24, 32, 2),
    MBConvConfig(4, 3, 2, 32, 40, 3),
]
TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "ResNet": models.resnet18,
    "ResNet of bottlenecks": partial(models.ResNet, Bottleneck, [1, 2, 1, 1]),
    "ResNeXt": partial(models.ResNet, Bottleneck, [1, 2, 1, 1], groups=32, width_per_group=4),
    "Wide ResNet": partial(models.ResNet, Bottleneck, [1, 2, 1, 1], width_per_group=128),
    "RegNetX": models.regnet_x_400mf,
    "RegNetY": models.regnet_y_400mf,
    "MobileNetV2": models.mobilenet_v2,
    "MobileNetV3": models.mobilenet_v3_small,
    "MNASNet": models.mnasnet0_5,
    "EfficientNet": models.efficientnet_b0,
    "EfficientNetV2": partial(models.EfficientNet, EFFICIENT, dropout=0.2),
    "ConvNeXt": partial(models.convnext.ConvNeXt, CONVNEXT, stochastic_depth_prob=0.3),
    "ViT": partial(models.VisionTransformer, **VIT),
    "Swin": partial(models.SwinTransformer, **SWIN),
    "SwinV2": partial(
        models.SwinTransformer,
        **SWIN,
        block=models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=models.swin_transformer.PatchMergingV2,
    ),
    "MaxViT": partial(models.MaxVit, input_size=(32, 32), **MAXVIT),
}
SIZE = 32


def from_timm(name: str, **arguments: object) -> Callable[..., nn.Module]:
    """What builds a model of timm."""

    def build(**more: object) -> nn.Module:
        import timm

        return timm.create_model(name, **arguments, **more)

    return build


TOKENS = {"img_size": 32, "patch_size": 8, "embed_dim": 16}


def mixer(block: str, mlp_layer: str = "Mlp", **arguments: object) -> Callable[..., nn.Module]:
    """What builds an MLP-Mixer of blocks of that class."""

    def build(**more: object) -> nn.Module:
        from timm import layers
        from timm.models import mlp_mixer

        kinds = {"block_layer": getattr(mlp_mixer, block), "mlp_layer": getattr(layers, mlp_layer)}
        return mlp_mixer.MlpMixer(**TOKENS, num_blocks=3, **kinds, **arguments, **more)

    return build


TRANSFORMER = {**TOKENS, "depth": 3, "num_heads": 2}
WINDOWS = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
TIMM: dict[str, Callable[..., nn.Module]] = {
    "timm's ResNet": from_timm("resnet10t"),
    "timm's ResNet of bottlenecks": from_timm("resnet26"),
    "timm's RegNet": from_timm("regnetx_002"),
    "timm's EfficientNet": from_timm("efficientnet_b0"),
    "timm's MobileNetV3": from_timm("mobilenetv3_small_050"),
    "timm's ConvNeXt": from_timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "timm's ViT": from_timm("vit_tiny_patch16_224", **TRANSFORMER),
    "timm's ViT without a class token": from_timm(
        "vit_tiny_patch16_224", **TRANSFORMER, class_token=False, global_pool="avg"
    ),
    "timm's ViT with registers": from_timm("vit_tiny_patch16_224", **TRANSFORMER, reg_tokens=2),
    "timm's ViT with registers alone": from_timm(
        "vit_tiny_patch16_224", **TRANSFORMER, reg_tokens=2, class_token=False, global_pool="avg"
    ),
    "DeiT": from_timm("deit_tiny_distilled_patch16_224", **TRANSFORMER),
    "timm's Swin": from_timm("swin_tiny_patch4_window7_224", **WINDOWS, patch_size=2),
    "timm's SwinV2": from_timm("swinv2_tiny_window8_256", **WINDOWS, patch_size=2),
    "MLP-Mixer": mixer("MixerBlock"),
    "ResMLP": mixer("ResBlock", mlp_ratio=4),
    "gMLP": mixer("SpatialGatingBlock", mlp_layer="GatedMlp", mlp_ratio=4),
}
FAMILIES = TORCHVISION | TIMM


@torch.no_grad()
def made(build: Callable[..., nn.Module], seed: int = 0, **arguments: object) -> nn.Module:
    """A model in evaluation mode; what begins as zeros, ones or other constants is random, too."""
    if build in TIMM.values():
        pytest.importorskip("timm")
    torch.manual_seed(seed)
    model = build(num_classes=CLASSES, **arguments)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.1)
            else:
                tensor.uniform_(0.5, 1.0)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            nn.init.normal_(module.weight, std=0.1)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    if norms:  # statistics that fit, or an image's trace fades on its way
        model.train()(torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    return model.eval()
