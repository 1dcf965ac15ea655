# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Few-shot transfer: K labelled images per class, by a linear probe or by fine-tuning, hyper-parameters from those alone."""

import copy
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import nn
from transformers import PrinterCallback
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import logging

from ..data.arguments import DataArguments
from ..data.dataset import ImageDataset, collate
from ..data.image_data import ImageData
from ..data.sources import load_labeled_data
from ..data.transforms import TrainTransform, seed_of
from ..preparation import Preparation
from ..training.arguments import RecipeArguments
from ..training.loop import leave
from ..training.trainer import RecipeTrainer
from .encode import ImageEncoder, predict
from .probes import select_probe


logger = logging.get_logger(__name__)

# The benchmark of the paper (ELEVATER's Image Classification in the Wild, arXiv 2204.08790), by the names of the Hub, all
# with the splits train and test. Hateful Memes, the 20th, is not there in this form.
BENCHMARK = {
    name: f"clip-benchmark/wds_{repository}"
    for name, repository in {
        "caltech101": "vtab-caltech101",
        "cifar10": "vtab-cifar10",
        "cifar100": "vtab-cifar100",
        "country211": "country211",
        "dtd": "vtab-dtd",
        "eurosat": "vtab-eurosat",
        "fer2013": "fer2013",
        "fgvc-aircraft": "fgvc_aircraft",
        "flowers102": "vtab-flowers",
        "food101": "food101",
        "gtsrb": "gtsrb",
        "kitti-distance": "vtab-kitti_closest_vehicle_distance",
        "mnist": "mnist",
        "oxford-pets": "vtab-pets",
        "patch-camelyon": "vtab-pcam",
        "rendered-sst2": "renderedsst2",
        "resisc45": "vtab-resisc45",
        "stanford-cars": "cars",
        "voc2007": "voc2007",
    }.items()
}


def load_few_shot_data(name: str) -> ImageData:
    """
    The training and held-out images of one of [`BENCHMARK`], of `"digits"`, of a folder (one sub-folder per class), or of
    another data set of the Hub.
    """
    if name == "digits":
        arguments = DataArguments()
    elif name in BENCHMARK:
        arguments = DataArguments(dataset_name=BENCHMARK[name], label_column_name=["cls"])
    else:
        arguments = DataArguments(dataset_name=name)
    data = load_labeled_data(arguments, "Few-shot transfer")
    print(f"\n{name}\n\n{data.table()}\n", flush=True)
    return data


def draw_shots(classes: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """
    Places of `shots` images of each class, or of all that a class has.

    Args:
        classes: Classes of the images, of shape `(num_images,)`.

    Raises:
        ValueError: if a class has a single image, which leaves none to choose hyper-parameters by.
    """
    generator = np.random.default_rng(seed_of(seed, shots))
    drawn = []
    for label in np.unique(classes):
        places = generator.permutation(np.flatnonzero(classes == label))[:shots]
        if len(places) < 2:
            raise ValueError(
                f"Class {label} has {len(places)} training image of the {shots} asked for, and choosing hyper-parameters "
                "takes 2: raise `--shots`, or leave the data set out."
            )
        if len(places) < shots:
            logger.warning(f"Class {label} has only {len(places)} training images of the {shots} asked for.")
        drawn.append(places)
    return np.sort(np.concatenate(drawn))


class EncoderClassifier(nn.Module):
    """An [`ImageEncoder`] and one linear layer, which starts at zero."""

    def __init__(self, encoder: ImageEncoder, num_labels: int):
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.hidden_size, num_labels)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        logits = self.classifier(self.encoder(pixel_values))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


@dataclass
class FineTuning:
    """Settings of fine-tuning by AdamW, with a tenth of the steps as linear warm-up, then a cosine."""

    epochs: int = 50
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-4, 5e-4, 2e-3)
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    flip: bool = True


class FewShotTask:
    """
    One encoder on one data set.

    Args:
        name: The encoder's checkpoint.
        pooling: See [`ImageEncoder`].
        data: The result of [`load_few_shot_data`].
        args ([`DeviceArguments`]): Batch size, workers and device.
    """

    def __init__(self, name: str, pooling: str, data: ImageData, args):
        self.preparation, self.encoder = Preparation.load(name), ImageEncoder(name, pooling)
        self.data, self.args, self.classes = data, args, data.labels.classes(data.train)
        self._test_features = None

    def _features(self, split) -> tuple[np.ndarray, np.ndarray]:
        return predict(self.encoder, ImageDataset.of(self.data, split, self.preparation), self.args, self.encoder)

    def probe(self, shots: int, seed: int) -> dict:
        """Accuracy of a linear probe on the held-out images; its regularisation by cross-validation on the shots."""
        places = draw_shots(self.classes, shots, seed)
        features, labels = self._features(self.data.train.select(places))
        if self._test_features is None:
            self._test_features = self._features(self.data.validation)
        test_features, test_labels = self._test_features
        classifier, score = select_probe(features, labels, seed)
        labeled = test_labels >= 0
        return {
            "accuracy": float(classifier.score(test_features[labeled], test_labels[labeled])),
            "chosen": {"C": classifier[-1].C, "validation": score},
        }

    def finetune(self, shots: int, seed: int, settings: FineTuning) -> dict:
        """
        Accuracy of the fine-tuned encoder on the held-out images. Its learning rate is the one that is best on a fifth
        of the shots after training on the others; then it trains on all of them.
        """
        places = draw_shots(self.classes, shots, seed)
        classes = self.classes[places]
        held_out = max(len(places) // 5, len(np.unique(classes)))
        (fit, check), *_ = StratifiedShuffleSplit(1, test_size=held_out, random_state=seed).split(places, classes)
        scores = {}
        for rate in settings.learning_rates:
            model = self._train(places[fit], rate, seed, settings)
            scores[rate] = self._accuracy(model, self.data.train.select(places[check]))
        best = max(scores, key=scores.get)
        model = self._train(places, best, seed, settings)
        return {
            "accuracy": self._accuracy(model, self.data.validation),
            "chosen": {"learning_rate": best, "validation": scores[best]},
        }

    def _train(self, places: np.ndarray, learning_rate: float, seed: int, settings: FineTuning) -> EncoderClassifier:
        torch.manual_seed(seed)
        model = EncoderClassifier(copy.deepcopy(self.encoder), len(self.data.labels.names))
        model.requires_grad_(True)
        with tempfile.TemporaryDirectory() as folder:
            arguments = RecipeArguments(
                output_dir=folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=learning_rate,
                layer_decay=settings.layer_decay,
                weight_decay=settings.weight_decay,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,  # of all
                seed=seed,
                use_cpu=self.args.use_cpu,
                dataloader_num_workers=self.args.dataloader_num_workers,
                dataloader_drop_last=False,
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            augment = TrainTransform(self.preparation, (0.5, 1.0), settings.flip)
            train_dataset = ImageDataset.of(self.data, self.data.train.select(places), augment, seed=seed)
            trainer = RecipeTrainer(model, arguments, train_dataset=train_dataset, data_collator=collate)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        if trainer.was_stopped:
            leave(arguments, trainer.monitor.stop)
        return model

    def _accuracy(self, model: EncoderClassifier, split) -> float:
        scores, labels = predict(model, ImageDataset.of(self.data, split, self.preparation), self.args)
        labeled = labels >= 0
        return float((scores[labeled].argmax(axis=1) == labels[labeled]).mean())
