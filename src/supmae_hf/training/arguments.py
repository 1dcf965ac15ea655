# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of the example scripts."""

import difflib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import SupMAEPreTrainedModel


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from, on the Hub or a folder: SupMAE or ViTMAE."}
    )
    model_config: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of `SupMAEConfig` that differ from the checkpoint's or the defaults, as JSON."},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention: eager, sdpa, flash_attention_2, flex_attention. Default: the fastest."},
    )

    def __post_init__(self):
        self.model_config = self.model_config or {}
        if isinstance(self.model_config, str):
            try:
                self.model_config = json.loads(self.model_config)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`--model_config` is not JSON ({error}): {self.model_config}. Example: "
                    """--model_config '{"mask_ratio": 0.6}'."""
                ) from None
        for name in self.model_config:
            if name not in (fields := SupMAEConfig().to_dict()):
                similar = difflib.get_close_matches(name, fields, n=1)
                raise ValueError(
                    f"`--model_config` sets `{name}`, which is not a field of SupMAEConfig"
                    + (f": did you mean `{similar[0]}`?" if similar else f". The fields are {sorted(fields)}.")
                )

    def build(self, model_class: type[SupMAEPreTrainedModel], **fields) -> tuple[SupMAEPreTrainedModel, set[str]]:
        """
        The model, from the checkpoint or new, and the names of the parameters that are new.

        Args:
            model_class: Which SupMAE class.
            fields: Fields of the configuration; those of `--model_config` take precedence.

        Raises:
            OSError: if there is no such checkpoint.
        """
        fields = {**fields, **self.model_config}
        if self.model_name_or_path is None:
            model = model_class._from_config(SupMAEConfig(**fields), attn_implementation=self.attn_implementation)
            return model, {name for name, _ in model.named_parameters()}
        try:
            model, info = model_class.from_pretrained(
                self.model_name_or_path,
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
                **fields,
            )
        except OSError as error:
            raise OSError(
                f"There is no checkpoint '{self.model_name_or_path}', neither a folder here nor a repository that the "
                f"Hub gave us: check `--model_name_or_path`, or run examples/run_pretrain.py to make one. ({error})"
            ) from error
        return model, set(info["missing_keys"])


def _default(base: type, name: str, value):
    """The field `name` of the dataclass `base`, help and all, with another default."""
    return field(default=value, metadata=dict(base.__dataclass_fields__[name].metadata))


@dataclass
class RecipeArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] in which the learning rate follows the batch size and the warm-up is counted in
    epochs, as in the MAE family's recipes.
    """

    base_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate for 256 images a step, scaled to the images a step; replaces learning_rate."
        },
    )
    warmup_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs in which the learning rate rises linearly from 0; replaces warmup_steps."},
    )
    min_learning_rate: float = field(
        default=0.0, metadata={"help": "Where the cosine ends, in the classifier's learning rate."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew even if `--output_dir` holds a run: deletes its checkpoints."}
    )
    sync_batchnorm: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the head's BatchNorm sees the images of all processes. Default: with several processes "
            "on accelerators (PyTorch has none for the CPU)."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the trained model, for its card, such as apache-2.0."}
    )
    lr_scheduler_type: str = _default(TrainingArguments, "lr_scheduler_type", "cosine")
    weight_decay: float = _default(TrainingArguments, "weight_decay", 0.05)
    optim: str = _default(TrainingArguments, "optim", "adamw_torch_fused")
    max_grad_norm: float = _default(TrainingArguments, "max_grad_norm", 0.0)  # the recipes do not clip
    dataloader_drop_last: bool = _default(TrainingArguments, "dataloader_drop_last", True)
    remove_unused_columns: bool = _default(TrainingArguments, "remove_unused_columns", False)  # the image is one
    logging_nan_inf_filter: bool = _default(TrainingArguments, "logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _default(TrainingArguments, "ddp_find_unused_parameters", False)
    report_to: None | str | list[str] = _default(TrainingArguments, "report_to", "tensorboard")
    eval_strategy: str = _default(TrainingArguments, "eval_strategy", "epoch")
    save_strategy: str = _default(TrainingArguments, "save_strategy", "epoch")
    save_total_limit: int | None = _default(TrainingArguments, "save_total_limit", 2)

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or else each of several processes would train on its own
        if self.hub_token:
            # the Hub client finds it there; training_args.bin, which may be published, must not hold it
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        super().__post_init__()
        if self.label_names is None:
            self.label_names = ["labels"]
        if self.dataloader_num_workers:
            self.dataloader_persistent_workers = True  # starting them takes seconds, every epoch
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # only of use to an accelerator
        if self.warmup_epochs > self.num_train_epochs:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs:g} is longer than the whole run of {self.num_train_epochs:g} "
                "epochs: shorten the one or lengthen the other."
            )
        if self.base_learning_rate is not None:
            self.learning_rate = self.base_learning_rate * self.total_batch_size / 256
        if self.min_learning_rate and self.learning_rate and self.lr_scheduler_type == "cosine":
            self.lr_scheduler_type = SchedulerType.COSINE_WITH_MIN_LR
            self.lr_scheduler_kwargs = {"min_lr": self.min_learning_rate}
        if self.sync_batchnorm is None:
            self.sync_batchnorm = self.world_size > 1 and self.device.type != "cpu"
        elif self.sync_batchnorm and self.device.type == "cpu":
            raise ValueError("`--sync_batchnorm` needs accelerators: PyTorch has no SyncBatchNorm for the CPU.")

    @property
    def total_batch_size(self) -> int:
        """Images an optimiser step, over all processes and accumulation steps."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def get_warmup_steps(self, num_training_steps: int) -> int:
        if self.warmup_epochs:
            return round(num_training_steps * self.warmup_epochs / self.num_train_epochs)
        return super().get_warmup_steps(num_training_steps)


@dataclass
class PreTrainingArguments(RecipeArguments):
    """The paper's pre-training recipe: 400 epochs, AdamW (0.9, 0.95), peak learning rate 1.5e-4 for 256 images."""

    num_train_epochs: float = _default(TrainingArguments, "num_train_epochs", 400.0)
    per_device_train_batch_size: int = _default(TrainingArguments, "per_device_train_batch_size", 64)
    base_learning_rate: float | None = _default(RecipeArguments, "base_learning_rate", 1.5e-4)
    warmup_epochs: float = _default(RecipeArguments, "warmup_epochs", 20.0)
    adam_beta2: float = _default(TrainingArguments, "adam_beta2", 0.95)
    num_reconstructions: int = field(
        default=8, metadata={"help": "Held-out images in the picture of reconstructions."}
    )


@dataclass
class FineTuningArguments(RecipeArguments):
    """
    The paper's fine-tuning recipe: 100 epochs, AdamW (0.9, 0.999), peak learning rate 1e-3 for 256 images,
    layer-wise decay, stochastic depth, mixup and cutmix, RandAugment, random erasing, label smoothing.
    """

    num_train_epochs: float = _default(TrainingArguments, "num_train_epochs", 100.0)
    per_device_train_batch_size: int = _default(TrainingArguments, "per_device_train_batch_size", 64)
    base_learning_rate: float | None = _default(RecipeArguments, "base_learning_rate", 1e-3)
    min_learning_rate: float = _default(RecipeArguments, "min_learning_rate", 1e-6)
    warmup_epochs: float = _default(RecipeArguments, "warmup_epochs", 5.0)
    label_smoothing_factor: float = _default(TrainingArguments, "label_smoothing_factor", 0.1)
    layer_decay: float | None = field(
        default=0.65, metadata={"help": "Each layer's learning rate over that of the layer above."}
    )
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth of the last block."})
    mixup: float = field(default=0.8, metadata={"help": "Alpha of mixup; 0 for none."})
    cutmix: float = field(default=1.0, metadata={"help": "Alpha of cutmix; 0 for none."})
    auto_augment: str = field(
        default="rand-m9-mstd0.5-inc1", metadata={"help": "timm's augmentation policy; '' for none."}
    )
    random_erasing: float = field(default=0.25, metadata={"help": "Probability of random erasing, with noise."})
    classifier_init_std: float = field(
        default=2e-5, metadata={"help": "Standard deviation of a new classifier's weights."}
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs of images, but `--per_device_train_batch_size` is "
                f"{self.per_device_train_batch_size}: make it even, or pass `--mixup 0 --cutmix 0`."
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"`--layer_decay` must be above 0 and at most 1, got {self.layer_decay}.")


@dataclass
class SegmentationArguments(RecipeArguments):
    """
    The paper's recipe for semantic segmentation, MAE's: 160,000 steps of 16 images, AdamW, learning rate 1e-4 with
    layer-wise decay, 1,500 steps of warm-up, then linearly to 0.
    """

    max_steps: int = _default(TrainingArguments, "max_steps", 160_000)
    per_device_train_batch_size: int = _default(TrainingArguments, "per_device_train_batch_size", 16)
    learning_rate: float = _default(TrainingArguments, "learning_rate", 1e-4)
    lr_scheduler_type: str = _default(TrainingArguments, "lr_scheduler_type", "linear")
    warmup_steps: float = _default(TrainingArguments, "warmup_steps", 1500)
    eval_strategy: str = _default(
        TrainingArguments, "eval_strategy", "no"
    )  # windows slide over whole images at the end
    save_strategy: str = _default(TrainingArguments, "save_strategy", "steps")
    save_steps: float = _default(TrainingArguments, "save_steps", 2000)
    layer_decay: float | None = field(
        default=0.65, metadata={"help": "Each layer's learning rate over that of the layer above."}
    )
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth of the last block."})


@dataclass
class LinearProbeArguments(RecipeArguments):
    """
    The paper's linear probe: 90 epochs, LARS (momentum 0.9, no weight decay), peak learning rate 0.1 for 256 images.
    """

    num_train_epochs: float = _default(TrainingArguments, "num_train_epochs", 90.0)
    per_device_train_batch_size: int = _default(TrainingArguments, "per_device_train_batch_size", 512)
    base_learning_rate: float | None = _default(RecipeArguments, "base_learning_rate", 0.1)
    warmup_epochs: float = _default(RecipeArguments, "warmup_epochs", 10.0)
    weight_decay: float = _default(TrainingArguments, "weight_decay", 0.0)
    probe: str = field(
        default="lars",
        metadata={
            "help": "lars trains on augmented images, as the paper does; logistic (scikit-learn's regression) and knn "
            "compute the features of each image once.",
            "choices": ["lars", "logistic", "knn"],
        },
    )
    use_mean_pooling: bool = field(
        default=False,
        metadata={"help": "Probe the mean of the patch tokens instead of the class token."},
    )
    num_neighbors: int = field(default=20, metadata={"help": "Neighbours that vote, for `--probe knn`."})
    inverse_regularization: float = field(default=1.0, metadata={"help": "scikit-learn's C, for `--probe logistic`."})


def read_recipe(path: str | Path) -> dict:
    """
    The argument names and values of a YAML recipe.

    Raises:
        ValueError: if the file is not a YAML mapping.
    """
    values = yaml.safe_load(Path(path).read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it must map argument names to values, as in examples/configs/.")
    return values


def as_flags(values: dict) -> list[str]:
    """A recipe as command-line arguments."""
    flags = []
    for name, value in values.items():
        if value is not None:
            texts = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            flags += [f"--{name}", *map(str, texts)]
    return flags


def parse_arguments(argument_classes, default_recipe: str | Path, argv: list[str] | None = None):
    """
    Parse `[RECIPE.yaml] [--flag value ...]` into one dataclass each. Flags override the recipe; `--model_config`
    overrides the fields that it names.

    Without a recipe and without a data set (`--dataset_name`, `--train_dir`) the `default_recipe` is read, so that a
    script runs as it stands.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(argument_classes)
    try:
        names_data = any(flag.split("=")[0].replace("-", "_") in ("__dataset_name", "__train_dir") for flag in argv)
        if argv and argv[0].endswith((".yaml", ".yml")):
            recipe = read_recipe(argv.pop(0))
        else:
            recipe = {} if names_data else read_recipe(default_recipe)
        (model_args, *others) = parser.parse_args_into_dataclasses(args=as_flags(recipe) + argv)
        model_args.model_config = {**(recipe.get("model_config") or {}), **model_args.model_config}
        return (model_args, *others)
    except (OSError, ValueError) as error:
        parser.error(str(error))
