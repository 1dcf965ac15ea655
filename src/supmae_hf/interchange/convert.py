# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Other checkpoints as SupMAE: the authors' files (and MAE's and timm's, which look alike), and the folders and repositories of
other plain ViTs.
"""

import argparse
import math
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTModel,
    PreTrainedConfig,
    ViTConfig,
    ViTMAEModel,
    ViTModel,
)

from ..configuration_supmae import SupMAEConfig
from ..conversion_supmae import (
    ORIGINAL_PARTS,
    ORIGINAL_PREFIXES,
    create_timm_model,
    fields_of_tensors,
    fit_positions,
    read_config,
    read_tensors,
    rename_tensors,
    require_plain_vit,
    to_pair,
    without_load_report,
)
from ..data.image_data import shortened
from ..loading import load_checkpoint, load_pretrained
from ..modeling_supmae import (
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEModel,
    SupMAEPreTrainedModel,
)
from .equality import check_images, require_equal


_QKV = ".attn.qkv."
_PROJECTIONS = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")


def revert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    A state dict of [`SupMAEForPreTraining`] or [`SupMAEForImageClassification`] under the names of the authors and of timm,
    with queries, keys and values in one matrix.

    Raises:
        KeyError: if their models have no such parameter.
    """
    query, *others = _PROJECTIONS
    has_linear_head = "classification_head.fc1.weight" not in state_dict
    prefixes = [pair for pair in ORIGINAL_PREFIXES if pair[0] != ("cls_head.3." if has_linear_head else "cls_head.")]
    reverted = {}
    for name, tensor in state_dict.items():
        if any(projection in name for projection in others):
            continue  # goes into the fused matrix together with the query
        if query in name:
            tensor = torch.cat([state_dict[name.replace(query, projection)] for projection in _PROJECTIONS])
            name = name.replace(query, _QKV)
        original, ours = next((pair for pair in prefixes if name.startswith(pair[1])), (None, None))
        if ours is None:
            raise KeyError(f"'{name}' is not the name of a SupMAE parameter.")
        name = original + name.removeprefix(ours)
        for original_part, our_part in ORIGINAL_PARTS:
            name = name.replace(our_part, original_part)
        reverted[name] = tensor
    return reverted


# Where a state dict is in a file, in the order in which it is looked for: the teacher of self-supervised training comes first.
_WRAPPERS = ("teacher", "model", "state_dict", "model_ema")
# The first tensor of an encoder, after which comes what its names begin with; and words for the encoder that is taken of several.
_FIRST_TENSOR = re.compile(
    r"^(.*?)(?:patch_embed\.proj(?:ection)?|embeddings\.patch_embeddings(?:\.projection)?)\.weight$"
)
_TEACHERS = re.compile(r"teacher|momentum|ema|target")


def load_original(path: str | Path) -> tuple[dict[str, torch.Tensor], dict, list[str]]:
    """
    Read a file of the authors', MAE's or timm's layout, or of self-supervised training (DINO, iBOT, MoCo v3, solo-learn, lightly,
    mmpretrain), without running any code that it may hold.

    Args:
        path: A `.safetensors` file of tensors, or a PyTorch file: a state dict, or a dictionary that has it under `teacher`,
            `model`, `state_dict` or `model_ema`, possibly with an `argparse.Namespace` under `args`; nothing else of it is read.

    Returns:
        The tensors of one encoder and what belongs to it, without the prefix of their names (of several encoders the teacher or
        the momentum encoder), the arguments that the model was trained with (empty if the file has none), and what was recognised,
        in words.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds objects other than tensors and arguments, or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    checkpoint = _read(path)
    key, state_dict = None, checkpoint
    if isinstance(checkpoint, dict):
        key = next((key for key in _WRAPPERS if isinstance(checkpoint.get(key), dict)), None)
        state_dict = checkpoint if key is None else checkpoint[key]
    tensors = {}
    if isinstance(state_dict, dict):
        tensors = {name: x for name, x in state_dict.items() if isinstance(name, str) and isinstance(x, torch.Tensor)}
    if not tensors:
        keys = f" Its keys are {shortened(map(str, checkpoint), 5)}." if isinstance(checkpoint, dict) else ""
        raise ValueError(
            f"{path} is not a checkpoint of SupMAE, MAE or timm: it has no state dict, neither by itself nor under "
            f"{', '.join(map(repr, _WRAPPERS))}.{keys}"
        )
    args = checkpoint.get("args") if key is not None else None
    words = [f"state dict under '{key}'" if key is not None else "a bare state dict"]
    prefixes = [found[1] for found in map(_FIRST_TENSOR.match, tensors) if found]
    prefix = min(prefixes, key=lambda prefix: (not _TEACHERS.search(prefix), len(prefix)), default="")
    if prefix:
        others = sorted({name.removeprefix(prefix).split(".")[0] for name in tensors if not name.startswith(prefix)})
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        words.append(f"names without '{prefix}'")
        if others:
            words.append(f"without {shortened(others, 5)}")
    if any(name.startswith("projection_head.") for name in tensors) and "decoder_embed.weight" in tensors:
        tensors = {re.sub("^projection_head", "cls_head", name): tensor for name, tensor in tensors.items()}
        words.append("head under 'projection_head'")  # in the file that the authors released
    if "decoder_embed.weight" not in tensors:
        tensors.pop("mask_token", None)  # of iBOT and DINOv2, in the encoder's input
    heads = [name for name in tensors if re.match(r"(?:head|projection_head)\.(?!(?:weight|bias)$)", name)]
    if heads:  # of self-supervised training
        tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
        words.append(f"without {shortened(heads, 5)}")
    args = vars(args) if isinstance(args, argparse.Namespace) else {}
    words.append("with training arguments" if args else "without training arguments")
    is_small = "cls_token" in tensors and tensors["cls_token"].shape[-1] == 384
    if prefix.endswith("momentum_encoder.") and is_small:
        args["num_heads"] = 12
        words.append("12 attention heads, as in MoCo v3's small ViT")
    return tensors, args, words


def _read(path: Path):
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except (
        *(pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError),
        SafetensorError,
    ) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise ValueError(
                f"{path} holds objects other than tensors and arguments ({foreign[1]}), which are not loaded because "
                "they could run code: save its state dict alone, under the key 'model'."
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or it is damaged: get the file anew.") from error


# Attention heads are not in the tensors: those of the models that MAE and timm define, by width.
_ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}


def config_from_original(
    tensors: dict[str, torch.Tensor], args: dict, image_size=None, **fields
) -> tuple[SupMAEConfig, list[str]]:
    """
    The configuration of a model in a file, from the shapes of its tensors and the arguments it was trained with, and what had to
    be assumed, in words.

    Args:
        tensors: The result of [`rename_tensors`].
        args: A result of [`load_original`].
        image_size: The size of the images, if the file is of as many patches or does not tell; another size otherwise.
        fields: Fields of the configuration that are known better, or are not in the file.

    Raises:
        ValueError: if the tensors are not those of a ViT, or do not tell a field that is not in `fields`.
    """
    try:
        derived = fields_of_tensors(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"These are not the tensors of a ViT that SupMAE can be: "
            f"{f'{error} is missing' if isinstance(error, KeyError) else f'their shapes do not fit ({error})'}. The file has "
            f"{shortened(tensors, 5)}. (A checkpoint of Transformers is named by its folder.)"
        ) from error
    assumed = []

    def assume(field: str, value, why: str = ""):
        if field not in fields:
            derived[field] = value
            assumed.append(f"{value} {field}{why} (`--{field}`)")

    assume("hidden_act", "silu" if derived["use_gated_mlp"] else "gelu")
    periods = args.get("rope_periods")
    if args.get("num_heads"):
        derived["num_attention_heads"] = args["num_heads"]
    elif periods is None and (heads := _ENCODER_HEADS.get(derived["hidden_size"])):
        assume("num_attention_heads", heads, f", by the width {derived['hidden_size']}")
    if periods is not None:  # theta ** (0, 4 / head_dim, 8 / head_dim, ...)
        derived |= {"rope_theta": float(periods[1] ** len(periods)), "use_absolute_position_embeddings": False}
        derived["num_attention_heads"] = derived["hidden_size"] // (4 * len(periods))
    elif not derived["use_absolute_position_embeddings"] and "rope_theta" not in fields:
        raise ValueError("The file does not tell the model's positions: pass `--rope_theta` (DINOv3's is 100).")
    assume("layer_norm_eps", 1e-5 if derived.get("rope_theta") or "rope_theta" in fields else 1e-6)
    derived["image_size"] = _image_size(tensors, derived["patch_size"], args, image_size, assumed)

    decoder = tensors.get("decoder.decoder_embed.weight")
    if decoder is not None:
        derived |= {
            "decoder_hidden_size": len(decoder),
            "decoder_num_hidden_layers": len(
                {name.split(".")[2] for name in tensors if name.startswith("decoder.decoder_layers.")}
            ),
            "decoder_intermediate_size": len(tensors["decoder.decoder_layers.0.mlp.fc1.weight"]),
        }
        if heads := _DECODER_HEADS.get(len(decoder)):
            assume("decoder_num_attention_heads", heads, f", by the width {len(decoder)}")
        else:
            derived["decoder_num_attention_heads"] = None
    if "classification_head.fc1.weight" in tensors:
        derived["classifier_hidden_size"] = len(tensors["classification_head.fc1.weight"])
        derived["num_labels"] = len(tensors["classification_head.fc2.weight"])
    elif "classification_head.fc2.weight" in tensors:
        derived["num_labels"], derived["classifier_hidden_size"] = len(tensors["classification_head.fc2.weight"]), 0
    elif "classifier.weight" in tensors:
        derived["num_labels"] = len(tensors["classifier.weight"])
        derived["use_mean_pooling"] = "fc_norm.weight" in tensors
        if not derived["use_mean_pooling"] and args.get("global_pool") is None:
            assumed.append("a classifier of the class token (`--encoder_only` leaves it out)")
    if not derived["use_cls_token"]:
        derived["use_mean_pooling"] = True

    for field, argument in {
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
        if fields.get(field, 0 if field.startswith("decoder") else None) is None:
            raise ValueError(f"The file does not tell the model's `{field}`: pass it (`--{field}`).")
    if "id2label" in fields:
        fields["label2id"] = {label: index for index, label in fields["id2label"].items()}
    return SupMAEConfig(**fields), assumed


def _image_size(tensors: dict[str, torch.Tensor], patch_size, args: dict, given, assumed: list[str]):
    """
    The size of the images by the number of positions: `given` or the argument of the training, if it has as many patches, or else
    a square; `given` if there are no positions.
    """
    positions = tensors.get("vit.embeddings.position_embeddings")
    if positions is None:
        return given
    height, width = to_pair(patch_size)
    length = positions.shape[1]
    others = sum(tensors[key].shape[1] for key in _PREFIXES if key in tensors)
    counts = [length - others, length - 1, length] if "vit.embeddings.cls_token" in tensors else [length]
    if "vit.embeddings.distillation_token" in tensors:
        counts = [length - 2]
    counts = list(dict.fromkeys(counts))
    for size in (given, args.get("input_size")):
        if size is not None:
            rows, columns = (side // patch for side, patch in zip(to_pair(size), (height, width)))
            if rows * columns in counts:
                return size
    for count in counts:
        side = math.isqrt(max(count, 0))
        if side and side * side == count:
            size = side * height if height == width else (side * height, side * width)
            if count == length and len(counts) > 1:
                assumed.append(f"{size} image_size, without a position for the class token (`--image_size`)")
            elif "input_size" not in args:
                assumed.append(f"{size} image_size, a square (`--image_size`)")
            return size
    return None


_PREFIXES = [f"vit.embeddings.{name}" for name in ("cls_token", "register_tokens")]


def convert_original(
    path: str | Path, encoder_only: bool = False, image_size=None, patch_size=None, **fields
) -> tuple[SupMAEPreTrainedModel, str]:
    """
    The model in a file of the authors, of MAE, of timm or of self-supervised training, and what was recognised and assumed, in a
    line.

    Args:
        path: A pre-training checkpoint, which becomes a [`SupMAEForPreTraining`]; a classifier (global pool or class token),
            which becomes a [`SupMAEForImageClassification`]; or an encoder alone, which becomes a [`SupMAEModel`]. A
            pre-training checkpoint of MAE has no classification head: it is new.
        encoder_only (`bool`, *optional*, defaults to `False`):
            Whether to make a [`SupMAEModel`] of a pre-training checkpoint.
        image_size, patch_size: If the file's are others, see [`~SupMAEPreTrainedModel.set_input_size`].
        fields: Fields of the configuration that are not in the file, such as the attention heads of an unusual width.

    Raises:
        ValueError: if the file cannot be read, or its tensors are not those of the model; the message names them.
    """
    state_dict, args, words = load_original(path)
    require_plain_vit(state_dict, str(path))
    if "rope_embed.periods" in state_dict:
        args = {**args, "rope_periods": state_dict["rope_embed.periods"].double()}
    renamed = rename_tensors(state_dict)
    config, assumed = config_from_original(renamed, args, image_size, **fields)
    converted = fit_positions(renamed, config.num_patches)
    is_pretraining, is_classifier = "decoder.decoder_embed.weight" in converted, "classifier.weight" in converted
    has_head = any(name.startswith("classification_head.") for name in converted)
    if is_pretraining:
        kind = "a pre-training checkpoint of SupMAE" if has_head else "a pre-training checkpoint of MAE"
    else:
        kind = "a classifier" if is_classifier else "an encoder"
    if encoder_only or not (is_pretraining or is_classifier):
        model_class = SupMAEModel
        if is_classifier and config.use_mean_pooling:
            raise ValueError(
                f"{path} has no LayerNorm after its encoder (it pools first): it can only be a classifier."
            )
        others = ("decoder.", "classification_head.", "classifier.")
        converted = {name: tensor for name, tensor in converted.items() if not name.startswith(others)}
        assumed = [what for what in assumed if "classifier" not in what and "decoder" not in what]
    else:
        model_class = SupMAEForPreTraining if is_pretraining else SupMAEForImageClassification
    with without_load_report():
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=converted, output_loading_info=True, ignore_mismatched_sizes=True
        )
    new_head = model_class is SupMAEForPreTraining and not has_head
    problems = {
        "missing": sorted(
            name for name in info["missing_keys"] if not (new_head and name.startswith("classification_head."))
        ),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": [
            f"{name} {tuple(theirs)} instead of {tuple(ours)}"
            for name, theirs, ours in sorted(info["mismatched_keys"])
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {shortened(names, 5)}" for problem, names in problems.items() if names)
        raise ValueError(f"The tensors of {path} are not those of a {model_class.__name__}: {listed}.")
    model.config.name_or_path = ""
    model.set_input_size(image_size, patch_size)
    new = "; its classification head is new" if new_head else ""
    new += f"; assumed: {', '.join(assumed)}" if assumed else ""
    return model, f"{path} is {kind} ({', '.join(words)}){new}."


def _source_tokens(name: str, config: dict, is_distilled: bool, images: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """
    Tokens of `images` by the class of the checkpoint `name`, without a distillation token, and whether a LayerNorm follows the
    last block.
    """
    options, model_type = {"dtype": torch.float32}, config["model_type"]
    if model_type == "vit_mae":
        model = ViTMAEModel.from_pretrained(name, mask_ratio=0.0, **options).eval()
        num_patches = model.config.image_size // model.config.patch_size
        noise = torch.arange(num_patches**2, dtype=torch.float32).expand(len(images), -1)  # keeps the order
        return model(images, noise=noise).last_hidden_state, True
    if model_type == "deit":  # which is a ViT but for the distillation token
        deit = DeiTModel.from_pretrained(name, add_pooling_layer=False, **options)
        state_dict = deit.state_dict()
        del state_dict["embeddings.distillation_token"]
        positions = state_dict["embeddings.position_embeddings"]
        state_dict["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        fields = {key: value for key, value in deit.config.to_dict().items() if key in ViTConfig().to_dict()}
        model = ViTModel(ViTConfig(**{**fields, "model_type": "vit"}), add_pooling_layer=False)
        model.load_state_dict(state_dict)
        return model.eval()(images).last_hidden_state, True
    if model_type == "timm_wrapper":
        vit = load_timm_model(name, config)
        is_normalized = not isinstance(vit.norm, nn.Identity)
        if not is_distilled:
            return vit.forward_features(images), is_normalized
        class_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([class_token, vit.patch_embed(images) + vit.pos_embed[:, 2:]], dim=1)
        return vit.norm(vit.blocks(tokens)), is_normalized
    if model_type == "vit":
        options["add_pooling_layer"] = False
    model = load_pretrained(AutoModel, name, **options).eval()
    model = getattr(model, "vision_model", model)
    is_beit_of_means = model_type == "beit" and model.config.use_mean_pooling
    return model(images).last_hidden_state, not (is_beit_of_means or "clip" in model_type)


def load_timm_model(name: str, config: dict) -> nn.Module:
    """The model in a folder or repository of timm, whose `config.json` is `config`, by timm's own class."""
    vit, _ = create_timm_model(config, name)
    vit.load_state_dict(
        {key.removeprefix("timm_model."): tensor.float() for key, tensor in read_tensors(name).items()}
    )
    return vit.eval()


@torch.no_grad()
def convert_pretrained(
    name: str, encoder_only: bool = False, image_size=None, patch_size=None, **fields
) -> SupMAEPreTrainedModel:
    """
    The model in a folder or repository of another ViT (see [`~SupMAEPreTrainedModel.from_pretrained`]), after checking
    that its encoder, and its classifier if it comes along, compute on random images and photographs what the source's own
    class does. A ViTMAE becomes a [`SupMAEForPreTraining`], a classifier a [`SupMAEForImageClassification`], an encoder a
    [`SupMAEModel`]; a SupMAE stays what it is, perhaps at another size.

    Args:
        encoder_only, image_size, patch_size, fields: See [`convert_original`].

    Raises:
        OSError: if there is no such checkpoint.
        RuntimeError: if the results differ by more than 1e-5.
        ValueError: if SupMAE cannot be the model in it; the message names the part.
    """
    try:
        config = PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        raise OSError(
            f"There is no checkpoint '{name}', neither a file or a folder here nor a repository that the Hub gave us. "
            f"({str(error).splitlines()[0]})"
        ) from error
    if config.get("model_type") == SupMAEConfig.model_type:
        return load_checkpoint(name, encoder_only, image_size=image_size, patch_size=patch_size, **fields)
    if "model_type" not in config:
        raise ValueError(
            f"'{name}' has no `model_type` in its config.json: it is not a checkpoint of Transformers or timm."
        )
    source = read_config(config, name)
    if config["model_type"] == "vit_mae" and not encoder_only:
        model_class = SupMAEForPreTraining
    else:
        model_class = SupMAEForImageClassification if source.has_classifier and not encoder_only else SupMAEModel
    model = load_pretrained(model_class, name, dtype=torch.float32, **fields)
    images = check_images(model.config)
    expected, is_normalized = _source_tokens(name, config, source.is_distilled, images)
    outputs = model.base_model(images, output_hidden_states=True)
    actual = outputs.last_hidden_state if is_normalized else outputs.hidden_states[-1]
    require_equal(actual, expected, f"encoder of '{name}'")
    if model_class is SupMAEForImageClassification and not source.is_distilled:
        if config["model_type"] == "timm_wrapper":
            logits = load_timm_model(name, config)(images)
        else:
            classifier = load_pretrained(AutoModelForImageClassification, name, dtype=torch.float32).eval()
            logits = classifier(images).logits
        require_equal(model(images).logits, logits, f"classifier of '{name}'")
    model.set_input_size(image_size, patch_size)
    return model
