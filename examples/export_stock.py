#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Turn a SupMAE checkpoint into a model that runs without supmae-hf and gives exactly the same results.

    python examples/export_stock.py CHECKPOINT FOLDER

makes, depending on the checkpoint,
  - of a classifier: BeitForImageClassification (mean pooling) or ViTForImageClassification (class token);
  - of a pre-training checkpoint: ViTMAEForPreTraining, which has no classification head;
  - of an encoder (--encoder_only for a pre-training checkpoint): ViTModel;
with `--format timm` a timm model of a classifier, with `--format onnx` an ONNX model of a classifier or an encoder.

The results are compared on random images and on photographs before FOLDER appears, complete or not at all.
"""

from pathlib import Path

import torch

from supmae_hf.cli import Parser, run
from supmae_hf.interchange.export import export_onnx, export_stock, source_image_processor
from supmae_hf.loading import load_checkpoint


def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="a SupMAE checkpoint: a folder, or a repository of the Hub")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--format", choices=["transformers", "timm", "onnx"], default="transformers")
    parser.add_argument("--encoder_only", action="store_true", help="export the encoder of the checkpoint only")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    args = parser.parse_args()

    model = load_checkpoint(args.checkpoint, args.encoder_only, dtype=torch.float32)
    image_processor = source_image_processor(model, args.checkpoint)
    if args.format == "onnx":
        export_onnx(model, args.folder, image_processor, args.overwrite, [args.checkpoint])
        name = "ONNX model"
    else:
        name = export_stock(
            model, args.folder, args.format == "timm", image_processor, args.overwrite, [args.checkpoint]
        )
    print(f"{name}, checked to give the same results: {args.folder}")


if __name__ == "__main__":
    run(main)
