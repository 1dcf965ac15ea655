#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
A training step (forward, backward, optimiser) of ViT-B/16, side by side in one process, in turn: SupMAE, SupMAE
without its short cuts, and `ViTMAEForPreTraining` with the same head and a decoder of 1 or 8 blocks; with
`--original FOLDER` the authors' code, too.

    python benchmarks/bench_step.py [--dtype fp32] [--compile] [--batch_size 64] [--mask_ratio 0.75] [--image_size 224]

Peak memory is that of PyTorch's allocations in a step, weights and optimiser included. The share of the matrix
multiplication rate counts the operations that the losses and their gradients need (three times the forward pass).
"""

import argparse
import gc
import importlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, ratio, report
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from supmae_hf import SupMAEConfig, SupMAEForPreTraining
from supmae_hf.modeling_supmae import gather_tokens


DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


class AllPatches(nn.Module):
    """Embeds every patch and then chooses, as MAE does."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixel_values, ids=None):
        patches = self.embeddings(pixel_values)
        return patches if ids is None else gather_tokens(patches, ids)


def supmae(args, short_cuts: bool = True) -> nn.Module:
    config = SupMAEConfig(num_labels=1000, image_size=args.image_size, mask_ratio=args.mask_ratio)
    if short_cuts:
        return SupMAEForPreTraining(config)
    model = SupMAEForPreTraining._from_config(config, attn_implementation="sdpa")
    model.vit.embeddings.patch_embeddings = AllPatches(model.vit.embeddings.patch_embeddings)
    decode = model.decoder.forward

    def predict_every_patch(hidden_states, ids_restore, grid_size, hidden_only):
        predictions = decode(hidden_states, ids_restore, grid_size)
        return predictions[:, hidden_states.shape[1] - 1 :] if hidden_only else predictions

    model.decoder.forward = predict_every_patch
    return model


class ViTMAEAndHead(nn.Module):
    """Transformers' ViTMAE with SupMAE's head and losses."""

    def __init__(self, args, num_decoder_layers: int):
        super().__init__()
        self.mae = ViTMAEForPreTraining(
            ViTMAEConfig(
                image_size=args.image_size,
                mask_ratio=args.mask_ratio,
                decoder_num_hidden_layers=num_decoder_layers,
                norm_pix_loss=True,
                layer_norm_eps=1e-6,
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
    """Of a step of SupMAE with one image, by PyTorch's counter."""
    model = supmae(args).train()
    pixel_values = torch.empty(2, 3, args.image_size, args.image_size, device="meta")
    model = model.to("meta")
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predictions = model.vit(pixel_values, mask_ratio=args.mask_ratio)
        grid_size = model.vit.embeddings.patch_grid(pixel_values)
        model.decoder(predictions.last_hidden_state, predictions.ids_restore, grid_size, True)
        model.classification_head(predictions.pooler_output)
    return 3 * counter.get_total_flops() / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of them")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--mask_ratio", type=float, default=0.75)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", action="store_true", help="SupMAE alone over mask ratios and image sizes")
    parser.add_argument("--only", nargs="*", help="names of the models to measure")
    parser.add_argument("--original", help="folder of the authors' repository")
    args = parser.parse_args()

    if args.sweep:
        rows = []
        for mask_ratio, image_size in [(r, args.image_size) for r in (0.0, 0.25, 0.5, 0.75, 0.9)] + [
            (args.mask_ratio, size) for size in (320, 448)
        ]:
            args.mask_ratio, args.image_size = mask_ratio, image_size
            step = Step(supmae(args), args)
            seconds = statistics.median(alternate({"": step}, args.rounds, warmup=1)[""])
            rows.append(
                {
                    "mask ratio": mask_ratio,
                    "image size": image_size,
                    "images/s": args.batch_size / seconds,
                    "GFLOP/image": operations(args) / 1e9,
                    "peak GiB": peak_memory(step),
                }
            )
            del step
            gc.collect()
        report("step_sweep", rows)
        return

    models = {
        "SupMAE": lambda: supmae(args),
        "SupMAE without short cuts": lambda: supmae(args, short_cuts=False),
        "ViTMAE + head, 1 decoder block": lambda: ViTMAEAndHead(args, 1),
        "ViTMAE + head, 8 decoder blocks": lambda: ViTMAEAndHead(args, 8),
    }
    if args.original:
        models["authors' code"] = lambda: Original(args)
    if args.only:
        models = {name: models[name] for name in args.only}
    steps = {name: Step(make(), args) for name, make in models.items()}
    multiply, flops = matmul(args)
    seconds = alternate({**steps, "matmul": multiply}, args.rounds)
    rate = flops / statistics.median(seconds["matmul"])
    needed = operations(args) * args.batch_size
    first = next(iter(steps))
    first_peak = None
    rows = []
    for name, step in steps.items():
        peak = peak_memory(step) if not args.compile or DEVICE.type == "cuda" else float("nan")
        first_peak = first_peak or peak
        rows.append(
            {
                "model": name,
                "images/s": args.batch_size / statistics.median(seconds[name]),
                f"{first} is faster by": ratio(seconds[name], seconds[first]),
                "peak GiB": peak,
                f"{first}'s share of it": first_peak / peak,
                "share of matmul rate": needed / statistics.median(seconds[name]) / rate if "SupMAE" in name else "",
            }
        )
    print(
        f"matrix multiplication: {rate / 1e9:.0f} GFLOP/s; SupMAE needs {needed / args.batch_size / 1e9:.1f} GFLOP an image"
    )
    report(f"step_{args.dtype}{'_compiled' if args.compile else ''}_{args.batch_size}", rows)


if __name__ == "__main__":
    main()
