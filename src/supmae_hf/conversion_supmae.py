# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
Checkpoints of other plain ViTs as SupMAE: what their configurations, the names of their tensors and the tensors themselves
become, and which models SupMAE cannot be.
"""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files


logger = logging.get_logger(__name__)


@dataclass
class Source:
    """
    The description of a checkpoint of another ViT as SupMAE.

    Args:
        fields: Fields of [`SupMAEConfig`].
        has_classifier: Whether its classifier reads the class token, or the mean of the patch tokens before a LayerNorm.
        is_distilled: Whether it has a distillation token, which is left out.
        remarks: Parts that are left out or folded in, in words.
        model_type: The type of the other model; `None` for SupMAE itself.
    """

    fields: dict
    has_classifier: bool = False
    is_distilled: bool = False
    remarks: list[str] = field(default_factory=list)
    model_type: str | None = None

    @property
    def is_foreign(self) -> bool:
        return self.model_type is not None

    def read_tensors(
        self, name: str, num_patches: int, variant: str | None = None, **options
    ) -> dict[str, torch.Tensor]:
        """The tensors of the checkpoint `name` under SupMAE's names; see [`read_tensors`] and [`convert_tensors`]."""
        tensors = read_tensors(name, variant, **options)
        return convert_tensors(tensors, num_patches, self.is_distilled, self.has_classifier)

    def check(self, loading_info: dict, name: str, class_name: str):
        """Raise a `ValueError` if tensors of the encoder were missing or had no place; else say what was read, and how."""
        encoder = re.compile(r"^(?:vit\.)?(?:embeddings|layers)\.")
        missing = sorted(key for key in loading_info["missing_keys"] if encoder.match(key))
        unexpected = sorted(key for key in loading_info["unexpected_keys"] if encoder.match(key))
        if missing or unexpected:
            listed = [f"{key} is missing" for key in missing[:3]] + [f"{key} has no place" for key in unexpected[:3]]
            raise ValueError(
                f"The tensors of '{name}' are not those of the ViT that the configuration describes: {', '.join(listed)}."
            )
        new = sorted({re.sub(r"^((?:vit\.)?\w+)\..*", r"\1", key) for key in loading_info["missing_keys"]})
        remarks = [*self.remarks, *([f"new: {', '.join(new)}"] if new else [])]
        read = f"'{name}' is a checkpoint of the type '{self.model_type}', read as {class_name}"
        logger.warning("; ".join([read, *remarks]) + ".")


def find_source(name: str, **options) -> Source | None:
    """Describe the checkpoint `name` by its `config.json`. Returns `None` if there is none, as for an adapter of PEFT."""
    try:
        config = PreTrainedConfig.get_config_dict(name, **options)[0]
    except OSError:
        return None
    is_ours = config.get("model_type", "supmae") == "supmae"
    return (Source(config) if is_ours else read_config(config, str(name))) if config else None


def refuse(name: str, part: str):
    """Raise the `ValueError` for a model that SupMAE cannot be."""
    raise ValueError(
        f"SupMAE cannot take over the weights of '{name}': it has {part}, unlike SupMAE's encoder. Choose a plain ViT: ViT, "
        "DeiT, DINO, DINOv2, ViTMAE, ViT-MSN, or timm's vit_* and deit_* models."
    )


_TRANSFORMERS_TYPES = ("vit", "deit", "dinov2", "vit_mae", "vit_msn")
# Fields that all configurations of the ViT family have.
SHARED_FIELDS = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
]
DECODER_FIELDS = [
    "decoder_num_attention_heads",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
    "mask_ratio",
    "norm_pix_loss",
]
_OTHER_PARTS = {
    "dinov3_vit": "rotary positions",
    "dinov2_with_registers": "register tokens",
    **dict.fromkeys(["beit", "data2vec-vision"], "relative position biases and keys without a bias"),
    **dict.fromkeys(["clip", "clip_vision_model"], "a LayerNorm before the first block"),
    **dict.fromkeys(["siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "ijepa"], "no class token"),
}


def read_config(config: dict, name: str) -> Source:
    """
    Describe the checkpoint `name` of another model by its `config.json`.

    Raises:
        ImportError: for timm's models, if timm is not installed.
        ValueError: if SupMAE cannot be that model; the message names the part.
    """
    model_type = config["model_type"]
    if model_type == "timm_wrapper":
        return _read_timm_config(config, name)
    if model_type not in _TRANSFORMERS_TYPES:
        refuse(name, _OTHER_PARTS.get(model_type, f"an architecture of its own ('{model_type}')"))
    try:
        other = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config))
    except StrictDataclassError as error:
        raise ValueError(
            f"'{name}' has a configuration that no model can have: {' '.join(str(error).split())}"
        ) from error
    if getattr(other, "use_swiglu_ffn", False):
        refuse(name, "gated MLPs (SwiGLU)")
    fields = {name: getattr(other, name) for name in (*SHARED_FIELDS, "qkv_bias")}
    if model_type == "dinov2":
        fields["intermediate_size"] = int(other.hidden_size * other.mlp_ratio)
    else:
        fields["intermediate_size"] = other.intermediate_size
    if model_type == "vit_mae":
        fields |= {name: getattr(other, name) for name in DECODER_FIELDS}
    if other.dtype is not None:
        fields["dtype"] = other.dtype
    is_classifier = any("ImageClassification" in name for name in other.architectures or ())
    has_classifier, is_distilled = is_classifier and model_type != "dinov2", model_type == "deit"
    source = Source(fields, has_classifier, is_distilled, model_type=model_type)
    if model_type == "dinov2":
        source.remarks.append("LayerScale folded into the projections")
    if source.is_distilled:
        source.remarks.append("without its distillation token")
    if source.has_classifier:
        fields |= {"use_mean_pooling": False, "id2label": other.id2label, "label2id": other.label2id}
        source.remarks.append("its classifier reads the class token (`use_mean_pooling=False`)")
    elif is_classifier:
        source.remarks.append(
            "without its classifier, which reads the class token and the mean of the others together"
        )
    return source


def _read_timm_config(config: dict, name: str) -> Source:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"'{name}' is a timm model: `pip install timm` to read it.") from error
    other = CONFIG_MAPPING["timm_wrapper"].from_dict(copy.deepcopy(config))
    try:
        with torch.device("meta"):
            model = timm.create_model(
                other.architecture, pretrained=False, num_classes=other.num_labels, **(other.model_args or {})
            )
    except RuntimeError as error:
        raise ValueError(
            f"timm {timm.__version__} cannot make '{other.architecture}', which '{name}' is: {error}"
        ) from error
    tensors = model.state_dict()
    if getattr(model, "rope", None) is not None:
        refuse(name, "rotary positions")
    if type(model).__name__ not in ("VisionTransformer", "VisionTransformerDistilled"):
        refuse(name, f"the architecture of timm's {type(model).__name__}")
    require_plain_vit(tensors, name)
    if type(model.blocks[0]).__name__ != "Block":
        refuse(name, f"blocks of another kind ({type(model.blocks[0]).__name__})")
    activation = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}.get(
        type(model.blocks[0].mlp.act).__name__
    )
    if activation is None:
        refuse(name, f"the activation {type(model.blocks[0].mlp.act).__name__}")
    height, width = model.patch_embed.img_size
    fields = {
        **fields_of_tensors(tensors),
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "image_size": height if height == width else (height, width),
        "layer_norm_eps": model.blocks[0].norm1.eps,
        "hidden_act": activation,
    }
    source = Source(fields, is_distilled="dist_token" in tensors, model_type="timm_wrapper")
    if any(name.endswith(".ls1.gamma") for name in tensors):
        source.remarks.append("LayerScale folded into the projections")
    if source.is_distilled:
        source.remarks.append("without its distillation token")
    if "norm.weight" not in tensors:
        source.remarks.append("without a LayerNorm after the last block")
    is_mean = model.global_pool == "avg"
    if "head.weight" in tensors:
        source.has_classifier = (model.global_pool, "fc_norm.weight" in tensors) in (("token", False), ("avg", True))
        if source.has_classifier:
            fields |= {"use_mean_pooling": is_mean, "id2label": other.id2label, "label2id": other.label2id}
            what = "the mean of the patch tokens" if is_mean else "the class token"
            source.remarks.append(f"its classifier reads {what} (`use_mean_pooling={is_mean}`)")
        else:
            source.remarks.append(f"without its classifier, which pools otherwise ({model.global_pool})")
    return source


# Parts that SupMAE's encoder does not have, by the names of their tensors.
_OTHER_TENSORS = {
    r"reg_token|register_tokens": "register tokens",
    r"norm_pre\.|pre_layrnorm|^ln_pre\.": "a LayerNorm before the first block",
    r"rel_pos|relative_position": "relative position biases",
    r"(?:^|\.)rope\b|rope_": "rotary positions",
    r"[qk]_norm\.": "normalised queries and keys",
    r"\.w12\.|\.w3\.|fc1_g|fc1_x": "gated MLPs (SwiGLU)",
    r"patch_embed\.(?:backbone|norm)\.": "other layers before its patch projection",
    r"\.(?:q_bias|v_bias)$": "keys without a bias",
    r"\.gamma_[12]$": "LayerScale under the names of BEiT",
}


def require_plain_vit(tensors: Mapping[str, torch.Tensor], name: str):
    """Raise a `ValueError` that names the part if tensors under timm's names are not those of a ViT that SupMAE can be."""
    for pattern, part in _OTHER_TENSORS.items():
        if any(re.search(pattern, key) for key in tensors):
            refuse(name, part)
    first, second = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    if first is not None and second is not None and first.shape[0] != second.shape[1]:
        refuse(name, "gated MLPs (SwiGLU)")
    if "cls_token" not in tensors and "patch_embed.proj.weight" in tensors:
        refuse(name, "no class token")


def fields_of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict:
    """
    The fields of [`SupMAEConfig`] that the shapes of an encoder's tensors tell, under the names of timm, MAE and SupMAE's
    authors: all but the attention heads; `image_size` only if patches and images are square.

    Raises:
        KeyError: if a tensor is missing; the message is its name.
    """
    hidden_size = tensors["cls_token"].shape[-1]
    num_positions = tensors["pos_embed"].shape[1]
    _, num_channels, *patch_size = tensors["patch_embed.proj.weight"].shape
    fields = {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size[0] if patch_size[0] == patch_size[1] else tuple(patch_size),
        "num_hidden_layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "intermediate_size": tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
    for num_patches in [num_positions - 2] if "dist_token" in tensors else [num_positions - 1, num_positions]:
        side = math.isqrt(max(num_patches, 0))
        if side * side == num_patches and len(set(patch_size)) == 1:
            fields["image_size"] = side * patch_size[0]
            break
    return fields


# --- tensors ---

# How names begin in the authors', MAE's and timm's files, and in ours. The first that fits applies.
ORIGINAL_PREFIXES = [
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
    ("cls_head.", "classification_head.fc2."),  # a linear head
    ("fc_norm.", "fc_norm."),
    ("head.", "classifier."),
]
# Inside a block: the fused projections are cut in three.
ORIGINAL_PARTS = [
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.o_proj."),
]
# Inside a block in published checkpoints of ViT, DeiT, DINOv2, ViTMAE, ViT-MSN and BEiT.
PUBLISHED_PARTS = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
]
_RENAMINGS = {
    r"^timm_model\.": "",
    r"^dist_token$": "vit.embeddings.distillation_token",
    **{f"^{re.escape(original)}": ours for original, ours in ORIGINAL_PREFIXES},
    r"^cls_classifier\.": "classifier.",
    r"^(?:deit|dinov2)\.": "vit.",
    r"encoder\.layer\.": "layers.",
    **{re.escape(theirs): ours for theirs, ours in PUBLISHED_PARTS + ORIGINAL_PARTS},
    r"\.(?:layer_scale1\.lambda1|ls1\.gamma)$": ".attention.o_proj.layer_scale",
    r"\.(?:layer_scale2\.lambda1|ls2\.gamma)$": ".mlp.fc2.layer_scale",
}
# Tensors that nothing here has a place for: poolers that no classifier reads, tokens in the place of masked patches, and
# what belongs to a distillation token.
_LEFT_OUT = re.compile(
    r"pooler\.|embeddings\.mask_token$|embeddings\.distillation_token$|^distillation_classifier\.|^head_dist\."
)


def convert_tensors(
    tensors: Mapping[str, torch.Tensor], num_patches: int, is_distilled: bool = False, has_classifier: bool = True
) -> dict[str, torch.Tensor]:
    """
    The tensors of another ViT, of MAE or of SupMAE's authors under the names of [`SupMAEForPreTraining`] and
    [`SupMAEForImageClassification`]. Fused queries, keys and values are cut in three, LayerScale (CaiT, arXiv 2103.17239) is
    multiplied into the projection before it, and positions are those of class token and patches.

    Args:
        num_patches: Number of patches of the source's images.
        is_distilled, has_classifier: See [`Source`]; without `has_classifier` the source's is left out.
    """
    converted = {}
    for name, tensor in tensors.items():
        for pattern, ours in _RENAMINGS.items():
            name = re.sub(pattern, ours, name, count=1)
        if _LEFT_OUT.search(name) or (name.startswith("classifier.") and not has_classifier):
            continue
        if ".attn.qkv." in name:
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3))
            converted |= {name.replace(".attn.qkv.", f".attention.{part}."): value.clone() for part, value in parts}
        else:
            converted[name] = tensor
    for name in [name for name in converted if name.endswith(".layer_scale")]:
        scale, projection = converted.pop(name).float(), name.removesuffix("layer_scale")
        # in float32, whatever the file's precision: it is loading that rounds
        converted[projection + "weight"] = converted[projection + "weight"].float() * scale.unsqueeze(1)
        converted[projection + "bias"] = converted[projection + "bias"].float() * scale
    for name in [name for name in converted if name.endswith("embeddings.position_embeddings")]:
        positions = converted[name]
        if is_distilled:  # class token, distillation token, patches
            converted[name] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        elif positions.shape[1] == num_patches:  # timm's `no_embed_class`
            converted[name] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return converted


def read_tensors(name: str, variant: str | None = None, **options) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint in a folder or on the Hub, under the names of its files.

    Args:
        variant, options: The same as for [`~transformers.PreTrainedModel.from_pretrained`].

    Raises:
        OSError: if there are no files of weights.
    """
    suffix = "" if variant is None else f".{variant}"
    for file in (f"model{suffix}.safetensors", f"pytorch_model{suffix}.bin"):
        for found in (file, f"{file}.index.json"):
            try:
                path = cached_file(name, found, **options)
            except OSError as error:
                reason = error
                continue
            paths = [path] if found == file else get_checkpoint_shard_files(name, path, **options)[0]
            return {key: tensor for path in paths for key, tensor in load_state_dict(path).items()}
    raise OSError(
        f"'{name}' has no weights: neither model{suffix}.safetensors nor pytorch_model{suffix}.bin. ({reason})"
    ) from reason


# --- sizes ---


def to_pair(value) -> tuple[int, int]:
    """`(height, width)` of a size that is given as one number or as a pair."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def patch_resampling(size: tuple[int, int], new_size: tuple[int, int], device=None) -> torch.Tensor:
    """The matrix `(new pixels, pixels)` that resamples a patch of one channel bicubically, with antialiasing, as timm does."""
    basis = torch.eye(math.prod(size), device=device).reshape(-1, 1, *size)
    resampled = nn.functional.interpolate(basis, size=new_size, mode="bicubic", align_corners=False, antialias=True)
    return resampled.flatten(1).T


def resample_projection(old: nn.Conv2d, patch_size: tuple[int, int]) -> nn.Conv2d:
    """
    The patch projection for another patch size: for patches that are resampled to the old size it gives what `old` gives, as
    nearly as can be (FlexiViT, arXiv 2212.08013, section 3.4).
    """
    weight, options = old.weight, {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.Conv2d(old.in_channels, old.out_channels, patch_size, stride=patch_size, **options)
    inverse = torch.linalg.pinv(patch_resampling(old.kernel_size, patch_size, weight.device))
    fitted = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(2) @ inverse
    new.weight.copy_(fitted.reshape(new.weight.shape))
    new.bias.copy_(old.bias)
    return new


def resample_predictions(old: nn.Linear, old_size: tuple[int, int], patch_size: tuple[int, int]) -> nn.Linear:
    """The layer that predicts the pixels of a patch, for another patch size: its predictions are resampled."""
    resampling = patch_resampling(old_size, patch_size, old.weight.device)

    def resample(rows: torch.Tensor) -> torch.Tensor:  # (pixels * num_channels, ...)
        pixels = rows.to(torch.promote_types(rows.dtype, torch.float32)).reshape(math.prod(old_size), -1)
        return (resampling @ pixels).reshape(-1, *rows.shape[1:])

    rows = resample(old.weight)
    new = nn.Linear(old.in_features, len(rows), device=old.weight.device, dtype=old.weight.dtype)
    new.weight.copy_(rows)
    new.bias.copy_(resample(old.bias))
    return new
