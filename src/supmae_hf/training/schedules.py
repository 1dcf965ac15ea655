# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Image sizes and mask ratios that change while a run goes on."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..configuration_supmae import SupMAEConfig, to_pair
from ..cost import pretraining_flops


@dataclass(frozen=True)
class StepSchedule:
    """Values, each from a share of the run on."""

    shares: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def parse(cls, flag: str, words: Sequence[str], number: Callable, fits: Callable[[float], bool]) -> "StepSchedule":
        """
        Read `SHARE:VALUE` pairs.

        Args:
            flag: Name of the flag, for errors.
            number: The type of a value.
            fits: Whether a value can be used.

        Raises:
            ValueError: if a pair is none, the shares do not rise from 0 to less than 1, or a value does not fit.
        """
        try:
            pairs = [(float(share), number(value)) for share, value in (word.split(":") for word in words)]
        except ValueError:
            pairs = []
        shares, values = [share for share, _ in pairs], [value for _, value in pairs]
        rises = pairs and shares[0] == 0 and shares[-1] < 1 and all(a < b for a, b in zip(shares, shares[1:]))
        if not rises or not all(map(fits, values)):
            raise ValueError(
                f"`--{flag}` needs pairs SHARE:VALUE whose shares of the run rise from 0 to less than 1, got {' '.join(words)}."
            )
        return cls(tuple(shares), tuple(values))

    def at(self, share: float) -> float:
        """The value at a share of the run, in [0, 1)."""
        return [value for start, value in zip(self.shares, self.values) if start <= share][-1]


def check_schedules(sizes: StepSchedule | None, ratios: StepSchedule | None, config: SupMAEConfig):
    """
    Raises:
        ValueError: if a size is larger than the model's images or not of whole patches, or if no patch is visible at some time.
    """
    if sizes is not None:
        _check_sizes(sizes, config)
    for share in sorted({0.0, *(share for schedule in (sizes, ratios) if schedule for share in schedule.shares)}):
        height, width = (sizes.at(share),) * 2 if sizes else to_pair(config.image_size)
        ratio = ratios.at(share) if ratios else config.mask_ratio
        patch = to_pair(config.patch_size)
        num_patches = (height // patch[0]) * (width // patch[1])
        if config.num_visible_patches(num_patches, ratio) < 1:
            raise ValueError(
                f"From {share:.0%} of the run on, a mask ratio of {ratio:g} leaves no visible patch of the {num_patches} of "
                f"{height}x{width} pixels: change `--mask_ratio_schedule` or `--image_size_schedule`."
            )


def _check_sizes(schedule: StepSchedule, config: SupMAEConfig):
    height, width = to_pair(config.image_size)
    patch = to_pair(config.patch_size)
    for size in schedule.values:
        if height != width or size > height or any(size % side for side in patch):
            raise ValueError(
                f"`--image_size_schedule` {size} does not fit a model of {height}x{width} pixels and patches of "
                f"{patch[0]}x{patch[1]}: a size is a multiple of the patch's, and at most that of (square) images."
            )


def scheduled(
    inputs: dict[str, torch.Tensor],
    config: SupMAEConfig,
    share: float,
    image_sizes: StepSchedule | None,
    mask_ratios: StepSchedule | None,
) -> dict[str, torch.Tensor]:
    """
    A batch as the schedules have it at a share of the run: images made smaller (bicubically, with antialiasing), with masking
    noise for as many patches, and the mask ratio as another argument of the model.
    """
    inputs = dict(inputs)
    if mask_ratios is not None:
        inputs["mask_ratio"] = mask_ratios.at(share)
    if image_sizes is not None and (size := image_sizes.at(share)) != inputs["pixel_values"].shape[-1]:
        inputs["pixel_values"] = F.interpolate(
            inputs["pixel_values"], size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
        if "segmentation_maps" in inputs:
            labels = inputs["segmentation_maps"].unsqueeze(1).float()
            inputs["segmentation_maps"] = (
                F.interpolate(labels, size=(size, size), mode="nearest-exact").squeeze(1).long()
            )
        rows, columns = (size // side for side in to_pair(config.patch_size))
        if "noise" in inputs:
            inputs["noise"] = inputs["noise"][:, : rows * columns]
        inputs["interpolate_pos_encoding"] = True
    return inputs


def scheduled_flops(
    config: SupMAEConfig, image_sizes: StepSchedule | None = None, mask_ratios: StepSchedule | None = None
) -> float:
    """FLOPs of one image through [`SupMAEForPreTraining`], forward, on average over a run with these schedules."""
    schedules = [schedule for schedule in (image_sizes, mask_ratios) if schedule is not None]
    starts = sorted({0.0, *(share for schedule in schedules for share in schedule.shares)})
    flops = 0.0
    for start, end in itertools.pairwise([*starts, 1.0]):
        part = copy.deepcopy(config)
        if image_sizes is not None:
            part.image_size = image_sizes.at(start)
        if mask_ratios is not None:
            part.mask_ratio = mask_ratios.at(start)
        flops += (end - start) * pretraining_flops(part)
    return flops
