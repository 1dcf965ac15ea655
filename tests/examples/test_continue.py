"""Going on from a public ViT on one's own images: here from one that is pre-trained in the test itself."""

import json

import pytest
import torch
from conftest import ROOT, TINY, load_data, run_example
from sklearn.neighbors import KNeighborsClassifier
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from supmae_hf import SupMAEForPreTraining
from supmae_hf.data.dataset import ImageDataset, collate
from supmae_hf.preparation import load_image_processor


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    """A stock ViT for 32x32 images, trained on the digits by a plain loop; accurate to more than 85%."""
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("vit"))
    fields = {
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    model = ViTForImageClassification(ViTConfig(image_size=32, **fields, num_labels=10))
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.3] * 3, image_std=[0.4] * 3)
    data = load_data()
    parts = []
    for split in (data.train, data.validation):
        dataset = ImageDataset(split, data.labels, processor)
        parts.append(collate([dataset[index] for index in range(len(dataset))]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        for places in torch.randperm(len(parts[0]["labels"])).split(64):
            model(**{name: values[places] for name, values in parts[0].items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        predictions = model.eval()(parts[1]["pixel_values"]).logits.argmax(dim=1)
    assert (predictions == parts[1]["labels"]).float().mean() > 0.85
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def go_on(vit: str | None, cwd, *arguments) -> tuple[SupMAEForPreTraining, list[dict], str]:
    config = {name: value for name, value in TINY.items() if name.startswith(("decoder", "classifier"))}
    config = {**(TINY if vit is None else config), "image_size": 32, "use_mean_pooling": False}
    flags = ["--model_config", json.dumps(config), "--num_train_epochs", 2, "--warmup_epochs", 0, "--bf16", "False"]
    flags += ["--dataloader_num_workers", 0, "--horizontal_flip", "False", "--crop_scale", 0.6, 1.0, "--knn_eval"]
    flags += [
        "--eval_crop_ratio",
        1.0,
        "--base_learning_rate",
        1e-3,
        "--max_train_samples",
        700,
        "--max_eval_samples",
        180,
    ]
    flags += ["--report_to", "none", "--disable_tqdm", "True", "--use_cpu"]
    flags += [] if vit is None else ["--model_name_or_path", vit]
    recipe = ROOT / "examples" / "configs" / "continue_vit_b.yaml"
    printed = run_example("run_pretrain.py", recipe, *flags, *arguments, "--output_dir", "out", cwd=cwd)
    log = json.loads((cwd / "out" / "trainer_state.json").read_text())["log_history"]
    return SupMAEForPreTraining.from_pretrained(cwd / "out"), [e for e in log if "eval_knn_top1" in e], printed


def neighbors_of_the_vit(vit: str) -> float:
    """The accuracy of nearest neighbours by the stock ViT's class token, on the images of [`go_on`]."""
    data, processor = load_data(max_train_samples=700, max_eval_samples=180), load_image_processor(vit)
    model, parts = ViTForImageClassification.from_pretrained(vit), []
    for split in (data.train, data.validation):
        batch = collate(list(ImageDataset(split, data.labels, processor)))
        with torch.no_grad():
            parts.append((model.vit(batch["pixel_values"]).last_hidden_state[:, 0].numpy(), batch["labels"].numpy()))
    neighbors = KNeighborsClassifier(20, weights="distance", metric="cosine").fit(*parts[0])
    return neighbors.score(*parts[1])


@pytest.mark.parametrize("trained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_going_on_keeps_what_the_vit_knows(tmp_path, vit, trained, warnings):
    model, log, printed = go_on(vit, tmp_path, "--train_position_embeddings", trained)
    assert "its classifier reads the class token" in warnings.text and "of the type 'vit'" in warnings.text
    assert "normalised by the mean 0.3 and standard deviation 0.4" in printed
    assert min(entry["eval_knn_top1"] for entry in log) > neighbors_of_the_vit(vit) - 0.05
    assert log[-1]["eval_reconstruction_loss"] < log[0]["eval_reconstruction_loss"]
    before = ViTForImageClassification.from_pretrained(vit).vit.embeddings.position_embeddings
    assert torch.equal(model.vit.embeddings.position_embeddings, before) is not trained


def test_at_another_size(tmp_path, vit, warnings):
    config = json.dumps({"image_size": 48, "use_mean_pooling": False, "decoder_hidden_size": 32})
    model, log, _ = go_on(vit, tmp_path, "--model_config", config, "--max_steps", 2)
    assert "position embeddings were fitted to 48 pixels" in warnings.text and model.config.grid_size == (6, 6)
    assert log[-1]["eval_knn_top1"] > 0.6
