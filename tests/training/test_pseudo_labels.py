"""Unlabelled images that learn the model's own confident predictions."""

import json

import torch
from conftest import TINY, reference_config, run_example
from safetensors.torch import load_file

from supmae_hf import SupMAEForPreTraining
from supmae_hf.training.objective import pseudo_label_loss


RUN = ["--model_config", json.dumps({**TINY, "classification_loss_weight": 1.0, "classification_temperature": 1.0})]
RUN += ["--num_train_epochs", 3, "--warmup_epochs", 1, "--logging_steps", 5, "--label_fraction", 0.4]
RUN += ["--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no", "--use_cpu"]
RUN += ["--max_train_samples", 330, "--max_eval_samples", 20, "--base_learning_rate", 4e-3]


def run(script: str, folder: str, cwd, *arguments):
    run_example(script, *RUN, *arguments, "--output_dir", folder, cwd=cwd)
    log = json.loads((cwd / folder / "trainer_state.json").read_text())["log_history"]
    return load_file(cwd / folder / "model.safetensors"), [entry for entry in log if "loss" in entry]


def test_loss_equals_one_written_out(digits, digit_labels):
    model = SupMAEForPreTraining(reference_config(classification_temperature=2.0, hidden_dropout_prob=0.1)).train()
    with torch.no_grad():
        model.classification_head.fc2.weight.mul_(20)  # or else nothing is confident
    labels = digit_labels.clone()
    labels[::2] = -100
    outputs = model(digits, labels=labels)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        model.eval()
        probabilities = (
            model.classification_head(model.vit(digits).last_hidden_state[:, 1:].mean(dim=1)) / 2
        ).softmax(1)
        model.train()
    threshold = probabilities[labels == -100].max(dim=1).values.median().item()
    expected = []
    for index in range(len(digits)):
        if labels[index] == -100 and probabilities[index].max() >= threshold:
            scores = torch.log_softmax(outputs.class_logits[index] / 2, dim=0)
            expected.append(-scores[probabilities[index].argmax()])
    loss, count = pseudo_label_loss(model, model.config, outputs, digits, labels, threshold)
    assert 0 < count == len(expected) < 4 and model.training
    torch.testing.assert_close(loss, torch.stack(expected).sum() / 8, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    (gradient,) = torch.autograd.grad(loss, model.classification_head.fc2.weight)
    assert gradient.abs().sum() > 0


def test_both_scripts_do_the_same(tmp_path):
    threshold = ["--pseudo_label_threshold", 0.15]
    weights, log = run("run_pretrain.py", "trainer", tmp_path, *threshold)
    other, other_log = run("run_pretrain_no_trainer.py", "loop", tmp_path, *threshold)
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    counts = [entry["pseudo_labeled_images_per_step"] for entry in log]
    assert counts == [entry["pseudo_labeled_images_per_step"] for entry in other_log] and 0 < counts[-1] < 64 * 0.6
    without, _ = run("run_pretrain.py", "without", tmp_path)
    assert not torch.equal(weights["vit.embeddings.cls_token"], without["vit.embeddings.cls_token"])


def test_without_confidence_nothing_changes(tmp_path):
    weights, log = run("run_pretrain.py", "certain", tmp_path, "--pseudo_label_threshold", 1.0)
    without, _ = run("run_pretrain.py", "without", tmp_path)
    assert log[-1]["pseudo_labeled_images_per_step"] == 0
    assert all(torch.equal(weights[name], without[name]) for name in weights)


def test_labels_are_needed(tmp_path):
    arguments = [argument for argument in RUN if argument not in ("--label_fraction", 0.4)]
    arguments += ["--pseudo_label_threshold", 0.9, "--classification_branch", "False", "--output_dir", "out"]
    error = run_example("run_pretrain.py", *arguments, cwd=tmp_path, fails=True)
    assert "needs labels of one class an image" in error and not (tmp_path / "out").exists()
