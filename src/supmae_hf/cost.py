# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
What training costs, in floating-point operations (FLOPs; a multiplication and an addition are two).

Matrix multiplications and the patch projection are counted, from shapes, as PyTorch's `FlopCounterMode` counts them;
the rest (normalisation, activations, softmax) is less than 1% of the arithmetic. A training step takes three times the
forward pass.
"""

import math
from dataclasses import dataclass

from transformers import PreTrainedConfig

from .configuration_supmae import SupMAEConfig, to_pair


def _linear(num_tokens: int, *widths: int) -> int:
    """Of linear layers one after the other."""
    return sum(2 * num_tokens * a * b for a, b in zip(widths, widths[1:]))


def _block(num_tokens: int, width: int, intermediate: int, num_outputs: int | None = None) -> int:
    """Of a transformer block; only `num_outputs` of the tokens are needed from it, by default all."""
    outputs = num_tokens if num_outputs is None else num_outputs
    keys_and_values = _linear(num_tokens, width, 2 * width)
    attention = 4 * outputs * num_tokens * width
    return (
        keys_and_values
        + attention
        + _linear(outputs, width, width, width)
        + _linear(outputs, width, intermediate, width)
    )


def _num_patches(config: PreTrainedConfig) -> int:
    return math.prod(a // b for a, b in zip(to_pair(config.image_size), to_pair(config.patch_size)))


def _patch_values(config: PreTrainedConfig) -> int:
    return math.prod(to_pair(config.patch_size)) * config.num_channels


def encoder_flops(config: PreTrainedConfig, num_visible: int | None = None, num_embedded: int | None = None) -> int:
    """
    FLOPs of one image through the patch embedding and the blocks of a ViT with class token.

    Args:
        config: Any configuration of the ViT family.
        num_visible: Patches that are encoded, by default all.
        num_embedded: Patches that are embedded, by default those that are encoded. (ViTMAE embeds all of them.)
    """
    num_visible = _num_patches(config) if num_visible is None else num_visible
    num_embedded = num_visible if num_embedded is None else num_embedded
    block = _block(1 + num_visible, config.hidden_size, config.intermediate_size)
    return _linear(num_embedded, _patch_values(config), config.hidden_size) + config.num_hidden_layers * block


def classification_flops(config: PreTrainedConfig) -> int:
    """FLOPs of one image through a classifier: all patches, and one linear layer."""
    return encoder_flops(config) + _linear(1, config.hidden_size, config.num_labels)


def pretraining_flops(config: PreTrainedConfig) -> int:
    """
    FLOPs of one image through [`SupMAEForPreTraining`] while training, whose last decoder block and prediction cover
    the hidden patches alone, or through `ViTMAEForPreTraining`, whose cover all.
    """
    num_patches = _num_patches(config)
    num_visible = int(num_patches * (1 - config.mask_ratio))
    width, intermediate = config.decoder_hidden_size, config.decoder_intermediate_size
    total = _linear(1 + num_visible, config.hidden_size, width)
    if isinstance(config, SupMAEConfig):
        total += encoder_flops(config, num_visible)
        num_predicted = (num_patches - num_visible) or num_patches
        head = [config.classifier_hidden_size] if config.classifier_hidden_size else []
        total += _linear(1, config.hidden_size, *head, config.num_labels)
    else:
        total += encoder_flops(config, num_visible, num_embedded=num_patches)
        num_predicted = 1 + num_patches
    full_blocks = config.decoder_num_hidden_layers - 1
    total += full_blocks * _block(1 + num_patches, width, intermediate)
    total += _block(1 + num_patches, width, intermediate, num_predicted)
    return total + _linear(num_predicted, width, _patch_values(config))


@dataclass(frozen=True)
class Schedule:
    """
    Training with a method.

    Args:
        name: Of the method.
        pretraining_flops: Of one image in one epoch of pre-training, forward and backward.
        pretraining_epochs: Of pre-training.
        finetuning_flops, finetuning_epochs: The same of fine-tuning.
    """

    name: str
    pretraining_flops: float
    pretraining_epochs: float
    finetuning_flops: float = 0
    finetuning_epochs: float = 0

    def pretraining(self, num_images: int) -> float:
        """FLOPs of pre-training (or training from scratch) on `num_images` images."""
        return self.pretraining_flops * self.pretraining_epochs * num_images

    def finetuning(self, num_images: int) -> float:
        """FLOPs of fine-tuning on `num_images` images."""
        return self.finetuning_flops * self.finetuning_epochs * num_images

    def total(self, num_images: int) -> float:
        """FLOPs of both."""
        return self.pretraining(num_images) + self.finetuning(num_images)


def published_schedules(config: SupMAEConfig, mae_config: PreTrainedConfig) -> list[Schedule]:
    """
    The schedules that the paper compares, at the size of `config`: epochs as published for ViT-B/16 on ImageNet-1K.

    Counted are the networks that are trained, and MoCo v3's momentum encoder: two crops of each image go forward and
    backward through the one and forward through the other. Not counted are MoCo v3's projection and prediction MLPs
    and BEiT's image tokenizer.

    Args:
        config: SupMAE's.
        mae_config: MAE's, with its decoder of 8 blocks.
    """
    full = classification_flops(config)
    return [
        Schedule("SupMAE", 3 * pretraining_flops(config), 400, 3 * full, 100),
        Schedule("MAE", 3 * pretraining_flops(mae_config), 1600, 3 * full, 100),
        Schedule("BEiT", 3 * full, 800, 3 * full, 100),
        Schedule("MoCo v3", 2 * 3 * full + 2 * full, 300, 3 * full, 150),
        Schedule("ViT from scratch", 3 * full, 300),
        Schedule("DeiT from scratch", 3 * full, 300),
    ]
