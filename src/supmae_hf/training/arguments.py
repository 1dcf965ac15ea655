# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What can be set in the training scripts, and the models and data sets that follow from it."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from torch import nn
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig, check_count
from ..data.dataset import ImageDataset, ImageStream
from ..data.image_data import ImageData
from ..data.labels import imagenet_indices
from ..data.sources import known_number_of_images, load_training_data, number_of_images
from ..data.statistics import pixel_fields
from ..data.transforms import TrainTransform, build_image_processor
from ..hub import check_license
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForPreTraining, SupMAEPreTrainedModel
from ..records import require_apart
from ..supervision_supmae import UNLABELED
from .cpu import fastest_attention, prepare_cpu
from .ranges import check
from .schedules import StepSchedule, check_schedules
from .supervision import METRICS, prepare_supervision


logger = logging.get_logger(__name__)

Images = ImageDataset | ImageStream

# What Transformers' Trainer can do and a run cannot that is to end as if it had not been interrupted
_REFUSED = {
    "auto_find_batch_size": "would change the images a step, and with them the learning rate, without a word: lower "
    "`--per_device_train_batch_size` and raise `--gradient_accumulation_steps`.",
    "save_only_model": "leaves nothing to go on from: leave it out. `--save_total_limit` keeps few checkpoints.",
    "ignore_data_skip": "would go on with other images than those that are left: leave it out.",
    "enable_jit_checkpoint": "is not needed: a run saves when it is told to stop. Leave it out.",
}
# Share of labelled images below which a run advises to repeat them (docs/training.md).
FEW_LABELS = 0.1


@dataclass
class ModelArguments:
    """Which model to train."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from, on the Hub or a folder: SupMAE, or another plain ViT (ViT, DeiT, DINO, DINOv2, "
            "ViTMAE, ViT-MSN, timm's)."
        },
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
        if not isinstance(self.model_config, dict):
            raise ValueError(
                f"`--model_config` must map fields to values, as in '{{\"mask_ratio\": 0.6}}', got {self.model_config}."
            )
        self.check()

    def check(self):
        """
        Make numbers of `model_config` that are written as text numbers.

        Raises:
            ValueError: if it names what is not a field, or gives a number's field something else.
        """
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
        names = list(fields.get("id2label", {}).values())
        try:
            known = list(load_pretrained(SupMAEConfig, self.model_name_or_path).id2label.values())
            model, info = load_pretrained(
                model_class,
                self.model_name_or_path,
                output_loading_info=True,
                ignore_mismatched_sizes=len(known) != len(names) > 0,
                **fields,
            )
        except OSError as error:
            raise OSError(
                f"There is no checkpoint '{self.model_name_or_path}', neither a folder here nor a repository that the "
                f"Hub gave us: check `--model_name_or_path`, or run examples/run_pretrain.py to make one. ({error})"
            ) from error
        new = set(info["missing_keys"])
        mismatched = {name for name, *_ in info["mismatched_keys"]}
        layer = output_layer(model)
        wrong = {name for name in mismatched if not name.startswith(f"{layer}.")}
        if wrong:
            raise ValueError(
                f"'{self.model_name_or_path}' has other shapes than the model: {', '.join(sorted(wrong)[:3])}. Leave out the "
                "fields of `--model_config` that change it."
            )
        if names and f"{layer}.weight" not in new and not _same_classes(known, names):
            if not mismatched:  # as many classes, but others
                nn.init.xavier_uniform_(model.get_submodule(layer).weight)
                nn.init.zeros_(model.get_submodule(layer).bias)
            new |= {f"{layer}.weight", f"{layer}.bias"}
            logger.warning(
                f"The classes of '{self.model_name_or_path}' ({_few(known)}) are not those of the data ({_few(names)}): the "
                f"last layer of the classifier is new."
            )
        return model, new


def output_layer(model: SupMAEPreTrainedModel) -> str:
    """The name of the layer that gives class logits."""
    return "classification_head.fc2" if isinstance(model, SupMAEForPreTraining) else "classifier"


def _same_classes(known: list[str], names: list[str]) -> bool:
    """Whether a checkpoint's classes may be those of the data: alike, without names, or ImageNet's by their identifiers."""
    is_nameless = all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    return len(known) == len(names) and (known == names or is_nameless or imagenet_indices(names) is not None)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass
class DataArguments:
    """Where images and labels come from, and how images are cropped."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data set on the Hub, or a folder of tables (CSV, JSON, Parquet) or of `save_to_disk`."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of training images, one sub-folder per class, or with train/ and val/ in it."},
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of held-out images, in the same layout."}
    )
    unlabeled_dir: list[str] | None = field(
        default=None,
        metadata={"help": "Folders of more training images, without labels; may be repeated.", "action": "extend"},
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images: of the type Image, arrays, paths or bytes."}
    )
    label_column_name: list[str] | None = field(
        default=None, metadata={"help": "Column of the labels, or several of 0 and 1, one for each class."}
    )
    classification_branch: bool | None = field(
        default=None, metadata={"help": "Train with labels: False leaves them aside (MAE). Default: if there are any."}
    )
    train_val_split: float = field(
        default=0.1,
        metadata={
            "help": "Share of the training images to hold out if there is no held-out split; 0 to train on everything."
        },
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
    channels: list[int] | None = field(
        default=None, metadata={"help": "Which of the images' channels to use, counted from 0; default: all."}
    )
    pixel_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Pixel values that are black and white; default: by type, as 0 65535, and 0 1 for fractions."
        },
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel, or one for all, of pixels in [0, 1]."}
    )
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation of each channel."})
    normalization: str | None = field(
        default=None,
        metadata={
            "help": "dataset: mean and deviation of the training images. Default: the starting checkpoint's, or else "
            "ImageNet's for 8-bit RGB and the training images' for others.",
            "choices": ["dataset"],
        },
    )
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
        check(self)
        if self.dataset_name and self.train_dir:
            raise ValueError("`--dataset_name` and `--train_dir` both name training images: give one of them.")
        if self.validation_dir and not self.train_dir:
            raise ValueError("`--validation_dir` needs `--train_dir`.")
        if self.on_bad_image not in ("error", "skip"):
            raise ValueError(f"`--on_bad_image` must be error or skip, got {self.on_bad_image}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"`--crop_scale` needs two shares with 0 < smallest <= largest <= 1, got {self.crop_scale}."
            )
        if self.channels is not None and not self.channels:
            raise ValueError("`--channels` names none: leave it out to use all.")
        if self.pixel_range is not None and (len(self.pixel_range) != 2 or self.pixel_range[0] >= self.pixel_range[1]):
            raise ValueError(f"`--pixel_range` needs two numbers, LOW below HIGH, got {self.pixel_range}.")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("`--image_mean` and `--image_std` go together: give both.")
        if self.image_mean is not None and self.normalization:
            raise ValueError("`--normalization` and `--image_mean` both say how to normalise: give one of them.")

    def describe(self) -> tuple[str, str | None]:
        """A name for the data set, and its identifier on the Hub if it is there."""
        if self.dataset_name and not Path(self.dataset_name).exists():
            return self.dataset_name, self.dataset_name
        folder = self.dataset_name or self.train_dir
        return (Path(folder).resolve().name if folder else "scikit-learn's digits"), None

    def load(
        self, output_dir: str | None = None, model_config: dict | None = None, inputs: Sequence[str | None] = ()
    ) -> ImageData:
        """
        Images and labels.

        Args:
            output_dir: Where the run writes to.
            inputs: What it reads beside the images; see [`require_apart`].
            model_config: Fields of the model's configuration, of which some say what labels are: `problem_type`, `num_labels`.

        Raises:
            FileNotFoundError: if a folder or data set does not exist.
            ValueError: if the run would write to a folder that it reads, or into or around one.
        """
        folders = [folder for folder in (self.train_dir, self.validation_dir, *(self.unlabeled_dir or [])) if folder]
        for folder in folders:
            if not os.path.isdir(folder):
                raise FileNotFoundError(f"'{folder}' is not a folder of images: check its name.")
        if output_dir is not None:
            require_apart(output_dir, [*folders, self.dataset_name, *inputs])
        return load_training_data(
            self.train_dir or self.dataset_name,
            self.dataset_config_name,
            self.validation_dir,
            self.unlabeled_dir or (),
            self.image_column_name,
            self.label_column_name,
            (model_config or {}).get("problem_type"),
            (model_config or {}).get("num_labels"),
            self.train_val_split,
            self.streaming,
            self.max_train_samples,
            self.max_eval_samples,
            self.classification_branch,
        )

    def config_fields(self, model_args: ModelArguments) -> dict:
        """The fields of a new model's configuration that follow from the images."""
        return {"num_channels": len(self.channels)} if self.channels and not model_args.model_name_or_path else {}

    def load_labeled(
        self,
        job: str,
        output_dir: str | None = None,
        model_config: dict | None = None,
        inputs: Sequence[str | None] = (),
    ) -> ImageData:
        """
        Data with one class per image, without the training images that have no label.

        Raises:
            ValueError: if the label column holds anything else, or a single class.
        """
        if self.classification_branch is False:
            raise ValueError(f"{job} needs labels: leave out `--classification_branch False`.")
        data = self.load(output_dir, {**(model_config or {}), "problem_type": None}, inputs)
        data.labels.require_classes(job, data.train)
        if isinstance(data.train, datasets.IterableDataset):
            data.labeled_only = True
            if self.label_fraction < 1:
                raise ValueError(f"{job} on a part of the labels reads all images: leave out `--streaming`.")
            return data
        labeled = data.labels.find_labeled(data.train, self.label_fraction, self.label_seed)
        if not labeled:
            raise ValueError(f"{job} needs labels, but column '{data.labels.columns[0]}' has none.")
        if len(data.labels.names) == 1:
            raise ValueError(
                f"{job} needs two classes or more, but all images are of the class '{data.labels.names[0]}': a class is a "
                "sub-folder, or a value of the label column."
            )
        if len(labeled) < len(data.train):
            data.notes.append(f"{len(data.train) - len(labeled)} training images without a label are left out")
            data.train = data.train.select(labeled)
        return data

    def build_image_processor(self, data: ImageData, config: SupMAEConfig, source: str | None):
        """
        The image processor of evaluation and inference; adds to the data's notes how pixels are read.

        Args:
            source: The checkpoint that training starts from.
        """
        fields, line = pixel_fields(
            data,
            config,
            source,
            self.channels,
            self.pixel_range,
            self.image_mean,
            self.image_std,
            from_data=self.normalization == "dataset",
            skip_bad_images=self.on_bad_image == "skip",
        )
        data.notes.append(line)
        data.pixel_type = fields["pixel_type"]
        return build_image_processor(config, self.eval_crop_ratio, **fields)

    def build(
        self,
        data: ImageData,
        training_args: "RecipeArguments",
        train_transform,
        image_processor,
        num_patches: int | None = None,
        labeled: list[int] | None = None,
        targets: Sequence = (),
    ) -> tuple[Images, Images | None]:
        """
        The data sets of training and evaluation; see [`ImageDataset`]. Says what they are made of.

        Raises:
            ValueError: if there are fewer training images than a step takes.
        """
        if training_args.process_index == 0:
            print(f"\n{data.table()}\n", flush=True)
        train = data.train
        num_images = number_of_images(train, self.max_train_samples)
        num_views = training_args.repeated_augmentation
        images_a_step = training_args.total_batch_size // num_views
        if num_images < images_a_step:
            raise ValueError(
                f"A step takes {images_a_step} images but there are only {num_images} to train on: lower "
                "`--per_device_train_batch_size` or `--gradient_accumulation_steps`."
            )
        common = {
            "image_column": data.image_column,
            "num_patches": num_patches,
            "targets": targets,
            "skip_bad_images": self.on_bad_image == "skip",
        }
        if isinstance(train, datasets.IterableDataset):
            batch = training_args.train_batch_size // num_views * training_args.world_size
            known = known_number_of_images(train)
            train_dataset = ImageStream(
                train,
                data.labels,
                train_transform,
                seed=training_args.seed,
                num_images=num_images // batch * batch,
                batch_size=training_args.train_batch_size // num_views,
                shuffle_buffer_size=self.shuffle_buffer_size,
                process_index=training_args.process_index,
                num_processes=training_args.world_size,
                part=num_images / known if known else 1.0,
                label_fraction=self.label_fraction,
                label_seed=self.label_seed,
                num_views=num_views,
                labeled_only=data.labeled_only,
                **common,
            )
        else:
            train_dataset = ImageDataset(
                train,
                data.labels,
                train_transform,
                seed=training_args.seed,
                labeled=labeled,
                num_views=num_views,
                **common,
            )
        if data.validation is None:
            training_args.without_evaluation()
            return train_dataset, None
        eval_class = ImageStream if isinstance(data.validation, datasets.IterableDataset) else ImageDataset
        return train_dataset, eval_class(data.validation, data.labels, image_processor, **common)


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
        default=None,
        metadata={
            "help": "Each layer's learning rate over that of the layer above; for fine-tuning, and to go on from a ViT."
        },
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
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better one, and keep the best weights."},
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the trained model, for its card, such as apache-2.0."}
    )
    widget_images: bool = field(
        default=False,
        metadata={
            "help": "Publish held-out images: a few as examples for the page's widget, and the picture of reconstructions."
        },
    )
    hub_timeout: float = field(
        default=600.0, metadata={"help": "Seconds that a run waits for an upload to the Hub when all else is done."}
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
        Where nothing is held out.

        Raises:
            ValueError: if something follows from the evaluation.
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
    train_position_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Train the encoder's position embeddings, too: for those of other ViTs, which are learnt. SupMAE's own are "
            "sines and cosines, and fixed."
        },
    )
    image_size_schedule: list[str] | None = field(
        default=None,
        metadata={
            "help": "Smaller images in a part of the run, as SHARE:PIXELS: `0:128 0.5:224` trains on images of 128x128 until half "
            "of the run is over. Default: the model's size."
        },
    )
    mask_ratio_schedule: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other mask ratios in a part of the run, as SHARE:RATIO. Default: the model's `mask_ratio`."
        },
    )
    labeled_share: float = field(
        default=0.0,
        metadata={
            "help": "Of the images of an epoch at least, if only some have a label: labelled images come several times, each "
            "time with another crop and mask, in the place of others. Default: every image comes once."
        },
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={
            "help": "Views of an image in a step, each with its crop and mask: the image is decoded once, a step takes so many "
            "times fewer images, and an epoch so many times more steps."
        },
    )
    caption_column_name: str | None = field(
        default=None, metadata={"help": "Column of captions, from whose words the model learns (docs/supervision.md)."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of the captions, on the Hub or a folder. Default: one of the captions' words."},
    )
    mask_column_name: str | None = field(
        default=None, metadata={"help": "Column of masks, images of class indices, from which the model learns."}
    )
    mask_dir: str | None = field(
        default=None, metadata={"help": "Folder of masks, at the places or with the names of the training images."}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "Mask value 0 is no class, and class 0 is stored as 1, as in ADE20K."}
    )
    objects_column_name: str | None = field(
        default=None, metadata={"help": "Column of objects, `bbox` and `category`, from which the model learns."}
    )
    pseudo_label_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Let the classification branch learn, on unlabelled images, what the model says of them unmasked, where its "
            "probability is at least this. Default: it learns from labels alone."
        },
    )
    knn_eval: bool = field(
        default=False,
        metadata={
            "help": "Log, at every evaluation, the accuracy of nearest neighbours of held-out images among (at most 10,000) "
            "labelled training images, whether or not there is a classification branch."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.schedules()
        if self.tokenizer_name and not self.caption_column_name:
            raise ValueError("`--tokenizer_name` needs `--caption_column_name`.")
        if self.reduce_labels and not (self.mask_column_name or self.mask_dir):
            raise ValueError("`--reduce_labels` is for masks: give `--mask_column_name` or `--mask_dir`.")
        if self.mask_dir and not os.path.isdir(self.mask_dir):
            raise FileNotFoundError(f"`--mask_dir` {self.mask_dir} is not a folder.")
        if self.per_device_train_batch_size % self.repeated_augmentation:
            raise ValueError(
                f"`--repeated_augmentation` {self.repeated_augmentation} does not divide `--per_device_train_batch_size` "
                f"{self.per_device_train_batch_size}, in which all views of an image are: change one of them."
            )
        if self.image_size_schedule and self.pseudo_label_threshold is not None:
            raise ValueError(
                "`--pseudo_label_threshold` looks at images of one size: leave out `--image_size_schedule`."
            )
        if self.labeled_share and self.train_sampling_strategy != "random":
            raise ValueError("`--labeled_share` draws the images of an epoch: leave out `--train_sampling_strategy`.")

    def schedules(self) -> tuple[StepSchedule | None, StepSchedule | None]:
        """
        The image sizes and mask ratios by share of the run.

        Raises:
            ValueError: if a schedule is none.
        """
        sizes, ratios = self.image_size_schedule, self.mask_ratio_schedule
        return (
            sizes and StepSchedule.parse("image_size_schedule", sizes, int, lambda size: size > 0),
            ratios and StepSchedule.parse("mask_ratio_schedule", ratios, float, lambda ratio: 0 <= ratio < 1),
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

    best_metric = "eval_top1"

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

    can_publish = False

    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the last block."})


def _find_labeled(data_args: DataArguments, args: PreTrainingArguments, data: ImageData) -> list[int] | None:
    """
    The training images whose label is used; `None` if the labels themselves say it, so that no worker needs to carry a million
    indices. Adds to the data's notes what that means for a step.
    """
    if isinstance(data.train, datasets.IterableDataset):
        if args.labeled_share:
            raise ValueError(
                "`--labeled_share` repeats images, which a stream does not allow: leave out `--streaming`."
            )
        if data_args.label_fraction < 1:
            data.notes.append(f"{data_args.label_fraction:.0%} of the images keep their label (`--label_fraction`)")
        return None
    labeled, number = None, int((data.classes(data.train) != UNLABELED).sum())
    if data_args.label_fraction < 1 or args.labeled_share:
        labeled = data.labels.find_labeled(data.train, data_args.label_fraction, data_args.label_seed)
        number = len(labeled)
    if data_args.label_fraction < 1:
        data.notes.append(f"{number} training images keep their label (`--label_fraction`)")
    share = number / len(data.train)
    if args.labeled_share and not number:
        raise ValueError("`--labeled_share` needs labels for some of the images: leave it out.")
    if args.labeled_share > share:
        times = args.labeled_share / share
        data.notes.append(f"labelled images come {times:.1f} times an epoch on average (`--labeled_share`)")
    elif 0 < share < FEW_LABELS:
        data.notes.append(
            f"only {number} of {len(data.train)} training images have a label, "
            f"{share * args.total_batch_size:.1f} of the {args.total_batch_size} of a step: `--labeled_share 0.5` shows them "
            "more often (docs/training.md)"
        )
    return labeled


def prepare_pretraining(
    model_args: ModelArguments, data_args: DataArguments, args: PreTrainingArguments, data: ImageData
):
    """Model, image processor, and the data sets of training and evaluation."""
    if args.pseudo_label_threshold is not None and data.labels.problem_type != "single_label_classification":
        raise ValueError(
            "`--pseudo_label_threshold` needs labels of one class an image for some of the images: leave it out."
        )
    supervision = prepare_supervision(model_args, data_args, args, data)
    if args.pseudo_label_threshold is not None and "labels" not in supervision.kinds:
        raise ValueError("`--pseudo_label_threshold` needs labels, which `supervision` leaves out.")
    labeled = _find_labeled(data_args, args, data)
    model, _ = model_args.build(
        SupMAEForPreTraining, args, **supervision.fields, **data_args.config_fields(model_args)
    )
    supervision.prepare(model)
    check_schedules(*args.schedules(), model.config)
    args.check_best_metric(
        ["loss", "reconstruction_loss", *(name for kind in supervision.kinds for name in METRICS[kind])]
    )
    model.vit.embeddings.position_embeddings.requires_grad_(args.train_position_embeddings)
    prepare_cpu(model, args)
    image_processor = data_args.build_image_processor(data, model.config, model_args.model_name_or_path)
    train_dataset, eval_dataset = data_args.build(
        data,
        args,
        TrainTransform(image_processor, data_args.crop_scale, data_args.horizontal_flip),
        image_processor,
        num_patches=model.config.num_patches,
        labeled=labeled,
        targets=supervision.targets,
    )
    return model, image_processor, train_dataset, eval_dataset
