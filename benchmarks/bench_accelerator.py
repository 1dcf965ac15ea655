#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
One command for a new accelerator, without downloads: is it right, and how fast is it?

    python benchmarks/bench_accelerator.py [--batch_sizes 256 64 1024] [--minutes 5]

First the checks: losses and gradients in fp32 and bf16 against the CPU's in fp32, compiled against eager, with gradient
checkpointing against without, a run that goes on from a checkpoint against one that was not interrupted. Then, one after another, bf16
training steps of ViT-B/16 at each batch size, eager and compiled: SupMAE, ViTMAE with the same head and a decoder of 1 or 8 blocks
(MAE's own), and timm's ViT with three quarters of the patches dropped (its encoder alone: timm has no masked autoencoder), each in
every attention that is there; those that the `--minutes` are too few for are left out, and named. Last the data path that would keep
the fastest of them busy.

Without an accelerator it does the same on the CPU at small sizes, and says so.
"""

import argparse
import copy
import gc
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import bench_input
import timm
import torch
from bench_step import DEVICE, Step, ViTMAEAndHead, matmul, operations, peak_memory, supmae
from common import alternate, machine, ratio, report
from torch import nn

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.training.cpu import keep_freed_memory


ROOT = Path(__file__).parent.parent
IS_CPU = DEVICE.type == "cpu"
SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
SMALL |= {"decoder_hidden_size": 128, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 512}
SMALL |= {"image_size": 96, "num_labels": 10, "classifier_hidden_size": 256, "classification_loss_weight": 0.1}


class TimmEncoder(nn.Module):
    """timm's ViT-B/16 with as many patches as a masked autoencoder sees, and a classifier."""

    def __init__(self, args):
        super().__init__()
        self.model = timm.create_model(
            "vit_base_patch16_224", num_classes=1000, img_size=args.image_size, patch_drop_rate=0.75
        )

    def forward(self, pixel_values, labels):
        return nn.functional.cross_entropy(self.model(pixel_values).float(), labels)


def gradients(model, batch: dict, dtype=None, compiled=False) -> tuple[float, torch.Tensor]:
    """Loss, and the gradient of all parameters as one vector on the CPU."""
    device = batch["pixel_values"].device
    model = copy.deepcopy(model).to(device).train()
    forward = torch.compile(model) if compiled else model
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = forward(**batch).loss
    loss.backward()
    parts = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(parts).float().cpu()


def compare(what: str, one, other, tolerance: float) -> dict:
    (loss, gradient), (expected_loss, expected) = one, other
    difference = ((gradient - expected).norm() / expected.norm()).item()
    loss_difference = abs(loss / expected_loss - 1)
    return {
        "check": what,
        "loss differs by": f"{loss_difference:.1e}",
        "gradient differs by": f"{difference:.1e}",
        "at most": f"{tolerance:.0e}",
        "right": max(loss_difference, difference) <= tolerance,
    }


def check_model(can_compile: bool) -> list[dict]:
    torch.manual_seed(0)
    model = SupMAEForPreTraining(SupMAEConfig(**SMALL))
    batch = {"pixel_values": torch.randn(16, 3, 96, 96), "labels": torch.arange(16) % 10, "noise": torch.rand(16, 36)}
    here = {name: value.to(DEVICE) for name, value in batch.items()}
    expected, eager = gradients(model, batch), gradients(model, here)
    rows = [
        compare("fp32, against the CPU", eager, expected, 1e-3),
        compare("bf16, against the CPU's fp32", gradients(model, here, torch.bfloat16), expected, 0.05),
    ]
    if can_compile:
        rows.append(compare("compiled, against eager", gradients(model, here, compiled=True), eager, 1e-3))
    model.gradient_checkpointing_enable()
    rows.append(compare("gradient checkpointing, against none", gradients(model, here), eager, 1e-4))
    return rows


def check_resume() -> dict:
    """A run on the digits that finds nothing but its first checkpoint, against the same run as it was."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "examples" / "run_pretrain.py", "--output_dir", folder, "--max_steps", 6]
        command += ["--save_strategy", "steps", "--save_steps", 3, "--warmup_epochs", 0, "--report_to", "none"]
        command += ["--disable_tqdm", "True", "--eval_strategy", "no"]
        command += ["--full_determinism", "True"]  # without it weights differed on an H200
        weights = []
        for _ in range(2):
            result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            weights.append((Path(folder) / "model.safetensors").read_bytes())
            for path in [*Path(folder).glob("checkpoint-6/**/*")]:
                path.unlink()
    return {"check": "a run that goes on, against one that was not interrupted", "right": weights[0] == weights[1]}


def measure(args, modes: list[str], end: float) -> list[dict]:
    shared = {"image_size": args.image_size, "mask_ratio": 0.75, "dtype": "bf16"}
    steps = {batch_size: SimpleNamespace(batch_size=batch_size, **shared) for batch_size in args.batch_sizes}
    groups = {batch_size: [] for batch_size in steps}
    attentions = ["sdpa", "eager"] if IS_CPU else ["sdpa"]
    if not IS_CPU and importlib.util.find_spec("flash_attn"):
        attentions.append("flash_attention_2")
    for mode, (batch_size, step_args) in itertools.product(modes, steps.items()):
        step_args.compile = mode == "compiled"
        makers = {}
        for attention in attentions:
            makers["SupMAE", attention] = partial(supmae, step_args, attention)
            for blocks in (1, 8):
                name = f"ViTMAE + head, {blocks} decoder block{'s' * (blocks > 1)}"
                makers[name, attention] = partial(ViTMAEAndHead, step_args, attention, blocks)
        makers["timm, encoder only", "its own"] = partial(TimmEncoder, step_args)
        for (name, attention), make in makers.items():
            if any(groups.values()) and time.perf_counter() > end:
                print(f"No time left for {name}, {mode}, {batch_size} images, attention: {attention}.")
                continue
            row = {"batch": batch_size, "model": name, "mode": mode, "attention": attention}
            try:
                step = Step(make(), step_args)
                row["seconds"] = alternate({"step": step}, args.rounds)["step"]
                row["peak GiB"] = peak_memory(step) if mode == "eager" or not IS_CPU else None
            except torch.OutOfMemoryError:
                row["out of memory"] = "yes"
            groups[batch_size].append(row)
            step = None
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()  # else the next batch size is compiled for all sizes, which is slower
    rows = []
    for batch_size, group in groups.items():
        multiply, flops = matmul(steps[batch_size])
        rate = flops / statistics.median(alternate({"matmul": multiply}, args.rounds)["matmul"])
        rows += summarize(group, batch_size, operations(steps[batch_size]) * batch_size / rate)
    return rows


def summarize(group: list[dict], batch_size: int, ideal: float) -> list[dict]:
    """Rows with images/s and, against the fastest of SupMAE's, how many times slower each is."""
    ours = [row["seconds"] for row in group if row["model"] == "SupMAE" and "seconds" in row]
    best = min(ours, key=statistics.median, default=None)
    for row in group:
        seconds = row.pop("seconds", None)
        if seconds is not None:
            row["images/s"] = batch_size / statistics.median(seconds)
            row["SupMAE's best is faster by"] = ratio(seconds, best)
            if row["model"] == "SupMAE":
                row["share of matmul rate"] = ideal / statistics.median(seconds)
    return group


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8] if IS_CPU else [256, 64, 1024])
    parser.add_argument("--image_size", type=int, default=96 if IS_CPU else 224)
    parser.add_argument("--rounds", type=int, default=3 if IS_CPU else 10)
    parser.add_argument("--minutes", type=float, default=5, help="after which no other step is begun (default: 5)")
    parser.add_argument("--no_compile", action="store_true", help="where there is no compiler")
    args = parser.parse_args()
    end = time.perf_counter() + 60 * args.minutes
    keep_freed_memory()
    if IS_CPU:
        print(f"No accelerator: a CPU, with images of {args.image_size} pixels and small batches.\n")

    checks = [*check_model(not args.no_compile), check_resume()]
    name = machine()["device"].split(",")[0].replace(" ", "-").lower()
    report(f"accelerator_checks_{name}", checks)

    # compiling ViT-B for a CPU takes minutes
    rows = measure(args, ["eager"] if args.no_compile or IS_CPU else ["eager", "compiled"], end)
    report(f"accelerator_{name}", rows)

    torch.set_num_threads(1)
    data = bench_input.photographs((500, 375), 75, 128)
    runs = {"as they are": bench_input.epoch(bench_input.ours(data), 0)}
    runs["packed"] = bench_input.epoch(bench_input.ours(bench_input.packed(data)), 0)
    per_core = {what: 128 / statistics.median(times) for what, times in alternate(runs, 3, warmup=1).items()}
    fastest = max(row["images/s"] for row in rows if row["model"] == "SupMAE" and "images/s" in row)
    print(
        f"\nThe fastest step takes {fastest:.0f} images/s of {args.image_size} pixels. From JPEG files of 500x375 to 224 pixels:"
    )
    for what, rate in per_core.items():
        print(f"  {what}: {rate:.0f} images/s of one core, so {fastest / rate:.1f} cores keep it busy")
    (Path(__file__).parent / "results" / f"accelerator_data_{name}.json").write_text(
        json.dumps({"machine": machine(), "fastest step": fastest, "images/s per core": per_core}, indent=2) + "\n"
    )
    wrong = [row["check"] for row in checks if not row["right"]]
    if wrong:
        raise SystemExit(f"Wrong: {'; '.join(wrong)}.")


if __name__ == "__main__":
    main()
