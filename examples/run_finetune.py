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
from transformers import set_seed

from supmae_hf import SupMAEForImageClassification
from supmae_hf.data.dataset import collate
from supmae_hf.data.transforms import build_finetune_transform
from supmae_hf.evaluation.metrics import compute_accuracy
from supmae_hf.training.arguments import DataArguments, FineTuningArguments, ModelArguments
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.cpu import prepare_cpu
from supmae_hf.training.recipes import parse_arguments, run
from supmae_hf.training.reports import Report
from supmae_hf.training.runs import describe_run
from supmae_hf.training.trainer import FineTuner


def main():
    model_args, data_args, args = parse_arguments(
        (ModelArguments, DataArguments, FineTuningArguments),
        base="finetune",
        default_recipe=Path(__file__).parent / "configs" / "finetune_digits.yaml",
    )
    data = data_args.load_labeled(
        "Fine-tuning", args.output_dir, model_args.model_config, [model_args.model_name_or_path]
    )
    set_seed(args.seed)
    fields = {**data.labels.config_fields(), **data_args.config_fields(model_args)}
    model, new_parameters = model_args.build(
        SupMAEForImageClassification, args, drop_path_rate=args.drop_path_rate, **fields
    )
    if "classifier.weight" in new_parameters:
        torch.nn.init.trunc_normal_(model.classifier.weight, std=args.classifier_init_std)
    args.check_best_metric(["loss", "top1", *(["top5"] if model.config.num_labels > 5 else [])])
    prepare_cpu(model, args)
    image_processor = data_args.build_image_processor(data, model.config, model_args.model_name_or_path)
    transform = build_finetune_transform(
        image_processor, data_args.crop_scale, data_args.horizontal_flip, args.auto_augment, args.random_erasing
    )
    train_dataset, eval_dataset = data_args.build(data, args, transform, image_processor)
    mixup = None
    if args.mixup or args.cutmix:
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            label_smoothing=args.label_smoothing_factor,
            num_classes=model.config.num_labels,
        )

    with open_run(args, describe_run("fine-tuning", model_args, data_args, args, data)) as checkpoint:
        trainer = FineTuner(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
            processing_class=image_processor,
            compute_metrics=compute_accuracy,
            mixup=mixup,
            report=Report("Fine-tuned", model, args, data_args, data, train_dataset, eval_dataset, image_processor),
        )
        trainer.run(checkpoint)


if __name__ == "__main__":
    run(main)
