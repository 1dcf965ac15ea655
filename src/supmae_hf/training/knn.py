# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Nearest neighbours of frozen features: how good a representation is, without training anything on it."""

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader, Subset

from ..data.dataset import ImageDataset, collate
from ..data.labels import Labels
from ..modeling_supmae import SupMAEForPreTraining
from ..supervision_supmae import UNLABELED


NUM_NEIGHBORS = 20
MAX_BANK = 10_000  # training images among which neighbours are looked for


def knn_scores(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_labels: int, num_neighbors: int
) -> np.ndarray:
    """
    Votes of the `num_neighbors` nearest training images by cosine distance, weighted by closeness: shape
    `(num_queries, num_labels)`.
    """
    neighbors = KNeighborsClassifier(min(num_neighbors, len(features)), weights="distance", metric="cosine")
    neighbors.fit(features, labels)
    scores = np.zeros((len(queries), num_labels))
    scores[:, neighbors.classes_] = neighbors.predict_proba(queries)
    return scores


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
        self.batch_size, self.num_workers = args.eval_batch_size, args.dataloader_num_workers

    def __call__(self, model: torch.nn.Module, accelerator: Accelerator) -> float:
        """The accuracy, in [0, 1], of a [`SupMAEForPreTraining`] in evaluation mode, in whatever it is wrapped."""
        (features, labels), (queries, answers) = (self._features(model, part, accelerator) for part in self.parts)
        scores = knn_scores(features, labels, queries, self.num_labels, NUM_NEIGHBORS)
        return float((scores.argmax(axis=1) == answers).mean())

    @torch.no_grad()
    def _features(
        self, model: torch.nn.Module, dataset: ImageDataset, accelerator: Accelerator
    ) -> tuple[np.ndarray, np.ndarray]:
        # as many images in every process, or else those of a sharded model would wait for each other
        rank, size = accelerator.process_index, accelerator.num_processes
        share = -(-len(dataset) // size)
        mine = Subset(dataset, [(rank + size * place) % len(dataset) for place in range(share)])
        loader = DataLoader(mine, self.batch_size, collate_fn=collate, num_workers=self.num_workers)
        bare: SupMAEForPreTraining = accelerator.unwrap_model(model)
        seen, labels = [], []
        hook = bare.vit.register_forward_hook(
            lambda _, inputs, outputs: seen.append(outputs.pooler_output.float().cpu().numpy())
        )
        try:
            for batch in loader:
                pixel_values = batch["pixel_values"].to(accelerator.device)
                visible = torch.zeros(len(pixel_values), bare.config.num_patches, device=pixel_values.device)
                with accelerator.autocast():
                    model(pixel_values=pixel_values, mask=visible)
                labels.append(batch["labels"].numpy())
        finally:
            hook.remove()
        shares = gather_object([(np.concatenate(seen), np.concatenate(labels))])
        features, labels = (
            np.stack([part[which] for part in shares], axis=1).reshape(share * size, *shares[0][which].shape[1:])
            for which in (0, 1)
        )
        known = labels[: len(dataset)] != UNLABELED  # but for images in the place of broken ones
        return features[: len(dataset)][known], labels[: len(dataset)][known]
