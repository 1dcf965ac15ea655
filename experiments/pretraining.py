#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Measure what labels are worth in pre-training, over its length: accuracy over epochs.

    python experiments/pretraining.py [--data FOLDER] [--transfer FOLDER] [--only all|few|large] [--quick]

Takes Fashion-MNIST and, to transfer to, MNIST: from the Hub, or from folders of IDX files. 12,000 of the training images are
trained on, 10,000 others decide all settings, and the test images are looked at once. Images of 28x28 pixels are 49 patches of
4x4, of which 12 are visible; every arm has the same encoder of 4 blocks:

- SupMAE;
- supervised only: the same masks and branch, without the reconstruction;
- MAE;
- MAE for half of the epochs, then SupMAE;
- SupMAE, fine-tuned with its reconstruction loss, for fewer epochs of as many operations (SSAT, arXiv 2310.20704);
- a ViT from scratch, for more epochs than the others are fine-tuned for.

Then 300 and 1,200 of the images have a label: SupMAE takes all images, half of a batch with labels, and of the others pseudo-labels or
none, or the labelled ones alone. Those are fine-tuned on. That is compared at one length. `--only` runs all labels, or few.

`--only large` is for an accelerator (`--device cuda`): all images, twice the width, the settings that were chosen for 12,000 images, and
all epochs divided so that training takes `--minutes`, by the rate of its first half minute.

Each is fine-tuned with the same recipe: soft cross entropy, with mixup and cutmix if trials prefer them, label smoothing, random
erasing and stochastic depth. Raw pixels and a random encoder say what is there without pre-training. Measures a linear probe, nearest
neighbours, fine-tuning, the fine-tuned model on corrupted images, and few-shot transfer. Runs are kept as they finish: after an
interruption the same command goes on. Prints tables, and writes them and a figure into --output_dir.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import comparison
import numpy as np
import torch
from comparison import Comparison, balanced, crop_and_flip, endless, features_of, load_images, table_of, to_inputs
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from scipy.stats import t
from torchvision.transforms import v2

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cli import run as run_script
from supmae_hf.cost import classification_flops, pretraining_flops
from supmae_hf.evaluation.corruptions import CORRUPTIONS, corrupt
from supmae_hf.evaluation.encode import NUM_NEIGHBORS, knn_scores
from supmae_hf.evaluation.few_shot import draw_shots
from supmae_hf.evaluation.probes import select_probe
from supmae_hf.supervision_supmae import UNLABELED
from supmae_hf.training.objective import branch_gradient_share


MODEL = {**comparison.SMALL_MODEL, "image_size": 28, "patch_size": 4}
BATCH, WEIGHT_DECAY, LAYER_DECAY = 128, 0.05, 0.75
SUPMAE, SUPERVISED, MAE, BOTH, SCRATCH = "SupMAE", "supervised only", "MAE", "MAE, then SupMAE", "ViT from scratch"
LABELED_ONLY, JOINT = "SupMAE, labelled images only", "SupMAE, fine-tuned with reconstruction"
PSEUDO = "SupMAE, pseudo-labels"
PIXELS, RANDOM = "raw pixels", "random encoder"
# Of the configuration; an arm that is not named has SupMAE's. The branch has a tenth to two thirds of the encoder's gradient, as
# docs/training.md says.
FIELDS = {
    SUPMAE: {"classification_loss_weight": 0.1},
    SUPERVISED: {"classification_loss_weight": 1.0, "reconstruction_loss_weight": 0.0},
    MAE: {"classification_loss_weight": 0.0},
}
EPOCHS = {
    SUPMAE: (12, 25, 50, 100, 200),
    SUPERVISED: (12, 25, 50, 100),
    MAE: (12, 25, 50, 100, 200),
    BOTH: (12, 25, 50, 100),
    JOINT: (25,),
    SCRATCH: (40, 80, 160),
}
FINETUNING_EPOCHS, TRIAL_EPOCHS = 20, 25
FEW_LABELS = (300, 1200)  # of 12,000 images
FEW_LABELS_SHARE = 0.3  # of the epochs of fine-tuning, which are as many steps as those of all images
FEW_LABELS_EPOCHS = {
    **dict.fromkeys((SUPMAE, LABELED_ONLY, MAE, BOTH, PSEUDO), (TRIAL_EPOCHS,)),
    SCRATCH: (10, 20, 40),
}
LARGE_EPOCHS = {SUPMAE: (25, 50, 100), SUPERVISED: (25, 50, 100), MAE: (50, 100, 200)}
REFERENCES = {PIXELS: (0,), RANDOM: (0,)}
PAIRS = [(SUPMAE, MAE), (SUPERVISED, MAE), (BOTH, MAE), (BOTH, SUPMAE), (SUPMAE, SUPERVISED), (JOINT, SUPMAE)]
PAIRS += [(SUPMAE, LABELED_ONLY), (LABELED_ONLY, MAE), (PSEUDO, SUPMAE), (SUPMAE, PIXELS), (MAE, PIXELS)]
# A pseudo-label needs this probability. None is used before those of the held-out images are right as often as this.
CONFIDENCE, PRECISION = 0.95, 0.95
RECONSTRUCTION_SHARE = 0.9  # of the loss of fine-tuning with reconstruction
COSTLY = "decoder"  # has to be ahead by more than the standard error of the accuracy on the held-out images
SETTINGS = {  # that are tried, one after another, each with the best of those before
    "learning_rate": (2e-3, 1e-3, 4e-3, 8e-3),
    "decoder": (1, 4),  # blocks
    "finetuning_rate": (1e-3, 2e-3, 4e-3, 8e-3),
    "mixing": (False, True),
}
WITHOUT_DECODER = {name: values for name, values in SETTINGS.items() if name != "decoder"}
TRIED = {  # the others are as MODEL says, or have nothing to decide
    SUPMAE: WITHOUT_DECODER,
    SUPERVISED: WITHOUT_DECODER,
    MAE: SETTINGS,
    LABELED_ONLY: WITHOUT_DECODER,
    SCRATCH: {name: SETTINGS[name] for name in ("finetuning_rate", "mixing")},
}
# Those chosen for 12,000 images, in larger batches that keep an accelerator busy: Adam's rates follow the square root of the batch
# (arXiv 2205.10287).
LARGE = {
    arm: {"width": 128, "batch": 4 * BATCH, "learning_rate": rate, "finetuning_rate": 8e-3, "mixing": False}
    for arm, rate in ((SUPMAE, 8e-3), (SUPERVISED, 4e-3), (MAE, 8e-3))
}
PROBED = 6_000  # of more than 12,000 images: a probe of all pixels would take minutes
SHOTS = (5, 20, 50)
SEVERITIES = (1, 3, 5)
MEASURES = {
    "probe": "linear probe",
    "knn": "nearest neighbours",
    "finetuned": "fine-tuned",
    "corrupted": "fine-tuned, on corrupted images",
    **{f"shots_{shots}": f"MNIST, {shots} shots" for shots in SHOTS},
}
DRAWN = ("probe", "knn", "finetuned", "shots_20")


def split(data: dict, seed: int, num_images: int, num_held_out: int, num_labeled: int | None = None) -> dict:
    """The images of a seed, those of them that have a label, and those that settings are chosen on, the same for all seeds."""
    num_labels = data["num_labels"]
    places = balanced(data["labels"], (num_images + num_held_out) // num_labels, seed=0)
    held_out = places[:, : num_held_out // num_labels].flatten()
    others = torch.ones(len(data["labels"]), dtype=torch.bool).index_fill(0, held_out, False).nonzero().flatten()
    chosen = others[balanced(data["labels"][others], num_images // num_labels, seed=seed + 1)]
    is_labeled = torch.zeros(chosen.shape, dtype=torch.bool)
    is_labeled[:, : None if num_labeled is None else num_labeled // num_labels] = True
    return {
        **data,
        "images": data["images"][chosen.flatten()],
        "labels": data["labels"][chosen].masked_fill(~is_labeled, UNLABELED).flatten(),
        "labeled": is_labeled.flatten().nonzero().flatten(),
        "held_out_images": data["images"][held_out],
        "held_out_labels": data["labels"][held_out],
    }


def config_of(arm: str, settings: dict, num_labels: int) -> SupMAEConfig:
    fields = {**MODEL, "decoder_num_hidden_layers": settings.get("decoder", 1), **FIELDS.get(arm, FIELDS[SUPMAE])}
    width = settings.get("width", MODEL["hidden_size"])
    for part in ("", "decoder_"):
        fields |= {f"{part}hidden_size": width, f"{part}intermediate_size": 4 * width}
    return SupMAEConfig(**fields, num_labels=num_labels)


def steps_of(epochs: float, images: torch.Tensor, batch_size: int) -> int:
    return round(epochs * len(images) / batch_size)


@torch.no_grad()
def pseudo_labels(model: SupMAEForPreTraining, images: torch.Tensor) -> torch.Tensor:
    """
    Guess the classes of whole images. As in SSMAE (arXiv 2601.20072) an image has a guess only if the branch is sure of it and a
    strongly augmented view gives the same class.
    """
    model.eval()
    views = to_inputs(images), erase(crop_and_flip(images))
    weak, strong = (model.classification_head(model.vit(view).pooler_output).softmax(dim=-1) for view in views)
    model.train()
    confidence, classes = weak.max(dim=-1)
    return classes.masked_fill((confidence < CONFIDENCE) | (strong.argmax(dim=-1) != classes), UNLABELED)


def pretrain(arm: str, settings: dict, epochs: float, data: dict) -> tuple[SupMAEForPreTraining, dict[str, float]]:
    """The model; how long it took, and the share of the encoder's gradient that its branch had in its 20th step."""
    start = time.perf_counter()
    images, labels, labeled, shares = data["images"], data["labels"], data["labeled"], []
    pool = labeled if arm == LABELED_ONLY else torch.arange(len(images))
    batch_size = settings.get("batch", BATCH)
    # labelled images, in every batch
    num_repeated = batch_size // 2 if arm != MAE and 2 * len(labeled) < len(pool) else 0
    model = SupMAEForPreTraining(config_of(arm, settings, data["num_labels"]))
    if arm == BOTH:
        epochs /= 2
        first, _ = pretrain(MAE, {**settings, "decoder": 1}, epochs, data)
        model.load_state_dict(first.state_dict())
    step = itertools.count(1)
    held_out, answers = data["held_out_images"][::10], data["held_out_labels"][::10]  # of all classes: they are sorted

    def loss_of(model, pixel_values, labels):
        if next(step) == 20 and labels is not None:
            shares.append(branch_gradient_share(model, {"pixel_values": pixel_values, "labels": labels}).item())
        return model(pixel_values, labels=labels).loss

    def batches():
        is_reliable = False
        drawn = zip(endless(pool, batch_size - num_repeated), endless(labeled, num_repeated))
        for number, parts in enumerate(drawn, 1):
            ids = torch.cat(parts)
            targets = None if arm == MAE else labels[ids]
            if arm == PSEUDO and not is_reliable and number % steps_of(1, images, batch_size) == 0:
                guessed = pseudo_labels(model, held_out)
                given = guessed != UNLABELED
                is_reliable = (guessed == answers)[given].float().mean().item() >= PRECISION
            if is_reliable:
                targets = torch.where(targets == UNLABELED, pseudo_labels(model, images[ids]), targets)
            yield crop_and_flip(images[ids]), targets

    steps = steps_of(epochs, images, batch_size)
    comparison.train(model, batches(), steps, settings["learning_rate"], WEIGHT_DECAY, loss_of=loss_of)
    return model, {
        "gradient_share": shares[0] if shares else 0.0,
        "pretraining_seconds": time.perf_counter() - start,
    }


def rate(data: dict, seconds: float) -> float:
    """Images a second of SupMAE's pre-training on all images, after the first two steps, beside the other processes."""
    model = SupMAEForPreTraining(config_of(SUPMAE, LARGE[SUPMAE], data["num_labels"]))
    images, labels, batch_size, times = data["images"], data["labels"], LARGE[SUPMAE]["batch"], []

    def batches():
        for ids in endless(torch.arange(len(images)), batch_size):
            times.append(time.perf_counter())
            if len(times) > 3 and times[-1] - times[2] > seconds:
                return
            yield crop_and_flip(images[ids]), labels[ids]

    comparison.train(model, batches(), 1_000_000, 1e-4)
    return (len(times) - 3) * batch_size / (times[-1] - times[2])


def pretrain_once(job: dict, data: dict) -> tuple[SupMAEForPreTraining, dict[str, float]]:
    """[`pretrain`], or what another job with the same pre-training left."""
    arm, settings = SUPMAE if job["arm"] == JOINT else job["arm"], job["settings"]
    settings = {name: settings[name] for name in ("learning_rate", "decoder", "width", "batch") if name in settings}
    key = [arm, settings, *(job[name] for name in ("epochs", "seed", "images", "held_out"))]
    key += [job["labeled"]] if "labeled" in job and arm != MAE else []  # which takes none
    path = data["pretrained"] / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        model = SupMAEForPreTraining(config_of(arm, settings, data["num_labels"]))
        load_model(model, path)
        with safe_open(path, "pt") as file:
            return model.eval(), {name: float(value) for name, value in file.metadata().items()}
    model, result = pretrain(arm, settings, job["epochs"], data)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    save_model(model, new, {name: str(value) for name, value in result.items()})
    new.rename(path)
    return model, result


def erase(images: torch.Tensor) -> torch.Tensor:
    """Random erasing (arXiv 1708.04896) of a batch at once: a box of 2% to a third of the area of a quarter of the images is 0."""
    number, _, height, width = images.shape
    area = torch.empty(number, 1).uniform_(0.02, 1 / 3) * height * width
    ratio = torch.empty(number, 1).uniform_(math.log(0.3), math.log(3.3)).exp()
    inside = []
    for size, side in ((height, (area * ratio).sqrt()), (width, (area / ratio).sqrt())):
        start, places = torch.rand(number, 1) * (size - side).clamp(min=0), torch.arange(size)
        inside.append((places >= start.floor()) & (places < start.floor() + side.round()))
    box = inside[0][:, :, None] & inside[1][:, None] & (torch.rand(number, 1, 1) < 0.25)
    return images.masked_fill(box[:, None], 0)


def finetune(
    pretrained: SupMAEForPreTraining | None, settings: dict, epochs: float, data: dict, reconstructs: bool = False
) -> SupMAEForImageClassification:
    """A classifier from a pre-trained model, or from scratch; the loss is soft cross entropy, and the reconstruction's if asked for."""
    images, labels, num_labels = data["images"], data["labels"], data["num_labels"]
    batch_size = settings.get("batch", BATCH)
    if pretrained is None:
        config = config_of(SCRATCH, {}, num_labels)
        config.drop_path_rate = 0.1
        model = SupMAEForImageClassification(config)
    else:
        model = comparison.classifier_of(pretrained, drop_path_rate=0.1)
    if reconstructs:
        whole, masked = classification_flops(model.config), pretraining_flops(pretrained.config)
        epochs *= whole / (whole + masked)
        # one encoder for both
        pretrained.vit.embeddings = model.vit.embeddings
        pretrained.vit.layers = model.vit.layers
        model.reconstruction = pretrained
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=num_labels), v2.CutMix(alpha=1.0, num_classes=num_labels)])

    def batches():
        for ids in endless(data["labeled"], batch_size):
            pixel_values, answers = crop_and_flip(images[ids]), labels[ids]
            batch = erase(pixel_values), answers
            yield mix(*batch) if settings["mixing"] else batch

    def loss_of(model, pixel_values, answers):
        loss = torch.nn.functional.cross_entropy(model(pixel_values).logits, answers, label_smoothing=0.1)
        if not reconstructs:
            return loss
        return torch.lerp(loss, model.reconstruction(pixel_values).reconstruction_loss, RECONSTRUCTION_SHARE)

    steps, layer_decay = steps_of(epochs, images, batch_size), None if pretrained is None else LAYER_DECAY
    return comparison.train(model, batches(), steps, settings["finetuning_rate"], WEIGHT_DECAY, layer_decay, loss_of)


def corrupted_copies(images: np.ndarray, name: str) -> list[np.ndarray]:
    """A corruption of grey images `(num_images, height, width)` of type uint8, in each of the severities."""
    sharp = [Image.fromarray(image) for image in images]
    return [
        np.stack([np.asarray(corrupt(image, name, severity, index)) for index, image in enumerate(sharp)])
        for severity in SEVERITIES
    ]


def corrupt_images(images: torch.Tensor, pool, path: Path):
    """Write corrupted copies of images, once: `(corruptions * severities, num_images, height, width)`."""
    if not path.exists():
        margin = max(32 - images.shape[-1], 0) // 2  # corruptions take images of 32x32 pixels or more
        padded = torch.nn.functional.pad(images, [margin] * 4)[:, 0].numpy()
        parts = pool.starmap(corrupted_copies, [(padded, name) for name in CORRUPTIONS], chunksize=1)
        copies = np.concatenate(parts)[..., margin : margin + images.shape[-2], margin : margin + images.shape[-1]]
        new = path.with_suffix(".new")
        with open(new, "wb") as file:
            np.save(file, copies)
        new.rename(path)


def measure_features(encoder, data: dict, draws: int) -> dict[str, float]:
    """
    A linear probe and nearest neighbours from the labelled images, or 6,000 of more than 12,000, and few-shot transfer by the probe,
    averaged over `draws`.
    """
    labeled, num_labels = data["labeled"], data["num_labels"]
    if len(labeled) > 12_000:
        labeled = labeled[:: len(labeled) // PROBED]  # of all classes: they are sorted
    bank, queries = (features_of(encoder, images) for images in (data["images"][labeled], data["test_images"]))
    labels, answers = (x.cpu().numpy() for x in (data["labels"][labeled], data["test_labels"]))
    probe, _ = select_probe(bank, labels)
    votes = knn_scores(bank, labels, queries, num_labels, NUM_NEIGHBORS)
    result = {
        "probe": float(probe.score(queries, answers)),
        "knn": float((votes.argmax(axis=1) == answers).mean()),
    }
    other = data["transfer"]
    queries, answers = features_of(encoder, other["test_images"]), other["test_labels"].cpu().numpy()
    labels = other["labels"].cpu().numpy()
    for shots in SHOTS:
        scores = []
        for draw in range(draws):
            places = draw_shots(labels, shots, draw)
            probe, _ = select_probe(features_of(encoder, other["images"][places]), labels[places], draw)
            scores.append(float(probe.score(queries, answers)))
        result[f"shots_{shots}"] = statistics.mean(scores)
    return result


def run(job: dict, data: dict) -> dict:
    """Train once, and measure: a trial by its fine-tuned accuracy on the images that settings are chosen on."""
    if "rate of" in job:
        return {"images_per_second": rate(data, job["for"])}
    data = split(data, job["seed"], job["images"], job["held_out"], job.get("labeled"))
    is_trial, arm, settings = job["is_trial"], job["arm"], job["settings"]
    torch.manual_seed(job["seed"])
    result, pretrained = {}, None
    if arm in (PIXELS, RANDOM):
        model = SupMAEForPreTraining(config_of(arm, settings, data["num_labels"])).eval()
        return measure_features(None if arm == PIXELS else model.vit, data, job["draws"])
    if arm != SCRATCH:
        pretrained, result = pretrain_once(job, data)
        if not is_trial and arm != JOINT:
            result |= measure_features(pretrained.vit, data, job["draws"])
    torch.manual_seed(job["seed"])
    model = finetune(pretrained, settings, job["finetuning_epochs"], data, reconstructs=arm == JOINT)
    name = "held_out" if is_trial else "test"
    result["finetuned"] = comparison.accuracy(model, to_inputs(data[f"{name}_images"]), data[f"{name}_labels"])
    if not is_trial:
        copies = np.load(data["corrupted"], mmap_mode="r")
        answers = data["test_labels"][: len(copies[0])]
        result["corrupted"] = statistics.mean(
            comparison.accuracy(model, to_inputs(torch.tensor(images).unsqueeze(1)), answers) for images in copies
        )
    return result


# --- settings ---


def lengths_of(args) -> dict[str, tuple[int, ...]]:
    """The arms, and their epochs: of training from scratch, or of pre-training."""
    if args.only == "large":
        return {**LARGE_EPOCHS, **REFERENCES}
    return {**(EPOCHS if args.labeled == args.images else FEW_LABELS_EPOCHS), **REFERENCES}


def shortened(epochs: float, args) -> float:
    return float(f"{epochs / args.divisor:.3g}")


def choose_settings(runs: Comparison, args) -> dict[str, dict]:
    """The settings of each arm with the best accuracy on the held-out images, at the length where the arms are compared."""
    lengths = lengths_of(args)
    values_of = {
        arm: {name: values[: args.tried] for name, values in tried.items()}
        for arm, tried in TRIED.items()
        if arm in lengths
    }
    chosen = {arm: {name: values[0] for name, values in tried.items()} for arm, tried in values_of.items()}
    for name in SETTINGS:
        jobs = [
            job_of(
                args,
                arm,
                {**chosen[arm], name: value},
                shortened(lengths[arm][0] if arm == SCRATCH else TRIAL_EPOCHS, args),
                is_trial=True,
            )
            for arm, tried in values_of.items()
            for value in tried.get(name, ())
        ]
        best = {}
        for job, result in zip(jobs, runs.finish(jobs)):
            accuracy, least = result["finetuned"], best.get(job["arm"], 0)
            if name == COSTLY and least:
                least += math.sqrt(least * (1 - least) / args.held_out)
            if accuracy > least:
                best[job["arm"]], chosen[job["arm"]] = accuracy, job["settings"]
    return {**chosen, **dict.fromkeys((BOTH, JOINT, PSEUDO), chosen[SUPMAE]), PIXELS: {}, RANDOM: {}}


def classifier_epoch(settings: dict) -> float:
    """Epochs of SupMAE's pre-training that are as many operations as an epoch of a classifier."""
    config = config_of(SUPMAE, settings, 10)
    return classification_flops(config) / pretraining_flops(config)


def divisor_of(runs: Comparison, args) -> float:
    """What to divide all epochs of [`LARGE_EPOCHS`] and of their fine-tuning by, for as many minutes of training as asked for."""

    def images_per_second(processes: int) -> float:
        job = {"rate of": args.device, "processes": processes, "for": min(15, 3 * args.minutes)}
        results = runs.finish([{**job, "process": number} for number in range(processes)])
        return sum(result["images_per_second"] for result in results)

    alone, together = images_per_second(1), images_per_second(args.processes)
    finetuning = args.finetuning_epochs * classifier_epoch(LARGE[SUPMAE])
    # as many images of pre-training as a run takes the time of
    images = [(epochs + finetuning) * args.images for lengths in LARGE_EPOCHS.values() for epochs in lengths]
    seconds = 60 * args.minutes
    # the longest run is not alone until the others have ended
    return max(1.0, args.seeds * sum(images) / together / seconds, max(images) / alone / seconds)


def job_of(args, arm: str, settings: dict, epochs: float, seed: int = 0, is_trial: bool = False) -> dict:
    from_scratch = arm == SCRATCH
    measured = {} if is_trial else {name: getattr(args, name) for name in ("test_images", "corrupted", "draws")}
    return {
        "arm": arm,
        "epochs": 0 if from_scratch else epochs,
        "finetuning_epochs": epochs if from_scratch else args.finetuning_epochs,
        "settings": settings,
        "seed": seed,
        "is_trial": is_trial,
        "images": args.images,
        "held_out": args.held_out,
        **({} if args.labeled == args.images else {"labeled": args.labeled}),
        **measured,
    }


# --- tables ---


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of the 95% interval (Student's t) of paired differences; infinite for one of them."""
    mean, number = statistics.mean(differences), len(differences)
    if number < 2:
        return mean, math.inf
    return mean, float(t.ppf(0.975, number - 1)) * statistics.stdev(differences) / math.sqrt(number)


def name_of(job: dict) -> str:
    """The arm of a job; of one from scratch with its epochs."""
    return f"{SCRATCH}, {job['finetuning_epochs']:.3g} epochs" if job["arm"] == SCRATCH else job["arm"]


def differences(jobs: list[dict], results: list[dict], arm: str, other: str) -> list[dict]:
    """
    A row for each length of `arm`: by how much it is ahead of `other` after as many epochs, or without pre-training, in points, with its
    interval.
    """
    values = {(name_of(job), job["epochs"], job["seed"]): result for job, result in zip(jobs, results)}
    rows, is_pretrained = [], all(epochs for name, epochs, _ in values if name == other)
    for epochs in sorted({epochs for name, epochs, _ in values if name == arm}):
        length = epochs if is_pretrained else 0
        seeds = [seed for name, at, seed in values if (name, at) == (arm, epochs) and (other, length, seed) in values]
        row = {"epochs": epochs, "seeds": len(seeds)}
        for name, title in MEASURES.items():
            pairs = [(values[arm, epochs, seed], values[other, length, seed]) for seed in seeds]
            if pairs and all(name in one for pair in pairs for one in pair):
                row[title], row[f"{title} (95%)"] = (
                    100 * value for value in interval([one[name] - two[name] for one, two in pairs])
                )
        if len(row) > 2:
            rows.append(row)
    return rows


def epochs_for(curve: dict[float, float], accuracy: float) -> float:
    """
    The epochs after which a curve (accuracy by epochs) first has an accuracy, linear in the logarithm of the epochs; infinite if it
    never does.
    """
    points = sorted(curve.items())
    if points[0][1] >= accuracy:
        return points[0][0]
    for (begin, low), (end, high) in itertools.pairwise(points):
        if low < accuracy <= high:
            return math.exp(math.log(begin) + (accuracy - low) / (high - low) * math.log(end / begin))
    return math.inf


def epochs_needed(jobs: list[dict], results: list[dict]) -> list[dict]:
    """For each length of SupMAE the epochs of MAE that are as accurate: the median over seeds, the fewest and the most."""
    rows, lengths = [], sorted({job["epochs"] for job in jobs if job["arm"] == SUPMAE})
    for name, title in MEASURES.items():
        curves = {}
        for job, result in zip(jobs, results):
            if name in result:
                curves.setdefault((job["arm"], job["seed"]), {})[job["epochs"]] = result[name]
        for epochs in lengths:
            needed = [
                epochs_for(curves[MAE, seed], curve[epochs])
                for (arm, seed), curve in curves.items()
                if arm == SUPMAE and epochs in curve and len(curves.get((MAE, seed), ())) > 1
            ]
            if needed:
                row = {"measure": title, "epochs of SupMAE": epochs, "of MAE": statistics.median(needed)}
                rows.append({**row, "fewest": min(needed), "most": max(needed)})
    return rows


def at_equal_operations(rows: list[dict]) -> list[dict]:
    """The rows of results, those from scratch with the epochs of SupMAE's pre-training that, with fine-tuning, are as many operations."""
    finetuning = {row["labels"]: row["epochs of fine-tuning"] for row in rows if row["epochs"]}
    epoch, placed = classifier_epoch({}), []
    for row in rows:
        if row["arm"] == SCRATCH:
            row = {**row, "epochs": (row["epochs of fine-tuning"] - finetuning[row["labels"]]) * epoch}
        placed.append(row)
    return placed


def draw_figure(rows: list[dict], path: Path):
    """
    Accuracy, with standard deviations, over epochs of pre-training and, at the length that few labels are compared at, over the number of
    labels. Grey: raw pixels (by a linear probe where others are fine-tuned), a random encoder, and a ViT from scratch, at the epochs of
    [`at_equal_operations`]; over labels the shortest that takes as many operations or more.
    """
    arms = dict.fromkeys(row["arm"] for row in rows if row["epochs"])
    most = max(row["labels"] for row in rows)
    rows = at_equal_operations(rows)
    drawn = [row for row in rows if row["labels"] == most]
    panels = [("epochs", "epochs of pre-training", MEASURES[name], drawn) for name in DRAWN]
    if lengths := {row["epochs"] for row in rows if row["labels"] < most and row["arm"] in arms}:
        drawn = [row for row in rows if row["epochs"] in {0, *lengths}]
        longer = [row for row in rows if row["arm"] == SCRATCH and row["epochs"] >= max(lengths)]
        drawn += {row["labels"]: row for row in sorted(longer, key=lambda row: -row["epochs"])}.values()
        panels.append(("labels", f"labels, after {max(lengths):.3g} epochs", MEASURES["finetuned"], drawn))
    styles = {arm: {"label": arm, "color": f"C{place}"} for place, arm in enumerate(arms)}
    styles[SCRATCH] = {"label": f"{SCRATCH}, as many operations", "color": "grey", "linestyle": "--"}
    figure = Figure(figsize=(3.5 * len(panels), 4), layout="constrained")
    for axis, (over, xlabel, title, drawn) in zip(figure.subplots(1, len(panels)), panels):
        measured = [row for row in drawn if title in row]
        for arm, style in styles.items():
            # fewer epochs from scratch than fine-tuning has are on no such axis
            chosen = [row for row in measured if row["arm"] == arm and row["epochs"] > 0]
            points = sorted((row[over], 100 * row[title], 100 * row[f"{title} (std)"]) for row in chosen)
            if points:
                x, y, deviations = zip(*points)
                axis.errorbar(x, y, deviations, marker="o", capsize=3, **style)
        for arm, style in ((PIXELS, ":"), (RANDOM, "-.")):
            # raw pixels are not fine-tuned: their linear probe in the place of it
            name = MEASURES["probe"] if arm == PIXELS and title == MEASURES["finetuned"] else title
            points = sorted((row["labels"], 100 * row[name]) for row in drawn if row["arm"] == arm and name in row)
            if points and over == "epochs":
                axis.axhline(points[0][1], linestyle=style, color="grey", label=arm)
            elif points:
                axis.plot(*zip(*points), linestyle=style, color="grey", label=arm)
        places = sorted({row[over] for row in drawn if row["arm"] in arms})
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [f"{place:.5g}" for place in places])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(title)
        axis.set_xlabel(xlabel)
    figure.supylabel("accuracy on test images (%)")
    entries = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=100)


def rows_of(jobs: list[dict], results: list[dict], labeled: int) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of the tables of results, of differences and of the epochs of MAE that are needed."""
    keys = [
        {
            "labels": labeled,
            "arm": job["arm"],
            "epochs": job["epochs"],
            "epochs of fine-tuning": job["finetuning_epochs"],
        }
        for job in jobs
    ]
    rows = table_of(keys, results, {**MEASURES, "gradient_share": "share of the gradient"})
    from_scratch = dict.fromkeys(name_of(job) for job in jobs if job["arm"] == SCRATCH)
    paired = [
        {"labels": labeled, "paired": f"{arm} over {other}", **row}
        for arm, other in [*PAIRS, *itertools.product((SUPMAE, LABELED_ONLY, SUPERVISED, MAE), from_scratch)]
        for row in differences(jobs, results, arm, other)
    ]
    return rows, paired, epochs_needed(jobs, results)


def compare(runs: Comparison, args) -> tuple[list[dict], list[dict], list[dict]]:
    """Choose the settings with `args.labeled` labels, and run all arms; see [`rows_of`]."""
    if args.only == "large":
        args.divisor = divisor_of(runs, args)
        args.finetuning_epochs = shortened(args.finetuning_epochs, args)
        print(f"All epochs are divided by {args.divisor:.2f}.", flush=True)
        chosen = {**LARGE, PIXELS: {}, RANDOM: {"width": LARGE[SUPMAE]["width"]}}
    else:
        chosen = choose_settings(runs, args)
    for arm, settings in chosen.items():
        print(f"Chosen for {arm} with {args.labeled} labels: {settings}", flush=True)
    jobs = [
        job_of(args, arm, chosen[arm], shortened(epochs, args), seed)
        for seed in range(args.seeds)
        for arm, epochs_of_arm in lengths_of(args).items()
        for epochs in epochs_of_arm
    ]
    # the longest first, so that the processes end together; the probe of pixels takes minutes
    runs.finish(
        sorted(jobs, key=lambda job: (job["arm"] not in REFERENCES, -job["epochs"] - job["finetuning_epochs"]))
    )
    return rows_of(jobs, runs.finish(jobs), args.labeled)


def main():
    numbers = {
        "seeds": (3, 1, "how many, each with other images"),
        "images": (12_000, 2_000, "images that are trained on"),
        "held_out": (10_000, 1_000, "images that settings are chosen on"),
        "finetuning_epochs": (FINETUNING_EPOCHS, 4, "of fine-tuning"),
        "tried": (4, 1, "values of each setting that are tried"),
        "divisor": (1, 12, "by which the epochs of pre-training and from scratch are divided"),
        "test_images": (10_000, 500, "images that are tested on, of each data set"),
        "corrupted": (2_000, 100, "of them, corrupted"),
        "draws": (5, 1, "draws of few-shot images"),
        "minutes": (5.0, 1.0, "of training, for `--only large`"),
    }
    sources = {**comparison.SOURCES, "transfer": "ylecun/mnist"}
    args = comparison.read_arguments(__doc__, "pretraining", numbers, sources, only=["all", "few", "large"])
    data, transfer = (load_images(source, MODEL["image_size"]) for source in (args.data, args.transfer))
    if args.only == "large":
        args.images, args.held_out = len(data["labels"].unique()) * int(data["labels"].bincount().min()), 0
        # more would only slow an accelerator down
        args.processes = min(args.processes, args.seeds * sum(map(len, lengths_of(args).values())))
    few = [max(number * args.images // 12_000, 2 * data["num_labels"]) for number in FEW_LABELS]
    labels = {None: [args.images, *few], "few": few}.get(args.only, [args.images])
    for images in (data, transfer):
        images |= {name: images[name][: args.test_images] for name in ("test_images", "test_labels")}
    data |= {
        "transfer": transfer,
        "corrupted": args.output_dir / f"corrupted-{args.corrupted}.npy",
        "pretrained": args.output_dir / "_pretrained",
    }
    with Comparison(args, run, MEASURES, dict, data) as runs:
        images = data["test_images"][: args.corrupted]
        corrupt_images(images, runs.pool, data["corrupted"])
        tables = {"results": [], "differences": [], "epochs-needed": []}
        for labeled in labels:
            chosen = {"labeled": labeled}
            if labeled < args.images:
                chosen["finetuning_epochs"] = max(round(FEW_LABELS_SHARE * args.finetuning_epochs), 1)
            for rows, more in zip(tables.values(), compare(runs, argparse.Namespace(**{**vars(args), **chosen}))):
                rows += more
        for name, rows in tables.items():
            runs.write(rows, name)
        draw_figure(tables["results"], args.output_dir / "pretraining.png")


if __name__ == "__main__":
    run_script(main)
