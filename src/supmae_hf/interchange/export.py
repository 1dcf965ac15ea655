# Copyright 2026 The supmae-hf authors. Licensed under the Apache License, Version 2.0.
"""
SupMAE as classes that ship with Transformers, timm and ONNX, without changing a result.

| from | to |
|---|---|
| `SupMAEForImageClassification`, mean pooling | `BeitForImageClassification`: its pooler is mean-then-LayerNorm too, and that its keys have no bias changes nothing, because the softmax over the keys cancels one |
| `SupMAEForImageClassification`, class token | `ViTForImageClassification` |
| `SupMAEForImageClassification` | timm's `VisionTransformer` |
| `SupMAEModel` | `ViTModel`; with rotary positions `DINOv3ViTModel`, with register tokens or SwiGLU `Dinov2WithRegistersModel`, without a class token `IJepaModel`, with a LayerNorm before the first block `CLIPVisionModel` |
| `SupMAEForPreTraining`, without its heads | `ViTMAEForPreTraining` |
| `SupMAEForImageClassification`, `SupMAEModel` | ONNX |
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, ViTImageProcessor

from ..configuration_supmae import SupMAEConfig, to_pair
from ..conversion_supmae import DECODER_FIELDS, PUBLISHED_PARTS, SHARED_FIELDS
from ..image_processing_supmae import SupMAEImageProcessor
from ..modeling_supmae import (
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEModel,
    SupMAEPreTrainedModel,
)
from ..preparation import Preparation, build_image_processor, fit_image_processor, load_image_processor
from ..records import new_folder
from .convert import revert_original_state_dict
from .equality import check_images, require_equal


_TEMPLATE = Path(__file__).parent / "stock_card.md"


@dataclass
class StockModel:
    """
    A model under its stock class.

    Args:
        model_class: The class.
        config: The configuration, or the content of `config.json`.
        state_dict: The weights under the stock names.
        usage: Code for the model card, in which `FOLDER` stands for the folder.
        output: The output that must be equal to ours.
        inputs: Further arguments of `forward`, the same for both models.
        library_name, pipeline_tag: Metadata for the model card.
    """

    model_class: type
    config: PreTrainedConfig | dict
    state_dict: dict[str, torch.Tensor]
    usage: str
    output: str = "logits"
    inputs: dict = field(default_factory=dict)
    library_name: str = "transformers"
    pipeline_tag: str = "image-classification"

    def result(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The output that must be equal, of the stock model or ours."""
        outputs = model(images, **self.inputs)
        if self.output == "class_token":  # after the last LayerNorm
            return outputs.last_hidden_state[:, 0] if isinstance(model, SupMAEModel) else outputs.pooler_output
        return outputs[self.output]


def _fields_of(model: SupMAEPreTrainedModel, *more: str) -> dict:
    return {name: getattr(model.config, name) for name in (*SHARED_FIELDS, "intermediate_size", *more)}


def _published(model: SupMAEPreTrainedModel) -> dict[str, torch.Tensor]:
    """A state dict under the names of published checkpoints of the ViT family, which every release reads."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(("vit.layers.", "layers.")):
            name = name.replace("layers.", "encoder.layer.", 1)
        for published, ours in PUBLISHED_PARTS:
            name = name.replace(f".{ours}.", f".{published}.")
        renamed[name] = tensor
    return renamed


_LABELS = ("id2label", "label2id", "problem_type")
_CLASSIFIER_USAGE = """\
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
classify("photo.jpg")"""


def to_beit(model: SupMAEForImageClassification) -> StockModel:
    """A classifier with mean pooling as `BeitForImageClassification`."""
    config = transformers.BeitConfig(
        **_fields_of(model, "drop_path_rate", *_LABELS),
        use_absolute_position_embeddings=True,
        use_relative_position_bias=False,
        use_shared_relative_position_bias=False,
        use_mask_token=False,
        use_mean_pooling=True,
        layer_scale_init_value=0.0,
    )
    state_dict = {}
    for name, tensor in _published(model).items():
        if not name.endswith(".key.bias"):
            name = name.replace("vit.", "beit.", 1).replace("fc_norm.", "beit.pooler.layernorm.")
            state_dict[name] = tensor
            if not model.config.qkv_bias and name.endswith((".query.weight", ".value.weight")):
                state_dict[name.replace(".weight", ".bias")] = tensor.new_zeros(len(tensor))
    return StockModel(transformers.BeitForImageClassification, config, state_dict, _CLASSIFIER_USAGE)


def to_vit_classifier(model: SupMAEForImageClassification) -> StockModel:
    """A classifier on the class token as `ViTForImageClassification`."""
    config = transformers.ViTConfig(**_fields_of(model, "qkv_bias", *_LABELS))
    return StockModel(transformers.ViTForImageClassification, config, _published(model), _CLASSIFIER_USAGE)


def to_vit(model: SupMAEModel) -> StockModel:
    """An encoder as `ViTModel`, whose pooler is made to return the class token as it is."""
    config = transformers.ViTConfig(**_fields_of(model, "qkv_bias"), pooler_act="linear")
    state_dict = _published(model)
    weight = state_dict["layernorm.weight"]
    state_dict["pooler.dense.weight"] = torch.eye(len(weight), dtype=weight.dtype)
    state_dict["pooler.dense.bias"] = torch.zeros_like(weight)
    return StockModel(transformers.ViTModel, config, state_dict, _ENCODER_USAGE, **_ENCODER)


def _with_parts(config: SupMAEConfig) -> set[str]:
    """The parts of an encoder that a plain ViT does not have."""
    parts = {
        "rotary positions": config.rope_theta is not None,
        "register tokens": config.num_register_tokens > 0,
        "gated MLPs": config.use_gated_mlp,
        "no class token": not config.use_cls_token,
        "a LayerNorm before the first block": config.use_pre_layernorm,
        "no position embeddings": not config.use_absolute_position_embeddings,
    }
    return {part for part, is_there in parts.items() if is_there}


def _renamed(model: SupMAEModel, names: dict[str, str]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in names.items():
            name = re.sub(pattern, theirs, name, count=1)
        renamed[name] = tensor
    return renamed


def _layer_scale(model: SupMAEModel, layers: str) -> dict[str, torch.Tensor]:
    """LayerScale that scales nothing."""
    ones = torch.ones(model.config.hidden_size)
    blocks = range(model.config.num_hidden_layers)
    return {f"{layers}.{block}.layer_scale{place}.lambda1": ones.clone() for block in blocks for place in (1, 2)}


_ENCODER = {"output": "last_hidden_state", "pipeline_tag": "image-feature-extraction"}
_ENCODER_USAGE = _CLASSIFIER_USAGE.replace("classify", "extract").replace(
    "image-classification", "image-feature-extraction"
)


def to_dinov3(model: SupMAEModel) -> StockModel:
    """An encoder with rotary positions as `DINOv3ViTModel`."""
    config, width = model.config, model.config.hidden_size
    stock = transformers.DINOv3ViTConfig(
        **_fields_of(model, "num_register_tokens", "rope_theta", "use_gated_mlp"),
        **dict.fromkeys(["query_bias", "key_bias", "value_bias"], config.qkv_bias),
        attention_dropout=config.attention_probs_dropout_prob,
    )
    names = {
        r"patch_embeddings\.projection": "patch_embeddings",
        r"^layers": "layer",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        r"^layernorm": "norm",
        r"mlp\.fc1": "mlp.up_proj",
        r"mlp\.fc2": "mlp.down_proj",
    }
    tensors = {
        **_renamed(model, names),
        **_layer_scale(model, "layer"),
        "embeddings.mask_token": torch.zeros(1, 1, width),
    }
    tensors.setdefault("embeddings.register_tokens", torch.zeros(1, 0, width))
    return StockModel(transformers.DINOv3ViTModel, stock, tensors, _ENCODER_USAGE, **_ENCODER)


def to_dinov2(model: SupMAEModel) -> StockModel:
    """An encoder with register tokens or SwiGLU as `Dinov2WithRegistersModel`."""
    config, width = model.config, model.config.hidden_size

    def size_of(ratio: int) -> int:
        return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if config.use_gated_mlp else width * ratio

    ratio = next((ratio for ratio in range(1, 17) if size_of(ratio) == config.intermediate_size), None)
    if ratio is None or (config.use_gated_mlp and config.hidden_act != "silu"):
        raise ValueError(
            f"No class of Transformers has MLPs of {config.intermediate_size} features and {config.hidden_act} in a model like "
            "this: use `--format onnx`."
        )
    fields = {key: value for key, value in _fields_of(model, "qkv_bias").items() if key != "intermediate_size"}
    more = {
        "num_register_tokens": config.num_register_tokens,
        "use_swiglu_ffn": config.use_gated_mlp,
        "mlp_ratio": ratio,
    }
    names = {r"^layers": "encoder.layer", "layernorm_before": "norm1", "layernorm_after": "norm2"}
    names |= {re.escape(ours): theirs for theirs, ours in PUBLISHED_PARTS if ours.startswith("attention.")}
    tensors = {**_renamed(model, names), **_layer_scale(model, "encoder.layer")}
    tensors["embeddings.mask_token"] = torch.zeros(1, width)
    tensors.setdefault("embeddings.register_tokens", torch.zeros(1, 0, width))
    for name in [name for name in tensors if ".gate_proj." in name]:
        first, last = (name.replace("gate_proj", layer) for layer in ("fc1", "fc2"))
        tensors[name.replace("gate_proj", "weights_in")] = torch.cat([tensors.pop(name), tensors.pop(first)])
        tensors[name.replace("gate_proj", "weights_out")] = tensors.pop(last)
    stock = transformers.Dinov2WithRegistersConfig(**fields, **more)
    return StockModel(transformers.Dinov2WithRegistersModel, stock, tensors, _ENCODER_USAGE, **_ENCODER)


def to_ijepa(model: SupMAEModel) -> StockModel:
    """An encoder without a class token as `IJepaModel`."""
    config = transformers.IJepaConfig(**_fields_of(model, "qkv_bias"))
    return StockModel(transformers.IJepaModel, config, _published(model), _ENCODER_USAGE, **_ENCODER)


def to_clip(model: SupMAEModel) -> StockModel:
    """An encoder with a LayerNorm before the first block as `CLIPVisionModel`, which normalises the class token alone."""
    config = transformers.CLIPVisionConfig(
        **_fields_of(model), attention_dropout=model.config.attention_probs_dropout_prob
    )
    names = {
        r"embeddings\.cls_token": "embeddings.class_embedding",
        r"embeddings\.patch_embeddings\.projection": "embeddings.patch_embedding",
        r"embeddings\.position_embeddings": "embeddings.position_embedding.weight",
        r"embeddings\.pre_layernorm": "pre_layrnorm",
        r"^layers": "encoder.layers",
        "layernorm_before": "layer_norm1",
        "layernorm_after": "layer_norm2",
        r"^layernorm": "post_layernorm",
        r"\.attention\.": ".self_attn.",
        "o_proj": "out_proj",
    }
    tensors = _renamed(model, names)
    tensors["embeddings.class_embedding"] = tensors["embeddings.class_embedding"].flatten()
    positions = tensors["embeddings.position_embedding.weight"][0].clone()
    positions[1:] += tensors.pop("embeddings.patch_embedding.bias")  # which CLIP does not have
    tensors["embeddings.position_embedding.weight"] = positions
    for name in [name for name in tensors if name.endswith("_proj.weight")]:  # if there is no `qkv_bias`
        tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensors[name])))
    more = {**_ENCODER, "output": "class_token"}
    return StockModel(transformers.CLIPVisionModel, config, tensors, _ENCODER_USAGE, **more)


def to_vit_mae(model: SupMAEForPreTraining) -> StockModel:
    """A pre-training model as `ViTMAEForPreTraining`; the supervised heads are left out."""
    config = transformers.ViTMAEConfig(**_fields_of(model, "qkv_bias", *DECODER_FIELDS))
    heads = ("classification_head.", "supervision.")
    state_dict = {name: tensor for name, tensor in _published(model).items() if not name.startswith(heads)}
    noise = torch.rand(
        len(check_images(model.config)), model.config.num_patches, generator=torch.Generator().manual_seed(0)
    )
    usage = 'from transformers import ViTMAEForPreTraining\n\nmodel = ViTMAEForPreTraining.from_pretrained("FOLDER")'
    more = {"inputs": {"noise": noise}, "pipeline_tag": "image-feature-extraction"}
    return StockModel(transformers.ViTMAEForPreTraining, config, state_dict, usage, **more)


def to_timm(model: SupMAEForImageClassification, image_processor=None) -> StockModel:
    """
    A classifier as timm's `VisionTransformer`, for `timm.create_model` and Transformers' timm wrapper; `image_processor`
    says how its images are normalised.
    """
    config = model.config
    image_processor = image_processor or build_image_processor(config)
    mean, std, size_of = image_processor.image_mean, image_processor.image_std, image_processor.size
    sizes = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
    size = sizes.get((config.hidden_size, config.num_hidden_layers), "base")
    architecture = f"vit_{size}_patch14_224" if size == "huge" else f"vit_{size}_patch16_224"
    model_args = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "global_pool": "avg" if config.use_mean_pooling else "token",
    }
    state_dict = revert_original_state_dict(model.state_dict())  # the authors' names are timm's
    if parts := _with_parts(config):
        if config.rope_theta is not None:
            raise ValueError(
                "timm has no classifier with rotary positions that pools as this one: use `--format onnx`."
            )
        model_args |= {
            "class_token": config.use_cls_token,
            "pre_norm": config.use_pre_layernorm,
            "no_embed_class": True,
        }
        model_args["reg_tokens"] = config.num_register_tokens
        if not config.use_absolute_position_embeddings:
            model_args["pos_embed"] = "none"
        elif config.use_cls_token:
            state_dict["cls_token"] = state_dict["cls_token"] + state_dict["pos_embed"][:, :1]
            state_dict["pos_embed"] = state_dict["pos_embed"][:, 1:]
        if "a LayerNorm before the first block" in parts:  # where the patch projection has no bias
            bias = state_dict.pop("patch_embed.proj.bias")
            if not config.use_absolute_position_embeddings:
                raise ValueError("timm has no such model without position embeddings: use `--format onnx`.")
            state_dict["pos_embed"] = state_dict["pos_embed"] + bias
        if config.use_gated_mlp:
            architecture, model_args["mlp_ratio"] = "vit_giant_patch14_reg4_dinov2", 2 * model_args["mlp_ratio"]
            for block in range(config.num_hidden_layers):  # which has LayerScale: here it scales nothing
                for place in (1, 2):
                    state_dict[f"blocks.{block}.ls{place}.gamma"] = torch.ones(config.hidden_size)
            for name in [name for name in state_dict if ".gate_proj." in name]:
                fc1 = name.replace("gate_proj", "fc1")
                state_dict[fc1] = torch.cat([state_dict.pop(name), state_dict[fc1]])
    timm_config = {
        "architecture": architecture,
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": model_args["global_pool"],
        "label_names": [config.id2label[index] for index in range(config.num_labels)],
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [config.num_channels, *to_pair(config.image_size)],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": image_processor.crop_size.height / (size_of.shortest_edge or size_of.height),
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": config.num_labels,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    arguments = ", ".join(
        f"{name}={value!r}" for name, value in {**model_args, "num_classes": config.num_labels}.items()
    )
    usage = (
        "import timm\n\n"
        f'model = timm.create_model("{architecture}", checkpoint_path="FOLDER/model.safetensors", {arguments})\n\n'
        "# or through Transformers\n" + _CLASSIFIER_USAGE
    )
    wrapper = transformers.TimmWrapperForImageClassification
    return StockModel(wrapper, timm_config, state_dict, usage, library_name="timm")


def to_stock(model: SupMAEPreTrainedModel) -> StockModel:
    """The model under the class of Transformers that computes the same (see the table above)."""
    parts = _with_parts(model.config)
    if isinstance(model, SupMAEForImageClassification) and not parts:
        return to_beit(model) if model.config.use_mean_pooling else to_vit_classifier(model)
    if isinstance(model, SupMAEForPreTraining) and not parts:
        return to_vit_mae(model)
    if isinstance(model, SupMAEModel):
        if not parts:
            return to_vit(model)
        for possible, convert in (
            ({"rotary positions", "no position embeddings", "register tokens", "gated MLPs"}, to_dinov3),
            ({"register tokens", "gated MLPs"}, to_dinov2),
            ({"no class token"}, to_ijepa),
            ({"a LayerNorm before the first block"}, to_clip),
        ):
            if parts <= possible and ("rotary positions" in parts) == (convert is to_dinov3):
                return convert(model)
    what = f" with {', '.join(sorted(parts))}" if parts else ""
    others = (
        "`--format timm` or onnx"
        if isinstance(model, SupMAEForImageClassification)
        else "`--encoder_only` or `--format onnx`"
    )
    raise ValueError(f"No class of Transformers computes what a {type(model).__name__}{what} does: use {others}.")


def source_image_processor(model: SupMAEPreTrainedModel, source: str | Path | None = None):
    """The image processor beside the weights at `source`, for the model's size, or, if there is none, the default one."""
    return fit_image_processor(load_image_processor(source), model.config)


@torch.no_grad()
def export_stock(
    model: SupMAEPreTrainedModel,
    output_dir: str | Path,
    timm: bool = False,
    image_processor=None,
    overwrite: bool = False,
    inputs: Sequence[str | Path] = (),
) -> str:
    """
    Write a model as a stock class, with image processor and README, after checking that it computes the same on
    random images and on photographs.

    Args:
        model: A model in float32.
        output_dir: Folder to make; it appears complete or not at all.
        timm (`bool`, *optional*, defaults to `False`): Whether to make a timm model of a classifier.
        image_processor (*optional*): Saved beside the model; the default one if it is left out.
        overwrite, inputs: See [`new_folder`].

    Returns:
        The name of the stock class.

    Raises:
        FileExistsError: if the folder exists.
        RuntimeError: if the stock class does not compute the same to 1e-5.
        ValueError: if there is no such export of the model.
    """
    if timm and not isinstance(model, SupMAEForImageClassification):
        raise ValueError(f"Only a classifier becomes a timm model, not a {type(model).__name__}: fine-tune it first.")
    if model.dtype != torch.float32:
        raise ValueError(f"The model is in {model.dtype}: load it with `dtype=torch.float32` to export it.")
    model = model.eval()
    image_processor = image_processor or build_image_processor(model.config)
    if timm and (pixel_type := Preparation(image_processor).pixel_type) != "uint8":
        raise ValueError(f"timm reads 8-bit images, but the model's are {pixel_type}: leave out the format.")
    try:
        stock = to_timm(model, image_processor) if timm else to_stock(model)
    except StrictDataclassError as error:
        raise ValueError(
            f"No class of Transformers has such a configuration: {' '.join(str(error).split())}"
        ) from error
    name = stock.model_class.__name__
    with new_folder(output_dir, overwrite, inputs) as folder:
        state_dict = {name: tensor.contiguous() for name, tensor in stock.state_dict.items()}
        save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
        if isinstance(stock.config, dict):
            (folder / "config.json").write_text(json.dumps(stock.config, indent=2) + "\n")
        else:
            stock.config.architectures = [name]
            stock.config.dtype = torch.float32
            stock.config.save_pretrained(folder)
            if isinstance(image_processor, ViTImageProcessor) and "shortest_edge" in image_processor.size:
                # the processor that resizes and crops in this way in older releases of Transformers, too
                fields = image_processor.to_dict()
                fields.pop("image_processor_type", None)
                image_processor = transformers.BitImageProcessor(**fields)
            image_processor.save_pretrained(folder)
        _card(model, stock, Path(output_dir).name, image_processor).save(folder / "README.md")
        images = check_images(model.config)
        try:
            loaded, info = stock.model_class.from_pretrained(folder, output_loading_info=True)
            strange = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
            actual = None if strange else stock.result(loaded.eval(), images)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RuntimeError(f"{name} cannot run a model like this ({error}): it was not written.") from error
        if strange:
            raise RuntimeError(f"{name} does not take these tensors: {', '.join(strange)}.")
        require_equal(actual, stock.result(model, images), name)
    return name


def _card(model: SupMAEPreTrainedModel, stock: StockModel, folder: str, image_processor) -> ModelCard:
    usage, has_code = stock.usage.replace("FOLDER", folder), isinstance(image_processor, SupMAEImageProcessor)
    if has_code:
        usage = usage.replace(f'model="{folder}"', f'model="{folder}", trust_remote_code=True')
    metadata = {"library_name": stock.library_name, "pipeline_tag": stock.pipeline_tag, "tags": ["supmae"]}
    return ModelCard.from_template(
        ModelCardData(**metadata),
        template_path=_TEMPLATE,
        name=stock.model_class.__name__,
        model_class=type(model).__name__,
        library_name=stock.library_name,
        is_pretraining=isinstance(model, SupMAEForPreTraining),
        has_code=has_code,
        usage=usage,
    )


@torch.no_grad()
def export_onnx(
    model: SupMAEForImageClassification | SupMAEModel,
    output_dir: str | Path,
    image_processor=None,
    overwrite: bool = False,
    inputs: Sequence[str | Path] = (),
):
    """
    Write `model.onnx` for batches of any size, with the configuration and the image processor beside it, after
    checking with onnxruntime that it computes the same.

    Its input is `pixel_values`; its outputs are `logits`, or `last_hidden_state` and `pooler_output`.

    Raises:
        FileExistsError: if the folder exists.
        RuntimeError: if the ONNX model does not compute the same to 1e-5.
        ValueError: if the model is neither a classifier nor an encoder, or not in float32.
    """
    import onnxruntime

    if isinstance(model, SupMAEForPreTraining):
        raise ValueError("Pre-training models draw random masks: export the encoder (`SupMAEModel`) or a classifier.")
    if model.dtype != torch.float32:
        raise ValueError(f"The model is in {model.dtype}: load it with `dtype=torch.float32` to export it.")
    model = model.eval()
    names = ["logits"] if isinstance(model, SupMAEForImageClassification) else ["last_hidden_state", "pooler_output"]
    images = check_images(model.config)
    with new_folder(output_dir, overwrite, inputs) as folder:
        program = torch.onnx.export(
            model,
            kwargs={"pixel_values": images[:2]},
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size")}},
            dynamo=True,
            verbose=False,
        )
        program.save(folder / "model.onnx")
        config = copy.deepcopy(model.config)
        vars(config).pop("auto_map", None)  # the model's code is not beside it, only the configuration's
        config.save_pretrained(folder)
        (image_processor or build_image_processor(model.config)).save_pretrained(folder)
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        for batch in (images, images[:1]):
            outputs = session.run(names, {"pixel_values": batch.numpy()})
            for name, output in zip(names, outputs):
                require_equal(torch.from_numpy(output), model(batch)[name], "ONNX model")
