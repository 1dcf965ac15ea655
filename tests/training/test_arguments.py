import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, TINY, digit_images

from supmae_hf.cli import parse_arguments, read_recipe
from supmae_hf.data.arguments import DataArguments
from supmae_hf.evaluation.probes import LinearProbeArguments
from supmae_hf.evaluation.segmentation import SegmentationDataArguments, UperNetArguments
from supmae_hf.training.arguments import (
    FineTuningArguments,
    ModelArguments,
    PreTrainingArguments,
    SegmentationArguments,
)
from supmae_hf.training.job import prepare_pretraining


CLASSES = (ModelArguments, DataArguments, PreTrainingArguments)
DIGITS = ROOT / "examples" / "configs" / "pretrain_digits.yaml"
CPU = ["--use_cpu", "--report_to", "none"]


def parse(argv, classes=CLASSES, base="pretrain"):
    return parse_arguments(classes, base, DIGITS, argv=argv)


def test_nothing_named_runs_the_default_recipe():
    model_args, data_args, training_args = parse(CPU)
    assert model_args.model_config["image_size"] == 32
    assert data_args.horizontal_flip is False and data_args.crop_scale == [0.6, 1.0]
    assert training_args.output_dir == "outputs/digits-pretrain"


def test_flags_override_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: there\nnum_train_epochs: 7\nhorizontal_flip: true\nseed: null\ncrop_scale: [0.3, 0.9]\n"
    )
    argv = [str(recipe), "--num_train_epochs", "30", "--horizontal-flip", "False", *CPU]
    _, data_args, training_args = parse(argv)
    assert (training_args.output_dir, training_args.num_train_epochs, training_args.seed) == ("there", 30, 42)
    assert data_args.horizontal_flip is False and data_args.crop_scale == [0.3, 0.9]


def test_model_config_overrides_the_fields_that_it_names():
    argv = [str(DIGITS), "--model_config", '{"mask_ratio": 0.6}', *CPU]
    model_config = parse(argv)[0].model_config
    assert model_config["mask_ratio"] == 0.6 and model_config["image_size"] == 32


@pytest.mark.parametrize("flag", ["--train_dir", "--train-dir", "--train_dir=photos"])
def test_naming_data_leaves_the_default_recipe_out(flag):
    argv = [flag] if "=" in flag else [flag, "photos"]
    model_args, data_args, training_args = parse([*argv, "--output_dir", "here", *CPU])
    assert data_args.train_dir == "photos" and model_args.model_config == {}
    # the paper's settings
    assert (training_args.num_train_epochs, training_args.warmup_epochs) == (400, 20)
    assert (training_args.adam_beta1, training_args.adam_beta2, training_args.weight_decay) == (0.9, 0.95, 0.05)
    assert training_args.max_grad_norm == 0 and training_args.lr_scheduler_type == "cosine"
    assert data_args.crop_scale == [0.2, 1.0] and data_args.horizontal_flip


def test_learning_rate_follows_the_batch():
    def rate(*argv):
        return parse(["--train_dir", "x", "--output_dir", "y", *CPU, *argv])[2].learning_rate

    assert rate("--per_device_train_batch_size", "128") == pytest.approx(1.5e-4 / 2)
    assert rate("--per_device_train_batch_size", "128", "--gradient_accumulation_steps", "32") == pytest.approx(2.4e-3)


def test_warmup_steps_follow_the_epochs():
    _, _, args = parse(["--train_dir", "x", "--output_dir", "y", *CPU])
    assert args.get_warmup_steps(400 * 312) == 20 * 312
    args.warmup_epochs, args.warmup_steps = 0, 17
    assert args.get_warmup_steps(400 * 312) == 17


def test_folders_of_unlabeled_images_may_be_repeated(tmp_path):
    flags = ["--train_dir", "x", "--unlabeled_dir", "a", "--unlabeled_dir", "b", "c", "--output_dir", "y", *CPU]
    assert parse(flags)[1].unlabeled_dir == ["a", "b", "c"]
    (tmp_path / "recipe.yaml").write_text("unlabeled_dir: a\noutput_dir: y\ntrain_dir: x")
    assert parse([str(tmp_path / "recipe.yaml"), *CPU])[1].unlabeled_dir == ["a"]


def test_a_recipe_must_be_a_mapping(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("- output_dir\n")
    with pytest.raises(ValueError, match="is not a recipe"):
        read_recipe(recipe)


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(recipe: Path):
    # bf16 arithmetic needs an accelerator, or not every CPU
    argv = [str(recipe), "--bf16", "False", *CPU]
    job = recipe.stem.split("_")[0]
    job = {"linear": "linear_probe", "continue": "pretrain"}.get(job, job)
    trained = {"pretrain": PreTrainingArguments, "finetune": FineTuningArguments, "linear_probe": LinearProbeArguments}
    if job == "segmentation":
        parse(argv, (UperNetArguments, SegmentationDataArguments, SegmentationArguments), job)
    else:
        parse(argv, (ModelArguments, DataArguments, trained[job]), job)


FINETUNE = ["--train_dir", "x", "--output_dir", "y", *CPU]


def test_finetuning_defaults_are_the_papers():
    _, _, args = parse(FINETUNE, (ModelArguments, DataArguments, FineTuningArguments), "finetune")
    assert (args.layer_decay, args.drop_path_rate, args.mixup, args.cutmix) == (0.65, 0.1, 0.8, 1.0)
    assert (args.auto_augment, args.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (args.label_smoothing_factor, args.classifier_init_std, args.weight_decay) == (0.1, 2e-5, 0.05)
    assert (args.base_learning_rate, args.min_learning_rate, args.adam_beta2) == (1e-3, 1e-6, 0.999)
    assert (args.num_train_epochs, args.warmup_epochs) == (100, 5)


def test_linear_probe_defaults_are_the_papers():
    _, _, args = parse(FINETUNE, (ModelArguments, DataArguments, LinearProbeArguments), "linear_probe")
    assert (args.base_learning_rate, args.weight_decay, args.num_train_epochs) == (0.1, 0.0, 90)
    assert (args.warmup_epochs, args.use_mean_pooling, args.probe) == (10, False, "lars")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("learning_rat: 1", "did you mean `learning_rate`?"),
        ("model_config: {hidden: 3}", "`hidden`"),
        ("num_train_epochs: many", "sets `num_train_epochs` to 'many'"),
        ("save_strategy: sometimes", "`--save_strategy` must be one of no, steps, epoch, best, got sometimes."),
        ("crop_scale: [a, b]", "sets `crop_scale` to ['a', 'b']"),
        ("a: [", "is not YAML"),
    ],
)
def test_recipes_set_nothing_but_arguments(tmp_path, capsys, line, hint):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(line)
    with pytest.raises(SystemExit):
        parse([str(recipe), *CPU])
    assert hint in capsys.readouterr().err


def test_recipes_mean_what_people_write(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "save_strategy: no\neval_strategy: no\nbf16: no\nweight_decay: 1e-2\nlabel_column_name: [a, b]\n"
        "model_config: {classification_loss_weight: 1e-2, mask_ratio: '0.5', norm_pix_loss: false}\n"
    )
    model_args, data_args, args = parse([str(recipe), "--output_dir", "y", *CPU])
    assert (args.save_strategy, args.eval_strategy, args.bf16, args.weight_decay) == ("no", "no", False, 0.01)
    expected = {"classification_loss_weight": 0.01, "mask_ratio": 0.5, "norm_pix_loss": False}
    assert model_args.model_config == expected and data_args.label_column_name == ["a", "b"]


@pytest.mark.parametrize(
    ("recipe", "flags", "rate", "warmup"),
    [
        ("", ["--learning_rate", "0.01", "--warmup_steps", "3", "--warmup_epochs", "0"], 0.01, 3),
        ("learning_rate: 0.01\nwarmup_steps: 3", [], 0.01, 3),
        ("learning_rate: 0.01", ["--base_learning_rate", "0.1"], 0.1 / 4, 20),
        ("base_learning_rate: 0.1\nwarmup_epochs: 40", ["--learning_rate", "0.02"], 0.02, 40),
        ("base_learning_rate: null\nwarmup_epochs: 0", [], 5e-5, 0),
    ],
)
def test_learning_rate_and_warmup_are_the_last_ones_given(tmp_path, recipe, flags, rate, warmup):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: y\n{recipe}")
    args = parse([str(path), *flags, *CPU])[2]
    assert args.learning_rate == pytest.approx(rate) and args.get_warmup_steps(400) == warmup


def test_missing_recipes_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["nowhere.yaml", *CPU])
    assert "nowhere.yaml" in capsys.readouterr().err


def test_large_models_are_told(tmp_path, warnings):
    for index, image in enumerate(digit_images(40)):
        (tmp_path / "images" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "images" / str(index % 2) / f"{index}.png")
    flags = [*CPU, "--train_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    flags += ["--per_device_train_batch_size", "8"]
    short = ["--model_config", json.dumps(TINY), "--num_train_epochs", "3", "--warmup_epochs", "0"]
    for more, is_long, is_large in (
        (["--num_train_epochs", "400000"], True, True),
        (["--num_train_epochs", "1", "--warmup_epochs", "0"], False, True),
        (short, False, False),
    ):
        warnings.clear()
        prepare_pretraining(parse([*flags, *more]))
        assert ("hours or more on this CPU" in warnings.text) == is_long
        assert ("images are few for" in warnings.text) == is_large
        assert ("pretrain_photos_small.yaml" in warnings.text) == (is_long or is_large)


def test_more_workers_than_cores_are_told(tmp_path, warnings):
    parse(["--output_dir", str(tmp_path), "--dataloader_num_workers", "0", *CPU])
    assert "processes than the" not in warnings.text
    parse(["--output_dir", str(tmp_path), "--dataloader_num_workers", str(4 * os.cpu_count() - 1), *CPU])
    assert f"{4 * os.cpu_count() - 1} are more processes than the" in warnings.text
