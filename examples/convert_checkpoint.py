#!/usr/bin/env python
# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Convert a checkpoint to supmae-hf's format: a folder for `from_pretrained`.

    python examples/convert_checkpoint.py CHECKPOINT FOLDER

CHECKPOINT is one of
  - a .pth file that the SupMAE authors published, of pre-training or of fine-tuning (global pool or class token);
  - a .pth file of MAE, which looks alike but has no classification head: a new one is made;
  - a .pth or .safetensors file of a ViT under timm's names (timm's vit_* and deit_*, DINO, DINOv2, DINOv3), or of
    self-supervised training (DINO, iBOT, MoCo v3, solo-learn, lightly, mmpretrain), whose teacher is taken;
  - a folder or a repository of the Hub with a ViTMAE, ViT, DeiT, DINO, DINOv2, DINOv3, ViT-MSN, CLIP, SigLIP, I-JEPA or timm
    ViT (docs/checkpoints.md): checked, on random images and on photographs, to compute the same as its own class;
  - a SupMAE checkpoint, to change its --image_size or --patch_size.

The architecture is read from the checkpoint. Nothing in it is run, and FOLDER appears complete or not at all.
"""

from pathlib import Path

from supmae_hf import SupMAEForPreTraining
from supmae_hf.cli import Parser, run
from supmae_hf.interchange.convert import convert_original, convert_pretrained
from supmae_hf.preparation import fit_image_processor, load_image_processor
from supmae_hf.records import new_folder


def size(value: list[int] | None) -> int | tuple[int, int] | None:
    """A size as the configuration has it: one number, or height and width."""
    return value if not value else value[0] if len(value) == 1 else tuple(value)


def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", help="the file, or the folder or repository")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--encoder_only", action="store_true", help="keep the encoder only")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    parser.add_argument(
        "--image_size", type=int, nargs="+", help="pixels, or height and width, if others than the checkpoint's"
    )
    parser.add_argument("--patch_size", type=int, nargs="+", help="likewise")
    unusual = parser.add_argument_group("what a file may not tell, and only then")
    unusual.add_argument("--num_attention_heads", type=int, help="of the encoder")
    unusual.add_argument("--hidden_act", help="activation of the MLPs, by its name in Transformers")
    unusual.add_argument("--layer_norm_eps", type=float, help="epsilon of the LayerNorms")
    unusual.add_argument("--rope_theta", type=float, help="base of rotary positions (DINOv3's is 100)")
    unusual.add_argument("--decoder_num_attention_heads", type=int, help="of the decoder, if its width is not 512")
    unusual.add_argument("--num_labels", type=int, help="classes of the new head of an MAE checkpoint")
    args = parser.parse_args()

    for name in ("image_size", "patch_size"):
        if len(getattr(args, name) or ()) > 2:
            parser.error(f"--{name} takes one number, or height and width, got {getattr(args, name)}.")
    names = (
        "num_attention_heads",
        "decoder_num_attention_heads",
        "num_labels",
        "hidden_act",
        "layer_norm_eps",
        "rope_theta",
    )
    fields = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    sizes = {"image_size": size(args.image_size), "patch_size": size(args.patch_size)}

    with new_folder(args.folder, args.overwrite, [args.checkpoint]) as folder:
        is_file = Path(args.checkpoint).is_file() or Path(args.checkpoint).suffix in (".pth", ".pt", ".safetensors")
        if is_file:
            model, recognised = convert_original(args.checkpoint, args.encoder_only, **sizes, **fields)
            print(recognised)
        else:
            model = convert_pretrained(args.checkpoint, args.encoder_only, **sizes, **fields)
        model.save_pretrained(folder)
        known = load_image_processor(None if is_file else args.checkpoint)
        image_processor = fit_image_processor(known, model.config)
        image_processor.save_pretrained(folder)
    if known is None and not isinstance(model, SupMAEForPreTraining):
        mean, std = image_processor.image_mean, image_processor.image_std
        print(
            f"The checkpoint does not say how its images are prepared: mean {mean} and standard deviation {std} are taken. Timm's "
            "and Google's ViTs often have 0.5 for both: see preprocessor_config.json."
        )
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters: {args.folder}")


if __name__ == "__main__":
    run(main)
