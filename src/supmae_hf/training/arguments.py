# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What can be set in the training scripts, and the models and data sets that follow from it."""

import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig
from ..data.dataset import ImageDataset, ImageStream
from ..data.labels import Labels
from ..data.sources import find_image_column, load_training_splits, number_of_images
from ..data.transforms import TrainTransform, build_image_processor
from ..modeling_supmae import SupMAEForPreTraining, SupMAEPreTrainedModel
from .cpu import fastest_attention, prepare_cpu


logger = logging.get_logger(__name__)

Images = ImageDataset | ImageStream


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
        metadata={
            "help": "Attention: eager, sdpa, flash_attention_2, flex_attention. Default: eager for bf16 on a CPU, where it "
            "is the fastest, else Transformers' choice."
        },
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
        self.check()

    def check(self):
        """Raise a `ValueError` if `model_config` names what is not a field."""
        for name in self.model_config:
            if name not in (fields := SupMAEConfig().to_dict()):
                similar = difflib.get_close_matches(name, fields, n=1)
                raise ValueError(
                    f"`--model_config` sets `{name}`, which is not a field of SupMAEConfig"
                    + (f": did you mean `{similar[0]}`?" if similar else f". The fields are {sorted(fields)}.")
                )

    def build(
        self, model_class: type[SupMAEPreTrainedModel], training_args: TrainingArguments, **fields
    ) -> tuple[SupMAEPreTrainedModel, set[str]]:
        """
        The model, from the checkpoint or new, and the names of the parameters that are new.

        Args:
            model_class: Which SupMAE class.
            training_args: Whose device and precision decide the default of `attn_implementation`.
            fields: Fields of the configuration; those of `--model_config` take precedence.

        Raises:
            OSError: if there is no such checkpoint.
        """
        fields = {**fields, **self.model_config}
        attention = self.attn_implementation or fastest_attention(training_args.device, training_args.bf16)
        if attention is not None:
            fields["attn_implementation"] = attention
        if self.model_name_or_path is None:
            model = model_class(SupMAEConfig(**fields))
            return model, {name for name, _ in model.named_parameters()}
        try:
            model, info = model_class.from_pretrained(self.model_name_or_path, output_loading_info=True, **fields)
        except OSError as error:
            raise OSError(
                f"There is no checkpoint '{self.model_name_or_path}', neither a folder here nor a repository that the "
                f"Hub gave us: check `--model_name_or_path`, or run examples/run_pretrain.py to make one. ({error})"
            ) from error
        return model, set(info["missing_keys"])


@dataclass
class DataArguments:
    """Where images and labels come from, and how images are cropped."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a local folder that `datasets.load_dataset` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_dir: str | None = field(
        default=None, metadata={"help": "Folder of training images, one sub-folder per class (`imagefolder` layout)."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of held-out images, in the same layout."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Image column, if the data set has several columns of the type Image."}
    )
    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Label column, if there isn't exactly one of the type ClassLabel. Text and integers will do."
        },
    )
    train_val_split: float = field(
        default=0.1, metadata={"help": "Share of the training images to hold out if there is no held-out split."}
    )
    label_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of each class's training images that keep their label; the rest train as unlabelled."
        },
    )
    label_seed: int = field(default=0, metadata={"help": "Decides which images keep their label."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the training images as a stream instead of downloading them first."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Images among which a stream's next one is drawn; each is held in memory."}
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "What to do with an image that cannot be decoded: stop, or put the next one in its place.",
            "choices": ["error", "skip"],
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0],
        metadata={"help": "Smallest and largest share of an image's area that a random training crop covers."},
    )
    horizontal_flip: bool = field(default=True, metadata={"help": "Mirror half of the training images."})
    eval_crop_ratio: float = field(
        default=0.875,
        metadata={
            "help": "Side of the centre crop for evaluation over the shorter side of the resized image (224/256)."
        },
    )

    def __post_init__(self):
        if self.dataset_name and self.train_dir:
            raise ValueError("`--dataset_name` and `--train_dir` both name training images: give one of them.")
        if self.validation_dir and not self.train_dir:
            raise ValueError("`--validation_dir` needs `--train_dir`.")
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"`--train_val_split` must be between 0 and 1, got {self.train_val_split}.")
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"`--label_fraction` must be above 0 and at most 1, got {self.label_fraction}.")
        if self.streaming and self.label_fraction < 1:
            raise ValueError(
                "`--label_fraction` counts the images of each class, which a stream does not allow: leave out "
                "`--streaming`, or mark unlabelled images with None in the data set."
            )
        if self.on_bad_image not in ("error", "skip"):
            raise ValueError(f"`--on_bad_image` must be error or skip, got {self.on_bad_image}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"`--crop_scale` needs two shares with 0 < smallest <= largest <= 1, got {self.crop_scale}."
            )
        if not 0 < self.eval_crop_ratio <= 1:
            raise ValueError(f"`--eval_crop_ratio` must be above 0 and at most 1, got {self.eval_crop_ratio}.")

    def describe(self) -> tuple[str, str | None]:
        """A name for the data set, and its identifier on the Hub if it is there."""
        if self.dataset_name and not Path(self.dataset_name).exists():
            return self.dataset_name, self.dataset_name
        folder = self.dataset_name or self.train_dir
        return (Path(folder).resolve().name if folder else "scikit-learn's digits"), None

    def load(self) -> datasets.DatasetDict | datasets.IterableDatasetDict:
        """The splits `train` and `validation`."""
        return load_training_splits(
            self.dataset_name,
            self.dataset_config_name,
            self.train_dir,
            self.validation_dir,
            self.label_column_name,
            self.train_val_split,
            self.streaming,
            self.max_train_samples,
            self.max_eval_samples,
        )

    def load_labeled(self, job: str) -> tuple[datasets.DatasetDict | datasets.IterableDatasetDict, Labels]:
        """
        Data with one class per image, without the training images that have no label.

        Raises:
            ValueError: if the label column holds anything else.
        """
        data = self.load()
        train = data["train"]
        labels = Labels.of_classes(train, self.label_column_name, job)
        if isinstance(train, datasets.IterableDataset):
            # not decoded by the filter, which would not know what to do with a broken image
            image_column = find_image_column(train.features, self.image_column_name)
            train = train.cast_column(image_column, datasets.Image(decode=False))
            data["train"] = train.filter(labels.is_label, input_columns=[labels.column])
            return data, labels
        labeled = labels.find_labeled(train, self.label_fraction, self.label_seed)
        if not labeled:
            raise ValueError(f"{job} needs labels, but column '{labels.column}' has none.")
        if len(labeled) < len(train):
            logger.warning(f"{len(train) - len(labeled)} training images without a label are left out.")
            data["train"] = train.select(labeled)
        return data, labels

    def build(
        self,
        data: datasets.DatasetDict | datasets.IterableDatasetDict,
        labels: Labels,
        training_args: "RecipeArguments",
        train_transform,
        image_processor,
        num_channels: int,
        num_patches: int | None = None,
        labeled: list[int] | None = None,
    ) -> tuple[Images, Images]:
        """
        The data sets of training and evaluation; see [`ImageDataset`].

        Raises:
            ValueError: if there are fewer training images than a step takes.
        """
        train = data["train"]
        num_images = number_of_images(train, self.max_train_samples)
        if num_images < training_args.total_batch_size:
            raise ValueError(
                f"A step takes {training_args.total_batch_size} images but there are only {num_images} to train on: lower "
                "`--per_device_train_batch_size` or `--gradient_accumulation_steps`."
            )
        common = {
            "num_channels": num_channels,
            "image_column": self.image_column_name,
            "num_patches": num_patches,
            "skip_bad_images": self.on_bad_image == "skip",
        }
        if isinstance(train, datasets.IterableDataset):
            batch = training_args.train_batch_size * training_args.world_size
            stream = {"num_images": num_images // batch * batch, "shuffle_buffer_size": self.shuffle_buffer_size}
            train_dataset = ImageStream(train, labels, train_transform, seed=training_args.seed, **stream, **common)
        else:
            train_dataset = ImageDataset(
                train, labels, train_transform, seed=training_args.seed, labeled=labeled, **common
            )
        is_stream = isinstance(data["validation"], datasets.IterableDataset)
        eval_class = ImageStream if is_stream else ImageDataset
        return train_dataset, eval_class(data["validation"], labels, image_processor, **common)


def _default(name: str, value):
    """A field of TrainingArguments, help and all, with another default."""
    return field(default=value, metadata=dict(TrainingArguments.__dataclass_fields__[name].metadata))


@dataclass
class RecipeArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] in which the learning rate follows the batch size and the warm-up is counted in
    epochs, as in the MAE family's recipes. What the recipes themselves say is in `recipes/*.yaml`.
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
    layer_decay: float | None = field(
        default=None, metadata={"help": "Each layer's learning rate over that of the layer above; for fine-tuning."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew even if `--output_dir` holds a run: deletes what it wrote."}
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
    widget_images: bool = field(
        default=False,
        metadata={"help": "Put a few held-out images beside the model card, as examples for the page's widget."},
    )
    optim: str = _default("optim", "adamw_torch_fused")
    max_grad_norm: float = _default("max_grad_norm", 0.0)  # the recipes do not clip
    dataloader_drop_last: bool = _default("dataloader_drop_last", True)
    remove_unused_columns: bool = _default("remove_unused_columns", False)  # the image is one
    logging_nan_inf_filter: bool = _default("logging_nan_inf_filter", False)
    ddp_find_unused_parameters: bool | None = _default("ddp_find_unused_parameters", False)
    report_to: None | str | list[str] = _default("report_to", "tensorboard")
    eval_strategy: str = _default("eval_strategy", "epoch")
    save_strategy: str = _default("save_strategy", "epoch")
    save_total_limit: int | None = _default("save_total_limit", 2)

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
        if self.save_total_limit == 1:
            raise ValueError(
                "`--save_total_limit` 1 leaves nothing to go on from if a run is killed while it saves: use 2 or more."
            )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"`--train_sampling_strategy` must be random or sequential, got {self.train_sampling_strategy}."
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"`--layer_decay` must be above 0 and at most 1, got {self.layer_decay}.")
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
    """Pre-training; the paper's recipe is `recipes/pretrain.yaml`."""

    num_reconstructions: int = field(
        default=8, metadata={"help": "Held-out images in the picture of reconstructions."}
    )


@dataclass
class FineTuningArguments(RecipeArguments):
    """Fine-tuning; the paper's recipe is `recipes/finetune.yaml`."""

    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the last block."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup; 0 for none."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix; 0 for none."})
    auto_augment: str = field(default="", metadata={"help": "timm's augmentation policy; '' for none."})
    random_erasing: float = field(default=0.0, metadata={"help": "Probability of random erasing, with noise."})
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


@dataclass
class SegmentationArguments(RecipeArguments):
    """Semantic segmentation; the paper's recipe is `recipes/segmentation.yaml`."""

    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the last block."})


def prepare_pretraining(model_args: ModelArguments, data_args: DataArguments, args: PreTrainingArguments):
    """Model, image processor, and the data sets of training and evaluation."""
    data = data_args.load()
    train = data["train"]
    labels = Labels.of(train, data_args.label_column_name)
    labeled = None
    if not data_args.streaming:
        labeled = labels.find_labeled(train, data_args.label_fraction, data_args.label_seed)
    if args.process_index == 0:
        if labels.column is None:
            print(f"No label column in {list(train.features)}: training the reconstruction branch only (MAE).")
        elif labeled is not None and len(labeled) < len(train):
            print(
                f"{len(labeled)} of {len(train)} training images are labelled; the others train the reconstruction "
                "branch only."
            )
    model, _ = model_args.build(SupMAEForPreTraining, args, **labels.config_fields())
    prepare_cpu(model, args)
    image_processor = build_image_processor(model.config, data_args.eval_crop_ratio)
    train_dataset, eval_dataset = data_args.build(
        data,
        labels,
        args,
        TrainTransform(model.config, data_args.crop_scale, data_args.horizontal_flip),
        image_processor,
        num_channels=model.config.num_channels,
        num_patches=model.config.num_patches,
        # without a fraction the labels say it themselves: no need to carry a million indices to every worker
        labeled=labeled if data_args.label_fraction < 1 else None,
    )
    return model, image_processor, train_dataset, eval_dataset
