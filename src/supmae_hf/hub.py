# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards that say what happened, and publishing on the Hub."""

import os
import platform
import re
import shlex
import shutil
import statistics
import string
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData
from transformers import AutoConfig
from transformers.utils import logging

import supmae_hf

from .configuration_supmae import to_pair
from .data.images import ImageDataset, ImageStream
from .modeling_supmae import SupMAEForPreTraining, SupMAEPreTrainedModel


logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).parent / "model_card.md"
NUM_WIDGET_IMAGES = 3
WIDGET_IMAGE_SIDE = 512  # pixels at most
# what is published beside the model, its code and its card
_COMPANIONS = ("*.png", "widget/*", "eval_results.json", "all_results.json")

_METRICS = {
    "eval_top1": ("accuracy", "top-1 accuracy"),
    "eval_top5": ("top5_accuracy", "top-5 accuracy"),
    "eval_accuracy": ("accuracy", "top-1 accuracy, from the visible patches alone"),
    "eval_reconstruction_loss": ("mse", "reconstruction loss"),
    "eval_classification_loss": ("loss", "classification loss"),
    "eval_loss": ("loss", "loss"),
}


def save_widget_images(dataset: ImageDataset, folder: str | Path) -> list[dict[str, str]]:
    """
    Held-out images, of different classes where there are, as files in `folder/widget` for the model page's widget;
    returns its metadata.
    """
    if not isinstance(dataset, ImageDataset):
        return []
    records, feature, column = dataset.dataset, dataset.image_feature, dataset.labels.column
    widget, titles = [], set()
    for index in range(min(len(records), 200)):
        title = f"image {index}"
        if column is not None:
            names = getattr(records.features[column], "names", None)
            label = records[index][column]
            title = str(names[label]) if names and isinstance(label, int) and label >= 0 else str(label)
        if title in titles:
            continue
        try:
            image = feature.decode_example(records[index][dataset.image_column])
        except Exception as error:  # what a broken image raises is up to its format
            logger.warning(f"Image {index} is no example for the widget: {error}")
            continue
        titles.add(title)
        path = Path("widget") / f"{len(widget)}.png"
        (Path(folder) / path.parent).mkdir(exist_ok=True)
        image = image.convert("RGB")
        image.thumbnail((WIDGET_IMAGE_SIDE, WIDGET_IMAGE_SIDE))
        image.save(Path(folder) / path)
        widget.append({"src": path.as_posix(), "example_title": title})
        if len(widget) == NUM_WIDGET_IMAGES:
            break
    return widget


def usage(model: SupMAEPreTrainedModel, name: str) -> str:
    """Code that loads the published model, with supmae-hf or without."""
    model_class = type(model).__name__
    auto_class = model._auto_class
    return f"""from transformers import AutoImageProcessor
from supmae_hf import {model_class}

model = {model_class}.from_pretrained("{name}")
image_processor = AutoImageProcessor.from_pretrained("{name}")

# without supmae-hf, with the code in the repository
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)"""


def training_card(
    model: SupMAEPreTrainedModel,
    args,
    train_dataset: ImageDataset | ImageStream,
    eval_dataset: ImageDataset | ImageStream,
    log_history: list[dict],
) -> ModelCard:
    """
    The model card of a training run, for `args.output_dir`, whose pictures it shows and where it puts examples for the
    page's widget.

    Args:
        model: What was trained.
        args ([`RecipeArguments`]): With what.
        train_dataset, eval_dataset: On what.
        log_history: `trainer.state.log_history`; the last evaluation in it gives the results.
    """
    folder = Path(args.output_dir)
    name = args.hub_model_id or folder.as_posix()
    config, data_args = model.config, train_dataset.args
    is_pretraining = isinstance(model, SupMAEForPreTraining)
    dataset_name, dataset_id = data_args.describe()
    num_held_out = len(eval_dataset) if isinstance(eval_dataset, ImageDataset) else None
    held_out = "held-out images" if num_held_out is None else f"{num_held_out} held-out images"
    metrics = next((entry for entry in reversed(log_history) if _METRICS.keys() & entry.keys()), {})
    figures = {key: metrics[key] for key in _METRICS if metrics.get(key) is not None}
    last = log_history[-1] if log_history else {"epoch": 0, "step": 0}
    epochs, steps = last["epoch"], last["step"]

    height, width = to_pair(config.image_size)
    patch = "x".join(map(str, to_pair(config.patch_size)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = (
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}, patches of {patch}, images of "
        f"{height}x{width} pixels, {parameters:,} parameters"
    )
    summary = (
        f"[SupMAE](https://arxiv.org/abs/2205.14540), pre-trained on {dataset_name}: a masked autoencoder that also "
        f"classifies, from the patches that it sees. {size}. Its encoder is meant to be fine-tuned or probed."
        if is_pretraining
        else f"Image classifier with {config.num_labels} classes, a SupMAE encoder "
        f"([arXiv 2205.14540](https://arxiv.org/abs/2205.14540)) trained on {dataset_name}: {size}."
    )
    rows = {
        "data set": f"{dataset_name}, {len(train_dataset)} training images",
        "epochs, steps": f"{epochs:g}, {steps}",
        "images a step": args.total_batch_size,
        "optimiser": f"{_name(args.optim)}, peak learning rate {args.learning_rate:.3g}, weight decay {args.weight_decay:g}",
        "schedule": f"{_name(args.lr_scheduler_type)}, {args.warmup_epochs:g} epochs of warm-up",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
    if data_args.label_fraction < 1:
        rows["labels used"] = f"{data_args.label_fraction:.0%} of each class (`--label_seed {data_args.label_seed}`)"
    if is_pretraining:
        rows["hidden patches"] = f"{config.mask_ratio:.0%}"
        rows["loss"] = (
            f"{config.reconstruction_loss_weight:g} x reconstruction + {config.classification_loss_weight:g} x "
            f"classification at temperature {config.classification_temperature:g}"
        )
    source = getattr(config, "_name_or_path", "")
    if source:
        rows["started from"] = source
    rows["hardware"] = f"{args.world_size} x {_device()}"
    packages = ("transformers", "torch", "datasets", "accelerate")
    rows["versions"] = f"supmae-hf {supmae_hf.__version__}, " + ", ".join(f"{p} {version(p)}" for p in packages)

    results = ""
    if figures:
        lines = [f"| {_METRICS[key][1]} | {value:.4f} |" for key, value in figures.items()]
        results = (
            f"## Results\n\nOn {held_out} of {dataset_name}, at the end of the run; the command below repeats it.\n\n"
            "| | |\n|---|---|\n" + "\n".join(lines) + "\n\n"
        )
    num_seen = steps * args.total_batch_size
    rates = [entry["images_per_second"] for entry in log_history if "images_per_second" in entry]
    cost = f"{num_seen} images"
    if rates:
        rate = statistics.median(rates)
        hours = num_seen / rate * args.world_size / 3600
        cost += f" at {rate:.0f} a second (median of the log, evaluation excluded): {hours:.2g} device hours"
    pictures = [
        f"![{what}]({file})\n"
        for file, what in (("reconstructions.png", "reconstructions of held-out images"), ("curves.png", "curves"))
        if (folder / file).is_file()
    ]
    widget = save_widget_images(eval_dataset, folder)

    data = ModelCardData(
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
                metric_type=_METRICS[key][0],
                metric_name=_METRICS[key][1],
                metric_value=round(value, 6),
            )
            for key, value in figures.items()
        ]
        or None,
        widget=widget or None,
    )
    text = string.Template(TEMPLATE.read_text()).substitute(
        title=name.split("/")[-1],
        summary=summary,
        usage=usage(model, name),
        results=results,
        facts="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        command=_command(args.world_size),
        pictures="\n".join(pictures),
        cost=f"{cost}.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _name(value) -> str:
    return getattr(value, "value", value)


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _command(num_processes: int) -> str:
    """The command of this run, without secrets."""
    words = []
    for word in sys.argv:
        is_secret = words and words[-1].startswith("-") and "token" in words[-1]
        flag, equals, _ = word.partition("=")
        if equals and flag.startswith("-") and "token" in flag:
            word, is_secret = flag, False
        words += [] if is_secret else [word]
    words = [word for word in words if not (word.startswith("-") and "token" in word)]
    launch = f"accelerate launch --num_processes {num_processes} " if num_processes > 1 else "accelerate launch "
    return launch + shlex.join(words)


@contextmanager
def staged(
    source: str | Path, repo_id: str, card: str | Path | None = None, license: str | None = None, stock: bool = False
) -> Iterator[Path]:
    """
    A temporary folder with what is to be published: the model in its SupMAE form with its code, or as a stock class,
    its image processor, its card, and the pictures and figures beside it.

    Args:
        source: A checkpoint: a folder.
        repo_id: `organisation/name` on the Hub.
        card: Its model card, by default `README.md` in the folder.
        license: Of the weights, in the Hub's spelling, such as `apache-2.0`; by default what the card says.
        stock: Whether to export it as the class of Transformers that gives the same results.

    Raises:
        FileNotFoundError: if there is no checkpoint or no card.
        ValueError: if there is no licence, or the card's metadata are wrong.
    """
    from .checkpoints.stock import export_stock, source_image_processor  # which training, too, would wait for

    source = Path(source)
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json: name the folder of a checkpoint.")
    card_path = source / "README.md" if card is None else Path(card)
    if not card_path.is_file():
        raise FileNotFoundError(
            f"There is no model card {card_path}: training writes one; for another checkpoint write one and name it "
            "with `--card`."
        )
    card = ModelCard.load(card_path)
    card.data.license = license or card.data.license
    if not card.data.license:
        raise ValueError(
            f"{card_path} names no licence: pass `--license`, such as `--license apache-2.0`, for the weights."
        )
    config = AutoConfig.from_pretrained(source)
    if config.model_type != "supmae":
        raise ValueError(f"{source} is a checkpoint of the type '{config.model_type}', not of SupMAE.")
    model = getattr(supmae_hf, (config.architectures or ["SupMAEModel"])[0]).from_pretrained(source, dtype="auto")
    image_processor = source_image_processor(model, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if stock:
            export_stock(model.float(), folder, image_processor=image_processor)
            _describe_stock(card, ModelCard.load(folder / "README.md"))
        else:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
        for pattern in _COMPANIONS:
            for file in source.glob(pattern):
                target = folder / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
        card.data.model_name = repo_id.split("/")[-1]
        card.text = re.sub(r'(?<=from_pretrained\(")[^"]+', repo_id, card.text)
        card.text = re.sub(r'(?<=model=")[^"]+', repo_id, card.text)
        card.save(folder / "README.md")
        yield folder


def _describe_stock(card: ModelCard, stock_card: ModelCard):
    """Let the card of a SupMAE checkpoint describe its export: other usage, other library."""
    card.data.library_name = stock_card.data.library_name
    card.data.pipeline_tag = stock_card.data.pipeline_tag
    card.text = f"\n{stock_card.text.strip()}\n\n---\n\nThe card of the SupMAE checkpoint:\n\n{card.text.strip()}\n"


def publish(
    source: str | Path,
    repo_id: str,
    card: str | Path | None = None,
    license: str | None = None,
    stock: bool = False,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Upload a checkpoint to the Hub, in one commit. Files that the Hub has already are not sent again, so an upload that
    broke off goes on where it was when it is repeated.

    The token is the one of `hf auth login`, or of the environment variable `HF_TOKEN`.

    Args:
        private: Whether the repository is private, if it is new.
        revision: The branch to commit to, made if need be; by default `main`.

    See [`staged`] for the others, and for what is raised.
    """
    api = HfApi()
    with staged(source, repo_id, card, license, stock) as folder:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        form = "stock model" if stock else "SupMAE model"
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=f"Upload {form} with supmae-hf"
        )
