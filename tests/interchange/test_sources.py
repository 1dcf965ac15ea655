"""Other ViTs in: equal to their own classes, at their own and at another resolution; what SupMAE cannot be is refused."""

import json

import pytest
import timm
import torch
import transformers
from conftest import digit_pixel_values, reference_config
from evaluation.zoo import SIZES
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig, ViTModel

from supmae_hf import (
    SupMAEBackbone,
    SupMAEConfig,
    SupMAEForImageClassification,
    SupMAEForPreTraining,
    SupMAEModel,
)
from supmae_hf.interchange.convert import convert_original, convert_pretrained
from supmae_hf.modeling_supmae import sincos_position_embeddings


LABELS = {"id2label": dict(enumerate("abcde")), "label2id": {name: index for index, name in enumerate("abcde")}}
TIMM_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
# models of Transformers; ViTModel is also DINO's
ENCODERS = {
    **dict.fromkeys(["ViTModel", "DeiTModel", "Dinov2Model", "ViTMAEModel", "ViTMSNModel", "IJepaModel"], {}),
    "BeitModel": {"use_absolute_position_embeddings": True, "use_mean_pooling": False, "layer_scale_init_value": 0.3},
    "Dinov2WithRegistersModel": {"num_register_tokens": 3},
    "DINOv3ViTModel": {"num_register_tokens": 2, "layerscale_value": 0.5},
    "CLIPVisionModel": {},
    "SiglipVisionModel": {},
}
GATED = {"Dinov2Model": {"use_swiglu_ffn": True}, "DINOv3ViTModel": {"use_gated_mlp": True, "hidden_act": "silu"}}
CLASSIFIERS = ["ViTForImageClassification", "ViTMSNForImageClassification"]
TIMM = {
    "vit": ("vit_tiny_patch16_224", {}),
    "vit, mean": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "vit, no bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "dinov2": ("vit_small_patch14_dinov2", {"init_values": 0.3}),
    "deit3": ("deit3_small_patch16_224", {"init_values": 0.3}),
    "quick gelu": ("vit_tiny_patch16_224", {"act_layer": "quick_gelu"}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.3}),
    "registers with positions": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {"init_values": 0.3}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "i-jepa": ("vit_huge_patch14_gap_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {"init_values": 0.3}),
    "dinov3, bias": ("vit_small_patch16_dinov3_qkvb", {"init_values": 0.3}),
    "dinov3, swiglu": ("vit_7b_patch16_dinov3", {"init_values": 0.3}),
}


def randomize(model: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
    """Weights of which none is 0 or 1, so that none can be forgotten."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    return model.eval()


def make(name: str, folder, **fields) -> str:
    model_class = getattr(transformers, name)
    fields = {**SIZES, **LABELS, **ENCODERS.get(name, {}), **fields}
    if name.startswith("Dinov2"):
        fields["mlp_ratio"] = 2
        del fields["intermediate_size"]
    randomize(model_class(model_class.config_class(**fields))).save_pretrained(folder)
    return str(folder)


def make_timm(architecture: str, folder, num_classes: int = 5, **model_args) -> str:
    model_args = {**TIMM_SIZES, **model_args}
    model = randomize(timm.create_model(architecture, num_classes=num_classes, **model_args))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": architecture,
        "num_classes": num_classes,
        "label_names": list("abcde")[:num_classes],
        "model_args": model_args,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.4] * 3, "crop_pct": 0.9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def images(size: int = 32) -> torch.Tensor:
    """Random ones and digits."""
    digits = torch.nn.functional.interpolate(digit_pixel_values(range(3)), size=size, mode="bilinear")
    return torch.cat([torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)), digits])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def tokens_of(folder: str, pixel_values: torch.Tensor) -> torch.Tensor:
    """By the source's own class, with positions resampled by itself if the images are larger."""
    model = AutoModel.from_pretrained(folder).eval()
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0
        num_patches = (pixel_values.shape[-1] // 8) ** 2
        noise = torch.arange(num_patches).float().expand(len(pixel_values), -1)
        return model(pixel_values, noise=noise, interpolate_pos_encoding=True).last_hidden_state
    model = getattr(model, "vision_model", model)
    if model.config.model_type.startswith(("dinov2", "dinov3", "beit")):
        return model(pixel_values).last_hidden_state
    if model.config.model_type == "clip_vision_model":  # which normalises the class token alone
        tokens = model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return model.post_layernorm(tokens)
    return model(pixel_values, interpolate_pos_encoding=True).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize(
    ("name", "fields"), [(name, {}) for name in ENCODERS if name != "DeiTModel"] + list(GATED.items())
)
def test_encoders_equal_their_own_class(tmp_path, name, fields, size):
    folder = make(name, tmp_path, **fields)
    model = SupMAEModel.from_pretrained(folder, image_size=size)
    assert model.config.image_size == size and not model.training
    assert_close(model(images(size)).last_hidden_state, tokens_of(folder, images(size)))
    resampled = SupMAEModel.from_pretrained(folder)(images(size), interpolate_pos_encoding=True)
    assert_close(resampled.last_hidden_state, tokens_of(folder, images(size)))


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", ["DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_deit_without_its_distillation_token(tmp_path, name, size, warnings):
    folder = make(name, tmp_path)
    # the same blocks on tokens without the second: as a ViT, which has all of DeiT's parts but that token
    tensors = {key.removeprefix("deit."): tensor for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    positions = tensors["embeddings.position_embeddings"]
    tensors["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    vit = {key: tensor for key, tensor in tensors.items() if "dist" not in key and "classifier" not in key}
    expected = ViTModel.from_pretrained(None, config=ViTConfig(**SIZES), state_dict=vit, add_pooling_layer=False)
    expected = expected.eval()(images(size), interpolate_pos_encoding=True).last_hidden_state
    actual = SupMAEModel.from_pretrained(folder, image_size=size)
    assert_close(actual(images(size)).last_hidden_state, expected)
    assert "without its distillation token" in warnings.text
    if name != "DeiTModel":
        classifier = SupMAEForImageClassification.from_pretrained(folder, image_size=size)
        layer = "cls_classifier" if name.endswith("Teacher") else "classifier"
        logits = torch.nn.functional.linear(expected[:, 0], tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])
        assert_close(classifier(images(size)).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_bring_their_pooling(tmp_path, name):
    folder = make(name, tmp_path)
    model, info = SupMAEForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not model.config.use_mean_pooling and model.config.id2label == LABELS["id2label"]
    assert not any(info.values())
    assert_close(model(images()).logits, AutoModelForImageClassification.from_pretrained(folder)(images()).logits)


@torch.no_grad()
def test_a_classifier_that_pools_otherwise_is_new_and_said_to_be(tmp_path, warnings):
    folder = make("Dinov2ForImageClassification", tmp_path)
    model, info = SupMAEForImageClassification.from_pretrained(folder, num_labels=5, output_loading_info=True)
    assert {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"} == set(info["missing_keys"])
    assert "without its classifier, which reads the class token and the mean of the others together" in warnings.text
    assert "new: classifier, fc_norm" in warnings.text
    tokens = AutoModel.from_pretrained(folder)(images(), output_hidden_states=True).hidden_states[-1]
    assert_close(model.vit(images()).last_hidden_state, tokens)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_equal_their_own_class(tmp_path, name, size, warnings):
    architecture, model_args = TIMM[name]
    folder = make_timm(architecture, tmp_path, **model_args)
    tensors = load_file(tmp_path / "model.safetensors")
    model_args = {**TIMM_SIZES, **model_args, "img_size": size}
    if "pos_embed" in tensors:
        num_prefix = tensors["pos_embed"].shape[1] - 16
        tensors["pos_embed"] = resample_abs_pos_embed(
            tensors["pos_embed"], (size // 8, size // 8), num_prefix_tokens=num_prefix
        )
    vit = timm.create_model(architecture, num_classes=5, **model_args).eval()
    vit.load_state_dict(tensors)
    if name == "no positions" and vit.forward_features(images(size)).shape[1] == (size // 8) ** 2:
        pytest.skip("this timm leaves out the class token, too")
    has_norm = "norm.weight" in tensors
    outputs = SupMAEModel.from_pretrained(folder, image_size=size)(images(size), output_hidden_states=True)
    tokens = outputs.last_hidden_state if has_norm else outputs.hidden_states[-1]
    assert_close(tokens, vit.forward_features(images(size)))
    classifier = SupMAEForImageClassification.from_pretrained(folder, image_size=size, num_labels=5)
    is_ours = vit.global_pool == "token" or (vit.global_pool == "avg" and "fc_norm.weight" in tensors)
    assert ("its classifier reads the" in warnings.text) == is_ours
    if is_ours:
        assert classifier.config.id2label == LABELS["id2label"]
        assert_close(classifier(images(size)).logits, vit(images(size)))
    else:
        assert "without its classifier, which pools otherwise" in warnings.text


@torch.no_grad()
def test_timm_deit_without_its_distillation_token(tmp_path):
    folder = make_timm("deit_tiny_distilled_patch16_224", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], tensors["pos_embed"][:, 2:]], dim=1)
    vit = timm.create_model("deit_tiny_patch16_224", num_classes=5, **TIMM_SIZES).eval()
    vit.load_state_dict({name: tensor for name, tensor in tensors.items() if "dist" not in name})
    assert_close(SupMAEForImageClassification.from_pretrained(folder)(images()).logits, vit(images()))


@torch.no_grad()
def test_timm_encoders_without_a_classifier(tmp_path):
    folder = make_timm("vit_small_patch14_dinov2", tmp_path, num_classes=0)
    model = convert_pretrained(folder)
    assert type(model) is SupMAEModel
    assert_close(model(images()).last_hidden_state, AutoModel.from_pretrained(folder)(images()).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["bare", "state_dict", "model_ema", "module.", "safetensors"])
def test_files_under_timms_names(tmp_path, layout):
    make_timm("vit_small_patch14_dinov2", tmp_path, init_values=0.3)
    tensors = load_file(tmp_path / "model.safetensors")
    if layout == "module.":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    path = tmp_path / "model.safetensors"
    if layout != "safetensors":
        path = tmp_path / "file.pth"
        torch.save({layout: tensors} if layout in ("state_dict", "model_ema") else tensors, path)
    model, recognised = convert_original(path, num_attention_heads=2)
    words = {"bare": "a bare state dict", "safetensors": "a bare state dict", "module.": "names without 'module.'"}
    assert words.get(layout, f"state dict under '{layout}'") in recognised and "is a classifier" in recognised
    vit = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_close(model(images()).logits, vit(images()).logits)


@torch.no_grad()
def test_sharded_pickled_and_half_precision_checkpoints(tmp_path):
    folder = make("Dinov2Model", tmp_path / "whole")
    model = AutoModel.from_pretrained(folder).eval()
    expected = model(images()).last_hidden_state
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert_close(SupMAEModel.from_pretrained(tmp_path / "shards")(images()).last_hidden_state, expected)
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(load_file(tmp_path / "whole" / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    assert_close(SupMAEModel.from_pretrained(tmp_path / "pickled")(images()).last_hidden_state, expected)
    model.bfloat16().save_pretrained(tmp_path / "half")
    assert SupMAEModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    in_float = SupMAEModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert_close(in_float(images()).last_hidden_state, model.float()(images()).last_hidden_state)


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model"])
def test_every_class_takes_the_encoder(tmp_path, name, digit_labels, digits):
    folder = make(name, tmp_path)
    pretraining = SupMAEForPreTraining.from_pretrained(folder, num_labels=10, decoder_hidden_size=32)
    assert pretraining(digits, labels=digit_labels).loss.isfinite()
    assert not pretraining.vit.embeddings.position_embeddings.requires_grad
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder)(digits).last_hidden_state
        assert_close(pretraining.vit(digits).last_hidden_state, tokens)
        maps = SupMAEBackbone.from_pretrained(folder, out_indices=[1, 3])(digits).feature_maps
    assert [tuple(x.shape) for x in maps] == [(8, 32, 4, 4)] * 2
    pretraining.save_pretrained(tmp_path / "ours")
    again, info = SupMAEForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in pretraining.state_dict().items())


REFUSED = {
    "BeitModel": ({"use_relative_position_bias": True}, "relative position biases"),
    "Data2VecVisionModel": ({}, "relative position biases"),
    "Siglip2VisionModel": ({}, r"patches of images of any shape \(NaFlex\)"),
    "ResNetModel": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        r"an architecture of its own \('resnet'\)",
    ),
    "timm eva02_small_patch14_224": ({}, "rotary positions of another kind than DINOv3's"),
    "timm vit_relpos_small_patch16_224": ({}, "the architecture of timm's VisionTransformerRelPos"),
    "timm vit_small_patch16_18x2_224": ({}, "blocks of another kind"),
    "timm vit_small_r26_s32_224": ({}, "other layers before its patch projection"),
    "timm vit_base_patch16_224": ({"qk_norm": True}, "normalised queries and keys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_supmae_cannot_be_is_refused(tmp_path, name):
    fields, part = REFUSED[name]
    if name.startswith("timm "):  # the configuration is enough
        architecture = name.removeprefix("timm ")
        config = {"architecture": architecture, "num_classes": 5, "pretrained_cfg": {"input_size": [3, 224, 224]}}
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": fields}))
    else:
        model_class = getattr(transformers, name)
        sizes = {} if name == "ResNetModel" else SIZES
        model_class.config_class(**sizes, **fields).save_pretrained(tmp_path)
    for load in (SupMAEModel.from_pretrained, SupMAEConfig.from_pretrained, convert_pretrained):
        with pytest.raises(ValueError, match=f"cannot take over the weights of '{tmp_path}': it has {part}.*Choose"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("blocks.0.attn.q_norm.weight", "it has normalised queries and keys"),
        ("blocks.0.attn.rel_pos.table", "it has relative position biases"),
        ("blocks.0.mlp.norm.weight", "it has a LayerNorm inside of its attention or MLPs"),
        ("blocks.0.extra.weight", r"unexpected: vit\.layers\.0\.extra\.weight"),
        ("reg_token", "their shapes do not fit"),
    ],
)
def test_files_that_supmae_cannot_be_are_refused(tmp_path, tensor, message):
    make_timm("vit_tiny_patch16_224", tmp_path)
    tensors = {**load_file(tmp_path / "model.safetensors"), tensor: torch.zeros(1)}
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_original(tmp_path / "file.safetensors", num_attention_heads=2)


def test_tensors_that_do_not_fit_the_configuration_are_refused(tmp_path):
    folder = make("ViTModel", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = "encoder.layer.1.layernorm_before.weight"
    save_file({key: value for key, value in tensors.items() if key != missing}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.layernorm_before\.weight is missing"):
        SupMAEModel.from_pretrained(folder)
    save_file({**tensors, "encoder.layer.0.attention.q_norm.weight": torch.ones(16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.q_norm\.weight has no place"):
        SupMAEModel.from_pretrained(folder)


# --- another size ---


def test_learnt_positions_are_resampled(tmp_path, warnings):
    folder = make("ViTModel", tmp_path)
    before = SupMAEModel.from_pretrained(folder)
    after = SupMAEModel.from_pretrained(folder, image_size=(48, 64))
    assert "position embeddings were fitted to (48, 64) pixels" in warnings.text
    positions = before.embeddings.position_embeddings
    expected = resample_abs_pos_embed(positions, (6, 8), num_prefix_tokens=1, antialias=False)
    assert_close(after.embeddings.position_embeddings, expected)
    assert after.config.image_size == (48, 64) and after(torch.randn(1, 3, 48, 64)).last_hidden_state.shape[1] == 49


def test_grids_of_as_many_patches_are_told_apart(tmp_path):
    SupMAEModel(reference_config(image_size=(16, 64))).save_pretrained(tmp_path)
    model = SupMAEModel.from_pretrained(tmp_path, image_size=(32, 32))  # 2x8 and 4x4
    assert torch.equal(model.embeddings.position_embeddings, sincos_position_embeddings((4, 4), 64))


@pytest.mark.parametrize("how", ["argument", "config", "method"])
@pytest.mark.parametrize(
    "model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification, SupMAEBackbone]
)
def test_sine_cosine_positions_are_made_anew(tmp_path, model_class, how):
    model_class(reference_config()).save_pretrained(tmp_path)
    if how == "argument":
        model = model_class.from_pretrained(tmp_path, image_size=48)
    elif how == "config":
        model = model_class.from_pretrained(tmp_path, config=reference_config(image_size=48))
    else:
        model = model_class.from_pretrained(tmp_path)
        model.set_input_size(48)
    fresh = model_class(reference_config(image_size=48))
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            assert torch.equal(parameter, fresh.get_parameter(name))
            assert parameter.requires_grad == fresh.get_parameter(name).requires_grad
    assert model.config.image_size == 48
    model.save_pretrained(tmp_path / "again")
    assert model_class.from_pretrained(tmp_path / "again").config.image_size == 48


@torch.no_grad()
def test_patch_projections_are_resampled_as_timm_does(tmp_path):
    folder = make("ViTModel", tmp_path)
    before, after = (
        SupMAEModel.from_pretrained(folder),
        SupMAEModel.from_pretrained(folder, patch_size=16, image_size=64),
    )
    weight = before.embeddings.patch_embeddings.projection.weight
    assert_close(after.embeddings.patch_embeddings.projection.weight, resample_patch_embed(weight, [16, 16]))
    # images enlarged in that way look the same to it
    small = images(8)
    large = torch.nn.functional.interpolate(small, size=16, mode="bicubic", antialias=True)
    patches = before.embeddings.patch_embeddings(small), after.embeddings.patch_embeddings(large)
    torch.testing.assert_close(*patches, atol=1e-4, rtol=1e-4)
    smaller = SupMAEModel.from_pretrained(folder, patch_size=4)
    assert smaller.config.grid_size == (8, 8)
    assert_close(smaller.embeddings.patch_embeddings.projection.weight, resample_patch_embed(weight, [4, 4]))
    masked = after(torch.randn(2, 3, 64, 64), mask_ratio=0.75)
    assert masked.last_hidden_state.shape == (2, 5, 32)


@torch.no_grad()
def test_the_decoder_predicts_resampled_patches(digits):
    model = SupMAEForPreTraining(reference_config(norm_pix_loss=False)).eval()
    before = model.decoder.decoder_pred
    hidden = torch.randn(5, 32)
    patches = before(hidden).reshape(5, 8, 8, 3).permute(0, 3, 1, 2)
    model.set_input_size(64, 16)
    expected = torch.nn.functional.interpolate(patches, size=16, mode="bicubic", antialias=True)
    actual = model.decoder.decoder_pred(hidden).reshape(5, 16, 16, 3).permute(0, 3, 1, 2)
    assert_close(actual, expected)
    assert model(torch.randn(2, 3, 64, 64)).loss.isfinite()


def test_frozen_layers_stay_frozen():
    model = SupMAEForPreTraining(reference_config())
    model.vit.requires_grad_(False)
    model.decoder.decoder_pred.weight.requires_grad_(False)
    model.set_input_size(64, 16)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("vit.") for name in trained)
    assert "decoder.decoder_pred.bias" in trained and "decoder.decoder_pred.weight" not in trained


def test_sizes_that_do_not_fit_leave_the_model_as_it_is(tmp_path):
    model = SupMAEModel(reference_config())
    with pytest.raises(ValueError, match="`image_size` 50 is not a multiple of `patch_size` 8"):
        model.set_input_size(50)
    assert model.config.image_size == 32 and model(images()).last_hidden_state.shape[1] == 17
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`image_size` 50 is not a multiple"):
        SupMAEModel.from_pretrained(tmp_path, image_size=50)


@pytest.mark.slow
@torch.no_grad()
def test_dinov2_base_at_full_size(tmp_path):
    config = transformers.Dinov2Config(hidden_size=768, patch_size=14, image_size=518, layerscale_value=0.3)
    randomize(transformers.Dinov2Model(config), std=0.01).save_pretrained(tmp_path)
    model = convert_pretrained(str(tmp_path), image_size=224)  # which checks it at 518 pixels
    assert model.config.grid_size == (16, 16) and model.num_parameters() > 85e6
    pixel_values = images(224)
    expected = transformers.Dinov2Model.from_pretrained(tmp_path)(pixel_values).last_hidden_state
    difference = (model(pixel_values).last_hidden_state - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max()
