# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Parts that the Trainer and the plain Accelerate loop share: batches, their order, seeds, BatchNorm, the log."""

import contextlib
import signal
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.utils.data import DataLoader, IterableDataset
from transformers.utils import logging

from ..data.dataset import EpochSampler, ImageDataset, ImageStream, collate_views
from ..data.transforms import seed_of
from .checkpointing import StopRequest, ignore_stop_request


logger = logging.get_logger(__name__)


def seed_step(seed: int, step: int, process_index: int):
    """Seed what a training step draws (dropout, stochastic depth), so that it does not depend on the steps before."""
    torch.manual_seed(seed_of(seed, step, process_index))


def build_dataloader(dataset, args, collate: Callable, train: bool) -> DataLoader:
    """
    Batches of an [`ImageDataset`], an [`ImageStream`] or any other data set: shuffled (unless
    `args.train_sampling_strategy` is sequential) and without an incomplete last one (if `args.dataloader_drop_last`) for
    training, all of them in order for evaluation.
    """
    sampler, num_views = None, getattr(dataset, "num_views", 1)
    is_shuffled = train and not isinstance(dataset, IterableDataset)
    if is_shuffled:
        shuffle = args.train_sampling_strategy == "random"
        if isinstance(dataset, ImageDataset) and dataset.seed is not None:
            sampler = EpochSampler(dataset, shuffle, getattr(args, "labeled_share", 0.0))
        elif shuffle:
            sampler = torch.utils.data.RandomSampler(dataset)
    num_workers = args.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_size=(args.train_batch_size if train else args.eval_batch_size) // num_views,
        sampler=sampler,
        drop_last=is_shuffled and args.dataloader_drop_last,
        collate_fn=collate if num_views == 1 else collate_views,
        num_workers=num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers and train and num_workers > 0,
        prefetch_factor=args.dataloader_prefetch_factor if num_workers else None,
        multiprocessing_context=args.dataloader_multiprocessing_context if num_workers else None,
        worker_init_fn=ignore_stop_request,
    )


def epoch_order(loader: DataLoader) -> EpochSampler | ImageStream | None:
    """The object that decides the order of the images; see [`begin_epoch`]."""
    return next((x for x in (loader.sampler, loader.dataset) if isinstance(x, (EpochSampler, ImageStream))), None)


def begin_epoch(order: EpochSampler | ImageStream | None, epoch: int, batches_done: int):
    """Set the epoch of an order. A stream leaves out the images of the batches that were done before an interruption."""
    if order is not None:
        order.epoch = epoch
    if isinstance(order, ImageStream):
        order.skip_batches(batches_done)


def take_counts(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the counts of skipped and repeated images from a batch, and return their sums."""
    return {f"{name}_images": batch.pop(name).sum() for name in ("skipped", "repeated") if name in batch}


class Interval:
    """Images, seconds and counts of the training steps between two lines of the log."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._start, self._num_images, self._counts = None, 0, {}

    def add(self, batch: dict[str, torch.Tensor]):
        """Count a training batch of this process, and remove from it what is only to be counted."""
        self._start = self._start or time.perf_counter()
        self._num_images += len(batch["pixel_values"])
        for name, count in take_counts(batch).items():
            self._counts[name] = self._counts.get(name, 0) + count

    @contextlib.contextmanager
    def paused(self):
        """Leave out the seconds of a block, such as an evaluation."""
        begin = time.perf_counter()
        yield
        if self._start is not None:
            self._start += time.perf_counter() - begin

    def __bool__(self) -> bool:
        return self._num_images > 0

    def end(self) -> dict[str, float]:
        """End the interval, and begin the next one. Returns images per second and counts of all processes."""
        now = time.perf_counter()
        rate = self._num_images * self.accelerator.num_processes / (now - self._start)
        metrics = {name: int(self.accelerator.reduce(count)) for name, count in self._counts.items()}
        self._start, self._num_images, self._counts = now, 0, {}
        return {**metrics, "images_per_second": round(rate, 1)}


def prepare_batch_norm(model: torch.nn.Module, args) -> torch.nn.Module:
    """Synchronise BatchNorm across processes if `args.sync_batchnorm`; else warn that each has its own statistics."""
    if not any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules()):
        return model
    if args.sync_batchnorm:
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    batches = [f"{args.world_size} processes"] if args.world_size > 1 else []
    if args.gradient_accumulation_steps > 1:
        batches.append(f"{args.gradient_accumulation_steps} batches of a step")
    if batches and args.process_index == 0:
        logger.warning(
            f"The head's BatchNorm sees {args.per_device_train_batch_size} images at a time: each of the "
            f"{' and '.join(batches)} has statistics of its own."
        )
    return model


def share_buffers(model: torch.nn.Module, accelerator: Accelerator):
    """Before an evaluation, give every process the buffers of the first one (BatchNorm's statistics), which are saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.clone()))


def leave(args, stop: StopRequest):
    """End the process with the exit status of the signal that asked for it, and say how to go on."""
    received = stop.received or signal.SIGTERM  # which another process may have received
    if args.process_index == 0:
        print(f"\nStopped by {received.name}; saved in {args.output_dir}. The same command goes on from there.")
    raise SystemExit(128 + received)
