#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune a pre-trained SupMAE (or train one from scratch) as an image classifier on a data set of the Hub, a folder of
images, or (by default) scikit-learn's handwritten digits.

    accelerate launch examples/run_finetune.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/finetune_digits.yaml, which needs the checkpoint that
run_pretrain.py leaves. Flags override the recipe; `--help` lists them. A run that was interrupted goes on when the
same command is given again.
"""

from pathlib import Path

import torch
from timm.data import Mixup

from supmae_hf import SupMAEForImageClassification
from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.transforms import build_finetune_transform
from supmae_hf.evaluation.metrics import compute_accuracy
from supmae_hf.training.arguments import FineTuningArguments, ModelArguments
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.job import load_job
from supmae_hf.training.trainer import FineTuner


def main():
    arguments = parse_arguments(
        (ModelArguments, DataArguments, FineTuningArguments),
        base="finetune",
        default_recipe=Path(__file__).parent / "configs" / "finetune_digits.yaml",
    )
    _, data_args, args = arguments
    job = load_job("fine-tuning", "Fine-tuned", arguments, needs_labels="Fine-tuning")
    fields = job.data.labels.config_fields()
    new = job.build_model(SupMAEForImageClassification, drop_path_rate=args.drop_path_rate, **fields)
    if "classifier.weight" in new:
        torch.nn.init.trunc_normal_(job.model.classifier.weight, std=args.classifier_init_std)
    crops = data_args.crop_scale, data_args.horizontal_flip
    job.prepare_data(
        lambda processor: build_finetune_transform(processor, *crops, args.auto_augment, args.random_erasing)
    )
    mixup = None
    if args.mixup or args.cutmix:
        num_labels, smoothing = job.model.config.num_labels, args.label_smoothing_factor
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=smoothing, num_classes=num_labels)
    with open_run(args, job.describe()) as checkpoint:
        FineTuner(**job.for_trainer(), compute_metrics=compute_accuracy, mixup=mixup, job=job).run(checkpoint)


if __name__ == "__main__":
    run(main)
