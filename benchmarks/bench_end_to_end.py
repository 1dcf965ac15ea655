#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Images per second of examples/run_pretrain.py (ViT-B/16, JPEG files of 500x375 pixels, bf16) against the bare training
step of bench_step.py on tensors that are in memory: what is lost outside the step. The two run in turn, each in a
process of its own.

    python benchmarks/bench_end_to_end.py [--batch_size 32] [--workers 1]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_input import photographs
from common import report


ROOT = Path(__file__).parent.parent
BARE = """
import argparse, time
from bench_step import DEVICE, Step, supmae
from common import synchronize
from supmae_hf.training.cpu import keep_freed_memory
keep_freed_memory()
args = argparse.Namespace(batch_size={batch_size}, image_size=224, mask_ratio=0.75, dtype="bf16", compile=False)
step = Step(supmae(args, "eager" if DEVICE.type == "cpu" else "sdpa"), args)
for _ in range({steps}):
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    print({batch_size} / (time.perf_counter() - start))
"""


def bare_rates(args) -> list[float]:
    code = BARE.format(batch_size=args.batch_size, steps=args.steps)
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    ).stdout
    return [float(line) for line in output.split()]


def script_rates(args, folder: Path) -> list[float]:
    flags = {
        "train_dir": folder / "photos",
        "output_dir": folder / "out",
        "per_device_train_batch_size": args.batch_size,
        "max_steps": args.steps,
        "logging_steps": 1,
        "warmup_epochs": 0,
        "dataloader_num_workers": args.workers,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "max_eval_samples": 2,
        "num_reconstructions": 1,
        "disable_tqdm": True,
    }
    command = [sys.executable, ROOT / "examples" / "run_pretrain.py", "--bf16", "--overwrite_output_dir", "True"]
    command += [part for name, value in flags.items() for part in (f"--{name}", value)]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    log = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return [entry["images_per_second"] for entry in log if "images_per_second" in entry]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1, help="of the DataLoader; 0 loads between the steps")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    bare, script = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, row in enumerate(photographs((500, 375), 75, args.batch_size * args.steps)):
            path = folder / "photos" / str(row["label"]) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(path, quality=75)
        for _ in range(args.rounds):
            # the first steps are slower: caches, workers, memory
            bare.append(statistics.median(bare_rates(args)[3:]))
            script.append(statistics.median(script_rates(args, folder)[3:]))
    rows = [
        {"images/s": "bare step", "median": statistics.median(bare), "rounds": [round(rate, 1) for rate in bare]},
        {"images/s": "script", "median": statistics.median(script), "rounds": [round(rate, 1) for rate in script]},
        {"images/s": "share", "median": statistics.median(b / a for a, b in zip(bare, script))},
    ]
    report("end_to_end", rows)


if __name__ == "__main__":
    main()
