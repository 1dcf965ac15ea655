# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation with UperNet: data, the model around a backbone, sliding-window evaluation, pictures."""

from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoConfig,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.hf_argparser import HfArg

from ..cli import Count, check
from ..configuration_supmae import SupMAEConfig, to_pair
from ..data.annotations import IGNORED, DenseLabels, check_num_classes, with_masks
from ..data.dataset import ImageDataset, collate
from ..data.folders import HELD_OUT_SPLITS, read_folder, to_dataset
from ..data.labels import Labels
from ..data.sources import open_splits
from ..image_processing_supmae import SupMAEImageProcessor, to_pixels
from ..loading import load_pretrained
from ..modeling_supmae import SupMAEBackbone
from ..preparation import IMAGENET_MEAN, IMAGENET_STD, ExactMask, Preparation, Transform, load_image_processor
from ..supervision_supmae import UNLABELED
from .metrics import count_pixels, segmentation_scores


@dataclass
class SegmentationDataArguments:
    """Images and masks; by default synthetic shapes on photographs."""

    dataset_name: str | None = HfArg(
        default=None, help="Data set on the Hub, or a local folder, with a column of images and one of masks."
    )
    image_column_name: str = HfArg(default="image", help="Column of images.")
    mask_column_name: str = HfArg(default="annotation", help="Column of masks: images of class indices.")
    train_images: str | None = HfArg(default=None, help="Folder of training images.")
    train_masks: str | None = HfArg(default=None, help="Folder of their masks, PNGs of the same names.")
    validation_images: str | None = HfArg(default=None, help="Folder of held-out images.")
    validation_masks: str | None = HfArg(default=None, help="Folder of their masks.")
    num_classes: Count = HfArg(default=4, help="Classes: 150 in ADE20K. The synthetic shapes have 4.")
    reduce_labels: bool = HfArg(
        default=False, help="Mask value 0 is no class, and class 0 is stored as 1, as in ADE20K."
    )
    crop_size: Count = HfArg(default=512, help="Side of training crops and evaluation windows.")
    stride: Count | None = HfArg(default=None, help="Steps of the sliding window; default: two thirds of the crop.")
    max_eval_samples: int | None = HfArg(default=None, help="Evaluate on this many images at most.")

    def __post_init__(self):
        check(self)
        folders = (self.train_images, self.train_masks, self.validation_images, self.validation_masks)
        if any(folders) and not all(folders):
            raise ValueError(
                "`--train_images`, `--train_masks`, `--validation_images`, `--validation_masks` go together."
            )
        if any(folders) and self.dataset_name:
            raise ValueError("`--dataset_name` and `--train_images` both name images: give one of them.")
        check_num_classes(self.num_classes, "`--num_classes`")
        self.stride = self.stride or self.crop_size * 2 // 3
        if not 0 < self.stride <= self.crop_size:
            raise ValueError(f"`--stride` {self.stride} must be above 0 and at most `--crop_size` {self.crop_size}.")

    def sources(self) -> list[str | None]:
        """The folders and data sets that are read."""
        return [self.dataset_name, self.train_images, self.train_masks, self.validation_images, self.validation_masks]

    def describe(self, data: datasets.DatasetDict) -> dict:
        """The facts that decide the outcome: the data, and how they are used."""
        used = ("num_classes", "reduce_labels", "crop_size")
        train = data["train"]
        return {**{name: getattr(self, name) for name in used}, "train": [len(train), train.data.nbytes]}


@dataclass
class UperNetArguments:
    """The encoders, and the decoder."""

    models: list[str] = HfArg(
        default_factory=list, help="Checkpoints, in folders or on the Hub: one row of the table each."
    )
    decoder_hidden_size: Count = HfArg(default=512, help="Width of UperNet's decoder.")
    out_indices: list[int] | None = HfArg(
        default=None, help="Indices of four blocks; default: at 1/3, 1/2, 2/3 and all of the depth."
    )

    def __post_init__(self):
        check(self)
        if not self.models:
            raise ValueError("`--models` is missing: name one checkpoint or more, in folders or on the Hub.")


_FEATURES = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})


def make_shapes(num_images: int, size: int, seed: int) -> datasets.Dataset:
    """
    A synthetic data set that needs no network: reddish discs (class 1), greenish squares (2) and bluish triangles (3)
    on crops of scikit-learn's two photographs (0), `size` x `size` pixels.
    """
    generator = np.random.default_rng(seed)
    photographs = load_sample_images().images
    rows, columns = np.mgrid[:size, :size]
    records = {"image": [], "annotation": []}
    for _ in range(num_images):
        photograph = photographs[generator.integers(2)]
        top, left = (generator.integers(side - size) for side in photograph.shape[:2])
        image = photograph[top : top + size, left : left + size].copy()
        mask = np.zeros((size, size), dtype=np.uint8)
        for label in generator.permutation([1, 2, 3])[: generator.integers(1, 4)]:
            radius = generator.uniform(0.15, 0.3) * size
            y, x = (generator.uniform(radius, size - radius) for _ in range(2))
            down, right = rows - y, columns - x
            inside = {
                1: down**2 + right**2 < radius**2,
                2: np.maximum(abs(down), abs(right)) < 0.85 * radius,
                3: (down < radius * 0.8) & (down > -radius + 2 * abs(right)),
            }[int(label)]
            mask[inside] = label
            color = np.where(np.arange(3) == label - 1, 200, 60) + generator.uniform(-55, 55, 3)
            image[inside] = color * 0.8 + image[inside] * 0.2
        records["image"].append(Image.fromarray(image))
        records["annotation"].append(Image.fromarray(mask))
    return datasets.Dataset.from_dict(records, features=_FEATURES)


def _read_folders(images: str, masks: str) -> datasets.Dataset:
    for folder in (images, masks):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"'{folder}' is not a folder of images or masks.")
    split = to_dataset(read_folder(images)).select_columns("image")
    (split,) = with_masks([split], "image", masks, "annotation")
    without = [row["image"]["path"] for row in split if row["annotation"] is None]
    number = len(read_folder(masks))
    if without or number > len(split):
        raise ValueError(
            f"{images} has {len(split)} images, {masks} {number} masks; {len(without) or number - len(split)} have no partner of "
            f"the same name{f', such as {without[0]}' if without else ''}."
        )
    return split


def load_segmentation_data(args: SegmentationDataArguments) -> dict[str, datasets.Dataset]:
    """
    The splits `train` and `validation`, with columns `image` and `annotation`.

    Raises:
        FileNotFoundError: if a folder or data set does not exist.
        ValueError: if images and masks do not match, or a column is missing.
    """
    if args.train_images:
        folders = (args.train_images, args.train_masks), (args.validation_images, args.validation_masks)
        data = {name: _read_folders(*pair) for name, pair in zip(("train", "validation"), folders)}
    elif args.dataset_name:
        splits, _ = open_splits(args.dataset_name)
        held_out = next((name for name in HELD_OUT_SPLITS if name in splits), None)
        if held_out is None:
            raise ValueError(f"The data set has no held-out split, only {sorted(splits)}.")
        data, renamed = {}, {args.image_column_name: "image", args.mask_column_name: "annotation"}
        for name, split in (("train", splits["train"]), ("validation", splits[held_out])):
            missing = sorted(set(renamed) - set(split.features))
            if missing:
                raise ValueError(
                    f"There is no column '{missing[0]}', only {list(split.features)}: see `--image_column_name` and "
                    "`--mask_column_name`."
                )
            data[name] = split.select_columns(list(renamed)).rename_columns(renamed)
    else:
        data = {"train": make_shapes(240, args.crop_size, 0), "validation": make_shapes(60, args.crop_size, 1)}
    if args.max_eval_samples:
        data["validation"] = data["validation"].select(range(min(args.max_eval_samples, len(data["validation"]))))
    return data


def build_segmentation_processor(
    args: SegmentationDataArguments, name: str | None = None
) -> SegformerImageProcessor | SupMAEImageProcessor:
    """
    The image processor of the image-segmentation pipeline, which resizes images to one window instead of sliding it.
    It reads and normalises images as the checkpoint `name` does; by default they are RGB, with ImageNet's statistics.
    """
    known, size = load_image_processor(name), {"height": args.crop_size, "width": args.crop_size}
    if isinstance(known, SupMAEImageProcessor):
        return SupMAEImageProcessor.from_dict({**known.to_dict(), "size": size, "do_center_crop": False})
    return SegformerImageProcessor(
        size=size,
        image_mean=getattr(known, "image_mean", None) or IMAGENET_MEAN,
        image_std=getattr(known, "image_std", None) or IMAGENET_STD,
        do_reduce_labels=args.reduce_labels,
    )


class SegmentationTransform(Transform):
    """
    Images and masks of any size for UperNet: in training random scale (1/2 to 2), crop, flip and colours, as in ADE20K's usual
    recipe; in evaluation the shorter side of the image is resized to the crop's, and masks keep their own size.

    Args:
        preparation: Says how pixels are normalised.
        crop_size: Side of a crop in pixels.
        is_training: Whether to augment.
    """

    def __init__(self, preparation: Preparation, crop_size: int, is_training: bool):
        steps = [
            v2.RandomResize(crop_size // 2, crop_size * 2),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, ExactMask: UNLABELED}),
            v2.RandomHorizontalFlip(),
        ]
        self.options = preparation.options
        if self.options["num_channels"] in (1, 3):  # other channels have no colours
            steps.append(v2.RandomApply([v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)]))
        self.crop_size, self.augment = crop_size, v2.Compose(steps) if is_training else None
        normalize = v2.Normalize(preparation.mean, preparation.std)
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), normalize])

    def with_mask(self, image, file: bytes | None, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """An image and the classes of its pixels `(height, width)`."""
        image, mask = tv_tensors.Image(to_pixels(image, **self.options)), ExactMask(mask)
        if self.augment is not None:
            image, mask = self.augment(image, mask)
        else:
            image = v2.functional.resize(image, [self.crop_size])
        return self.normalize(image).as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


def segmentation_dataset(
    split: datasets.Dataset, args: SegmentationDataArguments, image_processor, seed: int | None = None
) -> ImageDataset:
    """
    Images with `pixel_values` `(num_channels, height, width)` and `segmentation_maps` `(height, width)`, -100 where there is no class.

    Args:
        split: A data set with columns `image` and `annotation`.
        args: Number of classes, crops, and what mask values mean.
        image_processor: Says how pixels are normalised.
        seed: Seed of training; see [`SegmentationTransform`].
    """
    names = list(map(str, range(args.num_classes)))
    masks = DenseLabels(names, "annotation", reduce_labels=args.reduce_labels, flag="`--num_classes`")
    transform = SegmentationTransform(Preparation(image_processor), args.crop_size, seed is not None)
    return ImageDataset(split, Labels(), transform, image_column="image", seed=seed, targets=[masks])


def collate_segmentation(items: list[dict]) -> dict[str, torch.Tensor]:
    """A batch as UperNet takes it: masks are `labels`, with 255 for pixels without a class."""
    batch = collate(items)
    masks = batch["segmentation_maps"]
    return {"pixel_values": batch["pixel_values"], "labels": torch.where(masks == UNLABELED, IGNORED, masks)}


def load_backbone(name: str, image_size: int, out_indices: list[int] | None = None, drop_path_rate: float = 0.0):
    """
    A checkpoint's encoder as a backbone with four feature maps: SupMAE and the plain ViTs for which Transformers has no
    backbone class as [`SupMAEBackbone`] with a feature pyramid, made for images of `image_size`; others as the class that
    Transformers has for them.

    Args:
        out_indices: Blocks (stages); default: at a third, a half, two thirds and all of the depth, as in MAE.

    Raises:
        ValueError: if Transformers has no backbone class for the model.
    """
    config = load_pretrained(AutoConfig, name)
    is_ours = config.model_type in ("supmae", "vit_mae", "vit", "deit", "vit_msn", "timm_wrapper")
    if is_ours:
        config = load_pretrained(SupMAEConfig, name)
    depth = getattr(config, "num_hidden_layers", None)
    if out_indices is None and depth is not None:
        out_indices = [max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 1)]
        if len(set(out_indices)) < 4:
            out_indices = [round(depth * place / 3) for place in range(4)]
    if out_indices is None and hasattr(config, "stage_names"):  # a network of stages
        out_indices = list(range(len(config.stage_names)))[-4:]
    if out_indices is not None and len(set(out_indices)) != 4:
        raise ValueError(
            f"UperNet takes four feature maps, but '{name}' would give {out_indices}: see `--out_indices`."
        )
    if is_ours:
        sizes = tuple(-(-image_size // side) * side for side in to_pair(config.patch_size))
        fields = {"image_size": sizes, "out_indices": out_indices, "drop_path_rate": drop_path_rate}
        return load_pretrained(SupMAEBackbone, name, add_fpn=True, **fields)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"Transformers has no backbone class for '{name}' ({config.model_type}): SupMAE, plain ViTs, BEiT, DINOv2, "
            "Swin, ConvNeXt and ResNet can be one."
        )
    config = load_pretrained(AutoConfig, name, out_indices=out_indices)
    if config.model_type == "beit":
        config.add_fpn = config.reshape_hidden_states = True
    return load_pretrained(MODEL_FOR_BACKBONE_MAPPING[type(config)], name, config=config)


def build_upernet(backbone, num_classes: int, hidden_size: int = 512) -> UperNetForSemanticSegmentation:
    """
    UperNet (arXiv 1807.10221) around a backbone, with an auxiliary head on its third feature map.

    Args:
        backbone: The result of [`load_backbone`].
        hidden_size: Width of the decoder.
    """
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=hidden_size,
        auxiliary_in_channels=backbone.channels[2],
        auxiliary_channels=max(hidden_size // 2, 1),
        id2label={index: str(index) for index in range(num_classes)},
        label2id={str(index): index for index in range(num_classes)},
        loss_ignore_index=IGNORED,
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone = backbone
    return model


@torch.no_grad()
def sliding_window_logits(model: nn.Module, pixel_values: torch.Tensor, crop_size: int, stride: int) -> torch.Tensor:
    """
    Class scores of images of any size, averaged over overlapping windows.

    Args:
        model: A model whose `logits` have the size of its images.
        pixel_values: Images of shape `(batch_size, num_channels, height, width)`.
        crop_size: Side of the windows; smaller images are one window.
        stride: Between windows; the last ones of a row and a column end at the border.

    Returns:
        Logits of shape `(batch_size, num_labels, height, width)`.
    """
    height, width = pixel_values.shape[-2:]
    starts = [
        [min(start, size - window) for start in range(0, size - window + stride, stride)]
        for size, window in ((height, min(crop_size, height)), (width, min(crop_size, width)))
    ]
    total, count = 0, pixel_values.new_zeros(height, width)
    for top in starts[0]:
        for left in starts[1]:
            window = slice(top, min(top + crop_size, height)), slice(left, min(left + crop_size, width))
            logits = model(pixel_values[:, :, window[0], window[1]]).logits.float()
            if isinstance(total, int):
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[:, :, window[0], window[1]] += logits
            count[window] += 1
    return total / count


@torch.no_grad()
def evaluate_segmentation(
    model, dataset: ImageDataset, args: SegmentationDataArguments
) -> tuple[dict, list[tuple[torch.Tensor, ...]]]:
    """
    Segment whole images by sliding windows, and compare in the size of their masks; each process of several takes a share.

    Returns:
        What [`segmentation_scores`] makes of all images, and (pixel_values, mask, prediction) of this process's first.
    """
    state = PartialState()
    model.eval()
    pixels, shown = np.zeros((args.num_classes, args.num_classes), dtype=np.int64), []
    for index in range(state.process_index, len(dataset), state.num_processes):
        item = dataset[index]
        images = item["pixel_values"][None].to(model.device)
        logits = sliding_window_logits(model, images, args.crop_size, args.stride)
        mask = item["segmentation_maps"]
        logits = nn.functional.interpolate(logits, size=tuple(mask.shape), mode="bilinear")
        predicted = logits.argmax(dim=1)[0].cpu()
        pixels += count_pixels(predicted.numpy(), mask.numpy(), args.num_classes, UNLABELED)
        if len(shown) < 6:
            shown.append((item["pixel_values"], mask, predicted))
    return segmentation_scores(sum(gather_object([pixels]))), shown


def save_masks(shown: list[tuple[torch.Tensor, ...]], num_classes: int, path: str | Path, image_processor):
    """
    Draw a picture with a column per image: the image, its mask and the predicted one; pixels without a class are white. A
    legend has the numbers of the first 20 classes in it.

    Args:
        shown: See [`evaluate_segmentation`].
        image_processor: Turns pixel values back into colours.
    """
    preparation = Preparation(image_processor)
    colors = colormaps["tab20"].resampled(max(num_classes, 2))(np.arange(num_classes))[:, :3]
    figure = Figure(figsize=(2 * len(shown) + 0.6, 6), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, (image, mask, predicted) in enumerate(shown):
        pictures = [preparation.to_pictures(image[None])[0]]
        for classes in (mask, predicted):
            picture = np.ones((*classes.shape, 3))
            known = (classes != UNLABELED).numpy()
            picture[known] = colors[classes.numpy()[known]]
            pictures.append(picture)
        for row, (name, picture) in enumerate(zip(("image", "mask", "prediction"), pictures)):
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
            if column == 0:
                axes[row, column].set_ylabel(name)
    present = torch.cat([classes.flatten() for _, *both in shown for classes in both]).unique().tolist()
    handles = [Patch(color=colors[label], label=str(label)) for label in present if label != UNLABELED][:20]
    figure.legend(handles=handles, loc="outside lower center", ncols=10, title="class", frameon=False)
    figure.savefig(path, dpi=120)
