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

from supmae_hf.data.images import collate
from supmae_hf.data.sources import DataArguments
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments, parse_arguments
from supmae_hf.training.resuming import prepare_output_dir
from supmae_hf.training.setup import leave, prepare_pretraining, report_pretraining
from supmae_hf.training.trainer import PreTrainer


def main():
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
    )
    checkpoint = prepare_output_dir(training_args)
    set_seed(training_args.seed)
    model, image_processor, train_dataset, eval_dataset = prepare_pretraining(model_args, data_args, training_args)

    trainer = PreTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=image_processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.was_stopped:
        leave(training_args)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        report_pretraining(
            model,
            image_processor,
            train_dataset,
            eval_dataset,
            training_args,
            trainer.state.log_history,
            metrics,
            trainer.state.epoch,
        )
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
