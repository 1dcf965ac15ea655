# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Any image model of Transformers as a classifier, or as an encoder with pooled features."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from ..data.labels import imagenet_indices
from ..loading import load_pretrained


logger = logging.get_logger(__name__)


def check_models(names: Sequence[str], *loaders: Callable):
    """
    Raise an `OSError` or `ValueError` for the first checkpoint that does not exist, is of an unknown type, or that one of
    `loaders` refuses: before the work on the others begins.
    """
    for name in names:
        load_config(name)
        for load in loaders:
            load(name)


def load_config(name: str):
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
    load_config(name)
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
