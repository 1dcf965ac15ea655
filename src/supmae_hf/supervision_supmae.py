# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
The kinds of supervision of SupMAE's branch: classes of images, as in the paper, captions, dense labels. Each kind is one class;
`config.supervision` chooses among those in [`SUPERVISIONS`].
"""

import torch
from torch import nn

from .configuration_supmae import SupMAEConfig, to_pair


# Label of an image without a label, as in every Transformers loss.
UNLABELED = -100


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: for losses, and for kernels that half precision does not have on every device."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens `(batch_size, length, dim)` at `ids` `(batch_size, new_length)`: `(batch_size, new_length, dim)`."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def first_of(values: torch.Tensor, chosen: torch.Tensor) -> float | None:
    """
    The first of the `values` that are `chosen`, if any, to name it in an error; `None` where looking at it is impossible
    (while compiling, on the meta device, inside `torch.func.vmap`) or would make an accelerator wait.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu":
        return None
    try:
        found = values[chosen]
        return found[0].item() if found.numel() else None
    except RuntimeError:  # torch.func.vmap
        return None


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, config: SupMAEConfig, temperature: float = 1.0
) -> torch.Tensor:
    """
    Mean classification loss over the labelled images of a batch, 0 (with zero gradients) if there are none.

    `config.problem_type` decides the loss. As in Transformers' classifiers it is set by the first call that has labels:
    one output means regression, integer labels single-label and floating-point labels multi-label classification.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Raw scores, or predictions (regression).
        labels: Class indices of shape `(batch_size,)`; or 0 and 1 for each class (multi-label), or targets (regression;
            `(batch_size,)` is enough for one output), of the shape of `logits`. -100 marks what is not labelled.
        temperature (`float`): Logits are divided by it; regression predictions are not.

    Raises:
        ValueError: if the labels do not fit the problem type or, on a CPU, a label is out of range.
    """
    losses, labeled = labeled_losses(logits, labels, config, temperature)
    return losses.sum() / labeled.sum().clamp(min=1)


def labeled_losses(
    logits: torch.Tensor, labels: torch.Tensor, config: SupMAEConfig, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The terms of [`classification_loss`], 0 for what is not labelled, and what is labelled: `(batch_size, 1)` for single-label
    classification, else of the shape of `logits`.
    """
    num_labels = logits.shape[-1]
    if config.problem_type is None:
        is_float = labels.is_floating_point()
        config.problem_type = (
            "regression" if num_labels == 1 else f"{'multi' if is_float else 'single'}_label_classification"
        )
    logits, labels = at_least_float32(logits), labels.to(logits.device)

    if config.problem_type == "single_label_classification":
        if labels.is_floating_point() or labels.numel() != logits.shape[0]:
            raise ValueError(
                f"Single-label classification needs one integer class index per image, got labels of type "
                f"{labels.dtype} and shape {tuple(labels.shape)} for {logits.shape[0]} images. For other labels set "
                "`config.problem_type` to 'multi_label_classification' or 'regression'."
            )
        labels = labels.reshape(-1).long()
        wrong = first_of(labels, ((labels < 0) & (labels != UNLABELED)) | (labels >= num_labels))
        if wrong is not None:
            raise ValueError(
                f"Label {wrong} is outside [0, {num_labels}): set `num_labels` to at least the number of classes, or "
                f"mark images without a label with {UNLABELED}."
            )
        losses = nn.functional.cross_entropy(logits / temperature, labels, ignore_index=UNLABELED, reduction="none")
        return losses.unsqueeze(1), (labels != UNLABELED).unsqueeze(1)

    if labels.ndim == 1 and num_labels == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`problem_type` '{config.problem_type}' needs labels of shape {tuple(logits.shape)} (images, num_labels), "
            f"got {tuple(labels.shape)}."
        )
    labeled = labels != UNLABELED
    targets = labels.to(logits.dtype).masked_fill(~labeled, 0.0)
    if config.problem_type == "multi_label_classification":
        wrong = first_of(targets, (targets < 0) | (targets > 1))
        if wrong is not None:
            raise ValueError(f"Multi-label targets must be in [0, 1] or {UNLABELED} (unlabelled), got {wrong:g}.")
        losses = nn.functional.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none")
    else:
        losses = nn.functional.mse_loss(logits, targets, reduction="none")
    return losses * labeled, labeled


class SupMAESupervision(nn.Module):
    """
    A kind of supervision: a head on what the masked pass computes, and the loss of its predictions.

    A subclass sets three names, defines `forward`, `losses` and `count`, and is entered in [`SUPERVISIONS`]; `figures` and
    `summarize` are for kinds whose log says more than the loss.

    - `argument`: of [`SupMAEForPreTraining`]'s `forward`, and of a batch: the targets, a tensor with an entry for every image.
    - `loss_name`: under which the log has the loss.
    - `count_name`: under which it is counted what the loss is the average of.
    - `metrics` (*optional*): what `summarize` returns, by name: a title for people, and a type of metric on the Hub.

    Args:
        config ([`SupMAEConfig`]): The configuration.
    """

    argument: str
    loss_name: str
    count_name: str
    metrics: dict[str, tuple[str, str]] = {}

    def counts(self) -> tuple[str, ...]:
        """The counted names of which the log has the average of a step."""
        return (self.count_name,)

    def forward(
        self, pooled: torch.Tensor, patches: torch.Tensor, ids_restore: torch.Tensor, decoded: torch.Tensor
    ) -> torch.Tensor:
        """
        Predictions.

        Args:
            pooled: The encoder's pooled features, of shape `(batch_size, hidden_size)`.
            patches: The encoder's tokens of the visible patches, `(batch_size, num_visible_patches, hidden_size)`.
            ids_restore: See [`SupMAEModelOutput`].
            decoded: The decoder's tokens of all patches in raster order, `(batch_size, num_patches, decoder_hidden_size)`.
        """
        raise NotImplementedError

    def check(self, targets: torch.Tensor, shape: torch.Size):
        """Raise a `ValueError` if targets do not fit a batch of images of `shape` `(batch_size, num_channels, height, width)`."""

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        The loss of every image, of shape `(batch_size,)`, the average over what is labelled of it; finite for images without a
        label. `mask` is that of [`SupMAEModelOutput`].
        """
        raise NotImplementedError

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        """Count the targets of every image, of shape `(batch_size,)`; mostly 1 or 0."""
        raise NotImplementedError

    def counted(self, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`count` of the targets that the masked pass can learn from; `mask` is that of [`SupMAEModelOutput`]."""
        return self.count(targets)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The average over what is labelled in a batch; 0 (with zero gradients) if nothing is."""
        count = self.counted(targets, mask)
        return (self.losses(logits, targets, mask) * count).sum() / count.sum().clamp(min=1)

    def figures(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Numbers of every image, of shape `(batch_size, ...)`, whose sums over images make the figures of the log."""
        return {}

    def summarize(self, sums: dict) -> dict[str, float]:
        """Those figures, from the sums."""
        return {}


class SupMAEMLPHead(SupMAESupervision):
    """
    A kind that sees pooled features `(batch_size, hidden_size)` to logits: two linear layers with BatchNorm and ReLU between them (SupMAE, arXiv
    2205.14540), or one linear layer if `config.classifier_hidden_size` is 0.
    """

    def __init__(self, config: SupMAEConfig, num_outputs: int):
        super().__init__()
        hidden_size = config.classifier_hidden_size
        if hidden_size:
            self.fc1 = nn.Linear(config.hidden_size, hidden_size)
            self.batch_norm = nn.BatchNorm1d(hidden_size)
        else:
            self.fc1 = self.batch_norm = None
        self.fc2 = nn.Linear(hidden_size or config.hidden_size, num_outputs)

    def forward(self, pooled: torch.Tensor, patches=None, ids_restore=None, decoded=None) -> torch.Tensor:
        features = pooled
        if self.fc1 is not None:
            if self.training and features.shape[0] == 1:
                raise ValueError(
                    "The classification head's BatchNorm cannot train on a batch of 1 image: use a larger batch, drop "
                    "the last incomplete batch (`dataloader_drop_last`), or set `classifier_hidden_size=0` for a "
                    "linear head."
                )
            features = nn.functional.relu(self.batch_norm(self.fc1(features)))
        return self.fc2(features)


class SupMAEClassificationHead(SupMAEMLPHead):
    """`"labels"`: the paper's branch. Class logits `(batch_size, num_labels)`; targets as for [`classification_loss`]."""

    argument, loss_name, count_name = "labels", "classification_loss", "labels"
    metrics = {"accuracy": ("accuracy on visible patches", "accuracy")}

    def __init__(self, config: SupMAEConfig):
        super().__init__(config, config.num_labels)
        self.config = config

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, mask=None) -> torch.Tensor:
        return classification_loss(logits, targets, self.config, self.config.classification_temperature)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, mask=None) -> torch.Tensor:
        losses, labeled = labeled_losses(logits, targets, self.config, self.config.classification_temperature)
        return losses.flatten(1).sum(dim=1) / labeled.flatten(1).sum(dim=1).clamp(min=1)

    def counts(self) -> tuple[str, ...]:
        return ("labeled_images",)  # not labels, of which an image may have several

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets != UNLABELED).reshape(len(targets), -1).sum(dim=1).float()

    def figures(self, logits: torch.Tensor, targets: torch.Tensor, mask=None) -> dict[str, torch.Tensor]:
        figures = {"labeled_images": (self.count(targets) > 0).float()}
        if targets.ndim == 1 and not targets.is_floating_point():  # one class per image
            figures["correct"] = (logits.argmax(dim=-1) == targets).float()
        return figures

    def summarize(self, sums: dict) -> dict[str, float]:
        return {"accuracy": sums["correct"] / sums["labeled_images"]} if "correct" in sums else {}


class SupMAECaptionHead(SupMAEMLPHead):
    """
    `"captions"`: classification as language supervision (SuperClass, arXiv 2411.03313, section 3). The words (tokens) of an image's
    caption are its classes: logits are of shape `(batch_size, caption_vocab_size)`, and the target of an image is the share of
    each distinct token in its caption, weighted by inverse document frequency.

    Targets are token ids of shape `(batch_size, length)`, filled up with -100.
    """

    argument, loss_name, count_name = "caption_ids", "caption_loss", "captioned_images"
    metrics = {"caption_accuracy": ("best word in the caption", "accuracy")}

    def __init__(self, config: SupMAEConfig):
        if config.caption_vocab_size < 1:
            raise ValueError(
                f"`supervision` with captions needs `caption_vocab_size`, the number of tokens, got {config.caption_vocab_size}."
            )
        super().__init__(config, config.caption_vocab_size)
        self.register_buffer("document_frequency", torch.zeros(config.caption_vocab_size, dtype=torch.long))
        self.register_buffer("num_captions", torch.zeros((), dtype=torch.long))

    def set_frequencies(self, document_frequency: torch.Tensor, num_captions: int):
        """Set, before training, the number of captions that each token occurs in, and of all captions."""
        self.document_frequency.copy_(document_frequency)
        self.num_captions.fill_(num_captions)

    def token_weights(self) -> torch.Tensor:
        """
        Inverse document frequencies, log(captions / (1 + captions with the token)), of shape `(caption_vocab_size,)`: 0 for a
        token that is in all captions, 1 for all tokens if nobody has counted.
        """
        counts = self.document_frequency.float()
        weights = (self.num_captions / (1 + counts)).log().clamp(min=0)
        return torch.where(self.num_captions > 0, weights, torch.ones_like(counts))

    def shares(self, targets: torch.Tensor) -> torch.Tensor:
        """The targets `(batch_size, caption_vocab_size)`: rows add up to 1, or to 0 if there is no caption."""
        targets = targets.long()
        wrong = first_of(targets, (targets != UNLABELED) & ((targets < 0) | (targets >= len(self.document_frequency))))
        if wrong is not None:
            raise ValueError(f"Token {wrong} is outside [0, {len(self.document_frequency)}), `caption_vocab_size`.")
        is_token = targets != UNLABELED
        bags = torch.zeros(len(targets), len(self.document_frequency), device=targets.device)
        bags = bags.scatter_add(1, targets * is_token, is_token.float()).clamp(max=1)
        bags = bags * self.token_weights().to(targets.device)
        return bags / bags.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def check(self, targets: torch.Tensor, shape: torch.Size):
        if targets.ndim != 2 or len(targets) != shape[0]:
            raise ValueError(
                f"`caption_ids` must have shape (batch_size, length), {shape[0]} rows, got {tuple(targets.shape)}."
            )

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, mask=None) -> torch.Tensor:
        return -(at_least_float32(logits).log_softmax(dim=-1) * self.shares(targets)).sum(dim=-1)

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        is_token = targets != UNLABELED
        weights = self.token_weights().to(targets.device)[targets.long() * is_token]
        return ((weights > 0) & is_token).any(dim=1).float()

    def figures(self, logits: torch.Tensor, targets: torch.Tensor, mask=None) -> dict[str, torch.Tensor]:
        """Compare the token with the highest score with those of the caption."""
        return {"caption_hits": (targets == logits.argmax(dim=-1, keepdim=True)).any(dim=1) * self.count(targets)}

    def summarize(self, sums: dict) -> dict[str, float]:
        return {"caption_accuracy": sums["caption_hits"] / sums["captioned_images"]}


class SupMAEDenseHead(SupMAESupervision):
    """
    `"dense"`: what is where. A linear layer on the encoded visible patches gives logits `(batch_size, num_patches, num_classes)` of
    `config.dense_classes`; under `config.dense_hidden_patches` another one on the decoder's tokens those of the hidden patches,
    which are 0 otherwise. The target of a patch is the share of each class in its labelled pixels; soft cross entropy, averaged
    over an image's labelled patches (the visible ones unless `config.dense_hidden_patches`), then over the labelled images.

    Targets are classes of pixels, `(batch_size, height, width)`, -100 where there is none.
    """

    argument, loss_name, count_name = "segmentation_maps", "dense_loss", "densely_labeled_images"
    metrics = {"patch_miou": ("mIoU of patches", "mean_iou")}

    def __init__(self, config: SupMAEConfig):
        super().__init__()
        self.num_classes = config.num_dense_classes
        if self.num_classes < 2:
            raise ValueError(
                f"`supervision` with dense labels needs `dense_classes`, two or more of them, got {config.dense_classes}."
            )
        self.patch_size = to_pair(config.patch_size)
        self.visible_classifier = nn.Linear(config.hidden_size, self.num_classes)
        self.hidden_classifier = None
        if config.dense_hidden_patches:
            self.hidden_classifier = nn.Linear(config.decoder_hidden_size, self.num_classes)

    def shares(self, targets: torch.Tensor) -> torch.Tensor:
        """Share of each class in the labelled pixels of every patch, `(batch_size, num_patches, num_classes)`; 0 if there are none."""
        targets = targets.long()
        wrong = first_of(targets, (targets != UNLABELED) & ((targets < 0) | (targets >= self.num_classes)))
        if wrong is not None:
            raise ValueError(f"Pixels of class {wrong} are outside [0, {self.num_classes}), `dense_classes`.")
        patch_height, patch_width = self.patch_size
        rows, columns = targets.shape[1] // patch_height, targets.shape[2] // patch_width
        pixels = targets.reshape(-1, rows, patch_height, columns, patch_width).transpose(2, 3)
        pixels = pixels.reshape(len(targets), rows * columns, -1)
        is_labeled = pixels != UNLABELED
        counts = torch.zeros(*pixels.shape[:2], self.num_classes, device=targets.device)
        counts = counts.scatter_add(2, pixels * is_labeled, is_labeled.float())
        return counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)

    def forward(
        self, pooled: torch.Tensor, patches: torch.Tensor, ids_restore: torch.Tensor, decoded: torch.Tensor
    ) -> torch.Tensor:
        logits = self.visible_classifier(patches)
        num_hidden = ids_restore.shape[1] - patches.shape[1]
        logits = nn.functional.pad(logits, (0, 0, 0, num_hidden))
        logits = gather_tokens(logits, ids_restore.to(logits.device))  # in raster order
        if self.hidden_classifier is None:
            return logits
        is_hidden = (ids_restore >= patches.shape[1]).unsqueeze(-1).to(logits.device)
        return torch.where(is_hidden, self.hidden_classifier(decoded).to(logits.device), logits)

    def check(self, targets: torch.Tensor, shape: torch.Size):
        expected = (shape[0], *shape[2:])
        if targets.shape != expected:
            raise ValueError(
                f"`segmentation_maps` must have shape (batch_size, height, width) = {expected}, got {tuple(targets.shape)}."
            )

    def _counted(self, shares: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """A mask of the patches that count, `(batch_size, num_patches)`."""
        is_labeled = shares.sum(dim=-1) > 0
        return is_labeled if self.hidden_classifier is not None else is_labeled & (mask == 0)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shares = self.shares(targets)
        counted = self._counted(shares, mask)
        losses = -(at_least_float32(logits).log_softmax(dim=-1) * shares).sum(dim=-1)
        return (losses * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets != UNLABELED).flatten(1).any(dim=1).float()

    def counted(self, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._counted(self.shares(targets), mask).any(dim=1).float()

    def figures(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Count for each class the patches of which it is the largest part, those predicted so, and those that are both."""
        shares = self.shares(targets)
        counted = self._counted(shares, mask).unsqueeze(-1)
        true, predicted = (
            nn.functional.one_hot(scores.argmax(dim=-1), self.num_classes) * counted for scores in (shares, logits)
        )
        figures = {"true_patches": true, "predicted_patches": predicted, "right_patches": true * predicted}
        return {name: patches.sum(dim=1).float() for name, patches in figures.items()}

    def summarize(self, sums: dict) -> dict[str, float]:
        """Mean intersection over union over the classes that occur."""
        union = sums["true_patches"] + sums["predicted_patches"] - sums["right_patches"]
        occurs = union > 0
        return {"patch_miou": float((sums["right_patches"][occurs] / union[occurs]).mean())} if occurs.any() else {}


SUPERVISIONS: dict[str, type[SupMAESupervision]] = {
    "labels": SupMAEClassificationHead,
    "captions": SupMAECaptionHead,
    "dense": SupMAEDenseHead,
}
