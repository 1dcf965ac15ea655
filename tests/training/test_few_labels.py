"""Runs of which few images have a label, or whose labels hardly count."""

import json

import pytest
import torch
from conftest import TINY, reference_config, run_example
from safetensors.torch import load_file

from supmae_hf import SupMAEForPreTraining
from supmae_hf.training.objective import branch_gradient_share


SCRIPTS = ["run_pretrain.py", "run_pretrain_no_trainer.py"]
RUN = ["--num_train_epochs", 5, "--warmup_epochs", 1, "--logging_steps", 10, "--report_to", "none"]
RUN += ["--disable_tqdm", "True", "--save_strategy", "no", "--eval_strategy", "no", "--use_cpu"]
RUN += ["--max_train_samples", 330, "--max_eval_samples", 20]


def run(script: str, cwd, *arguments, **fields):
    arguments = ["--model_config", json.dumps({**TINY, **fields}), *RUN, *arguments]
    return run_example(script, *arguments, "--output_dir", script, cwd=cwd)


def results(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return load_file(folder / "model.safetensors"), [entry for entry in log if "loss" in entry]


def test_labeled_images_are_repeated_by_both_scripts(tmp_path):
    printed = [run(script, tmp_path, "--label_fraction", 0.1, "--labeled_share", 0.5) for script in SCRIPTS]
    assert all("labelled images come 5.3 times an epoch on average (`--labeled_share`)" in text for text in printed)
    (weights, log), (other, _) = (results(tmp_path / script) for script in SCRIPTS)
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert all(abs(entry["labeled_images_per_step"] - 32) < 5 for entry in log)  # of 64


def test_few_labels_are_pointed_out(tmp_path):
    step = ["--max_steps", 1, "--warmup_epochs", 0]
    printed = run("run_pretrain.py", tmp_path, "--label_fraction", 0.1, *step)
    advice = "only 31 of 330 training images have a label, 6.0 of the 64 of a step: `--labeled_share 0.5` shows them"
    assert advice in printed
    assert "--labeled_share" not in run(
        "run_pretrain.py", tmp_path, "--label_fraction", 0.5, "--overwrite_output_dir", *step
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labeled_share", 0.5, "--streaming", "True"], "a stream does not allow: leave out `--streaming`"),
        (["--labeled_share", 0.5, "--train_sampling_strategy", "sequential"], "leave out `--train_sampling_strategy`"),
        (["--labeled_share", 0.5, "--classification_branch", "False"], "needs labels for some of the images"),
    ],
)
def test_bad_input_is_refused(tmp_path, arguments, message):
    arguments = [*RUN, *arguments, "--output_dir", "out"]
    error = run_example("run_pretrain.py", *arguments, cwd=tmp_path, fails=True)
    assert message in error and not (tmp_path / "out").exists()


def test_share_of_the_gradient(digits, digit_labels):
    model = SupMAEForPreTraining(reference_config(classification_loss_weight=0.3, hidden_dropout_prob=0.1)).train()
    model(digits, labels=digit_labels).loss.backward()
    before = {name: value.clone() for name, value in [*model.state_dict().items()]}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    torch.manual_seed(3)
    share = branch_gradient_share(model, {"pixel_values": digits, "labels": digit_labels})
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    after = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(torch.equal(*pair) for pair in zip(gradients, after, strict=True))

    encoder = [parameter for parameter in model.vit.parameters() if parameter.requires_grad]
    norms = []
    for weight in (0.0, 1.0):
        torch.manual_seed(3)
        outputs = model(digits, labels=digit_labels)
        loss = weight * outputs.reconstruction_loss + 0.3 * outputs.classification_loss
        norms.append(sum(x.square().sum() for x in torch.autograd.grad(loss, encoder, allow_unused=True)).sqrt())
    torch.testing.assert_close(share, norms[0] / norms[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_labels_that_hardly_count_are_pointed_out(tmp_path, warnings, script):
    run(script, tmp_path, "--label_fraction", 0.5, classification_loss_weight=1e-4)
    (warning,) = [record.message for record in warnings.records if "of the encoder's gradient" in record.message]
    assert "(step 20)" in warning and "Raise `classification_loss_weight` (0.0001)" in warning


def test_labels_that_count_are_not(tmp_path, warnings):
    run("run_pretrain.py", tmp_path, classification_loss_weight=0.1)
    run("run_pretrain.py", tmp_path, "--overwrite_output_dir", "True", classification_loss_weight=0.0)
    assert "of the encoder's gradient" not in warnings.text
