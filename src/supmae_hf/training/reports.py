# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""What a training run leaves beside the weights: pictures, curves, the model card, a few lines on the screen."""

import itertools
from pathlib import Path

import torch

from ..data.dataset import ImageDataset, ImageStream, collate, images_of_epoch
from ..data.image_data import ImageData
from ..hub import training_card
from ..modeling_supmae import SupMAEForPreTraining
from ..visualization import save_curves, save_reconstructions
from .arguments import DataArguments, RecipeArguments


class Report:
    """
    Of a run.

    Args:
        what: Was done, such as "Pre-trained".
        model: What is trained.
        args, data_args, data: With what, and on what.
        train_dataset, eval_dataset: On which images.
        image_processor: Of the evaluation.
    """

    def __init__(
        self,
        what: str,
        model: torch.nn.Module,
        args: RecipeArguments,
        data_args: DataArguments,
        data: ImageData,
        train_dataset: ImageDataset | ImageStream,
        eval_dataset: ImageDataset | ImageStream | None,
        image_processor,
    ):
        self.what, self.model, self.args, self.data_args, self.data = what, model, args, data_args, data
        self.image_processor = image_processor
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.output_dir = Path(args.output_dir)

    def write_card(self, log_history: list[dict]):
        """The model card, from the log of the run."""
        datasets = self.train_dataset, self.eval_dataset
        card = training_card(self.model, self.args, self.data_args, self.data, *datasets, log_history)
        card.save(self.output_dir / "README.md")

    def write(self, log_history: list[dict], metrics: dict[str, float]):
        """Pictures and card, and what came of it."""
        is_pretraining = isinstance(self.model, SupMAEForPreTraining)
        pictures = []
        if is_pretraining and self.eval_dataset is not None:
            pictures.append(self.output_dir / "reconstructions.png")
            shown = collate(list(itertools.islice(self.eval_dataset, self.args.num_reconstructions)))
            statistics = self.image_processor.image_mean, self.image_processor.image_std
            is_deep = self.data.pixel_type != "uint8"
            saved = SupMAEForPreTraining.from_pretrained(self.output_dir)  # whole, however the run's is sharded
            save_reconstructions(saved, shown["pixel_values"], pictures[0], *statistics, shown["noise"], is_deep)
        curves = ("loss", "top1")
        if is_pretraining:
            curves = ("reconstruction_loss", "classification_loss", "accuracy", "knn_top1")
            curves += ("caption_loss", "caption_accuracy", "dense_loss", "patch_miou")
        pictures.append(self.output_dir / "curves.png")
        save_curves(log_history, pictures[-1], (*curves, "learning_rate"))
        self.write_card(log_history)
        epochs = next((entry["epoch"] for entry in reversed(log_history) if "epoch" in entry), 0)
        say_results(f"{self.what} for {epochs:g} epochs", self.train_dataset, self.eval_dataset, metrics)
        print(f"  checkpoint  {self.output_dir}")
        print(f"  log         {self.output_dir / 'runs'} (tensorboard --logdir {self.output_dir / 'runs'})")
        print(f"  pictures    {', '.join(map(str, pictures))}")
        print(f"  model card  {self.output_dir / 'README.md'}")


_FIGURES = {
    "eval_reconstruction_loss": ("reconstruction loss", ".4f"),
    "eval_classification_loss": ("classification loss", ".4f"),
    "eval_accuracy": ("accuracy on visible patches", ".2%"),
    "eval_caption_loss": ("caption loss", ".4f"),
    "eval_caption_accuracy": ("best word in the caption", ".2%"),
    "eval_dense_loss": ("dense loss", ".4f"),
    "eval_patch_miou": ("mIoU of patches", ".2%"),
    "eval_knn_top1": ("accuracy of nearest neighbours", ".2%"),
    "eval_top1": ("top1", ".2%"),
    "eval_top5": ("top5", ".2%"),
}


def say_results(what: str, train_dataset, eval_dataset, metrics: dict[str, float]):
    """Print in one line what was done and the figures of the evaluation."""
    if eval_dataset is None:
        print(f"\n{what} on {images_of_epoch(train_dataset)} images, with none held out")
        return
    is_known = not isinstance(eval_dataset, ImageStream) or eval_dataset.num_images is not None
    figures = [f"{name} {metrics[key]:{form}}" for key, (name, form) in _FIGURES.items() if key in metrics]
    print(
        f"\n{what} on {images_of_epoch(train_dataset)} images; on {len(eval_dataset) if is_known else 'the'} held-out images: "
        + ", ".join(figures)
    )
