#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation: fine-tune encoders in UperNet, as the paper does on ADE20K, and evaluate by sliding windows.

    python examples/run_semantic_segmentation.py [RECIPE.yaml] --models a b c [--train_images DIR ...]

Without data it takes synthetic shapes on photographs. Prints mIoU, aAcc and mAcc; each model's checkpoint and masks.png go
into a folder of --output_dir, the table to results.json, results.csv and results.png there. Defaults are the paper's: 160,000
steps of 16 crops of 512 x 512. A run that was interrupted goes on when the same command is given again.
"""

import copy
import json
from pathlib import Path

from transformers import set_seed

from supmae_hf.cli import parse_arguments, run
from supmae_hf.evaluation import segmentation
from supmae_hf.evaluation.models import check_models
from supmae_hf.evaluation.segmentation import SegmentationDataArguments, UperNetArguments
from supmae_hf.evaluation.tables import save_bars, say_written, write_table
from supmae_hf.records import require_apart
from supmae_hf.training.arguments import SegmentationArguments
from supmae_hf.training.checkpointing import open_run
from supmae_hf.training.cpu import prepare_cpu
from supmae_hf.training.job import describe_recipe
from supmae_hf.training.trainer import RecipeTrainer


def train(
    name: str, args: SegmentationArguments, data, data_args: SegmentationDataArguments, upernet: UperNetArguments
):
    """Train and evaluate one model; returns a row of the table."""
    facts = {"model": name, "data": data_args.describe(data), **vars(upernet)}
    with open_run(args, describe_recipe("segmentation", args, facts)) as checkpoint:
        set_seed(args.seed)
        image_processor = segmentation.build_segmentation_processor(data_args, name)
        backbone = segmentation.load_backbone(name, data_args.crop_size, upernet.out_indices, args.drop_path_rate)
        trainer = RecipeTrainer(
            model=segmentation.build_upernet(backbone, data_args.num_classes, upernet.decoder_hidden_size),
            args=args,
            processing_class=image_processor,
            train_dataset=segmentation.segmentation_dataset(data["train"], data_args, image_processor, args.seed),
            data_collator=segmentation.collate_segmentation,
        )
        prepare_cpu(trainer.model, args)
        trainer.run(checkpoint)
        held_out = segmentation.segmentation_dataset(data["validation"], data_args, image_processor)
        metrics, shown = segmentation.evaluate_segmentation(trainer.model, held_out, data_args)
        if trainer.is_world_process_zero():
            folder = Path(args.output_dir)
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
            segmentation.save_masks(shown, data_args.num_classes, folder / "masks.png", image_processor)
    return {"model": name, **{metric: 100 * metrics[metric] for metric in ("mIoU", "aAcc", "mAcc")}}


def main():
    upernet, data_args, args = parse_arguments(
        (UperNetArguments, SegmentationDataArguments, SegmentationArguments), base="segmentation", description=__doc__
    )
    check_models(
        upernet.models, lambda name: segmentation.load_backbone(name, data_args.crop_size, upernet.out_indices)
    )
    output_dir = Path(args.output_dir)
    require_apart(output_dir, [*upernet.models, *data_args.sources()])
    data = segmentation.load_segmentation_data(data_args)
    args.check_num_images(len(data["train"]))
    rows = []
    for name in upernet.models:
        own = copy.copy(args)
        own.output_dir = str(output_dir / name.strip("/").replace("/", "-"))
        rows.append(train(name, own, data, data_args, upernet))
    if args.process_index == 0:
        print(f"\nPercent, {len(data['validation'])} held-out images.\n")
        write_table(rows, output_dir, "results")
        save_bars(rows, "model", ["mIoU", "aAcc", "mAcc"], output_dir / "results.png", "percent")
        say_written(output_dir, "results.json", "results.csv", "results.png", "*/masks.png")


if __name__ == "__main__":
    run(main)
