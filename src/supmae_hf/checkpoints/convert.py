# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's own PyTorch checkpoints (and MAE's, which look alike): reading them, and the way between the names."""

import argparse
import math
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..configuration_supmae import SupMAEConfig
from ..modeling_supmae import (
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEModel,
    SupMAEPreTrainedModel,
)


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """
    A folder to fill, which takes the place of `path` once the block ends without an error.

    Raises:
        FileExistsError: if `path` exists and is not an empty folder, unless `overwrite` says to replace it.
    """
    path = Path(path)
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: choose another folder, or pass `--overwrite` to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp makes it private
        if path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


# How names begin: the authors', ours. The first that fits applies.
_PREFIXES = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("blocks.", "vit.layers."),
    ("norm.", "vit.layernorm."),
    ("mask_token", "decoder.mask_token"),
    ("decoder_blocks.", "decoder.decoder_layers."),
    ("decoder_", "decoder.decoder_"),  # decoder_embed, decoder_pos_embed, decoder_norm, decoder_pred
    ("cls_head.0.", "classification_head.fc1."),
    ("cls_head.1.", "classification_head.batch_norm."),
    ("cls_head.3.", "classification_head.fc2."),
    ("fc_norm.", "fc_norm."),
    ("head.", "classifier."),
]
_INSIDE_BLOCKS = [
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
]
_QKV = ".attn.qkv."
_PROJECTIONS = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")


def _rename(name: str, prefixes: list[tuple[str, str]], inside_blocks: list[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for old_part, new_part in inside_blocks:
                name = name.replace(old_part, new_part)
            return name
    raise KeyError(f"'{name}' is not the name of a SupMAE parameter.")


def convert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    State dict of the authors' pre-training or fine-tuning model, as a state dict of [`SupMAEForPreTraining`] or
    [`SupMAEForImageClassification`]. Only names change, except that the fused query-key-value matrices are cut in
    three.

    Raises:
        KeyError: if the authors' models have no parameter of some name.
    """
    converted = {}
    for original_name, tensor in state_dict.items():
        name = _rename(original_name, _PREFIXES, _INSIDE_BLOCKS)
        if _QKV in name:
            for projection, part in zip(_PROJECTIONS, tensor.chunk(3)):
                converted[name.replace(_QKV, projection)] = part.clone()
        else:
            converted[name] = tensor
    return converted


def revert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The inverse of [`convert_original_state_dict`]: a state dict of ours under the authors' names.

    Raises:
        KeyError: if the authors' models have no such parameter.
    """
    prefixes, inside_blocks = ([(new, old) for old, new in pairs] for pairs in (_PREFIXES, _INSIDE_BLOCKS))
    query, *others = _PROJECTIONS
    reverted = {}
    for name, tensor in state_dict.items():
        if any(projection in name for projection in others):
            continue  # goes into the fused matrix together with the query
        if query in name:
            tensor = torch.cat([state_dict[name.replace(query, projection)] for projection in _PROJECTIONS])
            name = name.replace(query, _QKV)
        reverted[_rename(name, prefixes, inside_blocks)] = tensor
    return reverted


# Attention heads are not in the tensors: those of the models that MAE and timm define, by width.
_ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}


def load_original(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """
    Read a `.pth` file of the authors' layout without running any code that it may hold.

    Args:
        path: The file: a dictionary with the state dict under `model`, and possibly an `argparse.Namespace` under
            `args`; nothing else of it is read.

    Returns:
        The state dict, and the arguments that the model was trained with (empty if the file has none).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds objects other than tensors and arguments, or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise ValueError(
                f"{path} holds objects other than tensors and arguments ({foreign[1]}), which are not loaded because "
                "they could run code: save its state dict alone, under the key 'model'."
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or it is damaged: get the file anew.") from error
    state_dict = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not state_dict or not all(isinstance(tensor, torch.Tensor) for tensor in state_dict.values()):
        raise ValueError(f"{path} is not a SupMAE or MAE checkpoint: it has no state dict under the key 'model'.")
    return state_dict, vars(checkpoint.get("args", argparse.Namespace()))


def config_from_original(state_dict: dict[str, torch.Tensor], args: dict, **fields) -> SupMAEConfig:
    """
    The configuration of an authors' model, from the shapes of its tensors and the arguments it was trained with.

    Args:
        state_dict: Of the authors' model.
        args: Training arguments, as [`load_original`] returns them.
        fields: Fields of the configuration that are known better, or are not in the file.

    Raises:
        ValueError: if the tensors are not those of a ViT, or do not tell a field that is not in `fields`.
    """
    try:
        hidden_size = state_dict["cls_token"].shape[-1]
        num_patches = state_dict["pos_embed"].shape[1] - 1
        _, num_channels, *patch_size = state_dict["patch_embed.proj.weight"].shape
        derived = {
            "hidden_size": hidden_size,
            "num_channels": num_channels,
            "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
            "num_hidden_layers": _count(state_dict, "blocks."),
            "intermediate_size": state_dict["blocks.0.mlp.fc1.weight"].shape[0],
            "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"These are not the tensors of a SupMAE or MAE model: {error} is missing.") from error

    side = math.isqrt(num_patches)
    if side * side == num_patches and len(set(patch_size)) == 1:
        derived["image_size"] = side * patch_size[0]
    derived["num_attention_heads"] = _ENCODER_HEADS.get(hidden_size)

    if "decoder_embed.weight" in state_dict:
        decoder_hidden_size = state_dict["decoder_embed.weight"].shape[0]
        derived |= {
            "decoder_hidden_size": decoder_hidden_size,
            "decoder_num_hidden_layers": _count(state_dict, "decoder_blocks."),
            "decoder_intermediate_size": state_dict["decoder_blocks.0.mlp.fc1.weight"].shape[0],
            "decoder_num_attention_heads": _DECODER_HEADS.get(decoder_hidden_size),
        }
    if "cls_head.3.weight" in state_dict:
        derived["num_labels"], derived["classifier_hidden_size"] = state_dict["cls_head.3.weight"].shape
    elif "head.weight" in state_dict:
        derived["num_labels"] = len(state_dict["head.weight"])
        derived["use_mean_pooling"] = "fc_norm.weight" in state_dict

    for field, argument in {
        "image_size": "input_size",
        "mask_ratio": "mask_ratio",
        "norm_pix_loss": "norm_pix_loss",
        "use_mean_pooling": "global_pool",
        "classification_loss_weight": "cls_loss_ratio",
        "classification_temperature": "temperature",
        "drop_path_rate": "drop_path",
    }.items():
        if args.get(argument) is not None:
            derived[field] = args[argument]
    if derived.get("num_labels") == 1000:
        from timm.data import ImageNetInfo

        derived["id2label"] = dict(enumerate(ImageNetInfo().label_descriptions()))

    fields = {**derived, **fields}
    for field in ("image_size", "num_attention_heads", "decoder_num_attention_heads"):
        if field in fields and fields[field] is None or field == "image_size" and field not in fields:
            raise ValueError(f"The file does not tell the model's `{field}`: pass it (`--{field}`).")
    if "id2label" in fields:
        fields["label2id"] = {label: index for index, label in fields["id2label"].items()}
    return SupMAEConfig(**fields)


def _count(state_dict: dict, prefix: str) -> int:
    """Number of blocks whose names begin with `prefix` and an index."""
    return len({name.split(".")[1] for name in state_dict if name.startswith(prefix)})


def convert_original(path: str | Path, encoder_only: bool = False, **fields) -> SupMAEPreTrainedModel:
    """
    The model in a `.pth` file of the authors (or of MAE).

    Args:
        path: A pre-training checkpoint, which becomes a [`SupMAEForPreTraining`]; a fine-tuning checkpoint (global
            pool or class token), which becomes a [`SupMAEForImageClassification`]; or an encoder alone, which becomes
            a [`SupMAEModel`]. A pre-training checkpoint of MAE has no classification head: it is new.
        encoder_only (`bool`, *optional*, defaults to `False`):
            Whether to make a [`SupMAEModel`] of a pre-training checkpoint.
        fields: Fields of the configuration that are not in the file, such as the attention heads of an unusual width.

    Raises:
        ValueError: if the file cannot be read, or its tensors are not those of the model; the message names them.
    """
    state_dict, args = load_original(path)
    config = config_from_original(state_dict, args, **fields)
    if encoder_only or not {"decoder_embed.weight", "head.weight"} & state_dict.keys():
        model_class = SupMAEModel
        if "head.weight" in state_dict and config.use_mean_pooling:
            raise ValueError(
                f"{path} has no LayerNorm after its encoder (it pools first): it can only be a classifier."
            )
        state_dict = {
            name: tensor
            for name, tensor in state_dict.items()
            if not name.startswith(("decoder_", "mask_token", "cls_head.", "head."))
        }
    elif "head.weight" in state_dict:
        model_class = SupMAEForImageClassification
    else:
        model_class = SupMAEForPreTraining
    model = model_class(config)
    prefix = "vit." if model_class is SupMAEModel else ""  # the encoder has no prefix of its own

    expected = revert_original_state_dict({prefix + name: tensor for name, tensor in model.state_dict().items()})
    new_head = model_class is SupMAEForPreTraining and not any(name.startswith("cls_head.") for name in state_dict)
    if new_head:
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("cls_head.")}
    problems = {
        "missing": sorted(expected.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state_dict and state_dict[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"The tensors of {path} are not those of a {model_class.__name__}: {listed}.")

    converted = convert_original_state_dict(state_dict)
    model.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in converted.items()}, strict=not new_head
    )
    return model.eval()
