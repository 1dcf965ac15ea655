from pathlib import Path

import pytest
from conftest import ROOT

from supmae_hf.data.images import DataArguments
from supmae_hf.training.arguments import (
    ModelArguments,
    PreTrainingArguments,
    parse_arguments,
    prepare_output_dir,
    read_recipe,
)


CLASSES = (ModelArguments, DataArguments, PreTrainingArguments)
DIGITS = ROOT / "examples" / "configs" / "pretrain_digits.yaml"
CPU = ["--use_cpu", "--report_to", "none"]


def test_nothing_named_runs_the_default_recipe():
    model_args, data_args, training_args = parse_arguments(CLASSES, DIGITS, CPU)
    assert model_args.model_config["image_size"] == 32
    assert data_args.horizontal_flip is False and data_args.crop_scale == [0.6, 1.0]
    assert training_args.output_dir == "outputs/digits-pretrain"


def test_flags_override_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: there\nnum_train_epochs: 7\nhorizontal_flip: true\nseed: null\ncrop_scale: [0.3, 0.9]\n"
    )
    argv = [str(recipe), "--num_train_epochs", "30", "--horizontal-flip", "False", *CPU]
    _, data_args, training_args = parse_arguments(CLASSES, DIGITS, argv)
    assert (training_args.output_dir, training_args.num_train_epochs, training_args.seed) == ("there", 30, 42)
    assert data_args.horizontal_flip is False and data_args.crop_scale == [0.3, 0.9]


def test_model_config_overrides_the_fields_that_it_names():
    argv = [str(DIGITS), "--model_config", '{"mask_ratio": 0.6}', *CPU]
    model_config = parse_arguments(CLASSES, DIGITS, argv)[0].model_config
    assert model_config["mask_ratio"] == 0.6 and model_config["image_size"] == 32


@pytest.mark.parametrize("flag", ["--train_dir", "--train-dir", "--train_dir=photos"])
def test_naming_data_leaves_the_default_recipe_out(flag):
    argv = [flag] if "=" in flag else [flag, "photos"]
    model_args, data_args, training_args = parse_arguments(CLASSES, DIGITS, [*argv, "--output_dir", "here", *CPU])
    assert data_args.train_dir == "photos" and model_args.model_config == {}
    # the paper's settings
    assert (training_args.num_train_epochs, training_args.warmup_epochs) == (400, 20)
    assert (training_args.adam_beta1, training_args.adam_beta2, training_args.weight_decay) == (0.9, 0.95, 0.05)
    assert training_args.max_grad_norm == 0 and training_args.lr_scheduler_type == "cosine"
    assert data_args.crop_scale == [0.2, 1.0] and data_args.horizontal_flip


def test_learning_rate_follows_the_batch():
    def rate(*argv):
        return parse_arguments(CLASSES, DIGITS, ["--train_dir", "x", "--output_dir", "y", *CPU, *argv])[
            2
        ].learning_rate

    assert rate("--per_device_train_batch_size", "128") == pytest.approx(1.5e-4 / 2)
    assert rate("--per_device_train_batch_size", "128", "--gradient_accumulation_steps", "32") == pytest.approx(2.4e-3)


def test_warmup_steps_follow_the_epochs():
    _, _, args = parse_arguments(CLASSES, DIGITS, ["--train_dir", "x", "--output_dir", "y", *CPU])
    assert args.get_warmup_steps(400 * 312) == 20 * 312
    args.warmup_epochs, args.warmup_steps = 0, 17
    assert args.get_warmup_steps(400 * 312) == 17


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--crop_scale", "0.5"], "`--crop_scale` needs two shares"),
        (["--crop_scale", "0.9", "0.2"], "`--crop_scale` needs two shares"),
        (["--eval_crop_ratio", "0"], "`--eval_crop_ratio` must be above 0"),
        (["--dataset_name", "a", "--train_dir", "b"], "give one of them"),
        (["--validation_dir", "b"], "`--validation_dir` needs `--train_dir`"),
        (["--train_val_split", "1.5"], "`--train_val_split` must be between 0 and 1, got 1.5"),
        (["--model_config", "{mask_ratio: 0.6}"], "`--model_config` is not JSON"),
        (["--num_train_epochs", "3", "--warmup_epochs", "5"], "`warmup_epochs` 5 is longer than the whole run of 3"),
        (["--no_such_flag", "1"], "--no_such_flag"),
        (["--model_config", '{"mask_ratoi": 0.6}'], "did you mean `mask_ratio`?"),
    ],
)
def test_bad_arguments_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit):
        parse_arguments(CLASSES, DIGITS, [*argv, "--output_dir", "y", *CPU])
    assert message in capsys.readouterr().err


def test_a_recipe_must_be_a_mapping(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("- output_dir\n")
    with pytest.raises(ValueError, match="is not a recipe"):
        read_recipe(recipe)


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(recipe: Path):
    from supmae_hf.training.arguments import FineTuningArguments

    training = PreTrainingArguments if recipe.stem.startswith("pretrain") else FineTuningArguments
    parse_arguments((ModelArguments, DataArguments, training), DIGITS, [str(recipe), *CPU])


def test_missing_recipes_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(CLASSES, DIGITS, ["nowhere.yaml", *CPU])
    assert "nowhere.yaml" in capsys.readouterr().err


def test_checkpoints_elsewhere_can_be_resumed(tmp_path):
    argv = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "elsewhere", *CPU]
    assert prepare_output_dir(parse_arguments(CLASSES, DIGITS, argv)[2]) == "elsewhere"


def test_output_folder_in_use(tmp_path):
    args = parse_arguments(CLASSES, DIGITS, ["--output_dir", str(tmp_path / "run"), *CPU])[2]
    assert prepare_output_dir(args) is None  # does not exist
    (tmp_path / "run").mkdir()
    assert prepare_output_dir(args) is None  # empty
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty and holds no checkpoint.*overwrite_output_dir"):
        prepare_output_dir(args)
    for step in (9, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir()
    assert prepare_output_dir(args) == str(tmp_path / "run" / "checkpoint-10")
    args.overwrite_output_dir = True
    assert prepare_output_dir(args) is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
