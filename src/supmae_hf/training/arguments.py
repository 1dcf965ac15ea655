# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of the training scripts."""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from timm.data import create_transform
from transformers import SchedulerType, TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import IntervalStrategy

from ..cli import Count, NotNegative, Positive, Share, ShareAbove0, ShareBelow1, check, read_fields
from ..configuration_supmae import SupMAEConfig, check_count
from ..hub import check_license


# What Transformers' Trainer can do and a run cannot that is to end as if it had not been interrupted
_REFUSED = {
    "auto_find_batch_size": "would change the images a step, and with them the learning rate, without a word: lower "
    "`--per_device_train_batch_size` and raise `--gradient_accumulation_steps`.",
    "save_only_model": "leaves nothing to go on from: leave it out. `--save_total_limit` keeps few checkpoints.",
    "ignore_data_skip": "would go on with other images than those that are left: leave it out.",
    "enable_jit_checkpoint": "is not needed: a run saves when it is told to stop. Leave it out.",
}


@dataclass
class ModelArguments:
    """The model to train, new or from a checkpoint: see docs/checkpoints.md."""

    model_name_or_path: str | None = HfArg(
        default=None,
        help="Checkpoint to start from, on the Hub or a folder: SupMAE, or another plain ViT (ViT, DeiT, DINO, DINOv2, "
        "ViTMAE, ViT-MSN, timm's).",
    )
    model_config: dict | str | None = HfArg(
        default=None, help="Fields of `SupMAEConfig` that differ from the checkpoint's or the defaults, as JSON."
    )
    attn_implementation: str | None = HfArg(
        default=None,
        help="Attention: eager, sdpa, flash_attention_2, flex_attention. Default: eager for bf16 on a CPU, where it "
        "is the fastest, else Transformers' choice.",
    )

    def __post_init__(self):
        self.model_config = read_fields(self.model_config)
        config = SupMAEConfig()
        fields = {**config.to_dict(), "num_labels": config.num_labels}
        for name, value in self.model_config.items():
            if name not in fields:
                similar = difflib.get_close_matches(name, fields, n=1)
                raise ValueError(
                    f"`--model_config` sets `{name}`, which is not a field of SupMAEConfig"
                    + (f": did you mean `{similar[0]}`?" if similar else f". The fields are {sorted(fields)}.")
                )
            if name in ("num_labels", "dense_classes", "caption_vocab_size") and isinstance(value, int):
                check_count(name, value)
            if isinstance(value, str) and isinstance(fields[name], (int, float)):
                try:
                    self.model_config[name] = json.loads(value)
                except json.JSONDecodeError:
                    raise ValueError(f"`--model_config` sets `{name}` to '{value}', which is not a number.") from None


def _default(name: str, value):
    """A field of TrainingArguments, help and all, with another default."""
    return field(default=value, metadata=dict(TrainingArguments.__dataclass_fields__[name].metadata))


@dataclass
class RecipeArguments(TrainingArguments):
    """
    The run: a learning rate that follows the batch size, a warm-up in epochs, what is kept and published.

    [`~transformers.TrainingArguments`] as the MAE family's recipes have them, which are in `recipes/*.yaml`.
    """

    base_learning_rate: NotNegative | None = HfArg(
        default=None,
        help="Peak learning rate for 256 images a step, scaled to the images a step; replaces learning_rate.",
    )
    warmup_epochs: NotNegative = HfArg(
        default=0.0, help="Epochs in which the learning rate rises linearly from 0; replaces warmup_steps."
    )
    min_learning_rate: NotNegative = HfArg(
        default=0.0, help="Learning rate of the classifier at the end of the cosine."
    )
    layer_decay: ShareAbove0 | None = HfArg(
        default=None,
        help="Each layer's learning rate over that of the layer above; for fine-tuning, and to go on from a ViT.",
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="Start anew even if `--output_dir` holds a run: deletes what it wrote."
    )
    sync_batchnorm: bool | None = HfArg(
        default=None,
        help="Whether the head's BatchNorm sees the images of all processes. Default: with several processes "
        "on accelerators (PyTorch has none for the CPU).",
    )
    early_stopping_patience: Count | None = HfArg(
        default=None, help="Stop after so many evaluations without a better one, and keep the best weights."
    )
    license: str | None = HfArg(default=None, help="Licence of the trained model, for its card, such as apache-2.0.")
    widget_images: bool = HfArg(
        default=False,
        help="Publish held-out images: a few as examples for the page's widget, and the picture of reconstructions.",
    )
    hub_timeout: Positive = HfArg(
        default=600.0, help="Seconds that a run waits for an upload to the Hub when all else is done."
    )
    optim: str = _default("optim", "adamw_torch_fused")
    max_grad_norm: float = _default("max_grad_norm", 0.0)  # the recipes do not clip
    dataloader_drop_last: bool = _default("dataloader_drop_last", True)
    remove_unused_columns: bool = _default("remove_unused_columns", False)  # the image is one
    logging_nan_inf_filter: bool = _default("logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _default("ddp_find_unused_parameters", False)
    report_to: None | str | list[str] = _default("report_to", "tensorboard")
    logging_steps: float = _default("logging_steps", 50)
    eval_strategy: str = _default("eval_strategy", "epoch")
    save_strategy: str = _default("save_strategy", "epoch")
    save_total_limit: int | None = _default("save_total_limit", 2)

    best_metric = "eval_loss"  # by which runs are stopped early
    can_publish = True
    repeated_augmentation = 1  # which pre-training alone can set

    def __post_init__(self):
        check(self)
        if self.license is not None:
            check_license(self.license)
        for name, reason in _REFUSED.items():
            if getattr(self, name, False):
                raise ValueError(f"`--{name}` {reason}")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise ValueError(
                "`--overwrite_output_dir` begins anew, `--resume_from_checkpoint` goes on: give one of them."
            )
        if self.push_to_hub and not self.can_publish:
            raise ValueError("`--push_to_hub` is for pre-training and fine-tuning: leave it out.")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or else each of several processes would train on its own
        if self.hub_token:
            # the Hub client finds it there; training_args.bin, which may be published, must not hold it
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True  # which sees to it that evaluations and checkpoints go together
            self.metric_for_best_model = self.metric_for_best_model or self.best_metric
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
        if self.save_total_limit == 1:
            raise ValueError(
                "`--save_total_limit` 1 leaves nothing to go on from if a run is killed while it saves: use 2 or more."
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

    def check_best_metric(self, names: Sequence[str]):
        """Raise a `ValueError` if checkpoints are compared by something else than the evaluation's metrics `names`."""
        name = self.metric_for_best_model
        if name is not None and name.removeprefix("eval_") not in names:
            raise ValueError(f"`--metric_for_best_model` {name} is none of {', '.join(names)}.")

    def without_evaluation(self):
        """
        Turn evaluation off, since nothing is held out.

        Raises:
            ValueError: if arguments depend on an evaluation.
        """
        if self.early_stopping_patience is not None or self.load_best_model_at_end:
            raise ValueError(
                "`--early_stopping_patience` and `--load_best_model_at_end` need held-out images: `--train_val_split` 0 "
                "leaves none."
            )
        self.eval_strategy, self.do_eval = IntervalStrategy.NO, False

    @property
    def total_batch_size(self) -> int:
        """Images an optimiser step, over all processes and accumulation steps."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def check_num_images(self, num_images: int, num_views: int = 1):
        """
        Raises:
            ValueError: if a step takes more images, of `num_views` views each, than there are.
        """
        needed = self.total_batch_size // num_views
        if num_images < needed:
            raise ValueError(
                f"A step takes {needed} images but there are only {num_images} to train on: lower "
                "`--per_device_train_batch_size` or `--gradient_accumulation_steps`."
            )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        if self.warmup_epochs:
            return round(num_training_steps * self.warmup_epochs / self.num_train_epochs)
        return super().get_warmup_steps(num_training_steps)


@dataclass
class AnnotationArguments:
    """Captions, masks and boxes of the images, to learn from besides their labels: see docs/supervision.md."""

    caption_column_name: str | None = HfArg(
        default=None, help="Column of captions, from whose words the model learns (docs/supervision.md)."
    )
    tokenizer_name: str | None = HfArg(
        default=None, help="Tokenizer of the captions, on the Hub or a folder. Default: one of the captions' words."
    )
    mask_column_name: str | None = HfArg(
        default=None, help="Column of masks, images of class indices, from which the model learns."
    )
    mask_dir: str | None = HfArg(
        default=None, help="Folder of masks, at the places or with the names of the training images."
    )
    reduce_labels: bool = HfArg(
        default=False, help="Mask value 0 is no class, and class 0 is stored as 1, as in ADE20K."
    )
    objects_column_name: str | None = HfArg(
        default=None, help="Column of objects, `bbox` and `category`, from which the model learns."
    )
    objects_file: list[str] | None = HfArg(
        default=None, help="Files of objects in COCO's format (instances_train.json), by the names of the images."
    )
    box_format: Literal["xywh", "xyxy", "cxcywh", "rel_xywh", "rel_xyxy", "rel_cxcywh"] = HfArg(
        default="xywh",
        help="Format of boxes: left, top, width and height in pixels; two corners; centre and size; or, with rel_, fractions of "
        "the image's width and height.",
    )
    mask_colors: list[str] | None = HfArg(
        default=None, help="Colour of each class, in their order, in masks of colours: 000000 800040."
    )
    annotations_as_stored: bool = HfArg(
        default=False,
        help="Take boxes and masks to be of the pixels as files store them, for images that an EXIF orientation turns. Default: of "
        "the upright image.",
    )


@dataclass
class PreTrainingArguments(AnnotationArguments, RecipeArguments):
    """Pre-training: masks, few labels. The paper's recipe is `training/recipes/pretrain.yaml`."""

    num_reconstructions: Count = HfArg(default=8, help="Held-out images in the picture of reconstructions.")
    train_position_embeddings: bool = HfArg(
        default=False,
        help="Train the encoder's position embeddings, too: for those of other ViTs, which are learnt. SupMAE's own are "
        "sines and cosines, and fixed.",
    )
    labeled_share: ShareBelow1 = HfArg(
        default=0.0,
        help="Smallest share of labelled images in an epoch, if only some have a label: they come several times, each "
        "time with another crop and mask, in the place of others. Default: every image comes once.",
    )
    repeated_augmentation: Count = HfArg(
        default=1,
        help="Number of views of an image in a step, each with its crop and mask: the image is decoded once, a step takes so many "
        "times fewer images, and an epoch so many times more steps.",
    )
    knn_eval: bool = HfArg(
        default=False,
        help="Log, at every evaluation, the accuracy of nearest neighbours of held-out images among (at most 10,000) "
        "labelled training images, whether or not there is a classification branch.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.tokenizer_name and not self.caption_column_name:
            raise ValueError("`--tokenizer_name` needs `--caption_column_name`.")
        if self.mask_colors and not (self.mask_column_name or self.mask_dir):
            raise ValueError("`--mask_colors` is for masks: give `--mask_column_name` or `--mask_dir`.")
        if self.box_format != "xywh" and not (self.objects_column_name or self.objects_file):
            raise ValueError("`--box_format` is for boxes: give `--objects_column_name` or `--objects_file`.")
        if self.reduce_labels and not (self.mask_column_name or self.mask_dir):
            raise ValueError("`--reduce_labels` is for masks: give `--mask_column_name` or `--mask_dir`.")
        if self.mask_dir and not os.path.isdir(self.mask_dir):
            raise FileNotFoundError(f"`--mask_dir` {self.mask_dir} is not a folder.")
        if self.per_device_train_batch_size % self.repeated_augmentation:
            raise ValueError(
                f"`--repeated_augmentation` {self.repeated_augmentation} does not divide `--per_device_train_batch_size` "
                f"{self.per_device_train_batch_size}, in which all views of an image are: change one of them."
            )
        if self.labeled_share and self.train_sampling_strategy != "random":
            raise ValueError("`--labeled_share` draws the images of an epoch: leave out `--train_sampling_strategy`.")


@dataclass
class FineTuningArguments(RecipeArguments):
    """Fine-tuning: augmentation and regularisation. The paper's recipe is `training/recipes/finetune.yaml`."""

    drop_path_rate: ShareBelow1 = HfArg(default=0.0, help="Stochastic depth of the last block.")
    mixup: NotNegative = HfArg(default=0.0, help="Alpha of mixup; 0 for none.")
    cutmix: NotNegative = HfArg(default=0.0, help="Alpha of cutmix; 0 for none.")
    auto_augment: str = HfArg(default="", help="timm's augmentation policy; '' for none.")
    random_erasing: Share = HfArg(default=0.0, help="Probability of random erasing, with noise.")
    class_weights: Literal["balanced"] | None = HfArg(
        default=None,
        help="balanced: weigh the loss of each class by the inverse of its number of training images. Default: all images alike.",
        metadata={"choices": ["balanced"]},
    )
    classifier_init_std: NotNegative = HfArg(default=2e-5, help="Standard deviation of a new classifier's weights.")

    best_metric = "eval_top1"

    def compare_checkpoints_by(self, metric: str):
        """Let another metric than the accuracy decide which checkpoint is best, unless the user has named one."""
        if self.metric_for_best_model == self.best_metric:
            self.metric_for_best_model, self.greater_is_better = metric, not metric.endswith("loss")

    def __post_init__(self):
        super().__post_init__()
        if self.auto_augment:
            try:
                create_transform(32, is_training=True, auto_augment=self.auto_augment)
            except Exception as error:  # timm has several
                raise ValueError(
                    "`--auto_augment` must be a policy of timm, such as rand-m9-mstd0.5-inc1, got "
                    f"{self.auto_augment}." + (f" ({error})" if str(error) else "")
                ) from error
        if (self.mixup or self.cutmix) and self.per_device_train_batch_size % 2:
            raise ValueError(
                f"mixup and cutmix mix pairs of images, but `--per_device_train_batch_size` is "
                f"{self.per_device_train_batch_size}: make it even, or pass `--mixup 0 --cutmix 0`."
            )


@dataclass
class SegmentationArguments(RecipeArguments):
    """Semantic segmentation. The paper's recipe is `training/recipes/segmentation.yaml`."""

    can_publish = False

    drop_path_rate: ShareBelow1 = HfArg(default=0.0, help="Stochastic depth of the last block.")
