# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The results of a training run beside the weights: model card, pictures, curves, a few lines on the screen."""

import itertools
import os
import platform
import shlex
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import load_file
from transformers.utils import logging

import supmae_hf

from ..configuration_supmae import to_pair
from ..data.dataset import ImageDataset, ImageStream, collate, images_of_epoch
from ..hub import TEMPLATE
from ..modeling_supmae import SupMAEForPreTraining
from ..preparation import Preparation, to_pil
from ..visualization import save_curves, save_reconstructions


logger = logging.get_logger(__name__)

NUM_WIDGET_IMAGES = 3
WIDGET_IMAGE_SIDE = 512  # pixels at most


@dataclass(frozen=True)
class Metric:
    """
    A number that an evaluation gives.

    Args:
        title: Name of the metric for people.
        kind: Type of the metric on the Hub. Losses, errors and R² are no shares.
    """

    title: str
    kind: str = "accuracy"

    def format(self, value: float) -> str:
        return f"{self.title} {value:{'.4f' if self.kind in ('loss', 'mse', 'mae', 'r_squared') else '.2%'}}"


def metrics_of(model: torch.nn.Module) -> dict[str, Metric]:
    """The metrics of an evaluation of a model by their names in the log; each head of a pre-training model has its own."""
    metrics = {"loss": Metric("loss", "loss")}
    if isinstance(model, SupMAEForPreTraining):
        metrics["reconstruction_loss"] = Metric("reconstruction loss", "mse")
        for head in model.heads().values():
            metrics[head.loss_name] = Metric(head.loss_name.replace("_", " "), "loss")
            metrics |= {name: Metric(title, kind) for name, (title, kind) in head.metrics.items()}
        return metrics | {"knn_top1": Metric("accuracy of nearest neighbours")}
    if model.config.problem_type == "multi_label_classification":
        names = {"map": "mean average precision", "f1": "macro F1", "auroc": "macro AUROC"}
        return metrics | {name: Metric(title, name) for name, title in names.items()}
    if model.config.problem_type == "regression":
        return metrics | {"mae": Metric("mean absolute error", "mae"), "r2": Metric("R²", "r_squared")}
    metrics["top1"] = Metric("top-1 accuracy")
    return metrics | ({"top5": Metric("top-5 accuracy", "top5_accuracy")} if model.config.num_labels > 5 else {})


def save_widget_images(dataset: ImageDataset, folder: str | Path) -> list[dict[str, str]]:
    """
    Held-out images, of different classes where there are, as files in `folder/widget` for the model page's widget;
    returns its metadata.
    """
    if not isinstance(dataset, ImageDataset):
        return []
    records, labels = dataset.dataset, dataset.labels
    widget, titles = [], set()
    for index in range(min(len(records), 200)):
        title, label = f"image {index}", labels.encode(records[index])
        if labels.problem_type == "single_label_classification" and label >= 0:
            title = labels.names[label]
        elif labels.problem_type == "regression":
            title = f"{label:g}"
        if title in titles:
            continue
        try:
            image = to_pil(dataset.read(records[index][dataset.image_column])[0])
        except Exception as error:  # what a broken image raises is up to its format
            logger.warning(f"Image {index} is no example for the widget: {error}")
            continue
        titles.add(title)
        path = Path("widget") / f"{len(widget)}.png"
        (Path(folder) / path.parent).mkdir(exist_ok=True)
        image.thumbnail((WIDGET_IMAGE_SIDE, WIDGET_IMAGE_SIDE))
        image.save(Path(folder) / path)
        widget.append({"src": path.as_posix(), "example_title": title})
        if len(widget) == NUM_WIDGET_IMAGES:
            break
    return widget


def training_card(job, log_history: list[dict]) -> ModelCard:
    """
    The model card of a training run, for its output folder, whose pictures it shows and where it puts examples for the page's
    widget, if `--widget_images` says so.

    Args:
        job ([`Job`]): The run.
        log_history: `trainer.state.log_history`; the last evaluation in it gives the results.
    """
    model, args, data_args, data, eval_dataset = job.model, job.args, job.data_args, job.data, job.eval_dataset
    folder, pixel_type = Path(args.output_dir), Preparation(job.image_processor).pixel_type
    name = args.hub_model_id or folder.as_posix()
    config = model.config
    is_pretraining = isinstance(model, SupMAEForPreTraining)
    dataset_name, dataset_id = data_args.describe()
    held_out = f"{len(eval_dataset)} held-out images" if isinstance(eval_dataset, ImageDataset) else "held-out images"
    known = metrics_of(model)
    entries = [{name: entry.get(f"eval_{name}") for name in known} for entry in reversed(log_history)]
    results = next((entry for entry in entries if any(value is not None for value in entry.values())), {})
    results = {known[name]: value for name, value in results.items() if value is not None}
    last = log_history[-1] if log_history else {"epoch": 0, "step": 0}

    size = (
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}, patches of "
        f"{'x'.join(map(str, to_pair(config.patch_size)))}, images of {'x'.join(map(str, to_pair(config.image_size)))} "
        f"pixels, {model.num_parameters():,} parameters"
    )
    summary = (
        f"[SupMAE](https://arxiv.org/abs/2205.14540), pre-trained on {dataset_name}: a masked autoencoder that also "
        f"classifies, from the patches that it sees. {size}. Its encoder is meant to be fine-tuned or probed."
        if is_pretraining
        else f"Image classifier with {config.num_labels} classes, a SupMAE encoder "
        f"([arXiv 2205.14540](https://arxiv.org/abs/2205.14540)) trained on {dataset_name}: {size}."
    )
    warmup = (
        f"{args.warmup_epochs:g} epochs"
        if args.warmup_epochs or not args.warmup_steps
        else f"{args.warmup_steps:g} steps"
    )
    facts = {
        "data set": f"{dataset_name}, {images_of_epoch(job.train_dataset)} training images",
        "epochs, steps": f"{last['epoch']:g}, {last['step']}",
        "images a step": args.total_batch_size,
        "optimiser": f"{_name(args.optim)}, peak learning rate {args.learning_rate:.3g}, weight decay {args.weight_decay:g}",
        "schedule": f"{_name(args.lr_scheduler_type)}, warm-up of {warmup}",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
    if data_args.label_fraction < 1:
        facts["labels used"] = f"{data_args.label_fraction:.0%} of each class (`--label_seed {data_args.label_seed}`)"
    if is_pretraining:
        facts["hidden patches"] = f"{config.mask_ratio:.0%}"
        terms = {"reconstruction": config.reconstruction_loss_weight, **config.supervision_weights}
        names = {"labels": f"classification at temperature {config.classification_temperature:g}"}
        facts["loss"] = " + ".join(f"{weight:g} x {names.get(name, name)}" for name, weight in terms.items())
    source = config.name_or_path
    if source:
        facts["started from"] = source
    facts["hardware"] = f"{args.world_size} x {_device()}"
    packages = ("transformers", "torch", "datasets", "accelerate")
    facts["versions"] = f"supmae-hf {supmae_hf.__version__}, " + ", ".join(f"{p} {version(p)}" for p in packages)

    num_seen = last["step"] * args.total_batch_size
    cost = f"{num_seen} images"
    rates = [entry["images_per_second"] for entry in log_history if "images_per_second" in entry]
    if rates:
        rate = statistics.median(rates)
        hours = num_seen / rate * args.world_size / 3600
        cost += f" at {rate:.0f} a second (median of the log, evaluation excluded): {hours:.2g} device hours"
    # held-out images are published only if that is asked for
    pictures = {"reconstructions.png": "reconstructions of held-out images"} if args.widget_images else {}
    pictures["curves.png"] = "curves"
    widget = []
    if args.widget_images and pixel_type != "uint8":
        logger.warning(f"No examples for the widget: it shows 8-bit images, and these are {pixel_type}.")
    elif args.widget_images:
        widget = save_widget_images(eval_dataset, folder)

    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_pretraining else "image-classification",
        tags=["supmae", "vision", "masked-autoencoder"],
        license=args.license,
        datasets=[dataset_id] if dataset_id else None,
        base_model=source if source and "/" in source and not Path(source).exists() else None,
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id or "custom",
                dataset_name=dataset_name,
                metric_type=metric.kind,
                metric_name=metric.title,
                metric_value=round(value, 6),
            )
            for metric, value in results.items()
        ]
        or None,
        widget=widget or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=TEMPLATE,
        title=name.split("/")[-1],
        name=name,
        summary=summary,
        model_class=type(model).__name__,
        auto_class=model._auto_class,
        held_out=held_out,
        dataset_name=dataset_name,
        results={metric.title: value for metric, value in results.items()},
        facts=facts,
        data_table=data.table(),
        needs_arrays=pixel_type if pixel_type != "uint8" else None,
        command=_command(args.world_size),
        pictures={file: what for file, what in pictures.items() if (folder / file).is_file()},
        cost=cost,
    )


def _name(value) -> str:
    return getattr(value, "value", value)


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _command(num_processes: int) -> str:
    """The command of this run, and its recipe, without secrets."""
    words, recipes = [], []
    for word in sys.argv:
        is_secret = words and words[-1].startswith("-") and "token" in words[-1]
        flag, equals, _ = word.partition("=")
        if equals and flag.startswith("-") and "token" in flag:
            word, is_secret = flag, False
        words += [] if is_secret else [word]
    words = [word for word in words if not (word.startswith("-") and "token" in word)]
    launch = f"accelerate launch --num_processes {num_processes} " if num_processes > 1 else "python "
    for word in words:
        if word.endswith((".yaml", ".yml")) and Path(word).is_file():
            lines = [line for line in Path(word).read_text().splitlines() if "token" not in line]
            recipes.append("\n".join(["", f"# {Path(word).name}:", *(f"#   {line}".rstrip() for line in lines)]))
    return "\n".join([launch + shlex.join(words), *recipes])


def write_card(job, log_history: list[dict]):
    """Write the model card of a run ([`Job`]) into its output folder."""
    training_card(job, log_history).save(Path(job.args.output_dir) / "README.md")


def _shown_images(job) -> tuple[dict, list[str] | None]:
    """A batch of held-out images, of different classes if they have one each, and the names of these."""
    dataset, number, names = job.eval_dataset, job.args.num_reconstructions, job.data.labels.names
    has_classes = job.data.labels.problem_type == "single_label_classification"
    if not has_classes or isinstance(dataset, ImageStream):
        return collate(list(itertools.islice(dataset, number))), None
    classes = job.data.labels.classes(job.data.validation)
    # the first image of each class, then the second of each, ...
    places = np.lexsort((classes, pandas.Series(classes).groupby(classes).cumcount()))[:number]
    known = [names[label] if label >= 0 else "" for label in classes[places]]
    return collate([dataset[int(place)] for place in places]), known


def write_report(job, log_history: list[dict], metrics: dict[str, float]):
    """
    Write pictures and model card of a run that is over, and print its results.

    Args:
        job ([`Job`]): The run.
        metrics: Metrics of the last evaluation.
    """
    output_dir, model, pictures = Path(job.args.output_dir), job.model, []
    if isinstance(model, SupMAEForPreTraining) and job.eval_dataset is not None:
        pictures.append(output_dir / "reconstructions.png")
        shown, labels = _shown_images(job)
        # whole, however the run's is sharded; `from_pretrained` would shard it, too
        saved = SupMAEForPreTraining(model.config)
        saved.load_state_dict(load_file(output_dir / "model.safetensors"))
        preparation = Preparation(job.image_processor)
        save_reconstructions(saved, shown["pixel_values"], pictures[0], preparation, shown["noise"], labels)
    pictures.append(output_dir / "curves.png")
    save_curves(log_history, pictures[-1], (*metrics_of(model), "learning_rate"))
    write_card(job, log_history)
    epochs = next((entry["epoch"] for entry in reversed(log_history) if "epoch" in entry), 0)
    say_results(job, metrics, f" for {epochs:g} epochs")
    print(f"  checkpoint  {output_dir}")
    print(f"  log         {output_dir / 'runs'} (tensorboard --logdir {output_dir / 'runs'})")
    print(f"  pictures    {', '.join(map(str, pictures))}")
    print(f"  model card  {output_dir / 'README.md'}")


def say_results(job, metrics: dict[str, float], how_long: str = ""):
    """Print in one line what was done and the metrics of the evaluation."""
    line = f"\n{job.title}{how_long} on {images_of_epoch(job.train_dataset)} images"
    if job.eval_dataset is None:
        print(f"{line}, with none held out")
        return
    is_known = not isinstance(job.eval_dataset, ImageStream) or job.eval_dataset.num_images is not None
    known = {name: metric for name, metric in metrics_of(job.model).items() if name != "loss"}
    results = [metric.format(metrics[f"eval_{name}"]) for name, metric in known.items() if f"eval_{name}" in metrics]
    print(f"{line}; on {len(job.eval_dataset) if is_known else 'the'} held-out images: {', '.join(results)}")
