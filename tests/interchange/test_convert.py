"""Files of the authors' (and of MAE's) in: architecture, safety, errors."""

import argparse
import os
import pickle
import re

import pytest
import torch
from conftest import FIXTURES, load_original, load_reference, reference_config
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.conversion_supmae import rename_tensors
from supmae_hf.interchange.convert import (
    config_from_original,
    convert_original,
    revert_original_state_dict,
)
from supmae_hf.interchange.convert import (
    load_original as load_original_file,
)


HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}
PRETRAIN = FIXTURES / "official_pretrain_tiny.pth"


def convert(path, **fields):
    return convert_original(path, **fields)[0]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_pretraining_checkpoint():
    model = convert(PRETRAIN, **HEADS)
    assert isinstance(model, SupMAEForPreTraining) and not model.training
    expected = reference_config().to_dict()
    assert {name: value for name, value in model.config.to_dict().items() if name in expected} == {
        **expected,
        "dtype": model.config.to_dict().get("dtype"),
        "transformers_version": model.config.to_dict().get("transformers_version"),
    }
    reference = load_reference("official_pretrain_tiny_outputs.safetensors")
    noise = reference["eval_mask75.noise"]
    outputs = model(reference["pixel_values"], labels=reference["labels"], noise=noise)
    assert_close(outputs.logits, reference["eval_mask75.pred"])
    assert_close(outputs.class_logits, reference["eval_mask75.class_logits"])
    reverted, original = revert_original_state_dict(model.state_dict()), load_original("official_pretrain_tiny.pth")
    assert reverted.keys() == original.keys() and all(torch.equal(reverted[key], original[key]) for key in original)


def test_encoder_of_a_pretraining_checkpoint():
    encoder = convert(PRETRAIN, encoder_only=True, **HEADS)
    assert isinstance(encoder, SupMAEModel)
    reference = load_reference("official_pretrain_tiny_outputs.safetensors")
    noise = reference["eval_mask50.noise"]
    tokens = encoder(reference["pixel_values"], noise=noise, mask_ratio=0.5).last_hidden_state
    assert_close(tokens, reference["eval_mask50.latent"])


@pytest.mark.parametrize("pooling", ["global_pool", "cls_token"])
def test_finetuning_checkpoint(pooling):
    model = convert(FIXTURES / f"official_finetune_tiny_{pooling}.pth", num_attention_heads=4)
    assert isinstance(model, SupMAEForImageClassification)
    assert model.config.use_mean_pooling is (pooling == "global_pool")
    assert model.config.num_labels == 10 and model.config.drop_path_rate == 0.1
    reference = load_reference("official_finetune_tiny_outputs.safetensors")
    assert_close(model(reference["pixel_values"]).logits, reference[f"{pooling}.logits"])


def save(tmp_path, state_dict, args=None):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state_dict, **({"args": argparse.Namespace(**args)} if args is not None else {})}, path)
    return path


LAYOUTS = {
    "released": (lambda name: re.sub("^cls_head", "projection_head", name), "model", "head under 'projection_head'"),
    "module.": (lambda name: f"module.{name}", "model", "names without 'module.'"),
    "lightning": (lambda name: f"model.{name}", "state_dict", "state dict under 'state_dict'"),
    "ema": (lambda name: name, "model_ema", "state dict under 'model_ema'"),
    "bare": (lambda name: name, None, "a bare state dict, without training arguments"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_authors_files(tmp_path, layout):
    rename, key, words = LAYOUTS[layout]
    state_dict = {rename(name): tensor for name, tensor in load_original("official_pretrain_tiny.pth").items()}
    torch.save(state_dict if key is None else {key: state_dict, "epoch": 1}, tmp_path / "checkpoint.pth")
    model, recognised = convert_original(tmp_path / "checkpoint.pth", **HEADS)
    assert words in recognised and "is a pre-training checkpoint of SupMAE" in recognised and "\n" not in recognised
    reference = load_reference("official_pretrain_tiny_outputs.safetensors")
    outputs = model(reference["pixel_values"], labels=reference["labels"], noise=reference["eval_mask75.noise"])
    for ours, theirs in {"logits": "pred", "class_logits": "class_logits"}.items():
        assert_close(outputs[ours], reference[f"eval_mask75.{theirs}"])
    for name in ("reconstruction_loss", "classification_loss"):
        assert_close(outputs[name], reference[f"eval_mask75.{name}"])


@pytest.mark.parametrize("head", ["cls_head", "projection_head"])
def test_linear_head(tmp_path, head):
    original = {k: v for k, v in load_original("official_pretrain_tiny.pth").items() if not k.startswith("cls_head")}
    weight, bias = torch.randn(7, 64), torch.randn(7)
    model, _ = convert_original(save(tmp_path, {**original, f"{head}.weight": weight, f"{head}.bias": bias}), **HEADS)
    assert model.config.num_labels == 7 and model.config.classifier_hidden_size == 0
    reference = load_reference("official_pretrain_tiny_outputs.safetensors")
    outputs = model(reference["pixel_values"], noise=reference["eval_mask75.noise"])
    pooled = reference["eval_mask75.latent"][:, 1:].mean(dim=1)
    assert_close(outputs.class_logits, pooled @ weight.T + bias)
    assert_close(outputs.logits, reference["eval_mask75.pred"])
    reverted = revert_original_state_dict(model.state_dict())
    assert torch.equal(reverted["cls_head.weight"], weight) and reverted.keys() == {
        *original,
        "cls_head.weight",
        "cls_head.bias",
    }


def test_files_at_another_size(tmp_path):
    model, _ = convert_original(PRETRAIN, image_size=48, **HEADS)
    assert model.config.image_size == 48 and model.decoder.decoder_pos_embed.shape[1] == 37


def test_mae_checkpoint_gets_a_new_head(tmp_path):
    original = {k: v for k, v in load_original("official_pretrain_tiny.pth").items() if not k.startswith("cls_head")}
    model = convert(save(tmp_path, original), num_labels=7, classifier_hidden_size=24, **HEADS)
    assert isinstance(model, SupMAEForPreTraining) and model.classification_head.fc2.weight.shape == (7, 24)
    reverted = revert_original_state_dict(model.state_dict())
    assert all(torch.equal(reverted[key], original[key]) for key in original)


def test_encoder_alone(tmp_path):
    original = {
        name: tensor
        for name, tensor in load_original("official_pretrain_tiny.pth").items()
        if not name.startswith(("cls_head", "decoder", "mask_token"))
    }
    assert isinstance(convert(save(tmp_path, original), num_attention_heads=4), SupMAEModel)


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        ({"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}, 12),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}, 16),
        ({"hidden_size": 1280, "num_hidden_layers": 32, "intermediate_size": 5120, "patch_size": 14}, 16),
    ],
)
def test_architecture_of_vit_b_l_h(fields, heads):
    config = reference_config(
        **{**fields, "num_attention_heads": heads, "image_size": 224, "patch_size": fields.get("patch_size", 16)},
        **{"decoder_hidden_size": 512, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 16},
        **{"decoder_intermediate_size": 2048, "classifier_hidden_size": 3072, "num_labels": 1000},
    )
    with torch.device("meta"):
        state_dict = revert_original_state_dict(SupMAEForPreTraining(config).state_dict())
    derived, _ = config_from_original(rename_tensors(state_dict), {"norm_pix_loss": True, "input_size": 224})
    assert derived.id2label[0] == "tench, Tinca tinca" and len(derived.id2label) == 1000
    names = set(config.to_dict()) - {"id2label", "label2id", "dtype", "transformers_version"}
    assert all(getattr(derived, name) == getattr(config, name) for name in names)


def test_arguments_are_read(tmp_path):
    args = {"norm_pix_loss": False, "mask_ratio": 0.6, "cls_loss_ratio": 0.3, "temperature": 2.0, "global_pool": False}
    config = convert(save(tmp_path, load_original("official_pretrain_tiny.pth"), args), **HEADS).config
    assert (config.norm_pix_loss, config.mask_ratio, config.classification_loss_weight) == (False, 0.6, 0.3)
    assert (config.classification_temperature, config.use_mean_pooling) == (2.0, False)


def test_heads_of_an_unusual_width_are_asked_for():
    with pytest.raises(ValueError, match="does not tell the model's `num_attention_heads`.*--num_attention_heads"):
        convert(PRETRAIN)
    with pytest.raises(ValueError, match="`decoder_num_attention_heads`"):
        convert(PRETRAIN, num_attention_heads=4)


# --- bad files ---


class Foreign:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


def bad_file(tmp_path, kind):
    path = tmp_path / "bad.pth"
    content = PRETRAIN.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("this is not a checkpoint")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "foreign":
        torch.save({"model": load_original("official_pretrain_tiny.pth"), "hook": Foreign()}, path)
    elif kind == "foreign pickle":
        path.write_bytes(pickle.dumps({"model": Foreign()}))
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "no tensors":
        torch.save({"model": {"a": 1}}, path)
    elif kind == "another model":
        torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is not a PyTorch checkpoint, or it is damaged"),
        ("text", "is not a PyTorch checkpoint, or it is damaged"),
        ("empty", "is not a PyTorch checkpoint, or it is damaged"),
        ("image", "is not a PyTorch checkpoint, or it is damaged"),
        ("foreign", r"holds objects other than tensors and arguments \(posix\.system\).*could run code"),
        ("foreign pickle", "is not a PyTorch checkpoint, or it is damaged"),
        ("list", "is not a checkpoint of SupMAE, MAE or timm"),
        ("no tensors", "is not a checkpoint of SupMAE, MAE or timm"),
        (
            "another model",
            "not the tensors of a ViT that SupMAE can be: .*projection.weight' is missing. The file has weight, bias",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, monkeypatch, kind, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(bad_file(tmp_path, kind), **HEADS)
    assert not (tmp_path / "hacked").exists()


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.pth"):
        load_original_file("nowhere.pth")


def test_wrong_tensors_are_listed_by_name(tmp_path):
    state_dict = load_original("official_pretrain_tiny.pth")
    del state_dict["blocks.1.norm1.weight"]
    state_dict["extra.weight"] = torch.zeros(1)
    state_dict["cls_head.3.bias"] = torch.zeros(11)
    with pytest.raises(ValueError) as error:
        convert(save(tmp_path, state_dict), **HEADS)
    message = str(error.value)
    assert "missing: vit.layers.1.layernorm_before.weight" in message and "unexpected: extra.weight" in message
    assert r"classification_head.fc2.bias (11,) instead of (10,)" in message


# --- ViTMAE ---


def test_vit_mae_keeps_its_decoder(tmp_path):
    names = ViTMAEConfig().to_dict().keys() - {"model_type", "id2label", "label2id"}
    fields = {name: value for name, value in reference_config().to_dict().items() if name in names}
    ViTMAEForPreTraining(ViTMAEConfig(**{**fields, "decoder_num_hidden_layers": 8})).save_pretrained(tmp_path)
    model, info = SupMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert len(model.decoder.decoder_layers) == 8
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"classification_head"}
