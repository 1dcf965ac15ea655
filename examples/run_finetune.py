#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune a pre-trained SupMAE (or train one from scratch) as an image classifier on a data set of the Hub, a folder of
images, or (by default) scikit-learn's handwritten digits.

    python examples/run_finetune.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/finetune_digits.yaml, which needs the checkpoint that
run_pretrain.py leaves. Flags override the recipe; `--help` lists them. A run that was interrupted goes on when the
same command is given again.
"""

from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup

from supmae_hf import SupMAEForImageClassification
from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.transforms import build_finetune_transform
from supmae_hf.evaluation.metrics import evaluation_metrics
from supmae_hf.training.arguments import FineTuningArguments, ModelArguments
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.job import load_job
from supmae_hf.training.trainer import FineTuner


def main():
    arguments = parse_arguments(
        (ModelArguments, DataArguments, FineTuningArguments),
        base="finetune",
        default_recipe=Path(__file__).parent / "configs" / "finetune_digits.yaml",
        description=__doc__,
    )
    _, data_args, args = arguments
    job = load_job("fine-tuning", "Fine-tuned", arguments, needs_labels="Fine-tuning")
    problem_type = job.data.labels.problem_type
    is_single = problem_type == "single_label_classification"
    if not is_single:
        args.compare_checkpoints_by("eval_map" if problem_type == "multi_label_classification" else "eval_loss")
        job.data.notes.append("mixup, cutmix and label smoothing are for one class per image: they are left out")
    weights = None
    if args.class_weights:
        if not is_single or data_args.streaming:
            raise ValueError("`--class_weights` is for one class per image, and not for streams: leave it out.")
        counts = np.bincount(job.data.classes(job.data.train), minlength=len(job.data.labels.names)).clip(1)
        weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    fields = job.data.labels.config_fields()
    new = job.build_model(SupMAEForImageClassification, drop_path_rate=args.drop_path_rate, **fields)
    if "classifier.weight" in new:
        torch.nn.init.trunc_normal_(job.model.classifier.weight, std=args.classifier_init_std)
    crops = data_args.crop_scale, data_args.horizontal_flip
    job.prepare_data(
        lambda processor: build_finetune_transform(processor, *crops, args.auto_augment, args.random_erasing)
    )
    mixup = None
    if is_single and (args.mixup or args.cutmix):
        num_labels, smoothing = job.model.config.num_labels, args.label_smoothing_factor
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=smoothing, num_classes=num_labels)
    with open_run(args, job.describe()) as checkpoint:
        trainer = FineTuner(
            **job.for_trainer(),
            compute_metrics=evaluation_metrics(problem_type),
            mixup=mixup,
            class_weights=weights,
            job=job,
        )
        trainer.run(checkpoint)


if __name__ == "__main__":
    run(main)
