# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What the arguments of the scripts may be: ranges and choices by name, the same wherever a name occurs."""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from timm.data import create_transform
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with or without the two themselves, and one that says "not set"; never NaN or infinity."""

    low: float = 0
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    unset: float | None = None

    def __contains__(self, value) -> bool:
        if value == self.unset:
            return True
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "a finite number"
        if self.high == math.inf:
            return f"{self.low:g} or more" if self.includes_low else f"above {self.low:g}"
        return f"{'at least' if self.includes_low else 'above'} {self.low:g} and " + (
            f"at most {self.high:g}" if self.includes_high else f"below {self.high:g}"
        )


_NOT_NEGATIVE = Range()
_POSITIVE = Range(includes_low=False)
_FINITE = Range(-math.inf)
_COUNT = Range(1)
_SHARE = Range(high=1)
_SHARE_BELOW_1 = Range(high=1, includes_high=False)
_SHARE_ABOVE_0 = Range(high=1, includes_low=False)
_SEED = Range(high=2**32 - 1)

RANGES = {
    # length and batches
    "num_train_epochs": _POSITIVE,
    "max_steps": Range(1, unset=-1),
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    # optimisation
    "learning_rate": _NOT_NEGATIVE,
    "base_learning_rate": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "layer_decay": _SHARE_ABOVE_0,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _SHARE_BELOW_1,
    "adam_beta2": _SHARE_BELOW_1,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "label_smoothing_factor": _SHARE_BELOW_1,
    "drop_path_rate": _SHARE_BELOW_1,
    "mixup": _NOT_NEGATIVE,
    "cutmix": _NOT_NEGATIVE,
    "random_erasing": _SHARE,
    "classifier_init_std": _NOT_NEGATIVE,
    "labeled_share": _SHARE_BELOW_1,
    "repeated_augmentation": _COUNT,
    "pseudo_label_threshold": _SHARE_ABOVE_0,
    # logging, evaluation and saving; shares of the run if below 1
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "eval_delay": _NOT_NEGATIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "early_stopping_patience": _COUNT,
    "num_reconstructions": _COUNT,
    # chance and processes
    "seed": _SEED,
    "data_seed": _SEED,
    "label_seed": _SEED,
    "dataloader_num_workers": Range(high=max(32, 4 * (os.cpu_count() or 1))),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_timeout": _COUNT,
    "hub_timeout": _POSITIVE,
    "ddp_bucket_cap_mb": _COUNT,
    # data
    "train_val_split": _SHARE_BELOW_1,
    "label_fraction": _SHARE_ABOVE_0,
    "shuffle_buffer_size": _COUNT,
    "max_train_samples": _COUNT,
    "max_eval_samples": _COUNT,
    "max_samples": _COUNT,
    "eval_crop_ratio": _SHARE_ABOVE_0,
    "channels": _NOT_NEGATIVE,
    "crop_scale": _SHARE_ABOVE_0,
    "image_mean": _FINITE,
    "image_std": _POSITIVE,
    "pixel_range": _FINITE,
    # evaluation
    "images_per_file": _COUNT,
    "size": _COUNT,
    "quality": Range(1, 95),
    "num_nearest": _COUNT,
    "num_neighbors": _COUNT,
    "inverse_regularization": _POSITIVE,
    "shots": Range(2),  # hyper-parameters are chosen on some of the images
    "epochs": _COUNT,
    "train_batch_size": _COUNT,
    "learning_rates": _POSITIVE,
    "seeds": _SEED,
    "severities": Range(1, 5),
    "num_classes": _COUNT,
    "crop_size": _COUNT,
    "stride": _COUNT,
    "decoder_hidden_size": _COUNT,
}

# where the parser does not know them
CHOICES = {
    "optim": [choice.value for choice in OptimizerNames],
    "eval_strategy": [choice.value for choice in IntervalStrategy],
    "save_strategy": [choice.value for choice in SaveStrategy],
    "train_sampling_strategy": ["random", "sequential"],
}


def find_mistakes(values: Mapping) -> list[str]:
    """What is wrong with the values of arguments by name, a line each; `None` is always right."""
    lines = []
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        if name in RANGES:
            wrong = [x for x in several if isinstance(x, (int, float)) and x not in RANGES[name]]
            lines += [f"`--{name}` must be {RANGES[name]}, got {wrong[0]}."] if wrong else []
        elif name in CHOICES and value is not None:
            text = value.value if isinstance(value, Enum) else str(value)
            if text not in CHOICES[name]:
                lines.append(f"`--{name}` must be {_listed(text, CHOICES[name])}, got {text}.")
        elif name == "report_to" and value is not None:
            known = ["all", "none", *get_available_reporting_integrations()]
            wrong = [x for x in several if x not in known]
            lines += [f"`--report_to` must be {_listed(wrong[0], known)}, got {wrong[0]}."] if wrong else []
        elif name == "auto_augment" and value:
            try:
                create_transform(32, is_training=True, auto_augment=value)
            except Exception as error:  # timm has several
                detail = f" ({error})" if str(error) else ""
                lines.append(
                    f"`--auto_augment` must be a policy of timm, such as rand-m9-mstd0.5-inc1, got {value}.{detail}"
                )
    return lines


def _listed(value: str, choices: list[str]) -> str:
    """The choices, or if they are many those that look like the value."""
    if len(choices) > 12:
        choices = difflib.get_close_matches(value, choices, n=3, cutoff=0.4) or choices[:3]
        return f"one of Transformers' names, such as {', '.join(choices)}"
    return f"one of {', '.join(choices)}"


def check(arguments):
    """
    Check a dataclass of arguments.

    Raises:
        ValueError: with a line for each mistake.
    """
    mistakes = find_mistakes(vars(arguments))
    if mistakes:
        raise ValueError("\n".join(mistakes))
