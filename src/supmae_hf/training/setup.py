# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What the example scripts do before and after training: arguments to model and data, results to files."""

import itertools
from pathlib import Path

import datasets
from transformers import Trainer
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig
from ..data.images import (
    ImageDataset,
    ImageStream,
    ViTImageProcessor,
    build_image_processor,
    build_train_transform,
    collate,
)
from ..data.sources import DataArguments, Labels, find_image_column, find_labeled, load_image_data, number_of_images
from ..hub import training_card
from ..modeling_supmae import SupMAEForPreTraining
from ..visualization import save_curves, save_reconstructions
from .arguments import ModelArguments, PreTrainingArguments, RecipeArguments
from .resuming import TERMINATED


logger = logging.get_logger(__name__)

Images = ImageDataset | ImageStream


def build_datasets(
    data: datasets.DatasetDict | datasets.IterableDatasetDict,
    config: SupMAEConfig,
    labels: Labels,
    data_args: DataArguments,
    training_args: RecipeArguments,
    train_transform,
    image_processor: ViTImageProcessor,
    masks: bool = False,
    labeled: list[int] | None = None,
) -> tuple[Images, Images]:
    """
    The data sets of training and evaluation; `labeled` are the training images whose label is used.

    Raises:
        ValueError: if there are fewer training images than a step takes.
    """
    num_images = number_of_images(data["train"], data_args)
    step_size = training_args.total_batch_size
    if num_images < step_size:
        raise ValueError(
            f"A step takes {step_size} images but there are only {num_images} to train on: lower "
            "`--per_device_train_batch_size` or `--gradient_accumulation_steps`."
        )
    common = {"config": config, "labels": labels, "args": data_args, "masks": masks}
    train = {"transform": train_transform, "seed": training_args.seed, **common}
    if isinstance(data["train"], datasets.IterableDataset):
        batch = training_args.train_batch_size * training_args.world_size
        train_dataset = ImageStream(
            data["train"],
            num_images=num_images // batch * batch,
            shuffle_buffer_size=data_args.shuffle_buffer_size,
            **train,
        )
    else:
        train_dataset = ImageDataset(data["train"], labeled=labeled, **train)
    is_stream = isinstance(data["validation"], datasets.IterableDataset)
    eval_dataset = (ImageStream if is_stream else ImageDataset)(
        data["validation"], transform=image_processor, **common
    )
    return train_dataset, eval_dataset


def prepare_pretraining(
    model_args: ModelArguments, data_args: DataArguments, training_args: PreTrainingArguments
) -> tuple[SupMAEForPreTraining, ViTImageProcessor, Images, Images]:
    """Model, image processor, and the data sets of training and evaluation."""
    data = load_image_data(data_args)
    labels = Labels.of(data["train"], data_args.label_column_name)
    labeled = None
    if isinstance(data["train"], datasets.Dataset):
        labeled = find_labeled(data["train"], labels, data_args)
    if training_args.process_index == 0:
        if labels.column is None:
            print(f"No label column in {list(data['train'].features)}: training the reconstruction branch only (MAE).")
        elif labeled is not None and len(labeled) < len(data["train"]):
            print(
                f"{len(labeled)} of {len(data['train'])} training images are labelled; the others train the "
                "reconstruction branch only."
            )
    model, _ = model_args.build(SupMAEForPreTraining, **labels.config_fields())
    image_processor = build_image_processor(model.config, data_args.eval_crop_ratio)
    train_dataset, eval_dataset = build_datasets(
        data,
        model.config,
        labels,
        data_args,
        training_args,
        build_train_transform(model.config, data_args),
        image_processor,
        masks=True,
        # without a fraction the labels say it themselves: no need to carry a million indices to every worker
        labeled=labeled if data_args.label_fraction < 1 else None,
    )
    return model, image_processor, train_dataset, eval_dataset


def report_pretraining(
    model: SupMAEForPreTraining,
    image_processor: ViTImageProcessor,
    train_dataset: Images,
    eval_dataset: Images,
    training_args: PreTrainingArguments,
    log_history: list[dict],
    metrics: dict[str, float],
    epochs: float,
):
    """Pictures of reconstructions and curves, and a model card, and a few lines that say what came of it."""
    output_dir = Path(training_args.output_dir)
    shown = collate(list(itertools.islice(eval_dataset, training_args.num_reconstructions)))
    save_reconstructions(
        model,
        shown["pixel_values"],
        output_dir / "reconstructions.png",
        image_processor.image_mean,
        image_processor.image_std,
        shown["noise"],
    )
    save_curves(
        log_history,
        output_dir / "curves.png",
        ("reconstruction_loss", "classification_loss", "accuracy", "learning_rate"),
    )
    training_card(model, training_args, train_dataset, eval_dataset, log_history).save(output_dir / "README.md")
    figures = {
        "reconstruction loss": metrics["eval_reconstruction_loss"],
        "classification loss": metrics.get("eval_classification_loss"),
        "accuracy on visible patches": metrics.get("eval_accuracy"),
    }
    print(
        f"\nPre-trained for {epochs:g} epochs on {len(train_dataset)} images; on {count_of(eval_dataset)} held-out "
        "images: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
    )
    print(f"  checkpoint  {output_dir}")
    print(f"  log         {output_dir / 'runs'} (tensorboard --logdir {output_dir / 'runs'})")
    print(f"  pictures    {output_dir / 'reconstructions.png'}, {output_dir / 'curves.png'}")
    print(f"  model card  {output_dir / 'README.md'}")


def count_of(dataset: Images) -> str:
    """The number of images, if known."""
    return "the" if isinstance(dataset, ImageStream) and dataset.num_images is None else str(len(dataset))


def load_labeled_data(data_args: DataArguments, job: str):
    """
    Data with one class per image, without the training images that have no label.

    Raises:
        ValueError: if the label column holds anything else.
    """
    data = load_image_data(data_args)
    labels = Labels.of_classes(data["train"], data_args.label_column_name, job)
    train = data["train"]
    if isinstance(train, datasets.IterableDataset):
        # not decoded by the filter, which would not know what to do with a broken image
        image_column = find_image_column(train.features, data_args.image_column_name)
        train = train.cast_column(image_column, datasets.Image(decode=False))
        data["train"] = train.filter(labels.is_label, input_columns=[labels.column])
    else:
        labeled = find_labeled(train, labels, data_args)
        if not labeled:
            raise ValueError(f"{job} needs labels, but column '{labels.column}' has none.")
        if len(labeled) < len(train):
            logger.warning(f"{len(train) - len(labeled)} training images without a label are left out.")
            data["train"] = train.select(labeled)
    return data, labels


def report_classification(what: str, trainer: Trainer, metrics: dict[str, float], has_model: bool = True):
    """A picture of the curves into the output folder, and a few lines that say what came of it."""
    output_dir = Path(trainer.args.output_dir)
    epochs = f" for {trainer.state.epoch:g} epochs" if trainer.state.epoch else ""
    accuracies = [f"{name.removeprefix('eval_')} {value:.2%}" for name, value in metrics.items() if "_top" in name]
    print(
        f"\n{what}{epochs} on {len(trainer.train_dataset)} images; on {count_of(trainer.eval_dataset)} held-out images: "
        f"{', '.join(accuracies)}"
    )
    if has_model:
        print(f"  checkpoint  {output_dir}")
    if epochs:
        save_curves(trainer.state.log_history, output_dir / "curves.png", ("loss", "top1", "learning_rate"))
        trainer.create_model_card()
        print(f"  log         {output_dir / 'runs'} (tensorboard --logdir {output_dir / 'runs'})")
        print(f"  pictures    {output_dir / 'curves.png'}")
    else:
        print(f"  figures     {output_dir / 'eval_results.json'}")


def leave(training_args: RecipeArguments):
    """End the process with the exit status of SIGTERM, and a word on how to go on."""
    if training_args.process_index == 0:
        print(f"\nStopped by SIGTERM; saved in {training_args.output_dir}. The same command goes on from there.")
    raise SystemExit(TERMINATED)
