"""What SupMAE's classes promise beyond the equality with the authors' code (checkpoints/test_original.py)."""

import copy
import math
import shutil

import pytest
import torch
from conftest import digit_pixel_values, reference_config
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.modeling_supmae import sincos_position_embeddings


def seeded(model_class, seed=0, **fields):
    torch.manual_seed(seed)
    return model_class(reference_config(**fields))


NOISE = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))


# --- masking and features ---


def test_features_are_deterministic_and_cover_every_patch(digits):
    model = seeded(SupMAEModel).eval()
    first, second = model(digits), model(digits)
    assert first.last_hidden_state.shape == (8, 17, 64)
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert first.mask is None and first.ids_restore is None
    torch.testing.assert_close(first.pooler_output, first.last_hidden_state[:, 1:].mean(dim=1))


@pytest.mark.parametrize("mask_ratio", [0.0, 0.3, 0.75, 0.9375])
def test_masking_hides_the_patches_with_the_most_noise(digits, mask_ratio):
    model = seeded(SupMAEModel).eval()
    outputs = model(digits, noise=NOISE, mask_ratio=mask_ratio)
    num_visible = int(16 * (1 - mask_ratio))
    assert outputs.last_hidden_state.shape == (8, 1 + num_visible, 64)
    assert outputs.mask.sum(dim=1).eq(16 - num_visible).all()
    largest_visible = NOISE.masked_fill(outputs.mask.bool(), -1).amax(dim=1)
    smallest_hidden = NOISE.masked_fill(~outputs.mask.bool(), 2).amin(dim=1)
    assert (largest_visible < smallest_hidden).all()
    # the place of each patch in the order of the noise
    assert torch.equal(outputs.ids_restore, NOISE.argsort(dim=1).argsort(dim=1))


def test_mask_ratio_draws_masks_from_the_global_generator(digits):
    model = seeded(SupMAEModel).eval()
    torch.manual_seed(1)
    first = model(digits, mask_ratio=0.5).mask
    noise_first = torch.manual_seed(1) and torch.rand(8, 16)
    assert torch.equal(first, model(digits, noise=noise_first, mask_ratio=0.5).mask)  # the first random draw
    assert not torch.equal(first, model(digits, mask_ratio=0.5).mask)
    assert model(digits, noise=NOISE).last_hidden_state.shape[1] == 5  # config.mask_ratio


def test_masks_say_what_is_hidden(digits):
    """The same as noise that hides these patches, in the encoder and in both losses."""
    mask = (NOISE.argsort(dim=1).argsort(dim=1) >= 6).float()
    model = seeded(SupMAEForPreTraining).eval()
    for given in (mask, mask.bool(), mask.long()):
        ours, expected = model(digits, mask=given), model(digits, noise=NOISE, mask_ratio=10 / 16)
        assert torch.equal(ours.mask, mask)
        torch.testing.assert_close(ours.logits, expected.logits)
        torch.testing.assert_close(ours.loss, expected.loss)
    tokens = model.vit(digits, mask=mask).last_hidden_state  # visible patches in raster order
    assert tokens.shape == (8, 7, 64)
    assert torch.equal(model.vit(digits, mask=mask * 0).ids_restore, torch.arange(16).expand(8, 16))


def test_mask_ratio_of_a_call_replaces_the_configurations(digits):
    model = seeded(SupMAEForPreTraining).eval()
    assert model(digits, mask_ratio=0.5).mask.sum(dim=1).eq(8).all()
    assert model(digits).mask.sum(dim=1).eq(12).all()


def test_a_share_of_k_patches_hides_k_patches():
    for num_patches in (16, 49, 196, 256, 784):
        for hidden in range(num_patches):
            assert SupMAEConfig().num_visible_patches(num_patches, hidden / num_patches) == num_patches - hidden
    assert SupMAEConfig().num_visible_patches(196, 0.6) == 78  # others are rounded down, as in MAE


def test_hidden_patches_do_not_reach_the_encoder(digits):
    model = seeded(SupMAEForPreTraining).eval()
    outputs = model(digits, noise=NOISE)
    hidden = outputs.mask.view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hidden.bool(), torch.randn_like(digits), digits)
    changed_outputs = model(changed, noise=NOISE)
    torch.testing.assert_close(outputs.logits, changed_outputs.logits)
    torch.testing.assert_close(outputs.class_logits, changed_outputs.class_logits)
    assert not torch.isclose(outputs.reconstruction_loss, changed_outputs.reconstruction_loss)


def test_nothing_hidden_gives_zero_reconstruction_loss(digits, digit_labels):
    model = seeded(SupMAEForPreTraining, mask_ratio=0.0).train()
    outputs = model(digits, labels=digit_labels)
    outputs.loss.backward()
    assert outputs.reconstruction_loss == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_single_visible_patch(digits, digit_labels):
    model = seeded(SupMAEForPreTraining, mask_ratio=0.9375).train()
    outputs = model(digits, labels=digit_labels)
    outputs.loss.backward()
    assert outputs.mask.sum(dim=1).eq(15).all() and torch.isfinite(outputs.loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "`mask_ratio` 1.0 leaves no visible patch of 16"),
        ({"mask_ratio": 0.99}, "`mask_ratio` 0.99 leaves no visible patch"),
        ({"mask_ratio": -0.5}, "`mask_ratio` -0.5"),
        ({"noise": torch.rand(8, 17)}, r"`noise` must have shape .*\(8, 16\), got \(8, 17\)"),
        ({"mask": torch.zeros(8, 4)}, r"`mask` must have shape .*\(8, 16\), got \(8, 4\)"),
        ({"mask": torch.ones(8, 16)}, "`mask` must be 1 for hidden .* at least one"),
        ({"mask": torch.full((8, 16), 2)}, "`mask` must be 1 for hidden"),
        ({"mask": torch.full((8, 16), 0.5)}, "`mask` must be 1 for hidden"),
        ({"mask": torch.eye(8, 16).cumsum(0)}, r"same number .*got \[1, 2, 3, 4, 5, 6, 7, 8\] hidden"),
        ({"mask": torch.zeros(8, 16), "mask_ratio": 0.5}, "leave out `noise` and `mask_ratio`"),
    ],
)
def test_bad_masking_is_refused(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        seeded(SupMAEModel)(digits, **arguments)


# --- images ---


@pytest.mark.parametrize("model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification])
def test_bad_images_are_refused(model_class, digits):
    model = seeded(model_class)
    with pytest.raises(ValueError, match="Images are 40x32 pixels .* made for 32x32.*interpolate_pos_encoding"):
        model(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ValueError, match="37x32 pixels .* cannot be cut into patches of 8x8"):
        model(torch.zeros(1, 3, 37, 32), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"\(batch_size, 3, height, width\), got \(8, 1, 32, 32\)"):
        model(digits[:, :1])
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        model(digits[0])
    with pytest.raises(ValueError, match="`pixel_values`"):
        model()


@pytest.mark.parametrize("model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification])
def test_other_sizes_by_interpolation(model_class, photographs):
    image = torch.tensor(photographs[0]).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size=(48, 72))
    model = seeded(model_class).eval()
    outputs = model(image, interpolate_pos_encoding=True, output_hidden_states=True)
    if model_class is SupMAEForPreTraining:
        assert outputs.logits.shape == (1, 54, 192) and torch.isfinite(outputs.loss)
        assert model.predicted_pixel_values(outputs.logits, image).shape == image.shape
    else:
        assert outputs.hidden_states[0].shape == (1, 55, 64)


def test_interpolation_keeps_the_encoder_of_vit_mae(tmp_path, photographs):
    image = torch.tensor(photographs[1]).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size=(48, 72))
    noise = torch.rand(1, 54)
    vit_mae = ViTMAEModel(vit_mae_config()).eval()
    vit_mae.save_pretrained(tmp_path)
    supmae = SupMAEModel.from_pretrained(tmp_path).eval()
    expected = vit_mae(image, noise=noise, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(
        supmae(image, noise=noise, interpolate_pos_encoding=True).last_hidden_state, expected, atol=1e-5, rtol=1e-5
    )


def test_interpolation_to_the_own_size_changes_nothing(digits):
    model = seeded(SupMAEForPreTraining).eval()
    plain, interpolated = (model(digits, noise=NOISE, interpolate_pos_encoding=flag) for flag in (False, True))
    assert torch.equal(plain.logits, interpolated.logits)


def test_non_square_configurations(photographs, digit_labels):
    config_fields = {"image_size": (32, 48), "patch_size": (8, 4)}
    model = seeded(SupMAEForPreTraining, **config_fields).train()
    images = torch.stack([torch.tensor(photo) for photo in photographs]).permute(0, 3, 1, 2).float() / 255
    images = torch.nn.functional.interpolate(images, size=(32, 48))
    outputs = model(images, labels=digit_labels[:2])
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 48, 96)
    assert torch.equal(model.unpatchify(model.patchify(images)), images)


@pytest.mark.parametrize("num_channels", [1, 4, 7])
def test_any_number_of_channels(num_channels, digits, digit_labels):
    images = digits.mean(dim=1, keepdim=True).repeat(1, num_channels, 1, 1)
    model = seeded(SupMAEForPreTraining, num_channels=num_channels).train()
    outputs = model(images, labels=digit_labels)
    outputs.loss.backward()
    assert outputs.logits.shape == (8, 16, 64 * num_channels)


def test_patchify_and_back_as_in_vit_mae(digits):
    model, vit_mae = seeded(SupMAEForPreTraining), ViTMAEForPreTraining(vit_mae_config())
    assert torch.equal(model.patchify(digits), vit_mae.patchify(digits))
    assert torch.equal(model.unpatchify(model.patchify(digits)), digits)
    with pytest.raises(ValueError, match="16 patches do not make up an image of 40x40 pixels"):
        model.unpatchify(model.patchify(digits), (40, 40))


def test_predicted_pixel_values_undo_the_normalisation(digits):
    model = seeded(SupMAEForPreTraining)
    patches = model.patchify(digits)
    normalised = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(model.predicted_pixel_values(normalised, digits), digits, atol=1e-5, rtol=1e-5)
    model.config.norm_pix_loss = False
    assert torch.equal(model.predicted_pixel_values(patches, digits), digits)


# --- labels and losses ---


def test_losses_of_the_paper(digits, digit_labels):
    model = seeded(SupMAEForPreTraining, classification_loss_weight=0.3, reconstruction_loss_weight=0.7).eval()
    outputs = model(digits, labels=digit_labels, noise=NOISE)
    expected = torch.nn.functional.cross_entropy(outputs.class_logits / 10, digit_labels)
    torch.testing.assert_close(outputs.classification_loss, expected)
    torch.testing.assert_close(outputs.loss, 0.7 * outputs.reconstruction_loss + 0.3 * outputs.classification_loss)
    patches = model.patchify(digits)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    error = ((outputs.logits - target) ** 2)[outputs.mask.bool()]
    torch.testing.assert_close(outputs.reconstruction_loss, error.mean())


def test_the_head_sees_the_mean_of_visible_patches_or_the_class_token(digits):
    for use_mean_pooling in (True, False):
        model = seeded(SupMAEForPreTraining, use_mean_pooling=use_mean_pooling).eval()
        tokens = model.vit(digits, noise=NOISE).last_hidden_state
        pooled = tokens[:, 1:].mean(dim=1) if use_mean_pooling else tokens[:, 0]
        expected = model.classification_head(pooled)
        torch.testing.assert_close(model(digits, noise=NOISE).class_logits, expected)


def test_unlabeled_images_train_the_reconstruction_only(digits, digit_labels):
    model = seeded(SupMAEForPreTraining).eval()  # evaluation: BatchNorm does not mix the images
    some = torch.where(torch.arange(8) % 2 == 0, digit_labels, -100)
    outputs = model(digits, labels=some, noise=NOISE)
    labeled = model(digits[::2], labels=digit_labels[::2], noise=NOISE[::2])
    torch.testing.assert_close(outputs.classification_loss, labeled.classification_loss)
    torch.testing.assert_close(outputs.reconstruction_loss, model(digits, noise=NOISE).reconstruction_loss)


def test_nothing_labeled_trains_as_mae(digits):
    unlabeled, mae = seeded(SupMAEForPreTraining).train(), seeded(SupMAEForPreTraining).train()
    first = unlabeled(digits, labels=torch.full((8,), -100), noise=NOISE)
    second = mae(digits, noise=NOISE)
    first.loss.backward()
    second.loss.backward()
    assert first.classification_loss == 0 and second.classification_loss is None and second.class_logits is None
    assert torch.equal(first.loss, second.loss)
    for (name, p), q in zip(unlabeled.named_parameters(), mae.parameters()):
        if name.startswith("classification_head"):
            assert p.grad.eq(0).all()
        elif p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad)


def test_class_logits_in_evaluation_without_labels(digits):
    assert seeded(SupMAEForPreTraining).eval()(digits).class_logits.shape == (8, 10)


@pytest.mark.parametrize("model_class", [SupMAEForPreTraining, SupMAEForImageClassification])
def test_labels_out_of_range_are_refused(model_class, digits, digit_labels):
    model = seeded(model_class)
    for wrong in (10, -1):
        with pytest.raises(ValueError, match=rf"Label {wrong} is outside \[0, 10\).*`num_labels`"):
            model(digits, labels=digit_labels.clone().index_fill(0, torch.tensor([3]), wrong))
    with pytest.raises(ValueError, match="one integer class index per image"):
        model(digits, labels=digit_labels[:4])
    model.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match="one integer class index per image"):
        model(digits, labels=digit_labels.float())


@pytest.mark.parametrize("model_class", [SupMAEForPreTraining, SupMAEForImageClassification])
def test_multi_label(model_class, digits):
    model = seeded(model_class, problem_type="multi_label_classification", num_labels=4).eval()
    temperature = 10 if model_class is SupMAEForPreTraining else 1
    targets = torch.randint(0, 2, (8, 4), generator=torch.Generator().manual_seed(0)).float()
    targets[5] = -100  # no label
    keep = torch.arange(8) != 5
    outputs = model(digits, labels=targets)
    logits = outputs.get("class_logits", outputs.logits)
    loss = outputs.get("classification_loss", outputs.loss)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[keep] / temperature, targets[keep])
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\].* got 3"):
        model(digits, labels=targets * 0 + 3)
    with pytest.raises(ValueError, match=r"labels of shape \(8, 4\)"):
        model(digits, labels=targets[:, :2])


@pytest.mark.parametrize("model_class", [SupMAEForPreTraining, SupMAEForImageClassification])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression(model_class, num_labels, digits):
    model = seeded(model_class, problem_type="regression", num_labels=num_labels).eval()
    targets = torch.randn(8, num_labels, generator=torch.Generator().manual_seed(0))
    outputs = model(digits, labels=targets[:, 0] if num_labels == 1 else targets)
    logits = outputs.get("class_logits", outputs.logits)
    loss = outputs.get("classification_loss", outputs.loss)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(logits, targets))


def test_problem_type_follows_from_the_first_labels(digits, digit_labels):
    """And stays, as in Transformers' classifiers: the pipeline of a multi-label model needs it."""
    one_hot = torch.nn.functional.one_hot(digit_labels, 10).float()
    for labels, problem_type, loss in (
        (digit_labels, "single_label_classification", torch.nn.functional.cross_entropy),
        (one_hot, "multi_label_classification", torch.nn.functional.binary_cross_entropy_with_logits),
    ):
        model = seeded(SupMAEForImageClassification, num_labels=10).eval()
        outputs = model(digits, labels=labels)
        torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))
        assert model.config.problem_type == problem_type


def test_linear_head_trains_on_one_image(digits, digit_labels):
    with pytest.raises(ValueError, match="batch of 1 image.*classifier_hidden_size=0"):
        seeded(SupMAEForPreTraining).train()(digits[:1], labels=digit_labels[:1])
    model = seeded(SupMAEForPreTraining, classifier_hidden_size=0).train()
    model(digits[:1], labels=digit_labels[:1]).loss.backward()
    assert sum(p.numel() for p in model.classification_head.parameters()) == 64 * 10 + 10


def test_zero_weights_switch_branches_off(digits, digit_labels):
    mae = seeded(SupMAEForPreTraining, classification_loss_weight=0.0).eval()
    outputs = mae(digits, labels=digit_labels, noise=NOISE)
    assert torch.equal(outputs.loss, outputs.reconstruction_loss)
    supervised = seeded(SupMAEForPreTraining, reconstruction_loss_weight=0.0, classification_loss_weight=1.0).eval()
    outputs = supervised(digits, labels=digit_labels, noise=NOISE)
    assert torch.equal(outputs.loss, outputs.classification_loss)


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    model = seeded(SupMAEModel, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0.0, 0.2, 0.4])
    drop_path = model.layers[-1].drop_path.train()
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / 0.6]))
    assert dropped.eq(dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))


# --- weights ---


def test_initialisation_is_maes():
    model = seeded(SupMAEForPreTraining, hidden_size=256, intermediate_size=1024, classifier_hidden_size=512)
    layer = model.vit.layers[0]
    bounds = {
        layer.attention.q_proj: math.sqrt(6 / (256 + 3 * 256)),  # one fused matrix in MAE
        layer.attention.o_proj: math.sqrt(6 / (256 + 256)),
        layer.mlp.fc1: math.sqrt(6 / (256 + 1024)),
        model.vit.embeddings.patch_embeddings.projection: math.sqrt(6 / (3 * 64 + 256)),
        model.classification_head.fc1: math.sqrt(6 / (256 + 512)),
    }
    for module, bound in bounds.items():
        weight = module.weight.detach()
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01) and weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert layer.mlp.fc1.bias.eq(0).all()
    assert model.vit.embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(model.vit.embeddings.position_embeddings, sincos_position_embeddings((4, 4), 256))


def test_position_embeddings_are_trained_in_fine_tuning_only(tmp_path):
    seeded(SupMAEForPreTraining).save_pretrained(tmp_path)
    for model_class, trained in [
        (SupMAEModel, False),
        (SupMAEForPreTraining, False),
        (SupMAEForImageClassification, True),
    ]:
        for model in (seeded(model_class), model_class.from_pretrained(tmp_path)):
            positions = [p for name, p in model.named_parameters() if "position_emb" in name or "decoder_pos" in name]
            assert positions and all(p.requires_grad is trained for p in positions)
            others = [
                p for name, p in model.named_parameters() if "position_emb" not in name and "decoder_pos" not in name
            ]
            assert all(p.requires_grad for p in others)


def test_pretrained_weights_reach_the_classifier(tmp_path, digits):
    pretrained = seeded(SupMAEForPreTraining).eval()
    pretrained.save_pretrained(tmp_path)
    for use_mean_pooling, new in [(True, {"classifier", "fc_norm"}), (False, {"classifier"})]:
        model, info = SupMAEForImageClassification.from_pretrained(
            tmp_path, output_loading_info=True, num_labels=5, use_mean_pooling=use_mean_pooling
        )
        assert {key.split(".")[0] for key in info["missing_keys"]} == new
        assert not info["unexpected_keys"]
        expected = pretrained.vit(digits, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(model.vit(digits, output_hidden_states=True).hidden_states[-1], expected)
        assert model(digits).logits.shape == (8, 5)


def vit_mae_config(**fields) -> ViTMAEConfig:
    names = ViTMAEConfig().to_dict().keys() - {"model_type", "id2label", "label2id"}
    shared = {name: value for name, value in reference_config().to_dict().items() if name in names}
    return ViTMAEConfig(**{**shared, **fields})


def to_old_layout(state_dict):
    """The parameter names of ViTMAE before Transformers 5.12."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.replace("vit.layers.", "vit.encoder.layer.")
        for new, old in [
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("layout", ["installed", "old"])
def test_vit_mae_checkpoints_load(tmp_path, layout, digits):
    vit_mae = ViTMAEForPreTraining(vit_mae_config(norm_pix_loss=True)).eval()
    vit_mae.save_pretrained(tmp_path / "vit_mae")
    if layout == "old":
        from safetensors.torch import load_file, save_file

        file = tmp_path / "vit_mae" / "model.safetensors"
        save_file(to_old_layout(load_file(file)), file, metadata={"format": "pt"})
    supmae, info = SupMAEForPreTraining.from_pretrained(tmp_path / "vit_mae", output_loading_info=True)
    assert all(key.startswith("classification_head.") for key in info["missing_keys"])
    assert not info["unexpected_keys"]
    supmae.eval()
    theirs, ours = vit_mae(digits, noise=NOISE), supmae(digits, noise=NOISE)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.mask, theirs.mask) and torch.equal(ours.ids_restore, theirs.ids_restore)

    supmae.save_pretrained(tmp_path / "supmae")  # under our names, whatever the loaded file called them
    from safetensors import safe_open

    with safe_open(tmp_path / "supmae" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(supmae.state_dict())


# --- compilation, half precision ---


@pytest.mark.parametrize("model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification])
def test_compiles_to_one_graph(model_class, digits, digit_labels):
    model = seeded(model_class).eval()
    labels = {} if model_class is SupMAEModel else {"labels": digit_labels}
    if model_class is SupMAEForPreTraining:
        labels["noise"] = NOISE
    expected = model(digits, **labels)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(digits, **labels)
    torch.testing.assert_close(compiled[0], expected[0], atol=1e-5, rtol=1e-5)
    if model_class is SupMAEForPreTraining:
        model.train()
        reference = copy.deepcopy(model)
        torch.compile(model, fullgraph=True, backend="aot_eager")(digits, **labels).loss.backward()
        reference(digits, **labels).loss.backward()
        for (name, p), q in zip(model.named_parameters(), reference.parameters()):
            if p.requires_grad and not name.endswith(("k_proj.bias", "fc1.bias")):  # zero up to rounding
                torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_a_mask_compiles_to_one_graph(digits):
    model = seeded(SupMAEForPreTraining).eval()
    mask = torch.zeros(8, 16).index_fill(1, torch.arange(12), 1)
    mask[0] = mask[0].flip(0)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(digits, mask=mask).loss, model(digits, mask=mask).loss)
    with pytest.raises(RuntimeError, match="masks that hide `config.mask_ratio`"):
        compiled(digits, mask=mask.index_fill(1, torch.tensor([0]), 0))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_compiles_with_inductor(digits, digit_labels):
    model = seeded(SupMAEForPreTraining).train()
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)(digits, labels=digit_labels, noise=NOISE)
    compiled.loss.backward()
    expected = reference(digits, labels=digit_labels, noise=NOISE)
    torch.testing.assert_close(compiled.loss, expected.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_class", [SupMAEModel, SupMAEForPreTraining, SupMAEForImageClassification])
def test_half_precision(model_class, dtype, digits, digit_labels):
    model = seeded(model_class).eval()
    arguments = {"noise": NOISE} if model_class is SupMAEForPreTraining else {}
    expected = model(digits, **arguments)
    half = copy.deepcopy(model).to(dtype)
    outputs = half(digits, **arguments)  # float32 images are converted
    key = "last_hidden_state" if model_class is SupMAEModel else "logits"
    assert outputs[key].dtype == dtype
    torch.testing.assert_close(outputs[key].float(), expected[key], atol=0.1, rtol=0.1)
    if model_class is not SupMAEModel:
        half.train()(digits, labels=digit_labels, **arguments).loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


def test_bfloat16_autocast(digits, digit_labels):
    model = seeded(SupMAEForPreTraining).train()
    expected = copy.deepcopy(model)(digits, labels=digit_labels, noise=NOISE).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(digits, labels=digit_labels, noise=NOISE).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)


def test_grey_digits_have_one_channel():
    model = seeded(SupMAEForImageClassification, num_channels=1).eval()
    assert model(digit_pixel_values(range(4), num_channels=1)).logits.shape == (4, 10)


def test_no_recompilation_across_steps(digits, digit_labels):
    model = seeded(SupMAEForPreTraining, problem_type="single_label_classification").train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            compiled(digits + step, labels=digit_labels.roll(step), noise=NOISE.roll(step, 0)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
