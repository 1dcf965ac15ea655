# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Any image model of Transformers as a classifier, or as an encoder with pooled features."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from ..data.dataset import collate
from ..data.labels import imagenet_indices
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForImageClassification


logger = logging.get_logger(__name__)


def check_models(names: Sequence[str], *loaders: Callable):
    """
    Raise an `OSError` or `ValueError` for the first checkpoint that does not exist, is of an unknown type, or that one of
    `loaders` refuses: before the work on the others begins.
    """
    for name in names:
        _load_config(name)
        for load in loaders:
            load(name)


def _load_config(name: str):
    try:
        return load_pretrained(AutoConfig, name)
    except (OSError, ValueError) as error:
        raise (OSError if isinstance(error, OSError) else ValueError)(
            f"There is no model '{name}' that Transformers can load, neither a folder here nor a repository that the Hub "
            f"gave us: check `--models`. ({error})"
        ) from error


def load_classifier(name: str) -> PreTrainedModel:
    """
    An image classifier of any architecture, from a folder or the Hub.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if the checkpoint has no trained classifier.
    """
    _load_config(name)
    model, info = load_pretrained(AutoModelForImageClassification, name, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"'{name}' is not a trained classifier: {', '.join(sorted(info['missing_keys']))} would be random. Fine-tune "
            "it first (examples/run_finetune.py), or probe it (examples/run_few_shot.py)."
        )
    return model.eval()


def fingerprint(name: str) -> str:
    """A checkpoint's name and, for a folder, when its files were last written: what its results are filed under."""
    files = [path for path in Path(name).glob("*") if path.is_file()] if Path(name).is_dir() else []
    times = [os.stat(path).st_mtime_ns for path in files]
    return f"{name}@{max(times)}" if times else name


def map_classes(names: Sequence[str], model: PreTrainedModel) -> list[int]:
    """
    The model's output for each class of a data set: by WordNet identifier for a model with ImageNet's 1,000 classes, by
    the model's own class names, or, if there are as many classes, in order.

    Raises:
        ValueError: if the classes are not the model's.
    """
    config = model.config
    places = imagenet_indices(names)
    if places is not None and config.num_labels == 1000:
        return places
    own = [str(config.id2label[index]).lower() for index in range(config.num_labels)]
    # by name, unless two of the model's classes share it: ImageNet has two cranes
    if all(own.count(name.lower()) == 1 for name in names):
        return [own.index(name.lower()) for name in names]
    if len(names) == config.num_labels:
        if [name.lower() for name in names] != own:
            logger.warning(
                f"The data set's class names ({', '.join(names[:3])}, ...) are not the model's "
                f"({', '.join(own[:3])}, ...): they are taken to be in the same order."
            )
        return list(range(len(names)))
    raise ValueError(
        f"The data set has {len(names)} classes ({', '.join(names[:3])}, ...), the model {config.num_labels} others "
        f"({', '.join(own[:3])}, ...): choose another model or data set, or name the classes alike."
    )


@torch.no_grad()
def predict(
    model: nn.Module, dataset, args, function: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Run a model on each image of a data set, in as many processes as `accelerate launch` started.

    Args:
        model: Moved to the device.
        dataset: An [`ImageDataset`] or another data set of `pixel_values` and `labels`.
        args ([`DeviceArguments`] or [`~transformers.TrainingArguments`]): Batch size, workers and device.
        function: From `pixel_values` to a tensor with one row per image; by default the `logits` of the model.

    Returns:
        Rows `(num_images, ...)` and labels `(num_images,)`.
    """
    accelerator = Accelerator(cpu=args.use_cpu)
    batch_size, num_workers = args.per_device_eval_batch_size, args.dataloader_num_workers
    loader = torch.utils.data.DataLoader(dataset, batch_size, collate_fn=collate, num_workers=num_workers)
    loader = accelerator.prepare(loader)
    model.to(accelerator.device).eval()
    function = function or (lambda pixel_values: model(pixel_values).logits)
    rows, labels = [], []
    for batch in loader:
        with accelerator.autocast():
            output = function(batch["pixel_values"])
        output, batch_labels = accelerator.gather_for_metrics((output, batch["labels"]))
        rows.append(output.float().cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()


class ImageEncoder(nn.Module):
    """
    An image model as a function from `pixel_values` to features of shape `(batch_size, hidden_size)`.

    Args:
        name (`str`):
            Checkpoint, in a folder or on the Hub: SupMAE, ViTMAE (all of whose patches are encoded), ViT, DeiT, BEiT,
            DINOv2, CLIP and SigLIP (their vision towers), convolutional networks, timm models, ...
        pooling (`str`, *optional*, defaults to `"model"`):
            `"cls"` takes the class token, `"mean"` the average of the patch tokens, `"model"` what the model's own
            classifier is given: SupMAE, BEiT and DINOv2 as their configuration says, ViTMAE, ViT and DeiT the class token,
            others their pooled output.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if the model is not one of images, or has no tokens to pool in that way.
    """

    def __init__(self, name: str, pooling: str = "model"):
        super().__init__()
        if pooling not in ("model", "cls", "mean"):
            raise ValueError(f"`pooling` must be model, cls or mean, got '{pooling}'.")
        self.name, self.pooling = name, pooling
        config = _load_config(name)
        options = {}
        if config.model_type in ("supmae", "vit_mae"):
            # as its classifier has it: mean of the tokens and LayerNorm, or LayerNorm and class token
            is_mean = pooling == "mean" or pooling == "model" and getattr(config, "use_mean_pooling", False)
            self.model = load_pretrained(SupMAEForImageClassification, name, use_mean_pooling=is_mean)
            self.model.classifier = nn.Identity()
            self.hidden_size = self.model.config.hidden_size
            self.config = self.model.config
            return
        model_class = MODEL_MAPPING.get(type(config), None)
        has_optional_pooler = model_class and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        if has_optional_pooler and not getattr(config, "use_mean_pooling", False):
            options["add_pooling_layer"] = False  # BERT's tanh, which no classifier uses
        model = load_pretrained(AutoModel, name, **options)
        self.model = getattr(model, "vision_model", model)
        if self.model is not model and not hasattr(self.model, "config"):
            self.model.config = model.config.vision_config
        self.config = self.model.config
        if self.model is model and model.main_input_name != "pixel_values":
            raise ValueError(f"'{name}' is not a model of images but of `{model.main_input_name}`.")
        sizes = getattr(self.config, "image_size", None) or getattr(self.config, "pretrained_cfg", {}).get(
            "input_size"
        )
        sizes = sizes[-2:] if isinstance(sizes, (list, tuple)) else (sizes or 224,) * 2
        with torch.no_grad():
            self.hidden_size = self(torch.zeros(1, getattr(self.config, "num_channels", 3), *sizes)).shape[-1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encode(pixel_values)[0]

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Features `(batch_size, hidden_size)` and, if the model has them, the tokens of the patches (for networks of stages: of
        the places of the last map) in raster order, `(batch_size, num_patches, hidden_size)`.
        """
        if isinstance(self.model, SupMAEForImageClassification):
            outputs = self.model.vit(pixel_values)
            return tuple(self.model.fc_norm(x) for x in (outputs.pooler_output, outputs.last_hidden_state[:, 1:]))
        outputs = self.model(pixel_values)
        pooled = outputs.get("pooler_output")
        tokens = outputs.get("last_hidden_state")
        class_token = None
        if tokens is not None:
            if tokens.ndim == 4:
                tokens = tokens.flatten(2).transpose(1, 2)
            else:
                class_token = tokens[:, 0]
                tokens = tokens[:, self._num_prefix_tokens(pixel_values, tokens) :]
        if self.pooling == "model" and pooled is not None:
            return pooled.flatten(1), tokens
        if self.pooling == "cls" and class_token is None:
            raise ValueError(f"'{self.name}' has no class token: choose another `--pooling`.")
        return (tokens.mean(dim=1) if self.pooling == "mean" or class_token is None else class_token), tokens

    def _num_prefix_tokens(self, pixel_values: torch.Tensor, tokens: torch.Tensor) -> int:
        """Class, distillation and register tokens: those that are not of a patch."""
        patch_size = getattr(self.config, "patch_size", None)
        if patch_size is None:
            return getattr(getattr(self.model, "timm_model", None), "num_prefix_tokens", 1)
        patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        height, width = pixel_values.shape[-2:]
        return tokens.shape[1] - (height // patch_height) * (width // patch_width)
