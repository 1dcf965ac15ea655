#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-train SupMAE on a data set of the Hub, a folder of images, or (by default) scikit-learn's handwritten digits.

    accelerate launch examples/run_pretrain.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/pretrain_digits.yaml. Flags override the recipe; `--help`
lists them. A run that was interrupted goes on when the same command is given again.
"""

from pathlib import Path

from transformers import set_seed

from supmae_hf.data.dataset import collate
from supmae_hf.training.arguments import DataArguments, ModelArguments, PreTrainingArguments, prepare_pretraining
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.knn import KnnEvaluation
from supmae_hf.training.recipes import parse_arguments, run
from supmae_hf.training.reports import Report
from supmae_hf.training.runs import describe_run
from supmae_hf.training.trainer import PreTrainer


def main():
    model_args, data_args, args = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        base="pretrain",
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
    )
    data = data_args.load(args.output_dir, model_args.model_config, [model_args.model_name_or_path, args.mask_dir])
    set_seed(args.seed)
    model, image_processor, train_dataset, eval_dataset = prepare_pretraining(model_args, data_args, args, data)
    knn = None
    if args.knn_eval:
        knn = KnnEvaluation(data, train_dataset, image_processor, data_args.label_column_name, args)
    with open_run(args, describe_run("pre-training", model_args, data_args, args, data)) as checkpoint:
        trainer = PreTrainer(
            model=model,
            args=args,
            knn=knn,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
            processing_class=image_processor,
            report=Report("Pre-trained", model, args, data_args, data, train_dataset, eval_dataset, image_processor),
        )
        trainer.run(checkpoint)


if __name__ == "__main__":
    run(main)
