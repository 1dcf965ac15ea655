#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-train SupMAE on a data set of the Hub, a folder of images, or (by default) scikit-learn's handwritten digits.

    accelerate launch examples/run_pretrain.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/pretrain_digits.yaml. Flags override the recipe; `--help`
lists them.
"""

from pathlib import Path

from transformers import set_seed

from supmae_hf import SupMAEForPreTraining
from supmae_hf.data.images import (
    DataArguments,
    ImageDataset,
    Labels,
    build_image_processor,
    build_train_transform,
    collate,
    load_image_data,
)
from supmae_hf.training.arguments import (
    ModelArguments,
    PreTrainingArguments,
    parse_arguments,
    prepare_output_dir,
)
from supmae_hf.training.trainer import PreTrainer
from supmae_hf.visualization import save_curves, save_reconstructions


def main():
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, PreTrainingArguments),
        default_recipe=Path(__file__).parent / "configs" / "pretrain_digits.yaml",
    )
    checkpoint = prepare_output_dir(training_args)
    output_dir = Path(training_args.output_dir)
    set_seed(training_args.seed)

    data = load_image_data(data_args)
    labels = Labels.of(data["train"], data_args.label_column_name)
    if labels.column is None:
        print(f"No label column in {list(data['train'].features)}: training the reconstruction branch only (MAE).")

    model = model_args.build(SupMAEForPreTraining, **labels.config_fields())
    image_processor = build_image_processor(model.config, data_args.eval_crop_ratio)
    train_dataset = ImageDataset(
        data["train"],
        model.config,
        labels,
        build_train_transform(model.config, data_args),
        data_args.image_column_name,
    )
    eval_dataset = ImageDataset(
        data["validation"], model.config, labels, image_processor, data_args.image_column_name, fixed_masks=True
    )
    if len(train_dataset) < training_args.total_batch_size:
        raise ValueError(
            f"A step takes {training_args.total_batch_size} images but there are only {len(train_dataset)} to train "
            "on: lower `--per_device_train_batch_size` or `--gradient_accumulation_steps`."
        )

    trainer = PreTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=image_processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)

    if trainer.is_world_process_zero():
        shown = collate([eval_dataset[i] for i in range(min(training_args.num_reconstructions, len(eval_dataset)))])
        save_reconstructions(
            model,
            shown["pixel_values"],
            output_dir / "reconstructions.png",
            image_processor.image_mean,
            image_processor.image_std,
            shown["noise"],
        )
        save_curves(
            trainer.state.log_history,
            output_dir / "curves.png",
            ("reconstruction_loss", "classification_loss", "accuracy", "learning_rate"),
        )
        figures = {
            "reconstruction loss": metrics["eval_reconstruction_loss"],
            "classification loss": metrics.get("eval_classification_loss"),
            "accuracy on visible patches": metrics.get("eval_accuracy"),
        }
        print(
            f"\nPre-trained for {trainer.state.epoch:g} epochs on {len(train_dataset)} images; on {len(eval_dataset)} "
            "held-out images: "
            + ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        )
        print(f"  checkpoint  {output_dir}")
        print(f"  log         {output_dir / 'runs'} (tensorboard --logdir {output_dir / 'runs'})")
        print(f"  pictures    {output_dir / 'reconstructions.png'}, {output_dir / 'curves.png'}")


if __name__ == "__main__":
    main()
