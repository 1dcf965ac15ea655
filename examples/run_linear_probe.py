#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
How good are the features of a pre-trained SupMAE, as they are? Fits a linear classifier on the frozen encoder.

    accelerate launch examples/run_linear_probe.py [RECIPE.yaml] [--flag value ...]

`--probe lars` is the paper's: 90 epochs of LARS on augmented images. `--probe logistic` and `--probe knn` compute each
image's features once and hand them to scikit-learn: much faster, and often close. lars and logistic leave a
SupMAEForImageClassification. Without a recipe and a data set it runs examples/configs/linear_probe_digits.yaml, which
needs the checkpoint that run_pretrain.py leaves.
"""

from pathlib import Path

from transformers import EvalPrediction, set_seed

from supmae_hf import SupMAEForImageClassification
from supmae_hf.data.images import build_image_processor, build_train_transform, collate
from supmae_hf.data.sources import DataArguments
from supmae_hf.evaluation.metrics import compute_accuracy
from supmae_hf.evaluation.probes import LinearProbe, compute_features, fit_logistic, knn_scores
from supmae_hf.training.arguments import LinearProbeArguments, ModelArguments, parse_arguments
from supmae_hf.training.resuming import prepare_output_dir
from supmae_hf.training.setup import build_datasets, leave, load_labeled_data, report_classification
from supmae_hf.training.trainer import LinearProbeTrainer


def main():
    model_args, data_args, training_args = parse_arguments(
        (ModelArguments, DataArguments, LinearProbeArguments),
        default_recipe=Path(__file__).parent / "configs" / "linear_probe_digits.yaml",
    )
    if model_args.model_name_or_path is None:
        raise ValueError("A probe needs an encoder: name a checkpoint with `--model_name_or_path`.")
    is_trained = training_args.probe == "lars"
    if data_args.streaming and not is_trained:
        raise ValueError(
            f"`--probe {training_args.probe}` computes the features of every image once, but a training stream has no "
            "end: leave out `--streaming`, or use `--probe lars`."
        )
    checkpoint = prepare_output_dir(training_args)
    set_seed(training_args.seed)

    data, labels = load_labeled_data(data_args, job="A linear probe")
    classifier, _ = model_args.build(
        SupMAEForImageClassification, use_mean_pooling=training_args.use_mean_pooling, **labels.config_fields()
    )
    image_processor = build_image_processor(classifier.config, data_args.eval_crop_ratio)
    train_dataset, eval_dataset = build_datasets(
        data,
        classifier.config,
        labels,
        data_args,
        training_args,
        # the other probes see each image once, as evaluation does
        build_train_transform(classifier.config, data_args) if is_trained else image_processor,
        image_processor,
    )
    trainer = LinearProbeTrainer(
        model=LinearProbe(classifier) if is_trained else classifier,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=image_processor,
        compute_metrics=compute_accuracy,
    )
    if is_trained:
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.was_stopped:
            leave(training_args)
        trainer.save_state()
        metrics = trainer.evaluate()
        classifier = trainer.model.to_classifier()
    else:
        features, targets = compute_features(classifier, train_dataset, training_args)
        if training_args.probe == "logistic":
            fit_logistic(classifier, features, targets, training_args.inverse_regularization)
            metrics = trainer.evaluate()
        else:
            queries, answers = compute_features(classifier, eval_dataset, training_args)
            scores = knn_scores(features, targets, queries, classifier.config.num_labels, training_args.num_neighbors)
            metrics = compute_accuracy(EvalPrediction(scores, answers))
            metrics = {f"eval_{name}": value for name, value in metrics.items()}
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        if training_args.probe != "knn":
            classifier.save_pretrained(training_args.output_dir)
            image_processor.save_pretrained(training_args.output_dir)
        report_classification(
            f"Probed ({training_args.probe})", trainer, metrics, has_model=training_args.probe != "knn"
        )


if __name__ == "__main__":
    main()
