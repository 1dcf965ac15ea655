# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared parts of the comparisons: small models on images in memory, their training and measures, and many runs of them."""

import copy
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from threadpoolctl import threadpool_limits
from torch import multiprocessing
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import get_cosine_schedule_with_warmup

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cli import Parser
from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.dataset import ImageDataset
from supmae_hf.data.sources import load_splits
from supmae_hf.evaluation.tables import Journal, say_written, write_table
from supmae_hf.training.optimization import parameter_groups


# fields of the configuration of a model that trains in minutes on a CPU core
SMALL_MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "decoder_hidden_size": 64,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256,
    "classifier_hidden_size": 256,
    "classification_temperature": 1.0,
}
IMAGE_SIZE = SMALL_MODEL["image_size"]


def load_images(source: str, size: int = IMAGE_SIZE) -> dict:
    """
    The splits train and test of a data set or folder of grey images: `images` and `test_images` `(num_images, 1, size, size)` of
    type uint8, padded with black, `labels`, `test_labels` and `num_labels`.

    Raises:
        ValueError: if a split is missing, or the images are of several sizes or larger.
    """
    named = {"image_dir" if Path(source).is_dir() else "dataset_name": source}
    splits = load_splits(EvaluationDataArguments(**named))
    missing = {"train", "test"} - set(splits)
    if missing:
        raise ValueError(
            f"{source} has no split '{min(missing)}': it takes a data set with the splits train and test."
        )
    data = {"num_labels": len(splits["train"].labels.names)}
    for name, prefix in (("train", ""), ("test", "test_")):
        items = ImageDataset.of(
            splits[name], splits[name].validation, lambda image: v2.functional.pil_to_tensor(image.convert("L"))
        )
        items = [items[index] for index in range(len(items))]
        shapes = {tuple(item["pixel_values"].shape[1:]) for item in items}
        if len(shapes) > 1 or max(map(max, shapes)) > size:
            raise ValueError(f"The images of {source} are not of one size of at most {size}x{size} pixels.")
        images = torch.stack([item["pixel_values"] for item in items])
        height, width = images.shape[2:]
        top, left = (size - height) // 2, (size - width) // 2
        data[f"{prefix}images"] = F.pad(images, (left, size - width - left, top, size - height - top))
        data[f"{prefix}labels"] = torch.stack([item["labels"] for item in items])
    return data


def balanced(labels: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Places of so many images of each class, `(classes, per_class)`; those of fewer are among those of more."""
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator, device="cpu").to(labels.device)
    return torch.stack([order[labels[order] == label][:per_class] for label in labels.unique()])


def endless(ids: torch.Tensor, size: int):
    """Batches of `size` of the `ids`, which all come before one comes again."""
    queue = ids[:0]
    while True:
        while len(queue) < size:
            queue = torch.cat([queue, ids[torch.randperm(len(ids))]])
        yield queue[:size]
        queue = queue[size:]


def to_inputs(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Random resized crops of 60% to all of the area, flipped or not, of a batch at once."""
    num = len(images)
    area, ratio = torch.empty(num).uniform_(0.6, 1.0), torch.empty(num).uniform_(-1, 1).mul(np.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (torch.empty(num).uniform_(-1, 1) * (1 - side) for side in (width, height))
    flip, zero = torch.randint(2, (num,)) * 2 - 1, torch.zeros(num)
    matrix = torch.stack([torch.stack([width * flip, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return to_inputs(F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def train(
    model: torch.nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    num_steps: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    loss_of: Callable = lambda model, pixel_values, labels: model(pixel_values, labels=labels).loss,
) -> torch.nn.Module:
    """
    AdamW with linear warm-up in the first tenth, then a cosine; returns the model, in evaluation mode.

    Args:
        model: [`SupMAEForPreTraining`] or a classifier.
        batches: Pixel values and labels, of at least `num_steps` steps.
        layer_decay: See [`parameter_groups`].
        loss_of: Function that computes the loss from model, pixel values and labels.
    """
    groups = parameter_groups(model, learning_rate, weight_decay, layer_decay)
    for group in groups:
        del group["names"]
    betas = (0.9, 0.95 if isinstance(model, SupMAEForPreTraining) else 0.999)
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
    model.train()
    for _, (pixel_values, labels) in zip(range(num_steps), batches):
        loss_of(model, pixel_values, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model.eval()


def classifier_of(pretrained: SupMAEForPreTraining, **fields) -> SupMAEForImageClassification:
    """A classifier with the encoder of a pre-trained model, but for the LayerNorm, and other `fields` of the configuration."""
    config = copy.deepcopy(pretrained.config)
    config.update(fields)
    model = SupMAEForImageClassification(config)
    model.vit.load_state_dict(pretrained.vit.state_dict(), strict=False)
    return model


@torch.no_grad()
def accuracy(
    model: SupMAEForImageClassification, pixel_values: torch.Tensor, labels: torch.Tensor, batch_size: int = 500
) -> float:
    """Share of the images whose class is the one with the highest score."""
    correct = [
        model(images).logits.argmax(-1) == answers
        for images, answers in zip(pixel_values.split(batch_size), labels.split(batch_size))
    ]
    return torch.cat(correct).float().mean().item()


@torch.no_grad()
def features_of(encoder, images: torch.Tensor, batch_size: int = 500) -> np.ndarray:
    """Averages of the patch tokens of grey images of type uint8 or, without an encoder, the pixels themselves."""
    inputs = to_inputs(images)
    if encoder is None:
        return inputs.flatten(1).cpu().numpy()
    parts = [encoder(part).last_hidden_state[:, 1:].mean(dim=1) for part in inputs.split(batch_size)]
    return torch.cat(parts).cpu().numpy()


# --- runs ---


SOURCES = {"data": "zalando-datasets/fashion_mnist"}


def read_arguments(
    description: str, name: str, numbers: dict[str, tuple], sources: dict[str, str] = SOURCES, **choices: list[str]
):
    """
    The command line of a comparison.

    Args:
        name: Name of the folder below outputs/ for its results.
        numbers: Options with their defaults, the defaults of `--quick`, and what they are.
        sources: Options that name data sets, and their defaults.
        choices: Other options, and the values that they take.
    """
    parser = Parser(description)
    parser.add_argument("--quick", action="store_true", help="little compute: minutes")
    for option, values in choices.items():
        parser.add_argument(f"--{option}", choices=values)
    for option, default in sources.items():
        parser.add_argument(
            f"--{option}", default=default, help=f"a data set, or a folder of IDX files (default: {default})"
        )
    numbers = {**numbers, "processes": (os.cpu_count(), os.cpu_count(), "runs at a time")}
    for number, (default, quick, what) in numbers.items():
        parser.add_argument(f"--{number}", type=type(default), help=f"{what} (default: {default}; quick: {quick})")
    parser.add_argument("--device", default="cpu", help="where images and models are, such as cuda (default: cpu)")
    parser.add_argument("--output_dir", type=Path, help=f"default: outputs/{name}, or -quick")
    args = parser.parse_args()
    for number, (default, quick, _) in numbers.items():
        value = getattr(args, number)
        setattr(args, number, value if value is not None else quick if args.quick else default)
        if not 0 < getattr(args, number) < np.inf:
            parser.error(f"--{number} must be above 0, got {value}.")
    args.output_dir = args.output_dir or Path("outputs", f"{name}-quick" if args.quick else name)
    return args


_data = {}  # of a worker


def _end_with_parent():
    """End a worker when the process that started it is gone, and not after its run, whose result nobody would take."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(device: str, load: Callable[..., dict], *arguments):
    """Load the data of a worker's runs, and keep data, models and random numbers on the device. A worker has one thread."""
    _end_with_parent()
    torch.set_num_threads(1)
    threadpool_limits(1)  # of scikit-learn's
    _data.update(send_to_device(load(*arguments), device))
    torch.set_default_device(device)


def _work(task: tuple[Callable, dict]) -> tuple[dict, dict]:
    run, job = task
    start = time.perf_counter()
    return job, {**run(job, _data), "seconds": time.perf_counter() - start}


class Comparison:
    """
    Many small runs, several at a time, which are kept as they finish: after an interruption the same command goes on. Use it as
    a context manager.

    Args:
        args: The result of [`read_arguments`].
        run: Function that measures a job (settings by name) on the data.
        measures: Names of what is measured, and titles.
        load, arguments: Function, and its arguments, that every process calls to load the data: a dict.
    """

    def __init__(self, args, run: Callable, measures: dict[str, str], load: Callable[..., dict], *arguments):
        self.args, self.run, self.measures = args, run, measures
        self.journal, self.start = Journal(args.output_dir / "runs.jsonl"), time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self.pool = context.Pool(args.processes, _prepare, (args.device, load, *arguments))

    def __enter__(self) -> "Comparison":
        return self

    def __exit__(self, error, *_):
        if error is not None:
            self.pool.terminate()
            return
        self.pool.close()
        self.pool.join()
        print(f"\n{(time.perf_counter() - self.start) / 60:.1f} minutes with {self.args.processes} processes.")
        say_written(self.args.output_dir, *sorted(path.name for path in self.args.output_dir.glob("[!._]*")))

    def finish(self, jobs: Sequence[dict]) -> list[dict]:
        """The results of jobs: those in the journal, and of the others, which are run in the given order and added to it."""
        missing = [job for job in jobs if self.journal.get(job) is None]
        tasks = self.pool.imap_unordered(_work, [(self.run, job) for job in missing])
        for number, (job, result) in enumerate(tasks, len(jobs) - len(missing) + 1):
            self.journal.add(job, result)
            print(f"{number}/{len(jobs)} {self._line(job, result)}", flush=True)
        return [self.journal.get(job) for job in jobs]

    def _line(self, job: dict, result: dict) -> str:
        """The numbers and names of a job, and what it measured."""
        settings = [f"{name} {value}" for name, value in job.items() if isinstance(value, (str, int, float))]
        measured = [f"{title} {result[name]:.2%}" for name, title in self.measures.items() if name in result]
        return f"{', '.join(settings)}: {', '.join(measured)} ({result['seconds'] / 60:.1f} minutes)"

    def write(self, rows: list[dict], name: str = "results"):
        """Print a table and write it into the output folder."""
        print()
        write_table(rows, self.args.output_dir, name)


def table_of(keys: Iterable[dict], results: Iterable[dict], measures: dict[str, str]) -> list[dict]:
    """
    A row for each different key: how many results there are, and the means and standard deviations of what was measured.

    Args:
        keys: The key of the row that each result belongs to.
        measures: Names of what was measured, and titles.
    """
    groups = {}
    for key, result in zip(keys, results):
        groups.setdefault(tuple(key.items()), []).append(result)
    rows = []
    for key, runs in groups.items():
        row = {**dict(key), "seeds": len(runs)}
        for name, title in measures.items():
            values = [run[name] for run in runs if name in run]
            if values:
                row[title] = statistics.mean(values)
                row[f"{title} (std)"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows
