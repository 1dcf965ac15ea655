"""The conversion and export scripts as a user runs them."""

import argparse

import pytest
import torch
from conftest import FIXTURES, load_original, load_reference, reference_config
from conftest import run_example as run
from packaging import version
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForPreTraining

from supmae_hf import SupMAEForImageClassification, SupMAEForPreTraining, SupMAEModel


PRETRAIN = FIXTURES / "official_pretrain_tiny.pth"
FINETUNE = FIXTURES / "official_finetune_tiny_global_pool.pth"
HEADS = ["--num_attention_heads", 4, "--decoder_num_attention_heads", 4]


def test_the_authors_classifier_to_every_format(tmp_path):
    printed = run("convert_checkpoint.py", FINETUNE, "ours", "--num_attention_heads", 4, cwd=tmp_path)
    size = sum(tensor.numel() for tensor in load_original(FINETUNE.name).values())
    assert f"SupMAEForImageClassification with {size:,} parameters: ours" in printed
    assert AutoImageProcessor.from_pretrained(tmp_path / "ours").crop_size["height"] == 32
    assert "BeitForImageClassification" in run("export_stock.py", "ours", "beit", cwd=tmp_path)
    run("export_stock.py", "ours", "timm", "--format", "timm", cwd=tmp_path)
    reference = load_reference("official_finetune_tiny_outputs.safetensors")
    for folder in ("ours", "beit", "timm"):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / folder).eval()
        logits = model(reference["pixel_values"]).logits
        torch.testing.assert_close(logits, reference["global_pool.logits"], atol=1e-5, rtol=1e-5)
    if version.parse(torch.__version__) >= version.parse("2.9"):
        run("export_stock.py", "ours", "onnx", "--format", "onnx", cwd=tmp_path)
        assert (tmp_path / "onnx" / "model.onnx").is_file()


def test_pretraining_checkpoint(tmp_path):
    run("convert_checkpoint.py", PRETRAIN, "ours", *HEADS, cwd=tmp_path)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "ours"), SupMAEForPreTraining)
    assert "ViTMAEForPreTraining" in run("export_stock.py", "ours", "mae", cwd=tmp_path)
    assert "ViTModel" in run("export_stock.py", "ours", "vit", "--encoder_only", cwd=tmp_path)
    # and back in again, from ViTMAE: all but the head
    run("convert_checkpoint.py", "mae", "again", "--num_labels", 3, cwd=tmp_path)
    first, again = (SupMAEForPreTraining.from_pretrained(tmp_path / name).state_dict() for name in ("ours", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first if not name.startswith("classification_head"))
    run("convert_checkpoint.py", PRETRAIN, "encoder", "--encoder_only", *HEADS, cwd=tmp_path)
    assert SupMAEModel.from_pretrained(tmp_path / "encoder").num_parameters() > 0


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda path: path.write_text("text"), HEADS, "is not a PyTorch checkpoint, or it is damaged"),
        (lambda path: None, HEADS, "There is no file bad.pth"),
        (
            lambda path: torch.save({"model": load_original(PRETRAIN.name)}, path),
            [],
            "does not tell the model's `num_attention_heads`",
        ),
        (
            lambda path: torch.save(
                {"model": {**load_original(FINETUNE.name), "head.bias": torch.zeros(3)}, "args": argparse.Namespace()},
                path,
            ),
            HEADS,
            "classifier.bias (3,) instead of (10,)",
        ),
    ],
)
def test_bad_files_leave_nothing_behind(tmp_path, make, arguments, message):
    make(tmp_path / "bad.pth")
    before = sorted(tmp_path.iterdir())
    assert message in run("convert_checkpoint.py", "bad.pth", "out", *arguments, cwd=tmp_path, fails=True)
    assert sorted(tmp_path.iterdir()) == before


def test_existing_folders_are_not_replaced_unless_told_to(tmp_path):
    SupMAEForImageClassification(reference_config()).save_pretrained(tmp_path / "ours")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for script, checkpoint in (("convert_checkpoint.py", PRETRAIN), ("export_stock.py", "ours")):
        extra = HEADS if script == "convert_checkpoint.py" else []
        error = run(script, checkpoint, "out", *extra, cwd=tmp_path, fails=True)
        assert "out exists already" in error and (tmp_path / "out" / "thesis.txt").exists()


def test_only_supmae_is_exported(tmp_path):
    SupMAEForImageClassification(reference_config()).save_pretrained(tmp_path / "ours")
    run("export_stock.py", "ours", "beit", cwd=tmp_path)
    assert "of the type 'beit', not of SupMAE" in run("export_stock.py", "beit", "out", cwd=tmp_path, fails=True)
