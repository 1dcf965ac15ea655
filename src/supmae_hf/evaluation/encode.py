# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Images through models: predictions, pooled features of any image encoder, and the nearest neighbours among them."""

import inspect
from collections.abc import Callable

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch import nn
from transformers import MODEL_MAPPING, AutoModel

from ..data.dataset import ImageDataset, collate
from ..data.labels import Labels
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEForImageClassification, SupMAEModel
from ..supervision_supmae import UNLABELED
from .models import load_config


NUM_NEIGHBORS = 20
MAX_BANK = 10_000  # training images among which neighbours are looked for


@torch.no_grad()
def predict(
    model: nn.Module, dataset, args, function: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Run a model on each image of a data set, in as many processes as `accelerate launch` started.

    Args:
        model: Moved to the device.
        dataset: An [`ImageDataset`] or another data set of `pixel_values` and `labels`.
        args ([`DeviceArguments`] or [`~transformers.TrainingArguments`]): Batch size, workers and device.
        function: Turns `pixel_values` into a tensor with one row per image; by default the `logits` of the model.

    Returns:
        Rows `(num_images, ...)` and labels `(num_images,)`.
    """
    accelerator = Accelerator(cpu=args.use_cpu)
    batch_size, num_workers = args.per_device_eval_batch_size, args.dataloader_num_workers
    loader = torch.utils.data.DataLoader(dataset, batch_size, collate_fn=collate, num_workers=num_workers)
    loader = accelerator.prepare(loader)
    model.to(accelerator.device).eval()
    function = function or (lambda pixel_values: model(pixel_values).logits)
    rows, labels = [], []
    for batch in loader:
        with accelerator.autocast():
            output = function(batch["pixel_values"])
        output, batch_labels = accelerator.gather_for_metrics((output, batch["labels"]))
        rows.append(output.float().cpu())
        labels.append(batch_labels.cpu())
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()


class ImageEncoder(nn.Module):
    """
    An image model as a function from `pixel_values` to features of shape `(batch_size, hidden_size)`.

    Args:
        name (`str`):
            Checkpoint, in a folder or on the Hub: SupMAE, ViTMAE (all of whose patches are encoded), ViT, DeiT, BEiT,
            DINOv2, CLIP and SigLIP (their vision towers), convolutional networks, timm models, ...
        pooling (`str`, *optional*, defaults to `"model"`):
            `"cls"` takes the class token, `"mean"` the average of the patch tokens, `"model"` what the model's own
            classifier (of a pre-training checkpoint: its branch) is given: SupMAE, BEiT and DINOv2 as their configuration says,
            ViTMAE, ViT and DeiT the class token, others their pooled output.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if the model is not one of images, or has no tokens to pool in that way.
    """

    def __init__(self, name: str, pooling: str = "model"):
        super().__init__()
        if pooling not in ("model", "cls", "mean"):
            raise ValueError(f"`pooling` must be model, cls or mean, got '{pooling}'.")
        self.name, self.pooling = name, pooling
        config = load_config(name)
        options = {}
        if config.model_type in ("supmae", "vit_mae"):
            is_mean = pooling == "mean" or pooling == "model" and getattr(config, "use_mean_pooling", False)
            is_classifier = config.architectures == ["SupMAEForImageClassification"]
            model_class = SupMAEForImageClassification if is_classifier else SupMAEModel
            self.model = load_pretrained(model_class, name, use_mean_pooling=is_mean)
            self.config, self.hidden_size = self.model.config, self.model.config.hidden_size
            return
        model_class = MODEL_MAPPING.get(type(config), None)
        has_optional_pooler = model_class and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        if has_optional_pooler and not getattr(config, "use_mean_pooling", False):
            options["add_pooling_layer"] = False  # BERT's tanh, which no classifier uses
        model = load_pretrained(AutoModel, name, **options)
        self.model = getattr(model, "vision_model", model)
        if self.model is not model and not hasattr(self.model, "config"):
            self.model.config = model.config.vision_config
        self.config = self.model.config
        if self.model is model and model.main_input_name != "pixel_values":
            raise ValueError(f"'{name}' is not a model of images but of `{model.main_input_name}`.")
        sizes = getattr(self.config, "image_size", None) or getattr(self.config, "pretrained_cfg", {}).get(
            "input_size"
        )
        sizes = sizes[-2:] if isinstance(sizes, (list, tuple)) else (sizes or 224,) * 2
        with torch.no_grad():
            self.hidden_size = self(torch.zeros(1, getattr(self.config, "num_channels", 3), *sizes)).shape[-1]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encode(pixel_values)[0]

    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Features `(batch_size, hidden_size)` and, if the model has them, the tokens of the patches (for networks of stages: of
        the places of the last map) in raster order, `(batch_size, num_patches, hidden_size)`.
        """
        if isinstance(self.model, SupMAEForImageClassification):
            outputs = self.model.vit(pixel_values)
            patches = outputs.last_hidden_state[:, self.config.num_prefix_tokens :]
            return tuple(self.model.fc_norm(x) for x in (outputs.pooler_output, patches))
        if isinstance(self.model, SupMAEModel):
            outputs = self.model(pixel_values)
            return outputs.pooler_output, outputs.last_hidden_state[:, self.config.num_prefix_tokens :]
        outputs = self.model(pixel_values)
        pooled = outputs.get("pooler_output")
        tokens = outputs.get("last_hidden_state")
        class_token = None
        if tokens is not None:
            if tokens.ndim == 4:
                tokens = tokens.flatten(2).transpose(1, 2)
            else:
                class_token = tokens[:, 0]
                tokens = tokens[:, self._num_prefix_tokens(pixel_values, tokens) :]
        if self.pooling == "model" and pooled is not None:
            return pooled.flatten(1), tokens
        if self.pooling == "cls" and class_token is None:
            raise ValueError(f"'{self.name}' has no class token: choose another `--pooling`.")
        return (tokens.mean(dim=1) if self.pooling == "mean" or class_token is None else class_token), tokens

    def _num_prefix_tokens(self, pixel_values: torch.Tensor, tokens: torch.Tensor) -> int:
        """Class, distillation and register tokens: those that are not of a patch."""
        patch_size = getattr(self.config, "patch_size", None)
        if patch_size is None:
            return getattr(getattr(self.model, "timm_model", None), "num_prefix_tokens", 1)
        patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        height, width = pixel_values.shape[-2:]
        return tokens.shape[1] - (height // patch_height) * (width // patch_width)


def knn_scores(
    features: np.ndarray, targets: np.ndarray, queries: np.ndarray, num_labels: int, num_neighbors: int
) -> np.ndarray:
    """
    Averages over the `num_neighbors` nearest training images by cosine distance, weighted by closeness, of shape
    `(num_queries, num_labels)`: votes for each class, or numbers.

    Args:
        targets: Labels as the model takes them; -100 among several classes is left out.
    """

    def fit(kind: type, places: np.ndarray | slice, answers: np.ndarray):
        bank = features[places]
        neighbors = kind(min(num_neighbors, len(bank)), weights="distance", metric="cosine")
        return neighbors.fit(bank, answers[places])

    if np.issubdtype(targets.dtype, np.integer):
        neighbors = fit(KNeighborsClassifier, slice(None), targets)
        scores = np.zeros((len(queries), num_labels))
        scores[:, neighbors.classes_] = neighbors.predict_proba(queries)
        return scores
    columns = targets.reshape(len(features), num_labels).T
    known = columns != UNLABELED
    return np.stack(
        [
            fit(KNeighborsRegressor, places, answers).predict(queries) if places.any() else np.zeros(len(queries))
            for places, answers in zip(known, columns)
        ],
        axis=1,
    )


class KnnEvaluation:
    """
    Top-1 accuracy of the nearest neighbours of held-out images among the labelled training images (at most 10,000 of them,
    always the same), by the features that the classification branch is given, of whole images. Labels are read for this even
    if the run leaves them aside.

    Args:
        job ([`Job`]): The run, with its data sets.

    Raises:
        ValueError: if there are no held-out images, no labels of one class an image, or the images are a stream.
    """

    def __init__(self, job):
        data, train_dataset, args = job.data, job.train_dataset, job.args
        if isinstance(data.train, datasets.IterableDataset) or isinstance(data.validation, datasets.IterableDataset):
            raise ValueError("`--knn_eval` looks at the same images again and again: leave out `--streaming`.")
        if data.validation is None:
            raise ValueError("`--knn_eval` needs held-out images: leave out `--train_val_split 0`.")
        splits = [data.train, data.validation]
        labels = data.labels if data.labels.columns else Labels.of(splits, job.data_args.label_column_name)
        if not labels.columns or labels.problem_type != "single_label_classification":
            raise ValueError(
                "`--knn_eval` needs labels of one class an image, in training and held-out images: name their column with "
                "`--label_column_name`, or leave it out."
            )
        bank, queries = (np.flatnonzero(labels.classes(split) != UNLABELED) for split in splits)
        if train_dataset.labeled is not None:
            bank = np.intersect1d(bank, list(train_dataset.labeled))
        if not len(bank) or not len(queries):
            raise ValueError("`--knn_eval` needs labelled images, both to train on and held out.")
        if len(bank) > MAX_BANK:
            bank = np.sort(np.random.default_rng(0).choice(bank, MAX_BANK, replace=False))
        self.num_labels = len(labels.names)
        options = {"image_column": data.image_column, "skip_bad_images": data.skip_bad_images}
        self.parts = [
            ImageDataset(split.select(places), labels, job.image_processor, **options)
            for split, places in zip(splits, (bank, queries))
        ]
        self.args = args

    def __call__(self, model: nn.Module, accelerator: Accelerator) -> float:
        """The accuracy, in [0, 1], of a [`SupMAEForPreTraining`] in evaluation mode, in whatever it is wrapped."""
        bare, seen = accelerator.unwrap_model(model), []

        def features_of(pixel_values: torch.Tensor) -> torch.Tensor:
            visible = torch.zeros(len(pixel_values), bare.config.num_patches, device=pixel_values.device)
            model(pixel_values=pixel_values, mask=visible)  # all of it, or else a sharded model would not be whole
            return seen.pop()

        hook = bare.vit.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs.pooler_output))
        try:
            bank, queries = (predict(model, part, self.args, features_of) for part in self.parts)
        finally:
            hook.remove()
        # images in the place of broken ones have no label
        (features, labels), (queries, answers) = ([x[part[1] != UNLABELED] for x in part] for part in (bank, queries))
        scores = knn_scores(features, labels, queries, self.num_labels, NUM_NEIGHBORS)
        return float((scores.argmax(axis=1) == answers).mean())
