# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards that say what happened, and publishing on the Hub."""

import os
import platform
import re
import shlex
import shutil
import statistics
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
from .data.dataset import ImageDataset, ImageStream, images_of_epoch
from .data.image_data import ImageData
from .data.transforms import to_pil
from .loading import load_pretrained
from .modeling_supmae import SupMAEForPreTraining, SupMAEPreTrainedModel
from .records import RUN_FILE


logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).parent / "model_card.md"
NUM_WIDGET_IMAGES = 3
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")  # that a card may name
WIDGET_IMAGE_SIDE = 512  # pixels at most

_METRICS = {
    "eval_top1": ("accuracy", "top-1 accuracy"),
    "eval_top5": ("top5_accuracy", "top-5 accuracy"),
    "eval_accuracy": ("accuracy", "top-1 accuracy, from the visible patches alone"),
    "eval_reconstruction_loss": ("mse", "reconstruction loss"),
    "eval_classification_loss": ("loss", "classification loss"),
    "eval_caption_loss": ("loss", "caption loss"),
    "eval_caption_accuracy": ("accuracy", "share of the captioned images whose best word is in the caption"),
    "eval_dense_loss": ("loss", "dense loss"),
    "eval_patch_miou": ("mean_iou", "mean IoU of the patches"),
    "eval_loss": ("loss", "loss"),
}


def check_license(license: str):
    """Raise a `ValueError` if a licence is not spelt as the Hub's identifiers are."""
    if not re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*", license):
        raise ValueError(
            f"`--license` '{license}' is none of the Hub's identifiers, such as apache-2.0, mit, cc-by-nc-4.0 or other: see "
            "https://hf.co/docs/hub/repositories-licenses."
        )


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


def training_card(
    model: SupMAEPreTrainedModel,
    args,
    data_args,
    data: ImageData,
    train_dataset: ImageDataset | ImageStream,
    eval_dataset: ImageDataset | ImageStream | None,
    log_history: list[dict],
) -> ModelCard:
    """
    The model card of a training run, for `args.output_dir`, whose pictures it shows and where it puts examples for the
    page's widget, if `args.widget_images` says so.

    Args:
        model: What was trained.
        args, data_args ([`RecipeArguments`], [`DataArguments`]): With what.
        data, train_dataset, eval_dataset: On what.
        log_history: `trainer.state.log_history`; the last evaluation in it gives the results.
    """
    folder = Path(args.output_dir)
    name = args.hub_model_id or folder.as_posix()
    config = model.config
    is_pretraining = isinstance(model, SupMAEForPreTraining)
    dataset_name, dataset_id = data_args.describe()
    held_out = f"{len(eval_dataset)} held-out images" if isinstance(eval_dataset, ImageDataset) else "held-out images"
    metrics = next((entry for entry in reversed(log_history) if _METRICS.keys() & entry.keys()), {})
    figures = {key: metrics[key] for key in _METRICS if metrics.get(key) is not None}
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
        "data set": f"{dataset_name}, {images_of_epoch(train_dataset)} training images",
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
    if args.widget_images and data.pixel_type != "uint8":
        logger.warning(f"No examples for the widget: it shows 8-bit images, and these are {data.pixel_type}.")
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
                metric_type=_METRICS[key][0],
                metric_name=_METRICS[key][1],
                metric_value=round(value, 6),
            )
            for key, value in figures.items()
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
        results={_METRICS[key][1]: value for key, value in figures.items()},
        facts=facts,
        data_table=data.table(),
        needs_arrays=data.pixel_type if data.pixel_type != "uint8" else None,
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
    its image processor, its card, and the pictures that the card names.

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
    from .checkpoints.export import export_stock, source_image_processor  # which training, too, would wait for

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
    check_license(card.data.license)
    config = load_pretrained(AutoConfig, source)
    if config.model_type != "supmae":
        raise ValueError(f"{source} is a checkpoint of the type '{config.model_type}', not of SupMAE.")
    model = load_pretrained(getattr(supmae_hf, (config.architectures or ["SupMAEModel"])[0]), source, dtype="auto")
    image_processor = source_image_processor(model, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if stock:
            export_stock(model.float(), folder, image_processor=image_processor)
            _describe_stock(card, ModelCard.load(folder / "README.md"))
        else:
            model.save_pretrained(folder)
            image_processor.save_pretrained(folder)
        # no more than the card names: the folder may hold what an earlier run left
        named = re.findall(r"!\[[^]]*\]\(([^):]+)\)", card.text) + [
            image["src"] for image in card.data.get("widget") or []
        ]
        for file in named:
            path = source / file
            # a link, or a name such as ../x, may lead to what is not of the checkpoint
            if path.is_file() and path.suffix.lower() in _PICTURES and path.resolve() == source.resolve() / file:
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / file)
            elif path.exists() or path.is_symlink():
                logger.warning(f"{file} is named by the card but is no picture in {source}: it is left out.")
        card.data.model_name = repo_id.split("/")[-1]
        card.text = re.sub(r'(?<=from_pretrained\(")[^"]+', repo_id, card.text)
        card.text = re.sub(r'(?<=model=")[^"]+', repo_id, card.text)
        card.save(folder / "README.md")
        (folder / RUN_FILE).unlink(missing_ok=True)  # of the export
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
