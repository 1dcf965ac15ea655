"""Equality with the authors' code: outputs, gradients, a training trajectory, and names there and back."""

import json

import pytest
import torch
from conftest import FIXTURES, digit_pixel_values, load_example, load_original, load_reference, reference_config
from sklearn.datasets import load_digits

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.conversion_supmae import convert_tensors
from supmae_hf.data.arguments import DataArguments
from supmae_hf.interchange.convert import revert_original_state_dict
from supmae_hf.preparation import build_image_processor
from supmae_hf.training.arguments import ModelArguments, PreTrainingArguments
from supmae_hf.training.job import Job
from supmae_hf.training.optimization import parameter_groups
from supmae_hf.training.trainer import PreTrainer


@pytest.fixture
def reference():
    return load_reference("official_pretrain_tiny_outputs.safetensors")


def reference_model(**fields) -> SupMAEForPreTraining:
    return from_original(SupMAEForPreTraining, reference_config(**fields), "official_pretrain_tiny.pth")


def from_original(model_class, config, name: str):
    model = model_class(config)
    model.load_state_dict(convert_tensors(load_original(name), config.num_patches))
    return model


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance, check_dtype=False)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
def test_outputs_equal_the_authors(reference, mask_ratio, attn_implementation):
    model = reference_model(mask_ratio=mask_ratio).eval()
    model.set_attn_implementation(attn_implementation)
    expected = {
        name.split(".")[1]: value
        for name, value in reference.items()
        if name.startswith(f"eval_mask{mask_ratio * 100:.0f}.")
    }
    with torch.no_grad():
        outputs = model(reference["pixel_values"], labels=reference["labels"], noise=expected["noise"])
        encoded = model.vit(reference["pixel_values"], noise=expected["noise"], mask_ratio=mask_ratio)
    assert_close(encoded.last_hidden_state, expected["latent"])
    assert torch.equal(outputs.mask, expected["mask"])
    assert torch.equal(outputs.ids_restore, expected["ids_restore"])
    assert_close(outputs.logits, expected["pred"])
    assert_close(outputs.class_logits, expected["class_logits"])
    assert_close(outputs.reconstruction_loss, expected["reconstruction_loss"])
    assert_close(outputs.classification_loss, expected["classification_loss"])
    assert_close(outputs.loss, expected["reconstruction_loss"] + 0.01 * expected["classification_loss"])


def test_gradients_equal_the_authors(reference):
    model = reference_model().train()
    outputs = model(reference["pixel_values"], labels=reference["labels"], noise=reference["train.noise"])
    assert_close(outputs.class_logits, reference["train.class_logits"])
    assert_close(outputs.reconstruction_loss, reference["train.reconstruction_loss"])
    assert_close(outputs.classification_loss, reference["train.classification_loss"])
    assert_close(outputs.loss, reference["train.total_loss"])
    outputs.loss.backward()
    gradients = revert_original_state_dict(
        {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    )
    expected = {
        name.removeprefix("train.grad."): value for name, value in reference.items() if name.startswith("train.grad.")
    }
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        if name == "cls_head.0.bias":  # exactly zero: BatchNorm cancels it
            assert gradients[name].norm() < 1e-8
        else:
            assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


class Items(list):
    """A data set whose epochs do not differ."""


def train_with_trainer(model, items, args):
    trainer = PreTrainer(model=model, train_dataset=items, args=args)
    trainer.train()
    return trainer.state.log_history


def train_with_accelerate(model, items, args):
    script = load_example("run_pretrain_no_trainer.py")
    job = Job("pre-training", "Pre-trained", ModelArguments(), DataArguments(), args, data=None, model=model)
    job.image_processor, job.train_dataset = build_image_processor(model.config), items
    return script.train(job, checkpoint=None)[0]


@pytest.mark.parametrize("train", [train_with_trainer, train_with_accelerate])
def test_training_trajectory_equals_the_authors(tmp_path, train):
    trajectory = json.loads((FIXTURES / "official_trajectory.json").read_text())
    tensors = load_reference("official_trajectory.safetensors")
    steps = range(len(trajectory["steps"]))
    indices = torch.cat([tensors[f"{step}.digit_index"] for step in steps])
    items = Items(
        {"pixel_values": pixel_values, "labels": label, "noise": noise}
        for pixel_values, label, noise in zip(
            digit_pixel_values(indices),
            torch.tensor(load_digits().target)[indices],
            torch.cat([tensors[f"{step}.noise"] for step in steps]),
        )
    )
    model = reference_model(classification_loss_weight=trajectory["classification_loss_weight"])
    args = PreTrainingArguments(
        output_dir=tmp_path,
        lr_scheduler_type="cosine",
        weight_decay=0.05,
        adam_beta2=0.95,
        train_sampling_strategy="sequential",
        learning_rate=trajectory["peak_learning_rate"],
        num_train_epochs=1,
        warmup_epochs=trajectory["warmup_epochs"] / trajectory["epochs"],  # all its epochs are one epoch here
        per_device_train_batch_size=trajectory["batch_size"],
        logging_steps=1,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    log = [entry for entry in train(model, items, args) if "loss" in entry]

    decayed = {
        name: torch.zeros(1)
        for group in parameter_groups(model, args.learning_rate, args.weight_decay)
        if group["weight_decay"]
        for name in group["names"]
    }
    assert revert_original_state_dict(decayed).keys() == set(trajectory["decay"])
    assert len(log) == len(steps)
    for entry, expected in zip(log, trajectory["steps"]):
        assert entry["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-9, abs=1e-12)
        assert entry["reconstruction_loss"] == pytest.approx(expected["reconstruction_loss"], rel=1e-5)
        weighted = 0.01 * entry["classification_loss"]
        assert weighted == pytest.approx(expected["weighted_classification_loss"], rel=1e-5)
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5)

    final = revert_original_state_dict(model.state_dict())
    expected_final = {n.removeprefix("final."): value for n, value in tensors.items() if n.startswith("final.")}
    assert final.keys() == expected_final.keys()
    for name, expected in expected_final.items():
        actual = final[name]
        if name in ("cls_head.0.bias", "cls_head.1.running_mean"):  # exact gradient zero: Adam amplifies rounding
            assert_close(actual, expected, 1e-3)
        elif name.endswith("qkv.bias"):
            for part, (a, b) in enumerate(zip(actual.chunk(3), expected.chunk(3))):
                assert_close(a, b, 1e-3 if part == 1 else 1e-5)  # the keys' bias cancels in the softmax
        else:
            assert_close(actual, expected)


@pytest.mark.parametrize("pooling", ["global_pool", "cls_token"])
def test_classifiers_equal_the_authors(pooling):
    reference = load_reference("official_finetune_tiny_outputs.safetensors")
    config = reference_config(use_mean_pooling=pooling == "global_pool")
    model = from_original(SupMAEForImageClassification, config, f"official_finetune_tiny_{pooling}.pth")
    with torch.no_grad():
        assert_close(model(reference["pixel_values"]).logits, reference[f"{pooling}.logits"])


@pytest.mark.parametrize("name", ["pretrain_tiny", "finetune_tiny_global_pool", "finetune_tiny_cls_token"])
def test_names_there_and_back(name):
    original = load_original(f"official_{name}.pth")
    model_class = SupMAEForPreTraining if name.startswith("pretrain") else SupMAEForImageClassification
    config = reference_config(use_mean_pooling="fc_norm.weight" in original)
    reverted = revert_original_state_dict(from_original(model_class, config, f"official_{name}.pth").state_dict())
    assert reverted.keys() == original.keys()
    assert all(torch.equal(reverted[key], original[key]) for key in original)


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="'backbone.weight' is not the name of a SupMAE parameter"):
        revert_original_state_dict({"backbone.weight": torch.zeros(1)})


def test_fresh_position_embeddings_equal_the_authors():
    original = load_original("official_pretrain_tiny.pth")
    model = SupMAEForPreTraining(reference_config())
    assert torch.equal(model.vit.embeddings.position_embeddings, original["pos_embed"])
    assert torch.equal(model.decoder.decoder_pos_embed, original["decoder_pos_embed"])
