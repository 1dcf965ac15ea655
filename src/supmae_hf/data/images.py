# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""From stored images to model inputs: transforms, data sets, the order of an epoch, batches."""

import contextlib
import io
import random
import zlib
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import simplejpeg
import torch
import transformers
from packaging import version
from PIL import ExifTags, Image
from timm.data import Mixup, create_transform
from torchvision.transforms import v2
from transformers.utils import logging

from ..configuration_supmae import SupMAEConfig, to_pair
from ..modeling_supmae import UNLABELED
from .sources import DataArguments, Labels, find_image_column


if version.parse(transformers.__version__) >= version.parse("5.4"):
    from transformers import ViTImageProcessor
else:
    from transformers import ViTImageProcessorFast as ViTImageProcessor


logger = logging.get_logger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pillow's image modes by number of channels
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def seed_of(*key: int) -> int:
    """One seed from several numbers, such that keys that differ a little give seeds that have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def seeded_torch(*key: int):
    """
    Inside, every random draw of PyTorch (on the CPU) follows from `key` alone; outside, the generator goes on as if
    nothing had been drawn.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*key))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextlib.contextmanager
def seeded(*key: int):
    """[`seeded_torch`] for the draws of Python and NumPy, too (which takes longer: their states are large)."""
    states = random.getstate(), np.random.get_state()
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed)
    try:
        with seeded_torch(*key):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def pixel_statistics(num_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for normalisation: ImageNet's, averaged over the channels unless there are three."""
    if num_channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (round(sum(IMAGENET_MEAN) / 3, 3),) * num_channels, (round(sum(IMAGENET_STD) / 3, 3),) * num_channels


def build_image_processor(config: SupMAEConfig, crop_ratio: float = 0.875) -> ViTImageProcessor:
    """
    The image processor of evaluation and inference: the shorter side resized bicubically to `image_size / crop_ratio`,
    centre crop, normalisation.
    """
    height, width = to_pair(config.image_size)
    mean, std = pixel_statistics(config.num_channels)
    if height == width:
        size = {"shortest_edge": round(height / crop_ratio)}
    else:
        size = {"height": round(height / crop_ratio), "width": round(width / crop_ratio)}
    return ViTImageProcessor(
        size=size,
        resample=Image.Resampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        do_convert_rgb=config.num_channels == 3,
        image_mean=list(mean),
        image_std=list(std),
    )


def normalize_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """
    The `uint8` images `(batch_size, num_channels, height, width)` of the fast input pipeline as the models take them.
    Images of any other type are taken to be normalised and returned as they are.
    """
    if pixel_values.dtype != torch.uint8:
        return pixel_values
    mean, std = (
        torch.tensor(values, device=pixel_values.device).view(-1, 1, 1)
        for values in pixel_statistics(pixel_values.shape[1])
    )
    normalized = torch.empty(pixel_values.shape, device=pixel_values.device)
    # on a CPU image by image, which then stays in the cache
    num_images = 1 if pixel_values.device.type == "cpu" else len(pixel_values)
    for images, out in zip(pixel_values.split(num_images), normalized.split(num_images)):
        torch.sub(images * (1 / (255 * std)), mean / std, out=out)
    return normalized


def first_jpeg_rows(file: bytes, num_rows: int) -> bytes:
    """
    A JPEG file whose header says that it has only `num_rows` rows, so that a decoder stops there. Progressive files,
    which store all rows at once, are returned as they are.
    """
    position = 2
    while position + 6 < len(file) and file[position] == 0xFF:
        marker = file[position + 1]
        if marker in (0xC0, 0xC1):  # start of a frame with sequential Huffman coding: length, precision, rows, columns
            return file[: position + 5] + num_rows.to_bytes(2, "big") + file[position + 7 :]
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 or marker == 0xDA:
            break
        position += 2 + int.from_bytes(file[position + 2 : position + 4], "big")
    return file


class FastTrainTransform:
    """
    The paper's augmentation for pre-training, random resized crop (bicubic) and horizontal flip, with the crops and
    flips of [`ReferenceTrainTransform`] and nearly its pixels, in a fraction of the time: JPEG files are decoded no
    further than the crop's last row, and at half, a quarter or an eighth of their size if the crop is that much larger
    than the model's images (libjpeg scales while it decodes); images are resized by PyTorch's vectorised kernels and
    stay `uint8`, to be normalised in batches by [`normalize_pixels`] where the model runs.

    Call it with an image as `PIL.Image.open` gives it, and with its file if there is one; the result is of shape
    `(num_channels, height, width)`.
    """

    def __init__(self, config: SupMAEConfig, args: DataArguments):
        self.size = to_pair(config.image_size)
        self.mode = _MODES[config.num_channels]
        self.crop = v2.RandomResizedCrop(self.size, scale=tuple(args.crop_scale))
        self.flip_probability = 0.5 if args.horizontal_flip else 0.0

    def __call__(self, image: Image.Image, file: bytes | None = None) -> torch.Tensor:
        crop = self.crop.make_params([image])
        is_flipped = torch.rand(1) < self.flip_probability
        scale = max(1, min(crop["height"] // self.size[0], crop["width"] // self.size[1]))
        pixels = self._decode(image, file, scale, **crop)
        if pixels.shape[-2:] != self.size:
            pixels = torch.nn.functional.interpolate(pixels[None], size=self.size, mode="bicubic", antialias=True)[0]
        return (pixels.flip(-1) if is_flipped else pixels).contiguous()

    def _decode(
        self, image: Image.Image, file: bytes | None, scale: int, top: int, left: int, height: int, width: int
    ) -> torch.Tensor:
        is_plain_jpeg = file is not None and image.format == "JPEG" and image.mode == self.mode == "RGB"
        is_complete = is_plain_jpeg and file.endswith(b"\xff\xd9")
        if is_complete and scale < 2:
            with contextlib.suppress(ValueError):  # of a broken file Pillow has more to say
                pixels = simplejpeg.decode_jpeg(
                    first_jpeg_rows(file, min(top + height + 8, image.height)),  # 8 reach the neighbours of the last
                    fastdct=True,
                    fastupsample=True,
                    strict=False,  # the file ends later than the image
                )
                return torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)
        box = left, top, left + width, top + height
        if is_plain_jpeg:
            full_width, full_height = image.size
            image.draft(self.mode, (full_width // scale, full_height // scale))
            reduction = round(full_width / image.width)  # 1, 2, 4 or 8
            height, width = self.size
            box = tuple(side / reduction for side in box)  # in fractions of pixels, which Pillow knows how to resize
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        else:
            image = image.convert(self.mode).crop(box)
        pixels = torch.from_numpy(np.array(image))
        return (pixels.unsqueeze(-1) if pixels.ndim == 2 else pixels).permute(2, 0, 1)


class ReferenceTrainTransform(v2.Compose):
    """The paper's augmentation for pre-training, from torchvision, on PIL images: the result is normalised."""

    def __init__(self, config: SupMAEConfig, args: DataArguments):
        super().__init__(
            [
                v2.RandomResizedCrop(
                    to_pair(config.image_size),
                    scale=tuple(args.crop_scale),
                    interpolation=v2.InterpolationMode.BICUBIC,
                ),
                v2.RandomHorizontalFlip(0.5 if args.horizontal_flip else 0.0),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(*pixel_statistics(config.num_channels)),
            ]
        )


def build_train_transform(config: SupMAEConfig, args: DataArguments) -> FastTrainTransform | ReferenceTrainTransform:
    """The paper's augmentation for pre-training, in the pipeline that `args.input_pipeline` names."""
    return (FastTrainTransform if args.input_pipeline == "fast" else ReferenceTrainTransform)(config, args)


def build_finetune_transform(config: SupMAEConfig, args: DataArguments, auto_augment: str, random_erasing: float):
    """
    The paper's augmentation for fine-tuning, from timm: random resized crop (bicubic), horizontal flip, RandAugment,
    normalisation, random erasing with noise.

    Args:
        auto_augment (`str`): timm's policy string, such as `rand-m9-mstd0.5-inc1`; empty for none.
        random_erasing (`float`): Probability that a box of the image is replaced by noise.
    """
    mean, std = pixel_statistics(config.num_channels)
    return create_transform(
        to_pair(config.image_size),
        is_training=True,
        scale=tuple(args.crop_scale),
        hflip=0.5 if args.horizontal_flip else 0.0,
        color_jitter=None,
        auto_augment=auto_augment or None,
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=random_erasing,
        re_mode="pixel",
    )


class _Images:
    """What [`ImageDataset`] and [`ImageStream`] do with a record."""

    def __init__(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        config: SupMAEConfig,
        labels: Labels,
        transform,
        args: DataArguments | None = None,
        seed: int | None = None,
        masks: bool = False,
    ):
        num_channels = getattr(config, "num_channels", 3)  # timm models are not asked
        if num_channels not in _MODES:
            raise ValueError(
                f"Images have {list(_MODES)} channels, but `num_channels` is {num_channels}: train on a "
                "data set of your own that yields `pixel_values`."
            )
        self.args = args = DataArguments() if args is None else args
        self.image_column = find_image_column(dataset.features, args.image_column_name)
        # decoded in _item, where the image can be named if that fails
        self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))
        self.image_feature = datasets.Image()
        self._mode = _MODES[num_channels]
        self.num_patches = config.num_patches if masks else None
        self.labels = labels
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self.skip_bad_images = args.on_bad_image == "skip"

    def _open(self, record: dict) -> tuple[Image.Image, bytes | None]:
        """The image, not decoded yet if its file is at hand (and need not be rotated), and that file."""
        file = record["bytes"]
        if file is None and Path(record["path"]).is_file():
            file = Path(record["path"]).read_bytes()
        if file is not None:
            image = Image.open(io.BytesIO(file))
            if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                return image, file
        return self.image_feature.decode_example(record), None

    def _item(self, record: dict, place: str, key: tuple[int, ...]) -> dict | None:
        """The model's inputs, or `None` if the image cannot be decoded and is to be skipped."""
        is_fast = isinstance(self.transform, FastTrainTransform)
        encoded = record[self.image_column]
        item = {}
        with seeded_torch(*key) if is_fast else seeded(*key):
            if self.masks:
                item["noise"] = torch.rand(self.num_patches)
            try:
                # the fast pipeline does not decode all of the image
                image = (
                    self.transform(*self._open(encoded))
                    if is_fast
                    else self.image_feature.decode_example(encoded).convert(self._mode)
                )
            except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
                where = f"{encoded['path']} ({place})" if encoded and encoded.get("path") else place.capitalize()
                message = (
                    f"{where} cannot be decoded ({error}): repair it or remove it from the data set, or pass "
                    "`--on_bad_image skip`."
                )
                if not self.skip_bad_images:
                    raise ValueError(message) from error
                logger.warning(f"Skipped: {message}")
                return None
            if is_fast:
                item["pixel_values"] = image
            elif isinstance(self.transform, ViTImageProcessor):
                item["pixel_values"] = self.transform(image, return_tensors="pt")["pixel_values"][0]
            else:
                item["pixel_values"] = self.transform(image)
        label = UNLABELED if self.labels.column is None else self.labels.encode(record[self.labels.column])
        item["labels"] = torch.as_tensor(label)
        return item


class ImageDataset(_Images, torch.utils.data.Dataset):
    """
    Images and labels as the models take them.

    What is random about an item (augmentation, mask) follows from the seed, the epoch and the image's index alone, and
    not from what was loaded before, so that a resumed run, or one on another number of processes, sees the same.

    Args:
        dataset (`datasets.Dataset`): The records.
        config ([`SupMAEConfig`]): Of the model: image channels and patches.
        labels ([`Labels`]): The meaning of the label column.
        transform: From a PIL image to `pixel_values` of shape `(num_channels, height, width)`: a torchvision
            transform, or an image processor.
        args ([`DataArguments`], *optional*): Which column holds the images, and what to do with broken ones.
        seed (`int`, *optional*):
            For training: the data set is then indexed by `epoch * len(dataset) + index`, as by [`EpochSampler`].
        masks (`bool`, *optional*, defaults to `False`): Whether items come with masking `noise` of shape
            `(num_patches,)`.
        labeled (`Iterable[int]`, *optional*): Indices of the images whose label is used; of all that have one by
            default.

    Items have `pixel_values`, `labels`, perhaps `noise`, and, with `on_bad_image="skip"`, the number of broken images
    before this one as `skipped`. In evaluation the image in place of a broken one is unlabelled, so that it does not
    count twice.

    Raises:
        ValueError: when an image cannot be decoded; the message names its file, or its index.
    """

    def __init__(self, *args, labeled: Iterable[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.labeled = None if labeled is None else frozenset(labeled)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict:
        epoch, index = divmod(position, len(self))
        if self.seed is None and epoch:
            raise IndexError(f"Image {position} of {len(self)}.")
        key = () if self.seed is None else (self.seed, epoch)
        for skipped in range(len(self)):
            place = (index + skipped) % len(self)
            item = self._item(self.dataset[place], f"image {place}", (*key, place))
            if item is not None:
                is_hidden = self.labeled is not None and place not in self.labeled
                if is_hidden or (skipped and self.seed is None):
                    item["labels"] = torch.full_like(item["labels"], UNLABELED)
                if self.skip_bad_images:
                    item["skipped"] = torch.tensor(skipped)
                return item
        raise ValueError("None of the images can be decoded.")


class EpochSampler(torch.utils.data.Sampler):
    """
    The order of an epoch of an [`ImageDataset`] with a seed; `epoch` is to be set before each. The order follows from
    the seed and the epoch alone.
    """

    def __init__(self, dataset: ImageDataset):
        self.num_images = len(dataset)
        self.seed = dataset.seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        yield from (self.epoch * self.num_images + order).tolist()


class ImageStream(_Images, torch.utils.data.IterableDataset):
    """
    [`ImageDataset`] for a `datasets.IterableDataset`. What is random about an item follows from the seed, the epoch and
    the image itself.

    Args:
        num_images (`int`, *optional*):
            For training: the length of an epoch. Every epoch then has that many images even if several workers do not
            share the stream's files evenly: a worker that runs out starts over with its own.
        shuffle_buffer_size (`int`, *optional*): For training: images among which the next one is drawn.

    The other arguments are those of [`ImageDataset`]; set `epoch` before each epoch.
    """

    def __init__(self, *args, num_images: int | None = None, shuffle_buffer_size: int = 10_000, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_images = num_images
        if self.seed is not None:
            self.dataset = self.dataset.shuffle(seed=self.seed, buffer_size=shuffle_buffer_size)

    def __len__(self) -> int:
        if self.num_images is None:
            raise TypeError("The stream does not know its length.")
        return self.num_images

    @property
    def epoch(self) -> int:
        return int(self.dataset.epoch)

    @epoch.setter
    def epoch(self, epoch: int):
        self.dataset.set_epoch(epoch)  # reaches workers that live on from the epoch before, too

    def __iter__(self):
        key = () if self.seed is None else (self.seed, self.epoch)
        skipped = decoded = 0
        while True:
            for index, record in enumerate(self.dataset):
                image = record[self.image_column]
                content = zlib.crc32(image["bytes"] or image["path"].encode())
                item = self._item(record, f"image {index} of the stream", (*key, content))
                if item is None:
                    skipped += 1
                    continue
                if self.skip_bad_images:
                    item["skipped"] = torch.tensor(skipped)
                skipped, decoded = 0, decoded + 1
                yield item
            if self.num_images is None or not decoded:
                return


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Stack the items of an [`ImageDataset`] into a batch."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


class MixupCollator:
    """
    [`collate`], then timm's mixup or cutmix, whichever chance decides, with soft targets of shape
    `(batch_size, num_labels)` as `labels`. What is random follows from the images.

    Args:
        mixup (`timm.data.Mixup`): Which mixes.
    """

    def __init__(self, mixup: Mixup):
        self.mixup = mixup

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(items)
        with seeded(zlib.crc32(items[0]["pixel_values"].numpy().tobytes())):
            batch["pixel_values"], batch["labels"] = self.mixup(batch["pixel_values"], batch["labels"])
        return batch
