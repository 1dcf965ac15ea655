# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""A training run as one object: what was asked for, data, model, and the data sets made of them."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import datasets
import torch
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

import supmae_hf

from ..configuration_supmae import SupMAEConfig
from ..cost import pretraining_flops
from ..data.arguments import DataArguments
from ..data.dataset import Dealing, ImageDataset, ImageStream, collate, look_at_files
from ..data.image_data import ImageData, shortened
from ..data.labels import imagenet_indices
from ..data.sources import known_number_of_images, load_labeled_data, load_training_data, number_of_images
from ..data.statistics import pixel_fields
from ..data.transforms import TrainTransform
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForPreTraining, SupMAEPreTrainedModel
from ..preparation import Transform, build_image_processor
from ..records import require_apart
from ..supervision_supmae import UNLABELED
from .arguments import ModelArguments, PreTrainingArguments, RecipeArguments
from .cpu import fastest_attention, prepare_cpu
from .report import metrics_of
from .supervision import prepare_supervision


logger = logging.get_logger(__name__)

# Share of labelled images below which a run advises to repeat them (docs/training.md).
FEW_LABELS = 0.1
# So few images, and so many millions of new parameters, are told that a smaller model would suit them (docs/choosing.md).
FEW_IMAGES, LARGE_MODEL = 20_000, 20
# How long a run looks for broken images before its first step, in each split.
LOOK_SECONDS = 60
# Transformers' arguments that decide what comes out of a run. The others (logging, saving, evaluation, loading, devices,
# publishing) may change while it goes on, and so may the batch per device if a step takes as many images as before.
_COMPARED = [
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
]
# Our arguments that do not: instead of these of the data, its fingerprint, classes and numbers are compared, and instead of the
# base learning rate the one that follows from it.
_NOT_COMPARED = [
    "base_learning_rate",
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
    "objects_file",
    "early_stopping_patience",
    "attn_implementation",
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
]


def describe_recipe(name: str, args: RecipeArguments, facts: dict) -> dict:
    """The facts that decide the outcome of a run: the version of the code, the recipe, and others by name."""
    inherited = {field.name for field in fields(TrainingArguments)}
    ours = [field.name for field in fields(args) if field.name not in inherited]
    recipe = {key: getattr(args, key) for key in (*ours, *_COMPARED) if key not in _NOT_COMPARED}
    run = {"version": supmae_hf.__version__, "job": name, **facts, "images a step": args.total_batch_size, **recipe}
    return json.loads(json.dumps(run, default=lambda value: getattr(value, "value", str(value))))


@dataclass
class Job:
    """
    A training run. [`load_job`] makes one with its data; then come `build_model` and `prepare_data`.

    Args:
        name: Name of the job, such as "pre-training".
        title: Title of its results, such as "Pre-trained".
        model_args, data_args, args: The arguments.
        data: Images and labels.
        model: The model that is trained.
        image_processor: The image processor of evaluation and inference.
        train_dataset, eval_dataset: Data sets of training and evaluation.
    """

    name: str
    title: str
    model_args: ModelArguments
    data_args: DataArguments
    args: RecipeArguments
    data: ImageData
    model: nn.Module | None = None
    image_processor: Any = None
    train_dataset: ImageDataset | ImageStream | None = None
    eval_dataset: ImageDataset | ImageStream | None = None

    def warn_of_size(self):
        """
        Warn of a model that is too large: for new weights, if there are few images; for a CPU, if pre-training takes more than 12
        hours by the rate of its matrix multiplications.
        """
        args, reasons = self.args, []
        if args.process_index or not isinstance(self.train_dataset, ImageDataset):
            return
        number, millions = len(self.train_dataset), self.model.num_parameters() / 1e6
        if not self.model_args.model_name_or_path and number < FEW_IMAGES and millions > LARGE_MODEL:
            reasons.append(f"{number:,} images are few for {millions:,.0f} million new parameters")
        if args.device.type == "cpu":
            images = self._images_of_run(number)
            matrix, start = torch.ones(768, 768), time.perf_counter()
            for _ in range(10):
                matrix @ matrix
            rate = 10 * 2 * 768**3 / (time.perf_counter() - start)
            hours = 3 * pretraining_flops(self.model.config) * images / (rate * args.world_size) / 3600
            if hours > 12:
                reasons.append(
                    f"{images:,.0f} images, in all epochs, will take {hours:,.0f} hours or more on this CPU"
                )
        if reasons:
            logger.warning(
                f"{', and '.join(reasons)}: examples/configs/pretrain_photos_small.yaml has a small model, `--model_name_or_path` goes "
                "on from a public one, and `--num_train_epochs` says for how long."
            )

    def _images_of_run(self, num_images: int) -> float:
        """The images of all steps, of which an epoch has `num_images`."""
        args = self.args
        return args.max_steps * args.total_batch_size if args.max_steps > 0 else args.num_train_epochs * num_images

    def _look_at_files(self, num_images: int):
        """Decode the images of a run of ten epochs or more once, for a minute at most, so that it does not end at a broken one."""
        data = self.data
        if self.args.process_index or self._images_of_run(num_images) < 10 * num_images:
            return
        for split in (data.train, data.validation):
            if not isinstance(split, datasets.Dataset):
                continue
            dataset = ImageDataset.of(data, split)
            if not isinstance(split.features[dataset.image_column], datasets.Image):
                continue
            number = look_at_files(dataset, LOOK_SECONDS)
            if number < len(dataset):
                logger.warning(
                    f"Looked at {number:,} of {len(dataset):,} images in {LOOK_SECONDS} seconds. One of the others may be broken: "
                    "`--on_bad_image skip` lets a run go on then."
                )

    def describe(self) -> dict:
        """The facts that decide the outcome of the run, by which another run is told from its continuation."""
        data = self.data
        sizes = {
            f"{name} images": len(split) if hasattr(split, "__len__") else "a stream"
            for name, split in data.splits().items()
        }
        settings = {**asdict(self.model_args), **asdict(self.data_args)}
        settings = {name: value for name, value in settings.items() if name not in _NOT_COMPARED}
        facts = {"data": data.fingerprint(), **sizes, "classes": data.labels.names, **settings}
        return describe_recipe(self.name, self.args, facts)

    def for_trainer(self) -> dict:
        """The arguments of a [`~transformers.Trainer`]."""
        return {
            "model": self.model,
            "args": self.args,
            "train_dataset": self.train_dataset,
            "eval_dataset": self.eval_dataset,
            "data_collator": collate,
            "processing_class": self.image_processor,
        }

    def build_model(self, model_class: type[SupMAEPreTrainedModel], **fields) -> set[str]:
        """
        Make the model, from the checkpoint or new, and prepare the process for it.

        Args:
            fields: Fields of the configuration; those of `--model_config` take precedence.

        Returns:
            The names of the parameters that are new.

        Raises:
            OSError: if there is no such checkpoint.
            ValueError: if the checkpoint has other shapes, or `--metric_for_best_model` is no metric of the model.
        """
        args, checkpoint = self.args, self.model_args.model_name_or_path
        if self.data_args.channels and not checkpoint:
            fields["num_channels"] = len(self.data_args.channels)
        fields |= self.model_args.model_config
        attention = self.model_args.attn_implementation or fastest_attention(args.device, args.bf16)
        if attention is not None:
            fields["attn_implementation"] = attention
        if checkpoint is None:
            self.model = model_class(SupMAEConfig(**fields))
            new = {name for name, _ in self.model.named_parameters()}
        else:
            self.model, new = _load_model(model_class, checkpoint, fields)
        args.check_best_metric([name for name in metrics_of(self.model) if name != "knn_top1" or args.knn_eval])
        prepare_cpu(self.model, args)
        return new

    def prepare_data(
        self,
        transform_of: Callable[[Any], Transform],
        num_patches: int | None = None,
        labeled: list[int] | None = None,
        targets: Sequence = (),
    ):
        """
        Make the image processor and the data sets of training and evaluation; print what was read.

        Args:
            transform_of: Function that makes the transform of training images from the image processor.
            num_patches, labeled, targets: See [`ImageDataset`].

        Raises:
            ValueError: if there are fewer training images than a step takes, or images are broken.
        """
        data, data_args, args, train = self.data, self.data_args, self.args, self.data.train
        num_images = number_of_images(train, data_args.max_train_samples)
        self._look_at_files(num_images)
        pixels, line = pixel_fields(data, data_args, self.model.config, self.model_args.model_name_or_path)
        data.notes.append(line)
        self.image_processor = build_image_processor(self.model.config, data_args.eval_crop_ratio, **pixels)
        if args.process_index == 0:
            print(f"\n{data.table()}\n", flush=True)
        args.check_num_images(num_images, args.repeated_augmentation)
        common = {"num_patches": num_patches, "targets": targets}
        if isinstance(train, datasets.IterableDataset):
            kind, chosen = ImageStream, {"dealing": self._deal(num_images)}
        else:
            kind, chosen = ImageDataset, {"labeled": labeled}
        transform = transform_of(self.image_processor)
        self.train_dataset = kind.of(data, train, transform, seed=args.seed, **chosen, **common)
        if data.validation is None:
            args.without_evaluation()
            return
        kind = ImageStream if isinstance(data.validation, datasets.IterableDataset) else ImageDataset
        self.eval_dataset = kind.of(data, data.validation, self.image_processor, **common)

    def _deal(self, num_images: int) -> Dealing:
        data_args, args = self.data_args, self.args
        batch_size = args.train_batch_size // args.repeated_augmentation
        known = known_number_of_images(self.data.train)
        return Dealing(
            num_images=num_images // (batch_size * args.world_size) * batch_size * args.world_size,
            batch_size=batch_size,
            shuffle_buffer_size=data_args.shuffle_buffer_size,
            process_index=args.process_index,
            num_processes=args.world_size,
            part=num_images / known if known else 1.0,
            label_fraction=data_args.label_fraction,
            label_seed=data_args.label_seed,
            labeled_only=self.data.labeled_only,
        )


def load_job(
    name: str,
    title: str,
    arguments: tuple[ModelArguments, DataArguments, RecipeArguments],
    needs_labels: str | None = None,
) -> Job:
    """
    Read the data of a run, and seed the process.

    Args:
        name, title: See [`Job`].
        arguments: The result of [`parse_arguments`].
        needs_labels: Name of a job that needs labels, for errors; training images without a label are left out then.

    Raises:
        FileNotFoundError: if a folder or data set does not exist.
        ValueError: if the run would write to a folder that it reads, or into or around one, or lacks labels.
    """
    model_args, data_args, args = arguments
    data_args.require_folders()
    if args.output_dir == "trainer_output":  # what Transformers makes of none
        raise ValueError("Where are the results to go? Name a folder with `--output_dir`.")
    inputs = [*data_args.sources(), model_args.model_name_or_path, getattr(args, "mask_dir", None)]
    require_apart(args.output_dir, inputs)
    fields = model_args.model_config
    if needs_labels:
        data = load_labeled_data(data_args, needs_labels, fields, needs_classes=False)
    else:
        data = load_training_data(data_args, fields.get("problem_type"), fields.get("num_labels"))
    set_seed(args.seed)
    return Job(name, title, *arguments, data)


def prepare_pretraining(arguments: tuple[ModelArguments, DataArguments, PreTrainingArguments]) -> Job:
    """
    A pre-training run with model and data.

    Args:
        arguments: The result of [`parse_arguments`].

    Raises:
        ValueError: if arguments contradict the data, the model or each other.
    """
    job = load_job("pre-training", "Pre-trained", arguments)
    model_args, data_args, args = arguments
    supervision = prepare_supervision(job)
    labeled = _find_labeled(job)
    job.build_model(SupMAEForPreTraining, **supervision.fields)
    supervision.prepare(job.model)
    positions = job.model.vit.embeddings.position_embeddings
    if positions is not None:
        positions.requires_grad_(args.train_position_embeddings)

    def transform_of(image_processor) -> TrainTransform:
        augmentation = data_args.crop_scale, data_args.horizontal_flip
        return TrainTransform(image_processor, *augmentation, num_views=args.repeated_augmentation)

    job.prepare_data(transform_of, job.model.config.num_patches, labeled, supervision.targets)
    job.warn_of_size()
    return job


def output_layer(model: SupMAEPreTrainedModel) -> str:
    """The name of the layer that gives class logits."""
    return "classification_head.fc2" if isinstance(model, SupMAEForPreTraining) else "classifier"


def _load_model(model_class: type[SupMAEPreTrainedModel], checkpoint: str, fields: dict):
    """The model of a checkpoint, and the names of its new parameters: its classifier is new if its classes are others."""
    names = list(fields.get("id2label", {}).values())
    try:
        known = list(load_pretrained(SupMAEConfig, checkpoint).id2label.values())
        more = {"output_loading_info": True, "ignore_mismatched_sizes": len(known) != len(names) > 0}
        model, info = load_pretrained(model_class, checkpoint, **more, **fields)
    except OSError as error:
        raise OSError(
            f"There is no checkpoint '{checkpoint}', neither a folder here nor a repository that the Hub gave us: check "
            f"`--model_name_or_path`, or run examples/run_pretrain.py to make one. ({error})"
        ) from error
    new, mismatched = set(info["missing_keys"]), {name for name, *_ in info["mismatched_keys"]}
    layer = output_layer(model)
    wrong = {name for name in mismatched if not name.startswith(f"{layer}.")}
    if wrong:
        raise ValueError(
            f"'{checkpoint}' has other shapes than the model: {', '.join(sorted(wrong)[:3])}. Leave out the fields of "
            "`--model_config` that change it."
        )
    if names and f"{layer}.weight" not in new and not _same_classes(known, names):
        if not mismatched:  # as many classes, but others
            nn.init.xavier_uniform_(model.get_submodule(layer).weight)
            nn.init.zeros_(model.get_submodule(layer).bias)
        new |= {f"{layer}.weight", f"{layer}.bias"}
        logger.warning(
            f"The classes of '{checkpoint}' ({shortened(known)}) are not those of the data ({shortened(names)}): the last layer "
            "of the classifier is new."
        )
    return model, new


def _same_classes(known: list[str], names: list[str]) -> bool:
    """Decide whether a checkpoint's classes may be those of the data: equal, nameless, or ImageNet's by their identifiers."""
    is_nameless = all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    return len(known) == len(names) and (known == names or is_nameless or imagenet_indices(names) is not None)


def _find_labeled(job: Job) -> list[int] | None:
    """
    The training images whose label is used; `None` if the labels themselves say it, so that no worker needs to carry a million
    indices. Adds notes on what that means for a step.
    """
    data, data_args, args = job.data, job.data_args, job.args
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
