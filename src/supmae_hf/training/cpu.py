# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings that make training on a CPU fast (docs/performance.md has the measurements)."""

import ctypes
import platform

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def fastest_attention(device: torch.device, bf16: bool) -> str | None:
    """The implementation of attention to choose where Transformers' default is not the fastest."""
    return "eager" if device.type == "cpu" and bf16 else None


def keep_freed_memory() -> bool:
    """
    Tell glibc to keep the memory that the process frees. By default it gives large blocks back to the system, which has to
    clear them page by page when the next operation asks for them, which takes a good part of the time of a training step.

    Returns:
        Whether this is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(option, 2**31 - 1)
    return True


def compilation_advice(args: TrainingArguments) -> str | None:
    """A sentence for long runs that `--torch_compile` makes faster: those in bf16, of which a CPU with AMX multiplies fast."""
    if args.device.type != "cpu" or not args.bf16 or args.torch_compile:
        return None
    return "With AMX, `--torch_compile` makes steps in bf16 about 1.3 times as fast, after minutes of compilation."


def prepare_cpu(model: PreTrainedModel, args: TrainingArguments):
    """If a run is on the CPU, make the process fit for it, and say in one line what was chosen."""
    if args.device.type != "cpu":
        return
    encoder = getattr(model, "backbone", model)
    choices = [f"{encoder.config._attn_implementation} attention"]
    if keep_freed_memory():
        choices.append("glibc keeps freed memory")
    if args.process_index == 0:
        logger.warning(f"On the CPU: {', '.join(choices)}.")
