"""Kinds of supervision in the model: targets and losses against computations by hand, and a kind of one's own."""

import math

import pytest
import torch
from conftest import ROOT, BrightnessHead, digit_pixel_values, reference_config

from supmae_hf import SupMAEBackbone, SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel
from supmae_hf.supervision_supmae import (
    SUPERVISIONS,
    UNLABELED,
    SupMAECaptionHead,
    SupMAEDenseHead,
)


def model_of(supervision, **fields) -> SupMAEForPreTraining:
    fields = {"caption_vocab_size": 6, "dense_classes": ["ground", "line", "spot"], **fields}
    return SupMAEForPreTraining(reference_config(supervision=supervision, **fields))


@pytest.fixture
def caption_ids() -> torch.Tensor:
    ids = torch.full((8, 4), UNLABELED)
    ids[0, :3] = torch.tensor([1, 2, 4])
    ids[1, :1] = 2
    ids[2, :4] = torch.tensor([0, 2, 3, 5])
    return ids


@pytest.fixture
def dense_labels(digits) -> torch.Tensor:
    labels = (digits.mean(dim=1) > 0).long()
    labels[:, :8, :8] = UNLABELED  # the first patch
    labels[4:] = UNLABELED
    return labels


def test_targets_of_captions_by_hand(caption_ids):
    head = model_of("captions").supervision["captions"]
    assert torch.equal(head.token_weights(), torch.ones(6))
    head.set_frequencies(torch.tensor([1, 3, 7, 0, 1, 2]), 8)
    weights = torch.tensor([math.log(8 / (1 + count)) for count in (1, 3, 7, 0, 1, 2)])
    torch.testing.assert_close(head.token_weights(), weights)  # token 2 is in nearly all captions and weighs nothing
    shares = head.shares(caption_ids)
    torch.testing.assert_close(shares[0], torch.tensor([0, 1, 0, 0, 2, 0]) / 3)  # log 2 and log 4
    assert not shares[1].any() and not shares[3:].any()
    torch.testing.assert_close(shares[2].sum(), torch.tensor(1.0))
    assert head.count(caption_ids).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    logits = torch.randn(8, 6)
    expected = -(logits.log_softmax(1) * shares).sum(1)
    torch.testing.assert_close(head.losses(logits, caption_ids), expected)
    torch.testing.assert_close(head.loss(logits, caption_ids, None), (expected[0] + expected[2]) / 2)
    again = caption_ids.clone()
    again[0, 3] = 4  # a word that comes twice
    assert torch.equal(head.shares(again), shares)
    with pytest.raises(ValueError, match=r"Token 6 is outside \[0, 6\)"):
        head.shares(caption_ids.masked_fill(caption_ids == 5, 6))


def test_targets_of_patches_by_hand():
    head = model_of("dense").supervision["dense"]
    labels = torch.full((1, 32, 32), UNLABELED)
    labels[0, :8, 8:16] = 1  # the second patch is a line
    labels[0, :8, 16:24] = 0
    labels[0, :2, 16:20] = 2  # 8 of the third one's pixels are a spot
    labels[0, 8, 0] = 2  # one pixel of the fifth patch is labelled
    shares = head.shares(labels)[0]
    assert shares.shape == (16, 3)
    assert shares[1].tolist() == [0, 1, 0] and shares[2].tolist() == [1 - 8 / 64, 0, 8 / 64]
    assert shares[4].tolist() == [0, 0, 1] and not shares[[0, 3, *range(5, 16)]].any()
    logits = torch.randn(1, 16, 3)
    mask = torch.zeros(1, 16)
    mask[0, 2] = 1  # hidden
    losses = -(logits[0].log_softmax(-1) * shares).sum(-1)
    torch.testing.assert_close(head.loss(logits, labels, mask), (losses[1] + losses[4]) / 2)
    with_hidden = SupMAEDenseHead(reference_config(dense_classes=3, dense_hidden_patches=True))
    torch.testing.assert_close(with_hidden.loss(logits, labels, mask), (losses[1] + losses[2] + losses[4]) / 3)
    assert head.loss(logits, torch.full_like(labels, UNLABELED), mask) == 0
    with pytest.raises(ValueError, match=r"Pixels of class 3 are outside \[0, 3\)"):
        head.shares(labels.masked_fill(labels == 2, 3))


def test_predictions_are_those_of_their_patches(digits):
    """In raster order, visible ones from the encoder's tokens, hidden ones from the decoder's."""
    for hidden in (False, True):
        model = model_of("dense", dense_hidden_patches=hidden).eval()
        outputs = model(digits, noise=torch.rand(8, 16), output_hidden_states=True)
        logits, head = outputs.supervision_logits["dense"], model.supervision["dense"]
        encoded = model.vit(digits, noise=torch.rand(8, 16))
        assert encoded.last_hidden_state.shape[1] == 5
        encoded = model.vit(digits, mask=outputs.mask).last_hidden_state[:, 1:]  # visible patches in raster order
        expected = head.visible_classifier(encoded).flatten(0, 1)
        torch.testing.assert_close(logits[outputs.mask == 0], expected, atol=1e-5, rtol=0)
        assert logits[outputs.mask == 1].any() == hidden


def test_several_kinds_at_once(digits, digit_labels, caption_ids, dense_labels):
    weights = {"labels": 0.3, "captions": 0.2, "dense": 0.1}
    model = model_of(weights).train()
    noise = torch.rand(8, 16)
    outputs = model(digits, labels=digit_labels, noise=noise, caption_ids=caption_ids, segmentation_maps=dense_labels)
    losses = {"labels": outputs.classification_loss, **outputs.supervision_losses}
    expected = outputs.reconstruction_loss + sum(weights[kind] * losses[kind] for kind in weights)
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    alone = model(digits, labels=digit_labels, noise=noise)  # what an image has not got, it need not have
    assert alone.supervision_losses is None and alone.classification_loss is not None
    nothing = torch.full_like(caption_ids, UNLABELED)
    model.zero_grad()
    outputs = model(digits, caption_ids=nothing)
    assert outputs.supervision_losses["captions"] == 0
    outputs.loss.backward()
    assert not model.supervision["captions"].fc2.weight.grad.any()
    outputs = model.eval()(digits)
    assert outputs.supervision_logits["captions"].shape == (8, 6)
    assert outputs.supervision_logits["dense"].shape == (8, 16, 3)


def test_labels_are_as_they_were(digits, digit_labels):
    plain = SupMAEForPreTraining(reference_config())
    assert set(plain.state_dict()) == {name for name in plain.state_dict() if not name.startswith("supervision")}
    torch.manual_seed(0)
    one = SupMAEForPreTraining(reference_config(classification_loss_weight=0.5))
    torch.manual_seed(0)
    other = SupMAEForPreTraining(reference_config(supervision={"labels": 0.5}))
    outputs = [model.train()(digits, labels=digit_labels, noise=torch.ones(8, 16).cumsum(1)) for model in (one, other)]
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in ("loss", "logits", "class_logits"))


@pytest.mark.parametrize("supervision", ["captions", "dense", ["labels", "captions", "dense"]])
def test_checkpoints_load_into_every_class(supervision, digits, tmp_path):
    model = model_of(supervision).eval()
    if "captions" in supervision:
        model.supervision["captions"].set_frequencies(torch.arange(6), 7)
    model.save_pretrained(tmp_path)
    again, info = SupMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    for model_class in (SupMAEModel, SupMAEForImageClassification, SupMAEBackbone):
        part, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"]
    features = SupMAEModel.from_pretrained(tmp_path).eval()(digits).last_hidden_state
    assert torch.equal(features, model.vit(digits).last_hidden_state)


def test_a_kind_of_ones_own(digits, digit_labels, monkeypatch):
    monkeypatch.setitem(SUPERVISIONS, "brightness", BrightnessHead)
    model = model_of({"labels": 0.1, "brightness": 2.0}).train()
    brightness = digits.mean(dim=(1, 2, 3))
    brightness[3:] = UNLABELED
    outputs = model(digits, labels=digit_labels, brightness=brightness)
    logits = outputs.supervision_logits["brightness"]
    expected = (logits[:3] - brightness[:3]).square().mean()
    torch.testing.assert_close(outputs.supervision_losses["brightness"], expected)
    terms = outputs.reconstruction_loss + 0.1 * outputs.classification_loss + 2 * expected
    torch.testing.assert_close(outputs.loss, terms)


@pytest.mark.slow
def test_the_documents_example_runs():
    text = (ROOT / "docs" / "supervision.md").read_text()
    names = {}
    exec(text.split("```python\n")[-1].split("```")[0], names)
    losses = names["outputs"].supervision_losses
    SUPERVISIONS.pop("age")
    assert losses["age"] > 0 and names["outputs"].classification_loss > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"supervision": "words"}, "`supervision` names 'words', which is none of"),
        ({"supervision": []}, "`supervision` must be a kind"),
        ({"supervision": {"labels": -1}}, "weights of `supervision` must be at least 0"),
        ({"supervision": "captions", "caption_vocab_size": 0}, "needs `caption_vocab_size`"),
        ({"supervision": "dense", "dense_classes": ["one"]}, "needs `dense_classes`, two or more"),
        ({"supervision": {"labels": 0.0}, "reconstruction_loss_weight": 0.0}, "nothing to"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SupMAEForPreTraining(reference_config(**fields))


def test_targets_that_do_not_fit_are_refused(digits, digit_labels, caption_ids, dense_labels, caplog):
    both, labels_alone, captions_alone = model_of(["captions", "dense"]), model_of("labels"), model_of("captions")
    for model, targets, message in (
        (
            labels_alone,
            {"caption_ids": caption_ids},
            "No kind of the model's `supervision`, 'labels', reads `caption_ids`",
        ),
        (captions_alone, {"segmentation_maps": dense_labels}, "reads `segmentation_maps`: leave it out"),
        (both, {"caption_ids": caption_ids[0]}, r"must have shape \(batch_size, length\), 8 rows, got \(4,\)"),
        (both, {"segmentation_maps": dense_labels[:, :16]}, r"= \(8, 32, 32\), got \(8, 16, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(digits, **targets)
    captions_alone = model_of({"captions": 0.123})  # said once, of this one here alone
    captions_alone(digits, labels=torch.full_like(digit_labels, UNLABELED), caption_ids=caption_ids)
    assert "does not read" not in caplog.text
    captions_alone(digits, labels=digit_labels, caption_ids=caption_ids)
    assert "{'captions': 0.123}, does not read `labels`" in caplog.text


def test_tags_need_captions():
    with pytest.raises(ValueError, match="has captions"):
        model_of("labels").tag(digit_pixel_values(range(2)))
    assert isinstance(model_of("captions").supervision["captions"], SupMAECaptionHead)


def test_images_whose_labelled_patches_are_all_hidden_do_not_count():
    config = reference_config(supervision="dense", dense_classes=["a", "b"])
    head = SUPERVISIONS["dense"](config)
    maps = torch.full((2, 32, 32), -100, dtype=torch.int32)
    maps[:, :8, :8] = 1  # one patch of 16
    mask = torch.zeros(2, 16)
    mask[0, 0] = 1  # hidden in the first image
    logits = torch.randn(2, 16, 2)
    expected = torch.nn.functional.cross_entropy(logits[1, :1], torch.tensor([1]))
    torch.testing.assert_close(head.loss(logits, maps, mask), expected)
    assert head.counted(maps, mask).tolist() == [0, 1] and head.count(maps).tolist() == [1, 1]
    assert head.loss(logits, maps, torch.ones(2, 16)) == 0
