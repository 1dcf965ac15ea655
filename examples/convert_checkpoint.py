#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Convert a checkpoint to supmae-hf's format: a folder for `from_pretrained`.

    python examples/convert_checkpoint.py CHECKPOINT FOLDER

CHECKPOINT is one of
  - a .pth file that the SupMAE authors published, of pre-training or of fine-tuning (global pool or class token);
  - a .pth file of MAE, which looks alike but has no classification head: a new one is made;
  - a ViTMAE checkpoint of Transformers, a folder or a repository of the Hub: likewise.

The architecture is read from the file. Nothing in the file is run, and FOLDER appears complete or not at all.
"""

import argparse
from pathlib import Path

from supmae_hf import SupMAEForPreTraining, SupMAEModel
from supmae_hf.checkpoints.convert import convert_original, new_folder
from supmae_hf.checkpoints.export import source_image_processor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the .pth file, or the folder or repository of a ViTMAE checkpoint")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument(
        "--encoder_only", action="store_true", help="keep the encoder of a pre-training checkpoint only"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    unusual = parser.add_argument_group("what a file may not tell, and only then")
    unusual.add_argument("--num_attention_heads", type=int, help="of the encoder, if its width is unusual")
    unusual.add_argument("--decoder_num_attention_heads", type=int, help="of the decoder, if its width is not 512")
    unusual.add_argument("--image_size", type=int, nargs="+", help="pixels, or height and width if they differ")
    unusual.add_argument("--num_labels", type=int, help="classes of the new head of an MAE checkpoint")
    args = parser.parse_args()

    names = ("num_attention_heads", "decoder_num_attention_heads", "num_labels")
    fields = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.image_size:
        fields["image_size"] = args.image_size[0] if len(args.image_size) == 1 else tuple(args.image_size)

    with new_folder(args.folder, args.overwrite) as folder:
        source = None
        if Path(args.checkpoint).suffix in (".pth", ".pt", ".bin", ".ckpt") or Path(args.checkpoint).is_file():
            model = convert_original(args.checkpoint, encoder_only=args.encoder_only, **fields)
        else:
            source = args.checkpoint
            model_class = SupMAEModel if args.encoder_only else SupMAEForPreTraining
            model = model_class.from_pretrained(source, **fields)
        model.save_pretrained(folder)
        source_image_processor(model, source).save_pretrained(folder)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters: {args.folder}")


if __name__ == "__main__":
    main()
