#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune a pre-trained SupMAE (or train one from scratch) as an image classifier on a data set of the Hub, a folder of
images, or (by default) scikit-learn's handwritten digits.

    accelerate launch examples/run_finetune.py [RECIPE.yaml] [--flag value ...]

Without a recipe and a data set it runs examples/configs/finetune_digits.yaml, which needs the checkpoint that
run_pretrain.py leaves. Flags override the recipe; `--help` lists them.
"""

from pathlib import Path

from transformers import set_seed

from supmae_hf import SupMAEForImageClassification
from supmae_hf.data.images import (
    DataArguments,
    ImageDataset,
    Labels,
    build_image_processor,
    build_train_transform,
    collate,
    load_image_data,
)
from supmae_hf.evaluation.metrics import TopKAccuracy
from supmae_hf.training.arguments import (
    FineTuningArguments,
    ModelArguments,
    parse_arguments,
    prepare_output_dir,
)
from supmae_hf.training.trainer import RecipeTrainer
from supmae_hf.visualization import save_curves


def main():
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, FineTuningArguments),
        default_recipe=Path(__file__).parent / "configs" / "finetune_digits.yaml",
    )
    checkpoint = prepare_output_dir(training_args)
    output_dir = Path(training_args.output_dir)
    set_seed(training_args.seed)

    data = load_image_data(data_args)
    labels = Labels.of(data["train"], data_args.label_column_name)
    if labels.problem_type != "single_label_classification":
        raise ValueError(
            f"Fine-tuning needs one class per image, but the label column is {labels.column}: name a column of classes "
            f"with `--label_column_name`. The columns are {list(data['train'].features)}."
        )

    model = model_args.build(SupMAEForImageClassification, **labels.config_fields())
    image_processor = build_image_processor(model.config, data_args.eval_crop_ratio)
    train_dataset = ImageDataset(
        data["train"],
        model.config,
        labels,
        build_train_transform(model.config, data_args),
        data_args.image_column_name,
    )
    eval_dataset = ImageDataset(data["validation"], model.config, labels, image_processor, data_args.image_column_name)

    metric = TopKAccuracy(keep_in_memory=True)
    trainer = RecipeTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=image_processor,
        compute_metrics=lambda prediction: metric.compute(
            predictions=prediction.predictions, references=prediction.label_ids
        ),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)

    if trainer.is_world_process_zero():
        save_curves(trainer.state.log_history, output_dir / "curves.png", ("loss", "top1", "learning_rate"))
        accuracies = [f"{name.removeprefix('eval_')} {value:.2%}" for name, value in metrics.items() if "_top" in name]
        print(
            f"\nFine-tuned for {trainer.state.epoch:g} epochs on {len(train_dataset)} images; on {len(eval_dataset)} "
            f"held-out images: {', '.join(accuracies)}"
        )
        print(f"  checkpoint  {output_dir}")
        print(f"  log         {output_dir / 'runs'} (tensorboard --logdir {output_dir / 'runs'})")
        print(f"  pictures    {output_dir / 'curves.png'}")


if __name__ == "__main__":
    main()
