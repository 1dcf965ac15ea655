"""Parameter groups and schedules against the authors' published logs and figures."""

import json

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT, reference_config

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cli import parse_arguments
from supmae_hf.data.arguments import DataArguments
from supmae_hf.interchange.convert import revert_original_state_dict
from supmae_hf.training.arguments import FineTuningArguments, ModelArguments, PreTrainingArguments
from supmae_hf.training.optimization import create_optimizer, create_scheduler, parameter_groups


def recipe(name: str, arguments_class, accumulation: int):
    """The training arguments of a published recipe, its images a step gathered on one process."""
    path = ROOT / "examples" / "configs" / f"{name}_vit_b_imagenet.yaml"
    argv = [str(path), "--use_cpu", "--bf16", "False", "--report_to", "none"]
    argv += ["--gradient_accumulation_steps", str(accumulation)]
    return parse_arguments((ModelArguments, DataArguments, arguments_class), base=name, argv=argv)[2]


@pytest.mark.parametrize(
    ("name", "arguments_class", "model_class", "accumulation", "images", "steps_per_epoch"),
    [
        ("pretrain", PreTrainingArguments, SupMAEForPreTraining, 64, 4096, 312),
        ("finetune", FineTuningArguments, SupMAEForImageClassification, 32, 1024, 1251),
    ],
)
def test_schedule_equals_the_published_log(name, arguments_class, model_class, accumulation, images, steps_per_epoch):
    args = recipe(name, arguments_class, accumulation)
    assert args.total_batch_size == images
    published = json.loads((FIXTURES / f"published_{name}_learning_rates.json").read_text())
    num_steps = len(published) * steps_per_epoch
    optimizer = create_optimizer(model_class(reference_config()), args)
    scheduler = create_scheduler(optimizer, args, num_steps)
    top = int(np.argmax(scheduler.base_lrs))  # the log has the highest of the layers' rates
    rates = [scheduler.base_lrs[top] * scheduler.lr_lambdas[top](step) for step in range(num_steps)]
    means = np.reshape(rates, (len(published), steps_per_epoch)).mean(axis=1)
    np.testing.assert_allclose(means, published, rtol=1e-9, atol=0)


def test_layer_decay_groups_equal_the_authors():
    expected = json.loads((FIXTURES / "official_layer_decay_groups.json").read_text())
    model = SupMAEForImageClassification(reference_config())
    settings = {}
    for group in parameter_groups(model, learning_rate=1.0, weight_decay=0.05, layer_decay=0.65):
        for name in group["names"]:
            settings[name] = (group["lr"], group["weight_decay"])
    assert settings.keys() == {name for name, _ in model.named_parameters()}
    # the authors' names: queries, keys and values are one tensor there, which agrees
    original = {
        column: revert_original_state_dict(
            {
                name: torch.full_like(parameter, settings[name][column], dtype=torch.float64)
                for name, parameter in model.named_parameters()
            }
        )
        for column in (0, 1)
    }
    assert original[0].keys() == expected.keys()
    for name, values in expected.items():
        assert original[0][name].unique().tolist() == [pytest.approx(values["lr_scale"], rel=1e-12)]
        assert original[1][name].unique().tolist() == [values["weight_decay"]]


def test_pretraining_decays_everything_but_vectors():
    model = SupMAEForPreTraining(reference_config())
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.05)
    parameters = dict(model.named_parameters())
    for group in groups:
        assert group["lr"] == 1.0
        for name in group["names"]:
            assert group["weight_decay"] == (0.05 if parameters[name].ndim > 1 else 0.0), name
    trained = {name for group in groups for name in group["names"]}
    assert trained == {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert parameters.keys() - trained == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


def test_minimum_learning_rate_is_reached(tmp_path):
    args = FineTuningArguments(
        output_dir=tmp_path,
        base_learning_rate=1e-3,
        min_learning_rate=1e-4,
        lr_scheduler_type="cosine",
        layer_decay=0.65,
        use_cpu=True,
        report_to="none",
    )
    optimizer = create_optimizer(SupMAEForImageClassification(reference_config()), args)
    scheduler = create_scheduler(optimizer, args, 100)
    ends = [rate * scale(100) for rate, scale in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
    # the same share of each layer's rate
    assert ends == pytest.approx([rate * 1e-4 / args.learning_rate for rate in scheduler.base_lrs])
