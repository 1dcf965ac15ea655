# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Records as model inputs, the order of an epoch, batches."""

import functools
import io
import itertools
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image
from timm.data import Mixup
from transformers.utils import logging

from ..image_processing_supmae import channels_last, read_bytes, read_image
from ..preparation import Transform
from ..supervision_supmae import UNLABELED
from .annotations import AnnotationError, DenseLabels
from .image_data import ImageData, Split
from .labels import Labels
from .sources import find_image_column, shard_sizes, undecoded
from .targets import Captions, Column
from .transforms import as_transform, seed_of, seeded


logger = logging.get_logger(__name__)

# Augmentation is seeded by (seed, epoch, index). If an image comes again in an epoch, this is added to the epoch.
_AGAIN = 10**6

_ROWS_AT_A_TIME = 32  # of a stream
_BYTES_AT_A_TIME = 2**26  # of a batch's records
_LOOKED_AT_ONCE = 256  # images
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples are spread evenly over every interval


# what an image that cannot be decoded or used raises
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)


def name_of(encoded, place: str) -> str:
    """The name of a record's image for people: its file, if there is one, and its place."""
    path = encoded.get("path") if isinstance(encoded, dict) else None
    return f"{path} ({place})" if path else place.capitalize()


def say_unreadable(encoded, place: str, error: Exception, skip: bool):
    """
    Raise the `ValueError` for an image that cannot be decoded or, with `skip`, log it, once.

    Args:
        encoded: The image in its record, which may name its file.
        place: Place of the image, such as `"image 3"`.
        error: One of [`UNREADABLE`].
    """
    message = f"{name_of(encoded, place)} cannot be decoded ({error})"
    if not skip:
        raise ValueError(
            f"{message}: repair it or remove it from the data set, or pass `--on_bad_image skip`."
        ) from error
    logger.warning_once(f"Left out: {message}.")


class _Images:
    """The base of [`ImageDataset`] and [`ImageStream`]: from a record to an item."""

    def __init__(
        self,
        dataset: Split,
        labels: Labels,
        transform,
        image_column: str | None = None,
        num_patches: int | None = None,
        seed: int | None = None,
        skip_bad_images: bool = False,
        targets: Sequence[Captions | DenseLabels | Column] = (),
    ):
        self.image_column = find_image_column(dataset.features, image_column)
        self.dtype = getattr(dataset.features[self.image_column], "dtype", None)  # of a column of arrays
        self.dataset = undecoded(dataset, self.image_column)
        self.labels, self.transform, self.seed, self.skip_bad_images = labels, transform, seed, skip_bad_images
        self.num_patches = num_patches
        self.dense = next((target for target in targets if isinstance(target, DenseLabels)), None)
        self.targets = [target for target in targets if target is not self.dense]
        if self.dense is not None and isinstance(self.dataset.features.get(self.dense.column), datasets.Image):
            self.dataset = self.dataset.cast_column(self.dense.column, datasets.Image(decode=False))

    @classmethod
    def of(cls, data: ImageData, split: Split, transform=None, **options):
        """The images of a split of `data`, or of a part of one; see [`ImageDataset`] for `transform` and `options`."""
        options = {"image_column": data.image_column, "skip_bad_images": data.skip_bad_images, **options}
        return cls(split, data.labels, transform, **options)

    @property
    def transform(self) -> Transform:
        return self._transform

    @transform.setter
    def transform(self, transform):
        self._transform = as_transform(transform)

    @property
    def num_views(self) -> int:
        """Number of views of an image; if above 1, an item's tensors have the shape `(num_views, ...)`: see [`collate_views`]."""
        return 1 if self.transform is None else self.transform.num_views

    @staticmethod
    def read_file(encoded: dict) -> bytes | None:
        """The file of a record's image; `None` for one in an archive, or on the Hub."""
        file, path = encoded["bytes"], encoded["path"]
        if file is None and path is not None and os.path.exists(path):
            if not os.path.isfile(path):
                raise OSError("it is not a file")
            file = read_bytes(path)
        return file

    def read(self, encoded, is_mask: bool = False) -> tuple[Image.Image | np.ndarray, bytes | None]:
        """A record's image or mask as [`read_image`] gives it, and its file if that holds nothing else."""
        if not isinstance(encoded, dict):
            return channels_last(np.asarray(encoded, dtype=self.dtype)), None
        file = self.read_file(encoded)
        if file is None:  # in an archive, or on the Hub
            return datasets.Image().decode_example(encoded), None
        image = read_image(file, is_mask)
        # one that has been turned is not as its file has it
        return image, file if getattr(image, "format", None) is not None else None

    def orientation(self, encoded) -> int:
        """The EXIF orientation of a record's image, 1 to 8."""
        file = self.read_file(encoded) if isinstance(encoded, dict) else None
        try:
            return 1 if file is None else Image.open(io.BytesIO(file)).getexif().get(ExifTags.Base.Orientation, 1)
        except UNREADABLE:  # not a file of Pillow's, which has none
            return 1

    def read_classes(self, record: dict, image: Image.Image | np.ndarray) -> torch.Tensor:
        """The classes of the pixels of a record's image, which is upright."""
        size = image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]
        orientation = self.orientation(record[self.image_column]) if self.dense.as_stored else 1
        return self.dense.encode(record, tuple(size), self.read, orientation)

    def _views(self, record: dict) -> list[dict[str, torch.Tensor]]:
        """Pixel values, noise and dense labels of each view; the image is decoded once."""
        image, file = self.read(record[self.image_column])
        mask, views = None if self.dense is None else self.read_classes(record, image), []
        image, file = self.transform.open(image, file)
        for _ in range(self.num_views):
            noise = {} if self.num_patches is None else {"noise": torch.rand(self.num_patches)}
            if mask is None:
                views.append({**noise, "pixel_values": self.transform(image, file)})
            else:
                pixels, classes = self.transform.with_mask(image, file, mask)
                views.append({**noise, "pixel_values": pixels, self.dense.argument: classes})
        return views

    def _item(self, record: dict, place: str, seed: int) -> dict | None:
        """The model's inputs, or `None` if the image cannot be decoded and is to be skipped."""
        with seeded(seed, torch_alone=self.transform.draws_from_torch):
            try:
                views = self._views(record)
            except AnnotationError as error:
                raise AnnotationError(f"{name_of(record[self.image_column], place)}: {error}.") from error
            except UNREADABLE as error:
                say_unreadable(record[self.image_column], place, error, self.skip_bad_images)
                return None
        known = {"labels": torch.as_tensor(self.labels.encode(record))}
        known |= {target.argument: target.encode(record) for target in self.targets}
        if self.num_views == 1:
            return {**views[0], **known}
        return {**collate(views), **{name: row.expand(self.num_views, *row.shape) for name, row in known.items()}}

    def _counted(self, item: dict, **counts: int) -> dict:
        """An item with what is to be counted of its image, once."""
        for name, count in counts.items():
            item[name] = torch.tensor(count if self.num_views == 1 else [count] + [0] * (self.num_views - 1))
        return item


class ImageDataset(_Images, torch.utils.data.Dataset):
    """
    Images and labels as the models take them.

    What is random about an item (augmentation, mask) follows from the seed, the epoch and the image's index alone, and
    not from what was loaded before, so that a resumed run, or one on another number of processes, sees the same.

    Args:
        dataset (`datasets.Dataset`): The records.
        labels ([`Labels`]): The meaning of the label column.
        transform: Turns an image into `pixel_values` of shape `(num_channels, height, width)`: a [`Transform`], an image
            processor, or any function of 8-bit RGB images.
        image_column: Name of the column of images, if there are several; see [`find_image_column`].
        num_patches: Shape of the masking `noise` of each item, for pre-training.
        seed: Seed of training. With a seed the data set is indexed by `epoch * len(dataset) + index`, as by [`EpochSampler`].
        skip_bad_images: Whether the next image takes the place of one that cannot be decoded.
        targets: Further targets of an item: captions, dense labels, columns of numbers.
        labeled (`Iterable[int]`, *optional*): Indices of the images whose label is used; of all that have one by
            default.

    Items have `pixel_values`, `labels`, perhaps `noise`, and, with `skip_bad_images`, the number of broken images before
    this one as `skipped`. In evaluation the image in place of a broken one is unlabelled, so that it does not count twice.

    Raises:
        ValueError: when an image cannot be decoded; the message names its file, or its index.
    """

    def __init__(self, *args, labeled: Iterable[int] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.labeled = None if labeled is None else frozenset(labeled)

    def __len__(self) -> int:
        return len(self.dataset)

    @functools.cached_property
    def num_together(self) -> int:
        """Number of records that are read together: of arrays, which come as lists of Python's numbers, one."""
        table, is_file = self.dataset.data, isinstance(self.dataset.features[self.image_column], datasets.Image)
        return 1 + is_file * _BYTES_AT_A_TIME * table.num_rows // (1 + table.nbytes)

    def __getitem__(self, position: int) -> dict:
        return self._get(position, self.dataset[position % len(self)], self._seed(position))

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        """The items of a batch. Reading records and making seeds takes a third of the time if it is done for many at once."""
        items = []
        for start in range(0, len(positions), self.num_together):
            some = positions[start : start + self.num_together]
            records = self.dataset.__getitems__([position % len(self) for position in some])
            seeds = [self._seed(position) for position in some]
            items += map(self._get, some, records, seeds)
        return items

    def _seed(self, position: int) -> int:
        epoch, index = divmod(position, len(self))
        return seed_of(index) if self.seed is None else seed_of(self.seed, epoch, index)

    def _get(self, position: int, record: dict, seed: int) -> dict:
        """The item at a position or, if its image is to be skipped, that of the next one."""
        epoch, index = divmod(position, len(self))
        if self.seed is None and epoch:
            raise IndexError(f"Image {position} of {len(self)}.")
        for skipped in range(len(self)):
            place = (index + skipped) % len(self)
            if skipped:
                record, seed = self.dataset[place], self._seed(position - index + place)
            item = self._item(record, f"image {place}", seed)
            if item is not None:
                hidden = ["labels"] if self.labeled is not None and place not in self.labeled else []
                if skipped and self.seed is None:
                    hidden = set(item) - {"noise", "pixel_values"}
                for name in hidden:
                    item[name] = torch.full_like(item[name], UNLABELED)
                return self._counted(item, skipped=skipped) if self.skip_bad_images else item
        raise ValueError("None of the images can be decoded.")


def look_at_files(dataset: ImageDataset, seconds: float) -> int:
    """
    Decode the images of a data set that are files, in an order of chance, for so long.

    Returns:
        How many were looked at. With `skip_bad_images` those that are broken are logged.

    Raises:
        ValueError: if some are broken and `skip_bad_images` is off; the message names the first ones.
    """
    end, column, number, broken = time.monotonic() + seconds, dataset.image_column, 0, []
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()

    def look(index: int) -> str | None:
        encoded = dataset.dataset[index][column]
        try:
            image, _ = dataset.read(encoded)
            if isinstance(image, Image.Image):
                image.load()  # Pillow has read no more than the head
        except UNREADABLE as error:
            return f"{name_of(encoded, f'image {index}')}: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while number < len(order) and time.monotonic() < end:
            some = order[number : number + _LOOKED_AT_ONCE]
            broken += filter(None, pool.map(look, some))
            number += len(some)
    if broken:
        what = f"{len(broken)} of {number} images cannot be decoded: {'; '.join(broken[:10])}"
        what += "; ..." if len(broken) > 10 else ""
        if not dataset.skip_bad_images:
            raise ValueError(f"{what}. Repair or remove them, or pass `--on_bad_image skip`.")
        logger.warning(f"{what}. Others take their place.")
    return number


class EpochSampler(torch.utils.data.Sampler):
    """
    The order of an epoch of an [`ImageDataset`] with a seed; `epoch` is to be set before each. The order follows from
    the seed and the epoch alone, or is that of the data set without `shuffle`.

    Args:
        labeled_share: Smallest share of labelled images in an epoch. If fewer images have a label, those in `dataset.labeled`
            are repeated, all of them before one comes again, in the place of other images, which change every epoch.
    """

    def __init__(self, dataset: ImageDataset, shuffle: bool = True, labeled_share: float = 0.0):
        self.num_images = len(dataset)
        self.seed = dataset.seed
        self.shuffle = shuffle
        self.epoch = 0
        self.labeled = np.array(sorted(dataset.labeled)) if labeled_share else np.array([], int)
        self.num_again = max(math.ceil(labeled_share * self.num_images) - len(self.labeled), 0)

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self):
        generator = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(self.num_images)
        if self.shuffle:
            order = generator.permutation(order)
        epochs = np.full(self.num_images, self.epoch)
        if self.num_again and len(self.labeled):
            rounds = -(-self.num_again // len(self.labeled))
            again = np.concatenate([generator.permutation(self.labeled) for _ in range(rounds)])[: self.num_again]
            replaced = generator.permutation(np.flatnonzero(~np.isin(order, self.labeled)))[: self.num_again]
            order[replaced] = again
            epochs[replaced] += _AGAIN * (1 + np.arange(self.num_again) // len(self.labeled))
        yield from (epochs * self.num_images + order).tolist()


@dataclass(frozen=True)
class Dealing:
    """
    The images of a stream that are used, and the part of them that this process gets.

    Args:
        num_images: Number of training images of an epoch, over all processes. `None` for evaluation.
        batch_size: Number of training images of a batch of one process.
        shuffle_buffer_size: Number of training images among which the next one is drawn.
        process_index, num_processes: Number of this process, and of all.
        part: Share of the images that are used at all.
        label_fraction: Share of the images whose label is used.
        label_seed: Seed that decides which images these are.
        labeled_only: Whether images without a label are passed over.
    """

    num_images: int | None = None
    batch_size: int = 1
    shuffle_buffer_size: int = 10_000
    process_index: int = 0
    num_processes: int = 1
    part: float = 1.0
    label_fraction: float = 1.0
    label_seed: int = 0
    labeled_only: bool = False


class ImageStream(_Images, torch.utils.data.IterableDataset):
    """
    [`ImageDataset`] for a `datasets.IterableDataset`. What is random about an item follows from the seed, the epoch and
    the image itself; which images keep their label, and which are a part of the stream, from the image alone.

    In training, the images of an epoch are dealt to the workers of all processes, each of which reads only the files that its
    images lie in. Where the numbers of rows are known (Parquet files, folders), every image comes once an epoch, but for those
    that do not fill a batch. Else files are dealt by their sizes, and a worker that runs out of images before the epoch ends
    starts over on its own.

    Args:
        dealing: The images and labels that are used.

    The other arguments are those of [`ImageDataset`]; set `epoch` before each epoch. Items have the number `repeated`: 1 for an
    image that comes again in an epoch, else 0.
    """

    def __init__(self, *args, dealing: Dealing = Dealing(), **kwargs):
        super().__init__(*args, **kwargs)
        self.dealing, self.num_images, self.batch_size = dealing, dealing.num_images, dealing.batch_size
        self._passed_over = (None, 0)

    def __len__(self) -> int:
        """This process's images of an epoch."""
        if self.num_images is None:
            raise TypeError("The stream does not know its length.")
        return self.num_images // self.dealing.num_processes

    @property
    def epoch(self) -> int:
        return int(self.dataset.epoch)

    @epoch.setter
    def epoch(self, epoch: int):
        self.dataset.set_epoch(epoch)  # reaches workers that live on from the epoch before, too

    def skip_batches(self, num_batches: int):
        """Give `{}` in the place of the images of this process's first batches, in the current epoch."""
        self._passed_over = (self.epoch, num_batches)

    def _num_passed_over(self) -> int:
        """Images that this worker has given before the run was interrupted."""
        epoch, num_batches = self._passed_over
        # which images are left out as broken would have to be found out again
        if epoch != self.epoch or self.skip_bad_images:
            return 0
        worker, num_workers = _worker()
        return len(range(worker, num_batches, num_workers)) * self.batch_size

    def _records(self) -> Iterator[dict]:
        """The records that fall to this worker in an epoch: a range of all images, in an order of files that is the epoch's."""
        sizes, are_rows = shard_sizes(self.dataset)
        worker, num_workers = _worker()
        num_batches = len(self) // self.batch_size
        # batches are taken from the workers in turn
        shares = [len(range(place, num_batches, num_workers)) * self.batch_size for place in range(worker + 1)]
        start = self.dealing.process_index * len(self) + sum(shares[:-1])
        end = start + shares[-1]
        are_rows = are_rows and self.dealing.part == 1 and self.num_images <= sum(sizes)
        if not are_rows:
            start, end = (place / max(self.num_images, 1) * sum(sizes) for place in (start, end))
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(sizes))
        begin = 0
        for file in order:
            low, high = max(start - begin, 0), min(end - begin, sizes[file])
            if low < high:
                yield from self._range(int(file), low, high, sizes[file], are_rows)
            begin += sizes[file]

    def _range(self, file: int, low: float, high: float, size: float, are_rows: bool) -> Iterator[dict]:
        """The rows of a file from `low` to `high` or, if nobody knows how many it has, as large a share of them."""
        rows = self.dataset.shard(num_shards=self.dataset.num_shards, index=file)
        # `iter(rows)` would not be the same in every worker, and datasets 4 puts no rows of a tar together
        batches = rows.iter(batch_size=_ROWS_AT_A_TIME if are_rows else 1)
        records = (dict(zip(batch, values)) for batch in batches for values in zip(*batch.values()))
        if are_rows:
            yield from itertools.islice(records, int(low), int(high))
        else:  # spread evenly over the file
            yield from (record for place, record in enumerate(records) if low <= place * _GOLDEN % 1 * size < high)

    def _shuffled(self, again: int) -> Iterator[dict]:
        """The records, of which each next one is drawn from a buffer."""
        if self.num_images is None:  # evaluation, where `datasets` deals whole files
            yield from self.dataset
            return
        generator = np.random.default_rng((self.seed, self.epoch, again, self.dealing.process_index, _worker()[0]))
        buffer = []
        for record in self._records():
            if len(buffer) < self.dealing.shuffle_buffer_size:
                buffer.append(record)
                continue
            place = generator.integers(len(buffer))
            yield buffer[place]
            buffer[place] = record
        for place in generator.permutation(len(buffer)):
            yield buffer[place]

    def __iter__(self):
        skipped, num_passed_over = 0, self._num_passed_over()
        for again in itertools.count():
            decoded = 0
            key = () if self.seed is None else (self.seed, self.epoch + again * _AGAIN)
            for index, record in enumerate(self._shuffled(again)):
                image = record[self.image_column]
                content = zlib.crc32(
                    (image["bytes"] or image["path"].encode()) if isinstance(image, dict) else repr(image).encode()
                )
                if not _is_among(content, self.dealing.part, 0):
                    continue
                if self.dealing.labeled_only and not self.labels.is_label(
                    *(record[name] for name in self.labels.columns)
                ):
                    continue
                if num_passed_over:
                    num_passed_over, decoded = num_passed_over - 1, decoded + 1
                    yield {}
                    continue
                item = self._item(record, f"image {index} of the stream", seed_of(*key, content))
                if item is None:
                    skipped += 1
                    continue
                if not _is_among(content, self.dealing.label_fraction, self.dealing.label_seed):
                    item["labels"] = torch.full_like(item["labels"], UNLABELED)
                counts = {"skipped": skipped} if self.skip_bad_images else {}
                if self.num_images is not None:
                    counts["repeated"] = int(again > 0)
                skipped, decoded = 0, decoded + 1
                yield self._counted(item, **counts)
            if self.num_images is None or not decoded:
                return


def _worker() -> tuple[int, int]:
    """The number of this data-loading worker, and of all."""
    info = torch.utils.data.get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def images_of_epoch(dataset: ImageDataset | ImageStream) -> int:
    """Over all processes."""
    return dataset.num_images if isinstance(dataset, ImageStream) else len(dataset)


def _is_among(content: int, fraction: float, seed: int) -> bool:
    """Decide by the checksum of an image whether it belongs to a fraction of all images."""
    return fraction >= 1 or zlib.crc32(f"{seed} {content}".encode()) < fraction * 2**32


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Stack the items of an [`ImageDataset`] into a batch."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def collate_views(items: list[dict]) -> dict[str, torch.Tensor]:
    """The same for items of several views, each of which is an image of the batch."""
    return {name: rows.flatten(0, 1) for name, rows in collate(items).items()}


class MixupCollator:
    """
    [`collate`], then timm's mixup or cutmix, whichever chance decides, with soft targets of shape
    `(batch_size, num_labels)` as `labels`. What is random follows from the images.

    Args:
        mixup (`timm.data.Mixup`): The function that mixes.
    """

    def __init__(self, mixup: Mixup):
        self.mixup = mixup

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        batch = collate(items)
        if not batch:  # images that a run had before it was interrupted
            return batch
        with seeded(seed_of(zlib.crc32(items[0]["pixel_values"].numpy().tobytes()))):
            batch["pixel_values"], batch["labels"] = self.mixup(batch["pixel_values"], batch["labels"])
        return batch
