import time

import numpy as np
import pytest
import torch
from conftest import digit_pixel_values, reference_config
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from transformers.utils import logging

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.data.dataset import MixupCollator, collate
from supmae_hf.training.arguments import FineTuningArguments, PreTrainingArguments
from supmae_hf.training.progress import Progress
from supmae_hf.training.trainer import FineTuner, PreTrainer, RecipeTrainer


def dataset(size=24, labels=None, noise=True):
    labels = torch.tensor(load_digits().target[:size]) if labels is None else labels
    generator = torch.Generator().manual_seed(0)
    items = [{"pixel_values": x, "labels": y} for x, y in zip(digit_pixel_values(range(size)), labels)]
    for item in items:
        if noise:
            item["noise"] = torch.rand(16, generator=generator)
    return items


def arguments(tmp_path, cls=PreTrainingArguments, **kwargs):
    return cls(
        **{
            "output_dir": tmp_path,
            "num_train_epochs": 2,
            "warmup_epochs": 1,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 10,
            "logging_steps": 3,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **kwargs,
        }
    )


def test_evaluation_averages_over_images_and_labeled_images(tmp_path):
    items = dataset()
    for index in range(0, 24, 3):
        items[index]["labels"] = torch.tensor(-100)
    torch.manual_seed(0)
    model = SupMAEForPreTraining(reference_config()).eval()
    metrics = PreTrainer(model=model, args=arguments(tmp_path), eval_dataset=items).evaluate()

    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    with torch.no_grad():
        expected = model(**batch)
    labeled = batch["labels"] != -100
    accuracy = (expected.class_logits.argmax(-1) == batch["labels"])[labeled].float().mean()
    assert metrics["eval_reconstruction_loss"] == pytest.approx(expected.reconstruction_loss.item(), rel=1e-5)
    assert metrics["eval_classification_loss"] == pytest.approx(expected.classification_loss.item(), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(accuracy.item(), rel=1e-5)


def test_training_logs_the_averages_of_its_steps(tmp_path):
    items = dataset()
    for index in range(0, 24, 3):
        items[index]["labels"] = torch.tensor(-100)
    model = SupMAEForPreTraining(reference_config(classifier_hidden_size=0))
    # learning rate 0: the model stays as it is, so that the whole data set in one batch gives the same
    args = arguments(tmp_path, learning_rate=0.0, eval_strategy="no")
    trainer = PreTrainer(model=model, args=args, train_dataset=items)
    trainer.train()
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    with torch.no_grad():
        expected = model.eval()(**batch)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 2  # 3 steps an epoch
    for entry in log:
        assert entry["reconstruction_loss"] == pytest.approx(expected.reconstruction_loss.item(), rel=1e-5)
        assert entry["classification_loss"] == pytest.approx(expected.classification_loss.item(), rel=1e-5)
        assert 0 <= entry["accuracy"] <= 1 and entry["images_per_second"] > 0 and "learning_rate" in entry


@pytest.mark.parametrize(
    ("fields", "labels", "logged"),
    [
        ({}, torch.full((24,), -100), {"reconstruction_loss"}),
        (
            {"problem_type": "multi_label_classification", "num_labels": 3},
            torch.eye(3).repeat(8, 1),
            {"reconstruction_loss", "classification_loss"},
        ),
        (
            {"problem_type": "regression", "num_labels": 1},
            torch.arange(24.0),
            {"reconstruction_loss", "classification_loss"},
        ),
    ],
)
def test_other_labels(tmp_path, fields, labels, logged):
    model = SupMAEForPreTraining(reference_config(**fields))
    items = dataset(labels=labels)
    trainer = PreTrainer(model=model, args=arguments(tmp_path), train_dataset=items, eval_dataset=items)
    trainer.train()
    names = {"reconstruction_loss", "classification_loss", "accuracy"}
    train = next(entry for entry in trainer.state.log_history if "loss" in entry)
    held_out = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert names & set(train) == logged == {name.removeprefix("eval_") for name in held_out} & names
    assert all(np.isfinite(value) for value in train.values())


def test_data_without_labels_trains_as_mae(tmp_path):
    items = [{name: value for name, value in item.items() if name != "labels"} for item in dataset()]
    trainer = PreTrainer(
        model=SupMAEForPreTraining(reference_config()),
        args=arguments(tmp_path),
        train_dataset=items,
        eval_dataset=items,
    )
    trainer.train()
    logged = set().union(*trainer.state.log_history)
    assert {"reconstruction_loss", "eval_reconstruction_loss"} <= logged and "classification_loss" not in logged


def train_at_once_and_in_parts(tmp_path, items, **fields) -> list[tuple[dict, dict]]:
    """Train on batches of 8 and on 2 x 4 images; the weights must be the same. Returns the pairs of lines of the two logs."""
    weights, logs = [], []
    for batch_size, accumulation in [(8, 1), (4, 2)]:
        torch.manual_seed(0)
        model = SupMAEForPreTraining(reference_config(**fields))
        args = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            eval_strategy="no",
            logging_steps=1,
        )
        trainer = PreTrainer(model=model, args=args, train_dataset=items)
        trainer.train()
        weights.append({name: p for name, p in model.named_parameters() if not name.endswith("k_proj.bias")})
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=1e-5, rtol=1e-5, msg=name)
    return list(zip(*logs, strict=True))


@pytest.mark.parametrize(
    ("steps", "fields"), [(10**9, {}), (20, {}), (10**9, {"torch_compile": True}), (10**9, {"bf16": False})]
)
def test_long_runs_in_bf16_are_told_of_compilation(tmp_path, capsys, steps, fields):
    args = PreTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{"bf16": True, **fields})
    progress = Progress(SupMAEForPreTraining(reference_config()), args, 0, steps)
    for step in range(1, 12):
        time.sleep(1e-3)
        progress.end_step(step)
    printed = capsys.readouterr().out
    assert "steps to go" in printed
    assert ("`--torch_compile`" in printed) == (steps > 20 and not fields)


def test_gradient_accumulation_averages_over_the_steps(tmp_path):
    """With a linear head, whose images do not see each other, 2 x 4 images are 1 x 8 images."""
    train_at_once_and_in_parts(tmp_path, dataset(), classifier_hidden_size=0)


def test_accumulated_batches_count_each_label_once(tmp_path):
    """2 x 4 images are 1 x 8 images even if the first four have all the labels."""
    items = dataset(size=8)
    for item in items[3:]:
        item["labels"] = torch.tensor(-100)
    fields = {"classifier_hidden_size": 0, "classification_loss_weight": 1.0}
    for one, other in train_at_once_and_in_parts(tmp_path, items, **fields):
        assert one["labeled_images_per_step"] == other["labeled_images_per_step"] == 3
        for name in ("loss", "reconstruction_loss", "classification_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-5)


def test_accumulated_batches_do_not_count_hidden_labels(tmp_path):
    """Dense labels of hidden patches teach nothing: 2 x 4 images are 1 x 8 images even if those of three are hidden."""
    items = dataset(size=8)
    for index, item in enumerate(items):
        item["segmentation_maps"] = torch.full((32, 32), -100)
        item["segmentation_maps"][:8, :8] = index % 2
        item["noise"][0] = 2.0 if index < 3 else -1.0
    fields = {"supervision": {"dense": 1.0}, "dense_classes": ["a", "b"]}
    for one, other in train_at_once_and_in_parts(tmp_path, items, **fields):
        assert other["dense_loss"] == pytest.approx(one["dense_loss"], rel=1e-5)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_batch_norm_under_accumulation_is_mentioned(tmp_path, caplog):
    logging.enable_propagation()
    args = arguments(tmp_path, gradient_accumulation_steps=2, eval_strategy="no")
    PreTrainer(model=SupMAEForPreTraining(reference_config()), args=args)
    assert (
        "BatchNorm sees 8 images at a time: each of the 2 batches of a step has statistics of its own" in caplog.text
    )
    caplog.clear()
    PreTrainer(model=SupMAEForPreTraining(reference_config(classifier_hidden_size=0)), args=args)
    assert "BatchNorm" not in caplog.text


@pytest.mark.parametrize("mix", [True, False])
def test_finetuning_loss_is_timms(tmp_path, mix):
    """Mixed or smoothed targets in training, the plain cross entropy in evaluation."""
    items = dataset(size=8, noise=False)
    torch.manual_seed(0)
    model = SupMAEForImageClassification(reference_config())
    args = arguments(
        tmp_path,
        FineTuningArguments,
        learning_rate=0.0,
        logging_steps=1,
        num_train_epochs=1,
        label_smoothing_factor=0.1,
        train_sampling_strategy="sequential",
    )
    trainer = FineTuner(
        model=model,
        args=args,
        train_dataset=items,
        eval_dataset=items,
        data_collator=collate,
        mixup=Mixup(label_smoothing=0.1, num_classes=10) if mix else None,
    )
    trainer.train()
    trained = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    evaluated = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)

    model.eval()  # the learning rate is 0: the model is as it was
    batch = collate(items)
    mixed = MixupCollator(Mixup(label_smoothing=0.1, num_classes=10))(items)
    with torch.no_grad():
        logits, mixed_logits = model(batch["pixel_values"]).logits, model(mixed["pixel_values"]).logits
    assert evaluated == pytest.approx(torch.nn.CrossEntropyLoss()(logits, batch["labels"]).item(), rel=1e-5)
    if mix:
        assert trained == pytest.approx(SoftTargetCrossEntropy()(mixed_logits, mixed["labels"]).item(), rel=1e-5)
    else:
        assert trained == pytest.approx(LabelSmoothingCrossEntropy(0.1)(logits, batch["labels"]).item(), rel=1e-5)


def test_evaluation_keeps_the_last_batch(tmp_path):
    sizes = []

    def count(prediction):
        sizes.append(len(prediction.label_ids))
        return {}

    model = SupMAEForImageClassification(reference_config())
    items = dataset(noise=False)
    args = arguments(tmp_path, FineTuningArguments)
    trainer = RecipeTrainer(
        model=model, args=args, train_dataset=items[:20], eval_dataset=items[:23], compute_metrics=count
    )
    trainer.train()
    assert sizes == [23, 23] and trainer.state.global_step == 4  # 2 epochs of 2 whole batches
    assert args.dataloader_drop_last
