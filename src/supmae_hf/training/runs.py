# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What a run is: written down when it starts, so that another one is not taken for its continuation."""

import json
from dataclasses import asdict, fields

from transformers import TrainingArguments

import supmae_hf

from ..data.image_data import ImageData
from .arguments import DataArguments, ModelArguments, RecipeArguments


# Which of Transformers' arguments decide what comes out of a run. The others (logging, saving, evaluation, loading, devices,
# publishing) may change while it goes on, and so may the batch per device if a step takes as many images as before.
_COMPARED = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "warmup_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "seed",
    "bf16",
    "fp16",
    "dataloader_drop_last",
    "train_sampling_strategy",
)
# of ours, those that do not
_NOT_COMPARED = {
    "base_learning_rate",  # the learning rate that follows from it is compared
    "overwrite_output_dir",
    "sync_batchnorm",
    "license",
    "hub_timeout",
    "widget_images",
    "num_reconstructions",
    "knn_eval",
    "caption_column_name",
    "mask_column_name",
    "mask_dir",
    "objects_column_name",
    "early_stopping_patience",
    # of the model
    "attn_implementation",
    # of the data, whose fingerprint, classes and numbers are compared
    "dataset_name",
    "dataset_config_name",
    "train_dir",
    "validation_dir",
    "unlabeled_dir",
    "image_column_name",
    "label_column_name",
    "classification_branch",
    "train_val_split",
    "max_train_samples",
    "max_eval_samples",
    "on_bad_image",
}


def describe_recipe(job: str, args: RecipeArguments, facts: dict) -> dict:
    """What decides the outcome of a run: the code's version, the recipe, and other facts by name."""
    inherited = {field.name for field in fields(TrainingArguments)}
    ours = [field.name for field in fields(args) if field.name not in inherited]
    recipe = {name: getattr(args, name) for name in (*ours, *_COMPARED) if name not in _NOT_COMPARED}
    run = {"version": supmae_hf.__version__, "job": job, **facts, "images a step": args.total_batch_size, **recipe}
    return json.loads(json.dumps(run, default=lambda value: getattr(value, "value", str(value))))


def describe_run(
    job: str, model_args: ModelArguments, data_args: DataArguments, args: RecipeArguments, data: ImageData
) -> dict:
    """[`describe_recipe`] with the data and the model."""
    sizes = {
        f"{name} images": len(split) if hasattr(split, "__len__") else "a stream"
        for name, split in data.splits().items()
    }
    settings = {**asdict(model_args), **asdict(data_args)}
    settings = {name: value for name, value in settings.items() if name not in _NOT_COMPARED}
    facts = {"data": data.fingerprint(), **sizes, "classes": data.labels.names, **settings}
    return describe_recipe(job, args, facts)
