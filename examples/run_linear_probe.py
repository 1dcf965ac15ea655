#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Measure the features of a pre-trained SupMAE by a linear classifier on the frozen encoder.

    python examples/run_linear_probe.py [RECIPE.yaml] [--flag value ...]

`--probe lars` is the paper's: 90 epochs of LARS on augmented images. `--probe logistic` and `--probe knn` compute each
image's features once and hand them to scikit-learn: much faster, and often close. lars and logistic leave a
SupMAEForImageClassification. Without a recipe and a data set it runs examples/configs/linear_probe_digits.yaml, which
needs the checkpoint that run_pretrain.py leaves.
"""

from pathlib import Path

from supmae_hf import SupMAEForImageClassification
from supmae_hf.cli import parse_arguments, run
from supmae_hf.data.arguments import DataArguments
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.evaluation.encode import knn_scores
from supmae_hf.evaluation.metrics import compute_metrics, evaluation_metrics
from supmae_hf.evaluation.probes import (
    LinearProbe,
    LinearProbeArguments,
    LinearProbeTrainer,
    compute_features,
    fit_linear,
)
from supmae_hf.records import Record
from supmae_hf.training.arguments import ModelArguments
from supmae_hf.training.checkpointing import RESULTS, open_run
from supmae_hf.training.job import Job, load_job
from supmae_hf.training.loop import leave
from supmae_hf.training.report import say_results, write_report


def probe(job: Job, trainer: LinearProbeTrainer) -> dict[str, float]:
    """Fit a linear model to the features of each image, or find its nearest neighbours; returns the metrics."""
    args, classifier = job.args, job.model
    features, targets = compute_features(classifier, job.train_dataset, args)
    if args.probe == "logistic":
        fit_linear(classifier, features, targets, args.inverse_regularization)
        return trainer.evaluate()
    queries, answers = compute_features(classifier, job.eval_dataset, args)
    scores = knn_scores(features, targets, queries, classifier.config.num_labels, args.num_neighbors)
    problem_type = classifier.config.problem_type
    if problem_type == "multi_label_classification":
        scores = scores - 0.5  # the metrics take logits, above 0 for a probability above 1/2
    return {f"eval_{name}": value for name, value in compute_metrics(problem_type, scores, answers).items()}


def main():
    arguments = parse_arguments(
        (ModelArguments, DataArguments, LinearProbeArguments),
        base="linear_probe",
        default_recipe=Path(__file__).parent / "configs" / "linear_probe_digits.yaml",
    )
    model_args, data_args, args = arguments
    if model_args.model_name_or_path is None:
        raise ValueError("A probe needs an encoder: name a checkpoint with `--model_name_or_path`.")
    is_trained = args.probe == "lars"
    if data_args.streaming and not is_trained:
        raise ValueError(
            f"`--probe {args.probe}` computes the features of every image once, but a training stream has no "
            "end: leave out `--streaming`, or use `--probe lars`."
        )
    job = load_job(f"probe {args.probe}", f"Probed ({args.probe})", arguments, needs_labels="A linear probe")
    if job.data.validation is None:
        raise ValueError("A probe is judged by held-out images: leave out `--train_val_split 0`.")
    fields = job.data.labels.config_fields()
    job.build_model(SupMAEForImageClassification, use_mean_pooling=args.use_mean_pooling, **fields)
    crops = data_args.crop_scale, data_args.horizontal_flip
    # the other probes see each image once, as evaluation does
    job.prepare_data(lambda processor: TrainTransform(processor, *crops) if is_trained else processor)
    with open_run(args, job.describe()) as checkpoint:
        model = LinearProbe(job.model) if is_trained else job.model
        trainer = LinearProbeTrainer(
            **{**job.for_trainer(), "model": model}, compute_metrics=evaluation_metrics(fields["problem_type"])
        )
        if trainer.is_world_process_zero():
            Record(args.output_dir).claim(*RESULTS)
        if is_trained:
            trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.was_stopped:
                leave(args, trainer.monitor.stop)
            trainer.save_state()
            metrics = trainer.evaluate()
            job.model = trainer.model.to_classifier()
        else:
            metrics = probe(job, trainer)
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            if args.probe != "knn":
                job.model.save_pretrained(args.output_dir)
                job.image_processor.save_pretrained(args.output_dir)
            if is_trained:
                write_report(job, trainer.state.log_history, metrics)
            else:
                say_results(job, metrics)
                print(f"  metrics     {Path(args.output_dir) / 'eval_results.json'}")


if __name__ == "__main__":
    run(main)
