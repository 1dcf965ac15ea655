#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
A training step (forward, backward, optimiser) of ViT-B/16, side by side in one process, in turn: SupMAE, and
`ViTMAEForPreTraining` with the same head and a decoder of 1 or 8 blocks, each in every one of `--attention`, on a heap that
keeps freed memory. With `--original FOLDER` the authors' code, too, with `--before FOLDER` another state of this project
(a folder that holds `supmae_hf/`).

    python benchmarks/bench_step.py [--dtype fp32] [--compile] [--batch_size 32] [--only SupMAE 'ViTMAE + head, 1 block']

Peak memory is that of PyTorch's allocations in a step, weights and optimiser included. The share of the matrix
multiplication rate counts the operations that PyTorch's counter finds in the forward pass, three times.
"""

import argparse
import gc
import importlib
import json
import statistics
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import alternate, ratio, report
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.cost import pretraining_flops
from supmae_hf.training.cpu import keep_freed_memory


DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def supmae(args, attention: str | None, source=None) -> nn.Module:
    config_class, model_class = (SupMAEConfig, SupMAEForPreTraining) if source is None else source
    attention = {} if attention is None else {"attn_implementation": attention}
    return model_class(
        config_class(num_labels=1000, image_size=args.image_size, mask_ratio=args.mask_ratio, **attention)
    )


def load_before(folder: str):
    """Configuration and model of another state of this project, without registering it."""
    package = types.ModuleType("before")
    package.__path__ = [str(Path(folder) / "supmae_hf")]
    sys.modules["before"] = package
    model_class = importlib.import_module("before.modeling_supmae").SupMAEForPreTraining
    return importlib.import_module("before.configuration_supmae").SupMAEConfig, model_class


class ViTMAEAndHead(nn.Module):
    """Transformers' MAE with SupMAE's head and loss, as one would add it."""

    def __init__(self, args, attention: str, num_decoder_layers: int):
        super().__init__()
        self.mae = ViTMAEForPreTraining(
            ViTMAEConfig(
                image_size=args.image_size,
                mask_ratio=args.mask_ratio,
                decoder_num_hidden_layers=num_decoder_layers,
                norm_pix_loss=True,
                layer_norm_eps=1e-6,
                attn_implementation=attention,
            )
        )
        self.head = nn.Sequential(nn.Linear(768, 3072), nn.BatchNorm1d(3072), nn.ReLU(), nn.Linear(3072, 1000))
        self.mae.vit.register_forward_hook(self._keep_features)

    def _keep_features(self, module, inputs, outputs):
        self.features = outputs.last_hidden_state[:, 1:].mean(dim=1)

    def forward(self, pixel_values, labels):
        loss = self.mae(pixel_values).loss
        return loss + 0.01 * nn.functional.cross_entropy(self.head(self.features).float() / 10, labels)


class Original(nn.Module):
    """The authors' model, from a copy of their repository, with the loss of their training loop."""

    def __init__(self, args):
        super().__init__()
        sys.path.insert(0, args.original)
        self.model = importlib.import_module("models_supmae").mae_vit_base_patch16_d1b(norm_pix_loss=True)
        self.mask_ratio = args.mask_ratio

    def forward(self, pixel_values, labels):
        loss, _, _, logits = self.model(pixel_values, mask_ratio=self.mask_ratio)
        return loss + 0.01 * nn.functional.cross_entropy(logits.float() / 10, labels)


class Step:
    """One training step of a model."""

    def __init__(self, model: nn.Module, args):
        self.model = model.to(DEVICE).train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        self.forward = torch.compile(self.model) if args.compile else self.model
        self.autocast = args.dtype == "bf16"
        self.pixel_values = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=DEVICE)
        self.labels = torch.randint(0, 1000, (args.batch_size,), device=DEVICE)

    def __call__(self):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.forward(self.pixel_values, labels=self.labels)
        (outputs if torch.is_tensor(outputs) else outputs.loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak_memory(step: Step) -> float:
    """GiB of PyTorch's allocations at the worst moment of a step."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**30
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    allocated = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    state = sum(p.numel() * p.element_size() for p in step.model.parameters())  # from before the profile began
    moments = sum(t.numel() * t.element_size() for s in step.optimizer.state.values() for t in s.values())
    return (max(allocated) + state + moments) / 2**30


def matmul(args) -> tuple[Callable[[], None], float]:
    """A large matrix multiplication of the encoder and its operations."""
    tokens = max(args.batch_size, 16) * 50
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    a, b = torch.randn(tokens, 768, dtype=dtype, device=DEVICE), torch.randn(3072, 768, dtype=dtype, device=DEVICE)
    repeats = 20

    def run():
        for _ in range(repeats):
            nn.functional.linear(a, b)

    return run, repeats * 2.0 * tokens * 768 * 3072


def operations(args) -> float:
    """Of a step of SupMAE with one image."""
    return 3 * pretraining_flops(SupMAEConfig(num_labels=1000, image_size=args.image_size, mask_ratio=args.mask_ratio))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--attention", nargs="+", default=["eager", "sdpa"], help="implementations to try")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of the contestants to measure")
    parser.add_argument("--original", help="folder of the authors' repository")
    parser.add_argument("--before", help="folder that holds another state of supmae_hf")
    args = parser.parse_args()
    keep_freed_memory()

    makers = {}
    for attention in args.attention:
        makers["SupMAE", attention] = partial(supmae, args, attention)
        for blocks in (1, 8):
            name = f"ViTMAE + head, {blocks} block{'s' * (blocks > 1)}"
            makers[name, attention] = partial(ViTMAEAndHead, args, attention, blocks)
    if args.before:
        makers["SupMAE before", "its default"] = partial(supmae, args, None, load_before(args.before))
    if args.original:
        makers["authors' code", "its own"] = partial(Original, args)
    only = args.only or ["SupMAE", "SupMAE before", "ViTMAE + head, 1 block", "authors' code"]
    steps = {key: Step(make(), args) for key, make in makers.items() if key[0] in only}
    multiply, flops = matmul(args)
    seconds = alternate({**steps, "matmul": multiply}, args.rounds)
    rate = flops / statistics.median(seconds["matmul"])
    needed = operations(args) * args.batch_size
    best = min((key for key in steps if key[0] == "SupMAE"), key=lambda key: statistics.median(seconds[key]))
    rows = []
    for (name, attention), step in steps.items():
        times = seconds[name, attention]
        row = {
            "model": name,
            "attention": attention,
            "images/s": args.batch_size / statistics.median(times),
            f"SupMAE ({best[1]}) is faster by": ratio(times, seconds[best]),
        }
        if not args.compile or DEVICE.type == "cuda":
            row["peak GiB"] = peak_memory(step)
        if name == "SupMAE":
            row["share of matmul rate"] = needed / statistics.median(times) / rate
        rows.append(row)
        gc.collect()
    print(
        f"matrix multiplication: {rate / 1e9:.0f} GFLOP/s; SupMAE: {needed / args.batch_size / 1e9:.1f} GFLOP an image"
    )
    report(f"step_{args.dtype}{'_compiled' if args.compile else ''}_{args.batch_size}", rows)


if __name__ == "__main__":
    main()
