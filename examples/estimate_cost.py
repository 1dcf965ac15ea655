#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Estimate the cost of the training schedules that the paper compares: operations, device hours and energy.

    python examples/estimate_cost.py [--tflops 150 --watts 400] [--model_config '{"hidden_size": 1024, ...}']
    python examples/estimate_cost.py --recipe examples/configs/pretrain_vit_b_imagenet.yaml

--recipe adds a pre-training recipe of run_pretrain.py, with its model and its views of an image. Operations are counted from
shapes (see supmae_hf/cost.py). Hours follow from the rate at which a device really computes, --tflops: measure it, for
example by benchmarks/bench_step.py; energy from --watts. Writes cost.json, cost.csv and cost.png into --output_dir.
"""

import math
from pathlib import Path

from matplotlib.figure import Figure
from transformers import ViTMAEConfig

from supmae_hf import SupMAEConfig
from supmae_hf.cli import Parser, parse_arguments, run
from supmae_hf.cost import Schedule, pretraining_flops, published_schedules
from supmae_hf.data.arguments import DataArguments
from supmae_hf.evaluation.tables import say_written, write_table
from supmae_hf.records import Record
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments


def schedule_of(recipe: str) -> Schedule:
    """The schedule of a pre-training recipe of run_pretrain.py, without fine-tuning."""
    classes = ModelArguments, DataArguments, PreTrainingArguments
    model_args, _, args = parse_arguments(classes, base="pretrain", argv=[recipe, "--bf16", "False"])
    config = SupMAEConfig(**{"num_labels": 1000, **model_args.model_config})
    epochs = args.num_train_epochs * args.repeated_augmentation
    return Schedule(Path(recipe).stem, 3 * pretraining_flops(config), epochs)


def main():
    parser = Parser(__doc__)
    parser.add_argument("--model_config", help="fields of SupMAEConfig, as JSON")
    parser.add_argument("--recipe", help="of run_pretrain.py, to be compared with those of the paper")
    parser.add_argument("--num_images", type=int, default=1_281_167, help="images of an epoch; default: ImageNet-1K's")
    parser.add_argument("--tflops", type=float, help="10^12 operations a second of a device, as measured")
    parser.add_argument("--watts", type=float, help="power of a device")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/cost"))
    args = parser.parse_args()
    if args.watts is not None and args.tflops is None:
        parser.error("--watts needs --tflops, from which the hours follow.")
    for name in ("tflops", "watts", "num_images"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be a number above 0, got {value}.")

    fields = ModelArguments(model_config=args.model_config).model_config
    config = SupMAEConfig(**{"num_labels": 1000, **fields})
    shared = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size", "num_channels")
    mae_config = ViTMAEConfig(**{name: getattr(config, name) for name in shared})  # the decoder is MAE's own
    schedules = published_schedules(config, mae_config) + ([schedule_of(args.recipe)] if args.recipe else [])
    mae = next(schedule for schedule in schedules if schedule.name == "MAE")
    rows = []
    for schedule in schedules:
        row = {
            "method": schedule.name,
            "GFLOPs an image": schedule.pretraining_flops / 1e9,
            "epochs": schedule.pretraining_epochs,
            "pre-training EFLOPs": schedule.pretraining(args.num_images) / 1e18,
            "fine-tuning EFLOPs": schedule.finetuning(args.num_images) / 1e18,
            "pre-training / MAE's": schedule.pretraining(1) / mae.pretraining(1),
            "total / MAE's": schedule.total(1) / mae.total(1),
        }
        if args.tflops:
            row["device hours"] = schedule.total(args.num_images) / (args.tflops * 1e12) / 3600
        if args.watts:
            row["kWh"] = row["device hours"] * args.watts / 1000
        rows.append(row)

    write_table(rows, args.output_dir, "cost", ".3g")
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    names = [row["method"] for row in rows]
    pretraining = [row["pre-training EFLOPs"] for row in rows]
    axis.barh(names, pretraining, label="pre-training, or training from scratch")
    axis.barh(names, [row["fine-tuning EFLOPs"] for row in rows], left=pretraining, label="fine-tuning")
    axis.invert_yaxis()
    axis.set(xlabel="EFLOPs (10^18 operations)")
    axis.legend()
    Record(args.output_dir).claim("cost.png")
    figure.savefig(args.output_dir / "cost.png", dpi=150)
    say_written(args.output_dir, "cost.json", "cost.csv", "cost.png")


if __name__ == "__main__":
    run(main)
