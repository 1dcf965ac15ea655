"""Tiny random models of every family that the evaluation scripts take, with 32x32 images and their own processors."""

import json
from pathlib import Path

import timm
import torch
import transformers
from conftest import reference_config
from safetensors.torch import save_file

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.preparation import build_image_processor


SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
LABELS = {"id2label": dict(enumerate("0123456789")), "label2id": {name: int(name) for name in "0123456789"}}
ENCODERS = ["supmae", "supmae_classifier", "vit_mae", "vit", "deit", "beit", "dinov2", "clip", "timm", "resnet"]
CLASSIFIERS = ["supmae_classifier", "vit", "deit", "beit", "dinov2", "timm", "resnet"]


def make_model(family: str, folder: Path) -> str:
    """Save a model and its image processor; returns the folder."""
    torch.manual_seed(0)
    path = str(folder / family)
    if family == "timm":
        model = timm.create_model("test_vit", num_classes=10, img_size=32, patch_size=8)
        Path(path).mkdir(parents=True)
        save_file(model.state_dict(), f"{path}/model.safetensors")
        config = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
        config.update(interpolation="bicubic", num_classes=10, label_names=list("0123456789"))
        text = {"architecture": "test_vit", "num_classes": 10, "pretrained_cfg": config}
        text["model_args"] = {"img_size": 32, "patch_size": 8}
        text["label_names"] = list("0123456789")
        Path(path, "config.json").write_text(json.dumps(text))
        return path
    if family.startswith("supmae"):
        model_class = SupMAEForPreTraining if family == "supmae" else SupMAEForImageClassification
        model = model_class(reference_config(**LABELS))
    elif family == "vit_mae":
        decoder = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **decoder))
    elif family == "clip":
        vision = {**SIZES, "projection_dim": 16}
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text))
    elif family == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
        model = transformers.ResNetForImageClassification(config)
    else:
        name = {"vit": "ViT", "deit": "Deit", "beit": "Beit", "dinov2": "Dinov2"}[family]
        config = getattr(transformers, f"{'DeiT' if family == 'deit' else name}Config")(**SIZES, **LABELS)
        model = getattr(transformers, f"{'DeiT' if family == 'deit' else name}ForImageClassification")(config)
    model.save_pretrained(path)
    build_image_processor(reference_config(), crop_ratio=0.875).save_pretrained(path)
    return path
