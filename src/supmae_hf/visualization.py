# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Reconstructions and training curves as pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from .configuration_supmae import to_pair
from .modeling_supmae import SupMAEForPreTraining
from .preparation import Preparation


@torch.no_grad()
def reconstruct(
    model: SupMAEForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """
    Reconstruct images from their visible patches.

    Args:
        model ([`SupMAEForPreTraining`]): The model, used in evaluation mode.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*): Hides the patches with the most.

    Returns:
        `original`, `masked` (hidden patches are 0, the mean colour) and `reconstruction` (the visible patches, and the hidden ones
        as the model predicts them), each of the shape of `pixel_values` and in its scale; and the classes that the branch predicts
        from the visible patches, or `None` if it does not predict one. Under `config.norm_pix_loss` mean and contrast of hidden
        patches, which the model does not predict, are interpolated from the visible ones: nothing of the hidden patches is used.
    """
    was_training = model.training
    model.eval()
    pixel_values = pixel_values.to(model.device)
    outputs = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    model.train(was_training)
    predicted = model.predicted_pixel_values(outputs.logits, pixel_values, outputs.mask)
    patch_size = to_pair(model.config.patch_size)
    rows = pixel_values.shape[-2] // patch_size[0]
    hidden = outputs.mask.unflatten(1, (1, rows, -1))
    hidden = nn.functional.interpolate(hidden, scale_factor=tuple(map(float, patch_size)), mode="nearest")
    classes = None
    if outputs.class_logits is not None and model.config.problem_type == "single_label_classification":
        classes = [str(model.config.id2label[index]) for index in outputs.class_logits.argmax(dim=-1).tolist()]
    images = {
        "original": pixel_values,
        "masked": pixel_values * (1 - hidden),
        "reconstruction": torch.where(hidden.bool(), predicted, pixel_values),
    }
    return images, classes


def save_reconstructions(
    model: SupMAEForPreTraining,
    pixel_values: torch.Tensor,
    path: str | Path,
    preparation: Preparation,
    noise: torch.Tensor | None = None,
    labels: Sequence[str] | None = None,
):
    """
    Draw a picture with one column per image and the rows original, masked and reconstruction, above them the true class and below
    them the one that the branch predicts from the visible patches.

    Args:
        path: File to write; the ending decides the format.
        preparation: Turns `pixel_values` back into colours, see [`Preparation.to_pictures`].
        labels: Names of the true classes.

    See [`reconstruct`] for the others, and for what is drawn.
    """
    rows, classes = reconstruct(model, pixel_values, noise)
    original = rows["original"]
    rows = {name: preparation.to_pictures(images, original) for name, images in rows.items()}
    width = original.shape[-1]
    gap = math.ceil(width / 16)
    centres = [(width + gap) * column + width / 2 for column in range(len(original))]
    figure = Figure(figsize=(max(1.2 * len(original) + 0.4, 6), 4.6), layout="constrained")
    axes = figure.subplots(len(rows))
    for axis, (name, images) in zip(axes, rows.items()):
        images = np.pad(images, [(0, 0), (0, 0), (0, gap), (0, 0)], constant_values=1)
        axis.imshow(np.concatenate(images, axis=1)[:, :-gap], cmap="gray", vmin=0, vmax=1)
        axis.set(ylabel=name, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=8)
    if labels:
        axes[0].set_xticks(centres, map(cut, labels))
        axes[0].xaxis.tick_top()
    if classes:
        axes[-1].set_xticks(centres, [f"seen: {cut(name)}" for name in classes])
    how = ", in the brightness and contrast of the visible patches around" if model.config.norm_pix_loss else ""
    figure.supxlabel(f"hidden patches: what the model predicts{how}", fontsize=8)
    figure.savefig(path, dpi=150)


def cut(name: str, length: int = 16) -> str:
    """A name that fits below a picture."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def save_curves(log_history: list[dict], path: str | Path, names: tuple[str, ...]):
    """
    Draw training (thin) and held-out (thick, with the prefix `eval_`) curves over the epochs, one panel per name.

    Args:
        log_history: `trainer.state.log_history`.
        path: File to write; the ending decides the format.
        names: Metrics to draw, such as `("reconstruction_loss", "accuracy")`; those that were not logged are left out.
    """
    names = [name for name in names if any(name in entry or f"eval_{name}" in entry for entry in log_history)]
    figure = Figure(figsize=(4.2 * max(len(names), 1), 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, max(len(names), 1), squeeze=False)[0], names):
        for key, label, color, width in ((name, "training", "C0", 1), (f"eval_{name}", "held out", "C1", 2)):
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
            if points:
                axis.plot(*zip(*points), label=label, color=color, linewidth=width, marker=".")
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150)
