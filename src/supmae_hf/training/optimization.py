# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Optimiser and learning-rate schedule of the recipes, the same for the Trainer and the Accelerate loop."""

import re

import torch
from transformers import PreTrainedModel, Trainer, get_scheduler

from .arguments import RecipeArguments


def layer_of(name: str, num_layers: int) -> int:
    """
    Depth of a parameter for layer-wise decay: 0 for the embeddings, then the blocks, then all that follows; by the names
    that Transformers' image encoders have.
    """
    if match := re.search(r"(?:^|\.)layers?\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"(?:^|\.)embeddings\.", name) else num_layers + 1


def parameter_groups(
    model: PreTrainedModel, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict]:
    """
    The trainable parameters with their learning rates and weight decays.

    Biases, norms and other vectors never decay. Pre-training (`layer_decay=None`) decays the class and mask tokens;
    fine-tuning, as in BEiT and MAE, spares class token and position embeddings.

    Args:
        layer_decay (`float`, *optional*):
            Layer-wise learning-rate decay (BEiT, arXiv 2106.08254): the classifier learns at `learning_rate`, each
            layer below at `layer_decay` times the one above. Networks without numbered layers learn at one rate.

    Returns:
        One group per learning rate and weight decay, with the names of its parameters under `"names"`.
    """
    groups = {}
    num_layers = getattr(getattr(model.config, "backbone_config", model.config), "num_hidden_layers", None)
    if num_layers is None:
        layer_decay = None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1
        scale = 1.0
        if layer_decay is not None:
            decays = decays and not name.endswith(("cls_token", "register_tokens", "position_embeddings"))
            scale = layer_decay ** (num_layers + 1 - layer_of(name, num_layers))
        group = groups.setdefault(
            (scale, decays),
            {
                "params": [],
                "names": [],
                "lr": learning_rate * scale,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def create_optimizer(model: PreTrainedModel, args: RecipeArguments) -> torch.optim.Optimizer:
    """The optimiser that `args` describe; `--optim` takes the names that [`~transformers.Trainer`] knows."""
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, getattr(args, "layer_decay", None))
    for group in groups:
        del group["names"]
    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return optimizer_class(groups, **kwargs)


def create_scheduler(
    optimizer: torch.optim.Optimizer, args: RecipeArguments, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up from 0, then half a cosine down to `args.min_learning_rate`, set anew before every step."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(num_training_steps),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
