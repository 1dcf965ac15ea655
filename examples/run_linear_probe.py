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
from supmae_hf.data.dataset import collate
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.evaluation.metrics import compute_accuracy
from supmae_hf.evaluation.probes import (
    LinearProbe,
    LinearProbeArguments,
    LinearProbeTrainer,
    compute_features,
    fit_logistic,
)
from supmae_hf.records import Record
from supmae_hf.training.arguments import DataArguments, ModelArguments
from supmae_hf.training.checkpointing import RESULTS, open_run
from supmae_hf.training.cpu import prepare_cpu
from supmae_hf.training.knn import knn_scores
from supmae_hf.training.recipes import parse_arguments, run
from supmae_hf.training.reports import Report, say_results
from supmae_hf.training.runs import describe_run
from supmae_hf.training.trainer import leave


def main():
    model_args, data_args, args = parse_arguments(
        (ModelArguments, DataArguments, LinearProbeArguments),
        base="linear_probe",
        default_recipe=Path(__file__).parent / "configs" / "linear_probe_digits.yaml",
    )
    if model_args.model_name_or_path is None:
        raise ValueError("A probe needs an encoder: name a checkpoint with `--model_name_or_path`.")
    is_trained = args.probe == "lars"
    if data_args.streaming and not is_trained:
        raise ValueError(
            f"`--probe {args.probe}` computes the features of every image once, but a training stream has no "
            "end: leave out `--streaming`, or use `--probe lars`."
        )
    data = data_args.load_labeled("A linear probe", args.output_dir, inputs=[model_args.model_name_or_path])
    if data.validation is None:
        raise ValueError("A probe is judged by held-out images: leave out `--train_val_split 0`.")
    set_seed(args.seed)
    classifier, _ = model_args.build(
        SupMAEForImageClassification, args, use_mean_pooling=args.use_mean_pooling, **data.labels.config_fields()
    )
    args.check_best_metric(["loss", "top1", *(["top5"] if classifier.config.num_labels > 5 else [])])
    prepare_cpu(classifier, args)
    image_processor = data_args.build_image_processor(data, classifier.config, model_args.model_name_or_path)
    # the other probes see each image once, as evaluation does
    transform = image_processor
    if is_trained:
        transform = TrainTransform(image_processor, data_args.crop_scale, data_args.horizontal_flip)
    train_dataset, eval_dataset = data_args.build(data, args, transform, image_processor)
    with open_run(args, describe_run(f"probe {args.probe}", model_args, data_args, args, data)) as checkpoint:
        trainer = LinearProbeTrainer(
            model=LinearProbe(classifier) if is_trained else classifier,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
            processing_class=image_processor,
            compute_metrics=compute_accuracy,
        )
        if trainer.is_world_process_zero():
            Record(args.output_dir).claim(*RESULTS)
        if is_trained:
            trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.was_stopped:
                leave(args, trainer.monitor.stop)
            trainer.save_state()
            metrics = trainer.evaluate()
            classifier = trainer.model.to_classifier()
        else:
            options = {
                "batch_size": args.per_device_eval_batch_size,
                "num_workers": args.dataloader_num_workers,
                "use_cpu": args.use_cpu,
            }
            features, targets = compute_features(classifier, train_dataset, **options)
            if args.probe == "logistic":
                fit_logistic(classifier, features, targets, args.inverse_regularization)
                metrics = trainer.evaluate()
            else:
                queries, answers = compute_features(classifier, eval_dataset, **options)
                scores = knn_scores(features, targets, queries, classifier.config.num_labels, args.num_neighbors)
                metrics = compute_accuracy(EvalPrediction(scores, answers))
                metrics = {f"eval_{name}": value for name, value in metrics.items()}
        trainer.save_metrics("eval", metrics)
        if trainer.is_world_process_zero():
            if args.probe != "knn":
                classifier.save_pretrained(args.output_dir)
                image_processor.save_pretrained(args.output_dir)
            if is_trained:
                what = "Probed (lars)"
                report = Report(what, classifier, args, data_args, data, train_dataset, eval_dataset, image_processor)
                report.write(trainer.state.log_history, metrics)
            else:
                say_results(f"Probed ({args.probe})", train_dataset, eval_dataset, metrics)
                print(f"  figures     {Path(args.output_dir) / 'eval_results.json'}")


if __name__ == "__main__":
    run(main)
