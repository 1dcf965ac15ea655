"""The cost model against PyTorch's FLOP counter."""

import json

import pytest
import torch
from conftest import reference_config, run_example
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining
from supmae_hf.cost import classification_flops, forward_flops, pretraining_flops


BATCH = 2


def counted(model, **inputs) -> float:
    size = model.config.image_size
    size = (size, size) if isinstance(size, int) else size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(BATCH, model.config.num_channels, *size), **inputs)
    return counter.get_total_flops() / BATCH


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_num_hidden_layers": 1, "mask_ratio": 0.5, "classifier_hidden_size": 0},
        {"mask_ratio": 0.0},
        {"image_size": (32, 48), "patch_size": (8, 16), "num_channels": 1},
    ],
)
def test_pretraining(fields):
    config = reference_config(**fields)
    model = SupMAEForPreTraining._from_config(config, attn_implementation="eager").train()
    assert counted(model, labels=torch.tensor([1, 2])) == pytest.approx(pretraining_flops(config), rel=0.01)


def test_vit_b():
    """The paper's model, its classifier, and MAE's with 8 decoder blocks, within 1%."""
    with torch.device("cpu"):
        config = SupMAEConfig(num_labels=1000)
        model = SupMAEForPreTraining._from_config(config, attn_implementation="eager").train()
        assert counted(model, labels=torch.tensor([1, 2])) == pytest.approx(pretraining_flops(config), rel=0.01)
        classifier = SupMAEForImageClassification._from_config(config, attn_implementation="eager").eval()
        assert counted(classifier) == pytest.approx(classification_flops(config), rel=0.01)
        mae_config = ViTMAEConfig()
        mae = ViTMAEForPreTraining._from_config(mae_config, attn_implementation="eager").train()
        assert counted(mae) == pytest.approx(pretraining_flops(mae_config), rel=0.01)


def test_stock_vit():
    config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, num_labels=7)
    model = ViTForImageClassification._from_config(config, attn_implementation="eager").eval()
    assert counted(model) == pytest.approx(forward_flops(ViTForImageClassification, config), rel=0.01)


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


@pytest.mark.parametrize("flags", [["--watts", 300], ["--tflops", 0], ["--num_images", -1]])
def test_wrong_flags(flags, tmp_path):
    assert flags[0] in run_example("estimate_cost.py", *flags, cwd=tmp_path, fails=True)
