"""What training costs, against figures worked out by hand."""

import json

import pytest
from conftest import reference_config, run_example
from transformers import ViTMAEConfig

from supmae_hf.cost import classification_flops, pretraining_flops


def block(tokens: int, width: int, intermediate: int) -> int:
    """Multiplications and additions of a Transformer block, by hand."""
    return tokens * (4 * width * width + 2 * width * intermediate) + 2 * tokens * tokens * width


def test_by_hand():
    """4 of 16 patches of 8x8 pixels are encoded by 3 blocks, all are decoded by 2."""
    config = reference_config()
    encoder = 4 * 192 * 64 + 3 * block(5, 64, 256)
    decoder = 5 * 64 * 32 + 2 * block(17, 32, 128) + 17 * 32 * 192
    head = 64 * 48 + 48 * 10
    assert pretraining_flops(config) == 2 * (encoder + decoder + head)
    assert classification_flops(config) == 2 * (16 * 192 * 64 + 3 * block(17, 64, 256) + 64 * 10)
    mae = ViTMAEConfig(**{name: value for name, value in config.to_dict().items() if name in ViTMAEConfig().to_dict()})
    assert pretraining_flops(mae) == 2 * (encoder + 12 * 192 * 64 + decoder)  # which embeds the hidden patches, too


def test_script(tmp_path):
    printed = run_example("estimate_cost.py", "--tflops", 100, "--watts", 400, "--output_dir", tmp_path, cwd=tmp_path)
    rows = {row["method"]: row for row in json.loads((tmp_path / "cost.json").read_text())}
    assert "| SupMAE " in printed and (tmp_path / "cost.png").is_file() and (tmp_path / "cost.csv").is_file()
    assert rows["MAE"]["total / MAE's"] == 1
    # ViT-B/16: 17.58 billion multiplications and additions an image forward, three times that in training
    assert rows["ViT from scratch"]["GFLOPs an image"] == pytest.approx(3 * 2 * 17.58, rel=0.01)
    expected = rows["ViT from scratch"]["GFLOPs an image"] * 300 * 1_281_167 / 1e9
    assert rows["DeiT from scratch"]["pre-training EFLOPs"] == pytest.approx(expected)
    hours = rows["SupMAE"]["device hours"]
    assert hours == pytest.approx(
        (rows["SupMAE"]["pre-training EFLOPs"] + rows["SupMAE"]["fine-tuning EFLOPs"]) / 0.36
    )
    assert rows["SupMAE"]["kWh"] == pytest.approx(hours * 0.4)


def test_a_recipe_beside_the_published_ones(tmp_path):
    recipe = tmp_path / "half.yaml"
    recipe.write_text("output_dir: out\nnum_train_epochs: 100\nrepeated_augmentation: 2\n")
    run_example("estimate_cost.py", "--recipe", recipe, "--output_dir", tmp_path, cwd=tmp_path)
    rows = {row["method"]: row for row in json.loads((tmp_path / "cost.json").read_text())}
    row = rows["half"]
    assert row["epochs"] == 200  # 100 of two views
    assert row["pre-training EFLOPs"] == pytest.approx(rows["SupMAE"]["pre-training EFLOPs"] / 2)


@pytest.mark.parametrize("flags", [["--watts", 300], ["--tflops", 0], ["--num_images", -1]])
def test_wrong_flags(flags, tmp_path):
    assert flags[0] in run_example("estimate_cost.py", *flags, cwd=tmp_path, fails=True)
