#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-train SupMAE on a data set of the Hub, a folder of images, or (by default) scikit-learn's handwritten digits.

    python examples/run_pretrain.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/pretrain_digits.yaml. Flags override the recipe; `--help`
lists them. A run that was interrupted goes on when the same command is given again.
"""

from pathlib import Path

from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import DataArguments
from supmae_hf.evaluation.encode import KnnEvaluation
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.job import prepare_pretraining
from supmae_hf.training.trainer import PreTrainer


def main():
    arguments = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        base="pretrain",
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
        description=__doc__,
    )
    job = prepare_pretraining(arguments)
    knn = KnnEvaluation(job) if job.args.knn_eval else None
    with open_run(job.args, job.describe()) as checkpoint:
        PreTrainer(**job.for_trainer(), knn=knn, job=job).run(checkpoint)


if __name__ == "__main__":
    run(main)
