# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Classifiers on frozen features: the linear probe of MAE and SupMAE, and scikit-learn's on features computed once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.optim import Lars
from torch import nn
from transformers.hf_argparser import HfArg
from transformers.modeling_outputs import ImageClassifierOutput

from ..cli import Count, Positive
from ..modeling_supmae import SupMAEForImageClassification
from ..supervision_supmae import UNLABELED, classification_loss
from ..training.arguments import RecipeArguments
from ..training.trainer import RecipeTrainer
from .encode import NUM_NEIGHBORS, predict


@dataclass
class LinearProbeArguments(RecipeArguments):
    """The linear probe; the paper's recipe is `training/recipes/linear_probe.yaml`."""

    can_publish = False

    probe: Literal["lars", "logistic", "knn"] = HfArg(
        default="lars",
        help="lars trains on augmented images, as the paper does; logistic (scikit-learn's logistic regression, for numbers ridge "
        "regression) and knn compute the features of each image once.",
    )
    use_mean_pooling: bool = HfArg(
        default=False, help="Probe the mean of the patch tokens instead of the class token."
    )
    num_neighbors: Count = HfArg(default=NUM_NEIGHBORS, help="Neighbours that vote, for `--probe knn`.")
    inverse_regularization: Positive = HfArg(
        default=1.0, help="scikit-learn's C (for numbers 1 / alpha), for `--probe logistic`."
    )


class LinearProbe(nn.Module):
    """
    A linear layer behind a BatchNorm without affine parameters, on the frozen features of a classifier's encoder
    (class token, or mean of the patch tokens and LayerNorm, as the classifier has it).

    Args:
        model ([`SupMAEForImageClassification`]): The classifier whose encoder is probed; its last layer is replaced.
    """

    def __init__(self, model: SupMAEForImageClassification):
        super().__init__()
        self.config = model.config
        self.encoder = model.requires_grad_(False)
        self.encoder.classifier = nn.Identity()
        # the settings of MAE's linear probe
        self.batch_norm = nn.BatchNorm1d(model.config.hidden_size, affine=False, eps=1e-6)
        self.classifier = nn.Linear(model.config.hidden_size, model.config.num_labels)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.train()

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        with torch.no_grad():
            features = self.encoder(pixel_values).logits  # (batch_size, hidden_size): the classifier is gone
        logits = self.classifier(self.batch_norm(features))
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def to_classifier(self) -> SupMAEForImageClassification:
        """The encoder with one linear layer that does what BatchNorm (in evaluation) and classifier do."""
        scale = (self.batch_norm.running_var + self.batch_norm.eps).rsqrt()
        weight = self.classifier.weight * scale
        set_classifier(self.encoder, weight, self.classifier.bias - weight @ self.batch_norm.running_mean)
        return self.encoder


class LinearProbeTrainer(RecipeTrainer):
    """Trainer of a [`LinearProbe`], with LARS (arXiv 1708.03888) as in MoCo v3: trust ratio for the weight only."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            classifier = self.model.classifier
            self.optimizer = Lars(
                [
                    {"params": [classifier.weight], "always_adapt": True},
                    {"params": [classifier.bias], "weight_decay": 0.0},
                ],
                lr=self.args.learning_rate,
                momentum=0.9,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer


def set_classifier(model: SupMAEForImageClassification, weight: torch.Tensor, bias: torch.Tensor):
    """Give a model a classifier of `weight` `(num_labels, hidden_size)` and `bias` `(num_labels,)`."""
    model.classifier = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)


def compute_features(model: SupMAEForImageClassification, dataset, args) -> tuple[np.ndarray, np.ndarray]:
    """
    The features that the classifier of `model` is given for each image, `(num_images, hidden_size)`, and the labels
    `(num_images,)`; see [`predict`].
    """
    return predict(model, dataset, args, lambda pixel_values: model.fc_norm(model.vit(pixel_values).pooler_output))


def select_probe(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[Pipeline, float]:
    """
    Logistic regression on standardised features, whose strength of regularisation is chosen by cross-validation on
    these images alone.

    Args:
        features: Features of shape `(num_images, hidden_size)`.
        labels: Classes of shape `(num_images,)`, each with 2 images or more.
        seed: Decides the folds.

    Returns:
        The classifier, fitted to all images, and its accuracy in cross-validation.
    """
    smallest_class = np.unique(labels, return_counts=True)[1].min()
    if smallest_class < 2:
        raise ValueError("Cross-validation needs 2 images or more of every class, but there is a class with only 1.")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": [1e-3, 1e-2, 1e-1, 1.0, 10.0]},
        cv=StratifiedKFold(min(5, smallest_class), shuffle=True, random_state=seed),
    )
    search.fit(features, labels)
    return search.best_estimator_, float(search.best_score_)


def fit_linear(model: SupMAEForImageClassification, features: np.ndarray, targets: np.ndarray, c: float):
    """
    scikit-learn's linear model on standardised features, as the model's new classifier: logistic regression, one for each class if
    an image may have several, or ridge regression, as `model.config.problem_type` says.

    Args:
        features: Features of shape `(num_images, hidden_size)`.
        targets: Labels as the model takes them; -100 among several classes is left out.
        c (`float`): scikit-learn's inverse strength of regularisation, C or 1 / alpha.
    """
    config = model.config
    scaler = StandardScaler().fit(features)
    features = scaler.transform(features)
    weight = np.zeros((config.num_labels, features.shape[1]))
    bias = np.full(config.num_labels, -1e4)  # never chosen: classes without a training image
    if config.problem_type == "regression":
        regression = Ridge(alpha=1 / c).fit(features, targets.reshape(-1, config.num_labels))
        weight[:], bias[:] = regression.coef_, regression.intercept_
    elif config.problem_type == "multi_label_classification":
        for place, answers in enumerate(targets.T):
            known = answers != UNLABELED
            if len(set(answers[known])) == 2:
                regression = LogisticRegression(C=c, max_iter=2000).fit(features[known], answers[known])
                weight[place], bias[place] = regression.coef_[0], regression.intercept_[0]
            elif answers[known].any():
                bias[place] = 1e4  # the class of every image
    else:
        regression = LogisticRegression(C=c, max_iter=2000).fit(features, targets)
        if len(regression.classes_) == 2:  # scikit-learn has one score then, of the second class against the first
            bias[regression.classes_] = [0, regression.intercept_[0]]
            weight[regression.classes_[1]] = regression.coef_[0]
        else:
            weight[regression.classes_], bias[regression.classes_] = regression.coef_, regression.intercept_
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    set_classifier(model, *(torch.tensor(x, dtype=torch.float32, device=model.device) for x in (weight, bias)))
