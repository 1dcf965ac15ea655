"""Command lines that are wrong: one line each that names the value and the remedy, before anything is loaded or written."""

import pandas
import pytest
import torch
from conftest import TINY, digit_images, run_example

from supmae_hf import SupMAEConfig, SupMAEForPreTraining


PRETRAIN = [
    ("--num_train_epochs -1", "`--num_train_epochs` must be above 0, got -1.0."),
    ("--num_train_epochs 0", "`--num_train_epochs` must be above 0, got 0.0."),
    ("--num_train_epochs nan", "`--num_train_epochs` must be above 0, got nan."),
    ("--num_train_epochs inf", "`--num_train_epochs` must be above 0, got inf."),
    ("--epochs 5", "unrecognized arguments: --epochs 5: did you mean `num_train_epochs`?"),
    ("--lr 0.1", "did you mean `learning_rate`?"),
    ("--num_train_epochs many", "argument --num_train_epochs/--num-train-epochs: invalid float value: 'many'"),
    ("--max_steps 0", "`--max_steps` must be 1 or more, got 0."),
    ("--max_steps -7", "`--max_steps` must be 1 or more, got -7."),
    ("--max_steps 2.5", "invalid int value: '2.5'"),
    ("--per_device_train_batch_size 0", "`--per_device_train_batch_size` must be 1 or more, got 0."),
    ("--per_device_train_batch_size -4", "`--per_device_train_batch_size` must be 1 or more, got -4."),
    ("--per_device_train_batch_size x", "invalid int value: 'x'"),
    ("--per_device_eval_batch_size 0", "`--per_device_eval_batch_size` must be 1 or more, got 0."),
    ("--gradient_accumulation_steps 0", "`--gradient_accumulation_steps` must be 1 or more, got 0."),
    ("--gradient_accumulation_steps -1", "`--gradient_accumulation_steps` must be 1 or more, got -1."),
    ("--learning_rate=-1e-3", "`--learning_rate` must be 0 or more, got -0.001."),
    ("--learning_rate nan", "`--learning_rate` must be 0 or more, got nan."),
    ("--base_learning_rate inf", "`--base_learning_rate` must be 0 or more, got inf."),
    ("--base_learning_rate nan", "`--base_learning_rate` must be 0 or more, got nan."),
    ("--base_learning_rate fast", "invalid float value: 'fast'"),
    ("--min_learning_rate -1", "`--min_learning_rate` must be 0 or more, got -1.0."),
    ("--learning_rate 1 --base_learning_rate 1", "say the same in two ways: give one."),
    ("--warmup_epochs -1", "`--warmup_epochs` must be 0 or more, got -1.0."),
    ("--warmup_epochs 5 --num_train_epochs 3", "is longer than the whole run of 3 epochs"),
    ("--warmup_steps -5", "`--warmup_steps` must be 0 or more, got -5.0."),
    ("--warmup_steps 3 --warmup_epochs 1", "say the same in two ways: give one."),
    ("--weight_decay -1", "`--weight_decay` must be 0 or more, got -1.0."),
    ("--weight_decay nan", "`--weight_decay` must be 0 or more, got nan."),
    ("--layer_decay 1.5", "`--layer_decay` must be above 0 and at most 1, got 1.5."),
    ("--adam_beta1 1", "`--adam_beta1` must be at least 0 and below 1, got 1.0."),
    ("--adam_beta2 -0.1", "`--adam_beta2` must be at least 0 and below 1, got -0.1."),
    ("--adam_epsilon 0", "`--adam_epsilon` must be above 0, got 0.0."),
    ("--max_grad_norm -1", "`--max_grad_norm` must be 0 or more, got -1.0."),
    ("--lr_scheduler_type cosinus", "invalid choice: 'cosinus' (choose from"),
    ("--optim adamm", "`--optim` must be one of Transformers' names, such as "),
    ("--logging_steps 0", "`--logging_steps` must be above 0, got 0.0."),
    ("--logging_strategy often", "invalid choice: 'often' (choose from"),
    ("--eval_strategy never", "`--eval_strategy` must be one of no, steps, epoch, got never."),
    ("--eval_steps -2", "`--eval_steps` must be above 0, got -2.0."),
    ("--save_strategy sometimes", "`--save_strategy` must be one of no, steps, epoch, best, got sometimes."),
    ("--save_steps 0", "`--save_steps` must be above 0, got 0.0."),
    ("--save_total_limit -1", "`--save_total_limit` must be 1 or more, got -1."),
    ("--save_total_limit 0", "`--save_total_limit` must be 1 or more, got 0."),
    ("--save_total_limit 1", "`--save_total_limit` 1 leaves nothing to go on from"),
    ("--hub_strategy always", "invalid choice: 'always' (choose from"),
    ("--report_to paper", "`--report_to` must be one of all, none, tensorboard"),
    ("--early_stopping_patience 0", "`--early_stopping_patience` must be 1 or more, got 0."),
    ("--seed -1", "`--seed` must be at least 0 and at most 4.29497e+09, got -1."),
    ("--seed 99999999999", "`--seed` must be at least 0 and at most 4.29497e+09, got 99999999999."),
    ("--label_seed -1", "`--label_seed` must be at least 0"),
    ("--dataloader_num_workers -1", "`--dataloader_num_workers` must be at least 0 and at most"),
    ("--dataloader_num_workers 1000", "`--dataloader_num_workers` must be at least 0 and at most"),
    ("--auto_find_batch_size True", "`--auto_find_batch_size` would change the images a step"),
    ("--save_only_model True", "`--save_only_model` leaves nothing to go on from"),
    ("--ignore_data_skip True", "`--ignore_data_skip` would go on with other images"),
    ("--overwrite_output_dir True --resume_from_checkpoint x", "`--overwrite_output_dir` begins anew"),
    ("--hub_timeout 0", "`--hub_timeout` must be above 0, got 0.0."),
    ("--metric_for_best_model nonsense", "`--metric_for_best_model` nonsense is none of loss, reconstruction_loss"),
    ("--license Apache!", "`--license` 'Apache!' is none of the Hub's identifiers"),
    ("--dataloader_prefetch_factor 0", "`--dataloader_prefetch_factor` must be 1 or more, got 0."),
    ("--train_sampling_strategy group_by_length", "`--train_sampling_strategy` must be one of random, sequential"),
    ("--sync_batchnorm True", "`--sync_batchnorm` needs accelerators"),
    ("--num_reconstructions 0", "`--num_reconstructions` must be 1 or more, got 0."),
    ("--num_reconstructions -1", "`--num_reconstructions` must be 1 or more, got -1."),
    ("--labeled_share 1", "`--labeled_share` must be at least 0 and below 1, got 1.0."),
    ("--labeled_share -0.5", "`--labeled_share` must be at least 0 and below 1, got -0.5."),
    ("--train_val_split 1.5", "`--train_val_split` must be at least 0 and below 1, got 1.5."),
    ("--train_val_split nan", "`--train_val_split` must be at least 0 and below 1, got nan."),
    ("--label_fraction 0", "`--label_fraction` must be above 0 and at most 1, got 0.0."),
    ("--label_fraction 1.01", "`--label_fraction` must be above 0 and at most 1, got 1.01."),
    ("--shuffle_buffer_size 0", "`--shuffle_buffer_size` must be 1 or more, got 0."),
    ("--max_train_samples 0", "`--max_train_samples` must be 1 or more, got 0."),
    ("--max_eval_samples 0", "`--max_eval_samples` must be 1 or more, got 0."),
    ("--max_eval_samples -5", "`--max_eval_samples` must be 1 or more, got -5."),
    ("--crop_scale 0.5", "`--crop_scale` needs two shares"),
    ("--crop_scale 0.9 0.2", "`--crop_scale` needs two shares"),
    ("--crop_scale 0 1", "`--crop_scale` must be above 0 and at most 1, got 0.0."),
    ("--eval_crop_ratio 0", "`--eval_crop_ratio` must be above 0 and at most 1, got 0.0."),
    ("--channels -1", "`--channels` must be 0 or more, got -1."),
    ("--pixel_range 9 3", "`--pixel_range` needs two numbers, LOW below HIGH"),
    ("--pixel_range nan 3", "`--pixel_range` must be a finite number, got nan."),
    ("--image_mean 0.5", "`--image_mean` and `--image_std` go together"),
    ("--image_mean 0.5 --image_std 0", "`--image_std` must be above 0, got 0.0."),
    ("--image_mean nan --image_std 1", "`--image_mean` must be a finite number, got nan."),
    ("--normalization imagenet", "invalid choice: 'imagenet'"),
    ("--on_bad_image ignore", "invalid choice: 'ignore'"),
    ("--horizontal_flip perhaps", "Truthy value expected: got perhaps"),
    ("--train_di photos", "unrecognized arguments: --train_di photos: did you mean `train_dir`?"),
    ("--num_train_epoch 3", "unrecognized arguments: --num_train_epoch 3: did you mean `num_train_epochs`?"),
    ("--no_such_flag 1", "unrecognized arguments: --no_such_flag 1"),
    ("--train_dir nowhere", "'nowhere' is not a folder of images: check its name."),
    ("--dataset_name a --train_dir b", "give one of them."),
    ("--validation_dir b", "`--validation_dir` needs `--train_dir` or `--dataset_name`."),
    ("--model_config [1]", "`--model_config` must map fields to values"),
    ("--model_config 3", "`--model_config` must map fields to values"),
    ("--model_config {mask_ratio:0.6}", "`--model_config` is not JSON"),
    ('--model_config {"mask_ratoi":0.6}', "did you mean `mask_ratio`?"),
    ('--model_config {"mask_ratio":"much"}', "`--model_config` sets `mask_ratio` to 'much', which is not a number."),
    ('--model_config {"mask_ratio":1.5}', "`mask_ratio`"),
    ('--model_config {"patch_size":0}', "`patch_size`"),
    ('--model_config {"hidden_size":"wide"}', "`--model_config` sets `hidden_size` to 'wide', which is not a number."),
    ('--model_config {"hidden_size":30}', "`hidden_size`"),
    ('--model_config {"hidden_size":[64]}', "`hidden_size` must be a number such as 768, got [64]."),
    ('--model_config {"hidden_act":"nonsense"}', "`hidden_act` must be an activation of Transformers such as gelu"),
    ('--model_config {"num_labels":1000000000}', "`num_labels` must be at most 1,000,000, got 1,000,000,000."),
    ('--model_config {"dense_classes":1000000000}', "`dense_classes` must be at most 1,000,000"),
    ('--model_config {"num_hidden_layers":-1}', "`num_hidden_layers`"),
    ('--model_config {"classification_temperature":0}', "`classification_temperature`"),
    ('--model_config {"classification_loss_weight":-1}', "`classification_loss_weight`"),
    ("--attn_implementation fast", "fast"),
    ("recipe.yaml", "No such file or directory: 'recipe.yaml'"),
]

FINETUNE = [
    ("--mixup -1", "`--mixup` must be 0 or more, got -1.0."),
    ("--cutmix nan", "`--cutmix` must be 0 or more, got nan."),
    ("--mixup 0.8 --per_device_train_batch_size 7", "mix pairs of images, but `--per_device_train_batch_size` is 7"),
    ("--random_erasing 5", "`--random_erasing` must be at least 0 and at most 1, got 5.0."),
    ("--drop_path_rate 2", "`--drop_path_rate` must be at least 0 and below 1, got 2.0."),
    ("--label_smoothing_factor 3", "`--label_smoothing_factor` must be at least 0 and below 1, got 3.0."),
    (
        "--auto_augment nonsense",
        "`--auto_augment` must be a policy of timm, such as rand-m9-mstd0.5-inc1, got nonsense.",
    ),
    ("--classifier_init_std -1", "`--classifier_init_std` must be 0 or more, got -1.0."),
    ("--layer_decay 0", "`--layer_decay` must be above 0 and at most 1, got 0.0."),
]

OTHERS = [
    ("run_linear_probe.py", "--num_neighbors 0", "`--num_neighbors` must be 1 or more, got 0."),
    ("run_linear_probe.py", "--inverse_regularization 0", "`--inverse_regularization` must be above 0, got 0.0."),
    ("run_linear_probe.py", "--probe svm", "invalid choice: 'svm'"),
    ("run_linear_probe.py", "--push_to_hub", "`--push_to_hub` is for pre-training and fine-tuning: leave it out."),
    (
        "run_semantic_segmentation.py",
        "--models a --push_to_hub",
        "`--push_to_hub` is for pre-training and fine-tuning",
    ),
    ("run_pretrain_no_trainer.py", "--push_to_hub", "`--push_to_hub` is the Trainer's: use run_pretrain.py"),
    ("run_eval.py", "", "`--models` is missing"),
    ("run_eval.py", "--models a --per_device_eval_batch_size 0", "`--per_device_eval_batch_size` must be 1 or more"),
    ("run_eval.py", "--models a --max_samples 0", "`--max_samples` must be 1 or more, got 0."),
    ("run_eval.py", "--models a a", "`--models` names a more than once."),
    ("run_robustness.py", "--models a --severities 6", "`--severities` must be at least 1 and at most 5, got 6."),
    ("run_robustness.py", "--models a --corruptions rain", "'rain' is not one of gaussian_noise"),
    ("run_few_shot.py", "--models a --shots 1", "`--shots` must be 2 or more, got 1."),
    ("run_few_shot.py", "--models a --epochs 0", "`--epochs` must be 1 or more, got 0."),
    ("run_few_shot.py", "--models a --learning_rates 0", "`--learning_rates` must be above 0, got 0.0."),
    ("run_few_shot.py", "--models a --seeds -1", "`--seeds` must be at least 0"),
    ("run_semantic_segmentation.py", "--models a --crop_size 0", "`--crop_size` must be 1 or more, got 0."),
    ("run_semantic_segmentation.py", "--models a --stride 600", "at most `--crop_size`"),
    ("run_semantic_segmentation.py", "--models a --num_classes 0", "`--num_classes` must be 1 or more, got 0."),
    ("extract_features.py", "", "`--model` is missing"),
    ("extract_features.py", "--model a --images_per_file 0", "`--images_per_file` must be 1 or more, got 0."),
    ("extract_features.py", "--model a --num_nearest -1", "`--num_nearest` must be 1 or more, got -1."),
    ("extract_features.py", "--model a --pooling max", "invalid choice: 'max'"),
    ("convert_checkpoint.py", "", "the following arguments are required: checkpoint, folder"),
    ("convert_checkpoint.py", "nothing.pth out --num_label 3", "unrecognized arguments: --num_label 3"),
    ("export_stock.py", "a", "the following arguments are required: folder"),
    ("export_stock.py", "a b --format caffe", "invalid choice: 'caffe'"),
    ("estimate_cost.py", "--watts 300", "--watts needs --tflops"),
    ("estimate_cost.py", "--tflops -1", "--tflops must be a number above 0, got -1.0."),
    ("estimate_cost.py", "--tflops nan", "--tflops must be a number above 0, got nan."),
    ("estimate_cost.py", '--model_config {"hiden_size":3}', "did you mean `hidden_size`?"),
    (
        "convert_checkpoint.py",
        "nothing.pth out --image_size 1 2 3",
        "--image_size takes one number, or height and width",
    ),
    ("pack_images.py", "--dataloader_num_workers 1000", "`--dataloader_num_workers` must be at least 0 and at most"),
    ("run_pretrain_no_trainer.py", "--eval_on_start True", "`--eval_on_start` is the Trainer's: use run_pretrain.py"),
    ("run_pretrain_no_trainer.py", "--save_strategy best", "`--save_strategy` best is the Trainer's"),
    ("publish.py", "nowhere organisation/name", "nowhere"),
    ("experiments/pretraining.py", "--draws 0", "--draws must be above 0, got 0."),
    ("experiments/pretraining.py", "--processes 0", "--processes must be above 0, got 0."),
    ("experiments/supervision.py", "--tflops nan", "--tflops must be above 0, got nan."),
    ("estimate_cost.py", "--recipe nothing.yaml", "No such file or directory: 'nothing.yaml'"),
    ("run_zero_shot.py", "", "`--models` is missing"),
    ("run_pretrain.py", "--repeated_augmentation 0", "`--repeated_augmentation` must be 1 or more, got 0."),
]

LINES = [("run_pretrain.py", *line) for line in PRETRAIN] + [("run_finetune.py", *line) for line in FINETUNE] + OTHERS


@pytest.mark.parametrize(("script", "arguments", "message"), LINES, ids=[f"{line[0]} {line[1]}" for line in LINES])
def test_mistakes_are_one_line(tmp_path, script, arguments, message):
    error = run_example(script, *arguments.split(), cwd=tmp_path, fails=True)
    said = [line for line in error.splitlines() if line.strip() and line != "2"]
    assert message in said[-1] and len(said) == 1
    assert not list(tmp_path.iterdir())


def test_every_mistake_is_said(tmp_path):
    arguments = ["--seed", -1, "--weight_decay", -1, "--label_fraction", 2, "--save_strategy", "always"]
    error = run_example("run_pretrain_no_trainer.py", *arguments, cwd=tmp_path, fails=True)
    lines = [line.split("error: ")[1] for line in error.splitlines() if "error: " in line]
    assert {line.split("`")[1] for line in lines} == {
        "--label_fraction",
        "--save_strategy",
        "--seed",
        "--weight_decay",
    }


SMALL = ["--use_cpu", "--report_to", "none", "--num_train_epochs", 1, "--warmup_epochs", 0, "--output_dir", "out"]


def test_results_have_a_place(tmp_path):
    """And not Transformers' trainer_output/."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    digit_images(1)[0].save(tmp_path / "images" / "a" / "0.png")
    for script in ("run_pretrain.py", "run_finetune.py"):
        error = run_example(script, "--train_dir", "images", cwd=tmp_path, fails=True)
        assert "Name a folder with `--output_dir`." in error
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinite_labels(tmp_path, value):
    (tmp_path / "scans").mkdir()
    for index, image in enumerate(digit_images(20)):
        image.save(tmp_path / "scans" / f"{index}.png")
    labels = [0.5] * 19 + [value]
    pandas.DataFrame({"file_name": [f"{index}.png" for index in range(20)], "label": labels}).to_csv(
        tmp_path / "scans" / "metadata.csv", index=False
    )
    error = run_example("run_pretrain.py", "--train_dir", "scans", *SMALL, cwd=tmp_path, fails=True)
    assert f"Column 'label' holds {value}: a label is a finite number, or empty if there is none." in error


def test_checkpoints_that_hold_no_numbers(tmp_path):
    model = SupMAEForPreTraining(SupMAEConfig(**TINY))
    with torch.no_grad():
        model.vit.embeddings.cls_token[0, 0, 3] = float("nan")
    model.save_pretrained(tmp_path / "damaged")
    message = (
        "'damaged' is damaged: its weight vit.embeddings.cls_token holds NaN or infinity. Use an earlier checkpoint."
    )
    runs = [("run_finetune.py", ["--model_name_or_path", "damaged", *SMALL])]
    runs += [("run_linear_probe.py", ["--model_name_or_path", "damaged", "--probe", "knn", *SMALL])]
    for script, arguments in runs:
        assert message in run_example(script, *arguments, cwd=tmp_path, fails=True)
