# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The cost of training in floating-point operations (FLOPs; a multiplication and an addition are two). PyTorch counts those of
matrix multiplications and convolutions. The rest (normalisation, activations, softmax) is less than 1% of the arithmetic. A
training step takes three times the forward pass.
"""

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel, ViTMAEForPreTraining

from .configuration_supmae import SupMAEConfig, to_pair
from .modeling_supmae import SupMAEForImageClassification, SupMAEForPreTraining


@torch.no_grad()
def forward_flops(model_class: type[PreTrainedModel], config: PreTrainedConfig, **inputs) -> int:
    """
    FLOPs of one image's forward pass, counted without computing anything.

    Args:
        model_class, config: Class and configuration of any image model of Transformers.
        inputs: Arguments of `forward` beside `pixel_values`.
    """
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config)).eval()
        model.set_attn_implementation("eager")  # whose operations can be counted
        pixel_values = torch.empty(1, config.num_channels, *to_pair(config.image_size))
        with FlopCounterMode(display=False) as counter:
            model(pixel_values, **inputs)
    return counter.get_total_flops()


def classification_flops(config: SupMAEConfig) -> int:
    """FLOPs of one image through a classifier of whole images."""
    return forward_flops(SupMAEForImageClassification, config)


def pretraining_flops(config: PreTrainedConfig) -> int:
    """FLOPs of one image through [`SupMAEForPreTraining`] or, by the type of the configuration, `ViTMAEForPreTraining`."""
    return forward_flops(SupMAEForPreTraining if isinstance(config, SupMAEConfig) else ViTMAEForPreTraining, config)


@dataclass(frozen=True)
class Schedule:
    """
    Training with a method.

    Args:
        name: Name of the method.
        pretraining_flops: FLOPs of one image in one epoch of pre-training, forward and backward.
        pretraining_epochs: Number of epochs of pre-training.
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
