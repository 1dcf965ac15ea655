#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Measure what captions and dense labels add to pre-training, at equal compute.

    python experiments/supervision.py [--data FOLDER] [--only captions|dense] [--quick]

Captions: pictures of two pieces of clothing of Fashion-MNIST (from the Hub, or any set in its format from a folder) at random places,
with captions such as "a bag and a sandal". SupMAE learns from the captions, SupMAE from the same as classes (several an image), MAE
from the pictures. Measured on pictures of one piece: the accuracy of the pre-trained branches, which have seen no such picture, and of
models that were fine-tuned with 1% of the labels.

Dense: coloured shapes on photographs. SupMAE learns from their masks, SupMAE from which shapes there are, MAE from the images. Measured:
mIoU of UperNets that were fine-tuned from each on some of the images.

Runs are kept as they finish: after an interruption the same command goes on. Prints tables and writes them into --output_dir.
"""

import itertools
from collections.abc import Iterator

import comparison
import numpy as np
import torch
from comparison import SMALL_MODEL, Comparison, endless, table_of, to_inputs

from supmae_hf import SupMAEBackbone, SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cli import run as run_script
from supmae_hf.cost import classification_flops, pretraining_flops
from supmae_hf.data.targets import Captions, train_word_tokenizer
from supmae_hf.evaluation.metrics import count_pixels, segmentation_scores
from supmae_hf.evaluation.segmentation import IGNORED, build_upernet, make_shapes
from supmae_hf.evaluation.zero_shot import class_tokens, zero_shot_function


SIZE, PIECE, BATCH = 64, 28, 64  # pixels of a picture and of a piece in it; images of a step
# 64 patches of 8x8, 16 visible
MODEL = {**SMALL_MODEL, "image_size": SIZE, "problem_type": "multi_label_classification"}
WORDS = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CAPTIONS, CLASSES, DENSE, MAE = "SupMAE, captions", "SupMAE, classes", "SupMAE, dense labels", "MAE"
ARMS = {"captions": (CAPTIONS, CLASSES, MAE), "dense": (DENSE, CLASSES, MAE)}
WEIGHTS = (0.1, 1.0)  # of the supervised losses, whose gradients differ in size; none is chosen, all are reported
MEASURES = {"zero_shot": "pre-trained branch", "finetuned": "fine-tuned with 1% of the labels", "miou": "mIoU"}
TFLOPS = 4  # of pre-training; with less there are fewer shapes and steps of UperNet, too
NUM_SHAPES, SHAPES_FOR_TUNING, SHAPES_FOR_TEST = 4000, 400, 400


def caption_of(labels: list[int]) -> str:
    """Such as `"a bag and a sandal"`."""
    return " and ".join(f"a {WORDS[label]}" for label in labels)


def pictures(images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """
    Pieces at random places, which do not overlap much, on black: `(num, 1, SIZE, SIZE)`.

    Args:
        images: Images of type uint8, `(num_images, 1, 32, 32)`, padded with black.
        ids: Indices of the pieces, of shape `(num, pieces)`.
    """
    border = (images.shape[-1] - PIECE) // 2
    result = torch.zeros(len(ids), 1, SIZE, SIZE, dtype=torch.uint8)
    for picture, row in zip(result, ids):
        while True:  # all anew: beside a piece in the middle there is no place
            corners = torch.randint(SIZE - PIECE + 1, (len(row), 2)).tolist()
            pairs = itertools.combinations(corners, 2)
            if all(max(abs(top - y), abs(left - x)) >= 0.75 * PIECE for (top, left), (y, x) in pairs):
                break
        for place, (top, left) in zip(row, corners):
            piece = images[place, :, border : border + PIECE, border : border + PIECE]
            window = picture[:, top : top + PIECE, left : left + PIECE]
            window.copy_(torch.maximum(window, piece))
    return result


def pretrain(
    config: SupMAEConfig, batches: Iterator, flops: float, prepare=lambda model: None
) -> SupMAEForPreTraining:
    model = SupMAEForPreTraining(config)
    prepare(model)
    num_steps = round(flops / (3 * pretraining_flops(config) * BATCH))
    return comparison.train(
        model, batches, num_steps, 2e-3, loss_of=lambda model, images, targets: model(images, **targets).loss
    )


def run_captions(job: dict, data: dict) -> dict:
    """Pre-train on pictures of two pieces, measure on pictures of one."""
    images, labels, arm = data["images"], data["labels"], job["arm"]
    texts = [caption_of([first, second]) for first in range(10) for second in range(10)]
    captions = Captions("text", train_word_tokenizer(texts))
    captions.length = 4  # two words, "a" and "and"
    fields = {"num_channels": 1, "num_labels": 10, "classification_loss_weight": job["weight"]}
    if arm == CAPTIONS:
        fields |= {"supervision": "captions", "caption_vocab_size": len(captions.tokenizer)}
    everything = torch.arange(len(images))

    def batches(num_pieces: int):
        for ids in endless(everything, BATCH * num_pieces):
            ids = ids.reshape(BATCH, num_pieces)
            targets = {}
            if arm == CAPTIONS:
                rows = [captions.encode({"text": caption_of(row)}) for row in labels[ids].tolist()]
                targets["caption_ids"] = torch.stack(rows)
            elif arm == CLASSES:
                targets["labels"] = torch.zeros(BATCH, 10).scatter_(1, labels[ids], 1.0)
            yield to_inputs(pictures(images, ids)), targets

    def prepare(model: SupMAEForPreTraining):
        if arm == CAPTIONS:
            model.tokenizer = captions.tokenizer
            counts = torch.zeros(len(captions.tokenizer), dtype=torch.long)
            for text in texts:
                counts[captions.tokens(text)] += 1
            model.supervision["captions"].set_frequencies(counts, len(texts))

    pretrained = pretrain(SupMAEConfig(**{**MODEL, **fields}), batches(2), job["flops"], prepare)
    torch.manual_seed(0)  # the same pictures for all
    queries = to_inputs(pictures(data["test_images"], torch.arange(len(data["test_images"]))[:, None]))
    result = {}
    if arm != MAE:
        function = lambda x: pretrained.classification_head(pretrained.vit(x).pooler_output)  # noqa: E731
        if arm == CAPTIONS:
            function = zero_shot_function(pretrained, class_tokens(pretrained, WORDS))
        with torch.no_grad():
            scores = torch.cat([function(part) for part in queries.split(500)])
        result["zero_shot"] = (scores.argmax(dim=-1) == data["test_labels"]).float().mean().item()

    torch.manual_seed(job["seed"])
    few = comparison.balanced(labels, max(round(0.01 * labels.bincount().min().item()), 1), job["seed"]).flatten()

    def labeled():
        for ids in endless(few, BATCH):
            yield to_inputs(pictures(images, ids[:, None])), labels[ids]

    classifier = comparison.classifier_of(pretrained, drop_path_rate=0.1, problem_type="single_label_classification")
    num_steps = round(job["flops"] / 4 / (3 * classification_flops(classifier.config) * BATCH))
    classifier = comparison.train(classifier, labeled(), num_steps, 1e-3, layer_decay=0.75)
    return {**result, "finetuned": comparison.accuracy(classifier, queries, data["test_labels"])}


def load_shapes(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(num_images, 3, SIZE, SIZE)` of type uint8 and classes of their pixels `(num_images, SIZE, SIZE)`."""
    data = make_shapes(num_images, SIZE, seed)
    images, masks = (np.stack([np.asarray(x) for x in data[name]]) for name in ("image", "annotation"))
    return torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(masks).long()


def flipped(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of a batch mirrored."""
    mirror = torch.rand(len(images)) < 0.5
    images = torch.where(mirror.view(-1, 1, 1, 1), images.flip(-1), images)
    return images, torch.where(mirror.view(-1, 1, 1), masks.flip(-1), masks)


def run_dense(job: dict, data: dict) -> dict:
    """Pre-train on shapes, and fine-tune UperNet on some of them."""
    images, masks, arm = *load_shapes(data["num_shapes"], seed=0), job["arm"]
    fields = {"num_channels": 3, "num_labels": 3, "classification_loss_weight": job["weight"]}
    if arm == DENSE:
        fields |= {"supervision": "dense", "dense_classes": ["photograph", "disc", "square", "triangle"]}

    def batches():
        for ids in endless(torch.arange(len(images)), BATCH):
            pixels, classes = flipped(images[ids], masks[ids])
            targets = {}
            if arm == DENSE:
                targets["segmentation_maps"] = classes
            elif arm == CLASSES:
                targets["labels"] = torch.stack([(classes == label).any(-1).any(-1) for label in (1, 2, 3)], 1).float()
            yield to_inputs(pixels), targets

    pretrained = pretrain(SupMAEConfig(**{**MODEL, **fields}), batches(), job["flops"])
    config = SupMAEConfig(**{**pretrained.config.to_dict(), "out_indices": [1, 2, 3, 4], "add_fpn": True})
    backbone = SupMAEBackbone(config)
    backbone.vit.load_state_dict(pretrained.vit.state_dict(), strict=False)

    def labeled():
        for ids in endless(torch.arange(min(SHAPES_FOR_TUNING, len(images))), 16):
            pixels, classes = flipped(images[ids], masks[ids])
            yield to_inputs(pixels), classes

    upernet = build_upernet(backbone, num_classes=4, hidden_size=32)
    upernet = comparison.train(upernet, labeled(), job["tuning_steps"], 1e-3, layer_decay=0.9)
    test_images, test_masks = load_shapes(min(SHAPES_FOR_TEST, data["num_shapes"]), seed=1)
    pixels = 0
    with torch.no_grad():
        for part, answers in zip(test_images.split(50), test_masks.split(50)):
            predicted = upernet(to_inputs(part)).logits.argmax(dim=1)
            pixels = pixels + count_pixels(predicted.cpu().numpy().ravel(), answers.cpu().numpy().ravel(), 4, IGNORED)
    return {"miou": segmentation_scores(pixels)["mIoU"]}


def run(job: dict, data: dict) -> dict:
    torch.manual_seed(job["seed"])
    return {"captions": run_captions, "dense": run_dense}[job["part"]](job, data)


def main():
    numbers = {"tflops": (float(TFLOPS), 1.0, "10^12 operations of pre-training"), "seeds": (3, 1, "how many")}
    args = comparison.read_arguments(__doc__, "supervision", numbers, only=list(ARMS))
    parts = [args.only] if args.only else list(ARMS)
    data = comparison.load_images(args.data) if "captions" in parts else {}
    if data and data["num_labels"] != len(WORDS):
        raise ValueError(f"{args.data} has {data['num_labels']} classes, but captions are written for {len(WORDS)}.")
    share = min(args.tflops / TFLOPS, 1)
    data["num_shapes"] = max(round(NUM_SHAPES * share), 32)
    tuning_steps = max(round(300 * share), 2)
    jobs = {
        part: [
            {"part": part, "arm": arm, "weight": weight, "flops": 1e12 * args.tflops, "seed": seed}
            | ({"tuning_steps": tuning_steps} if part == "dense" else {})
            for seed in range(args.seeds)
            for arm in ARMS[part]
            for weight in ((0.0,) if arm == MAE else WEIGHTS)
        ]
        for part in parts
    }
    with Comparison(args, run, MEASURES, dict, data) as runs:
        results = runs.finish([job for part in parts for job in jobs[part]])
        for part in parts:
            keys = [
                {"arm": job["arm"], "weight": job["weight"], "TFLOPs of pre-training": args.tflops}
                for job in jobs[part]
            ]
            runs.write(table_of(keys, results, MEASURES), f"results_{part}")
            results = results[len(keys) :]


if __name__ == "__main__":
    run_script(main)
