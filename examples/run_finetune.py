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
from supmae_hf.data.images import build_finetune_transform, build_image_processor, collate
from supmae_hf.data.sources import DataArguments
from supmae_hf.evaluation.metrics import compute_accuracy
from supmae_hf.training.arguments import FineTuningArguments, ModelArguments, parse_arguments
from supmae_hf.training.resuming import prepare_output_dir
from supmae_hf.training.setup import build_datasets, leave, load_labeled_data, report_classification
from supmae_hf.training.trainer import FineTuner


def main():
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, FineTuningArguments),
        default_recipe=Path(__file__).parent / "configs" / "finetune_digits.yaml",
    )
    checkpoint = prepare_output_dir(training_args)
    set_seed(training_args.seed)

    data, labels = load_labeled_data(data_args, job="Fine-tuning")
    model, new_parameters = model_args.build(
        SupMAEForImageClassification, drop_path_rate=training_args.drop_path_rate, **labels.config_fields()
    )
    if "classifier.weight" in new_parameters:
        torch.nn.init.trunc_normal_(model.classifier.weight, std=training_args.classifier_init_std)
    image_processor = build_image_processor(model.config, data_args.eval_crop_ratio)
    train_dataset, eval_dataset = build_datasets(
        data,
        model.config,
        labels,
        data_args,
        training_args,
        build_finetune_transform(model.config, data_args, training_args.auto_augment, training_args.random_erasing),
        image_processor,
    )
    mixup = None
    if training_args.mixup or training_args.cutmix:
        mixup = Mixup(
            mixup_alpha=training_args.mixup,
            cutmix_alpha=training_args.cutmix,
            label_smoothing=training_args.label_smoothing_factor,
            num_classes=model.config.num_labels,
        )

    trainer = FineTuner(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=image_processor,
        compute_metrics=compute_accuracy,
        mixup=mixup,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.was_stopped:
        leave(training_args)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        report_classification("Fine-tuned", trainer, metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
