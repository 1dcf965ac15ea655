import json

import numpy as np
import pytest
import torch
from conftest import reference_config
from conftest import run_example as run
from evaluation.zoo import make_model
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from torch import nn
from transformers import AutoImageProcessor, SegformerImageProcessor, UperNetForSemanticSegmentation, pipeline
from transformers.modeling_outputs import SemanticSegmenterOutput

from supmae_hf import SupMAEForPreTraining
from supmae_hf.evaluation.metrics import count_pixels, segmentation_scores
from supmae_hf.evaluation.segmentation import (
    SegmentationDataArguments,
    build_segmentation_processor,
    build_upernet,
    load_backbone,
    load_segmentation_data,
    make_shapes,
    save_masks,
    segmentation_dataset,
    sliding_window_logits,
)
from supmae_hf.preparation import build_image_processor


def test_metric_against_scikit_learn():
    generator = np.random.default_rng(0)
    references = [generator.integers(0, 5, size) for size in ((7, 9), (4, 12))]
    predictions = [np.where(generator.random(r.shape) < 0.6, r, generator.integers(0, 5, r.shape)) for r in references]
    references[0][:3, :3] = 255
    counted = np.concatenate([r.ravel() for r in references]) != 255
    truth = np.concatenate([r.ravel() for r in references])[counted]
    guess = np.concatenate([p.ravel() for p in predictions])[counted]
    result = segmentation_scores(sum(count_pixels(p, r, 5, 255) for p, r in zip(predictions, references)))
    assert result["mIoU"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert result["IoU"] == pytest.approx(jaccard_score(truth, guess, average=None))
    assert result["aAcc"] == pytest.approx(accuracy_score(truth, guess))
    assert result["mAcc"] == pytest.approx(balanced_accuracy_score(truth, guess))


def test_metric_by_hand():
    #  class 0: 2 of 3 pixels right, 1 taken by class 1; class 2 does not occur, class 3 is predicted once
    predicted, reference = np.array([[0, 0, 1], [1, 3, 0]]), np.array([[0, 0, 0], [1, 1, 255]])
    result = segmentation_scores(count_pixels(predicted, reference, 4, 255))
    assert result["IoU"][:2] == pytest.approx([2 / 3, 1 / 3]) and np.isnan(result["IoU"][2]) and result["IoU"][3] == 0
    assert result["mIoU"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert result["aAcc"] == pytest.approx(3 / 5) and result["mAcc"] == pytest.approx((2 / 3 + 1 / 2) / 2)


class Coordinates(nn.Module):
    """Scores that say which window a pixel was seen in."""

    def __init__(self):
        super().__init__()
        self.windows = []

    def forward(self, pixel_values):
        self.windows.append(tuple(pixel_values.shape[-2:]))
        return SemanticSegmenterOutput(logits=pixel_values * 2)


@pytest.mark.parametrize("size", [(32, 32), (32, 75), (50, 41), (20, 64)])
def test_sliding_windows_cover_every_pixel(size):
    images, model = torch.randn(2, 3, *size), Coordinates()
    torch.testing.assert_close(sliding_window_logits(model, images, 32, 20), images * 2)
    expected = {(min(32, size[0]), min(32, size[1]))}
    assert set(model.windows) == expected  # windows at the border are whole, too
    assert len(model.windows) == np.prod([1 + max(0, -(-(side - 32) // 20)) for side in size])


def test_overlaps_are_averaged():
    class Counter(nn.Module):
        calls = 0

        def forward(self, pixel_values):
            self.calls += 1
            return SemanticSegmenterOutput(logits=torch.full_like(pixel_values[:, :1], float(self.calls)))

    result = sliding_window_logits(Counter(), torch.zeros(1, 3, 4, 6), 4, 2)[0, 0]
    assert result.tolist() == [[1, 1, 1.5, 1.5, 2, 2]] * 4


def test_shapes_are_reproducible():
    first, again = make_shapes(3, 48, 0), make_shapes(3, 48, 0)
    assert first["image"][0] == again["image"][0] and np.unique(first["annotation"][0]).max() > 0


def folders(tmp_path, mask_values, names=("a", "b")):
    generator = np.random.default_rng(0)
    for split in ("train", "held_out"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for name in names:
            pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / "images" / f"{name}.jpg")
            mask = generator.choice(mask_values, (40, 50)).astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{name}.png")
    paths = {
        f"{part}_{kind}": str(tmp_path / folder / kind)
        for part, folder in (("train", "train"), ("validation", "held_out"))
        for kind in ("images", "masks")
    }
    return SegmentationDataArguments(**paths, num_classes=3, crop_size=32, reduce_labels=True)


def test_folders_with_reduced_labels(tmp_path):
    args = folders(tmp_path, [0, 1, 2, 3])
    data = load_segmentation_data(args)
    item = segmentation_dataset(data["validation"], args, build_segmentation_processor(args))[0]
    assert item["pixel_values"].shape == (3, 32, 40) and item["segmentation_maps"].shape == (40, 50)
    stored = np.asarray(Image.open(data["validation"][0]["annotation"]["path"]))
    expected = np.where(stored == 0, -100, stored.astype(int) - 1)
    assert np.array_equal(item["segmentation_maps"], expected)
    training = segmentation_dataset(data["train"], args, build_segmentation_processor(args), seed=0)
    crop, again, next_epoch = training[1], training[1], training[1 + len(training)]
    assert crop["pixel_values"].shape == (3, 32, 32) and crop["segmentation_maps"].shape == (32, 32)
    assert torch.equal(crop["pixel_values"], again["pixel_values"]) and torch.equal(
        crop["segmentation_maps"], again["segmentation_maps"]
    )
    assert not torch.equal(crop["pixel_values"], next_epoch["pixel_values"])
    assert set(crop["segmentation_maps"].unique().tolist()) <= {0, 1, 2, -100}


def test_images_and_masks_are_augmented_together():
    args = SegmentationDataArguments(crop_size=64)
    dataset = segmentation_dataset(make_shapes(8, 64, 0), args, build_segmentation_processor(args), seed=0)
    for index in range(8):
        item = dataset[index]
        red, green = item["pixel_values"][0], item["pixel_values"][1]
        for label, sign in ((1, 1), (2, -1)):  # reddish discs and greenish squares still are
            if (item["segmentation_maps"] == label).sum() > 100:
                assert sign * (red - green)[item["segmentation_maps"] == label].mean() > 0.3


@pytest.mark.parametrize("statistics", [(0.5, 0.5), (0.2, 0.1)])
def test_pictures_have_the_colours_of_the_images(tmp_path, statistics):
    processor = SegformerImageProcessor(image_mean=[statistics[0]] * 3, image_std=[statistics[1]] * 3)
    color = torch.tensor([0.8, 0.2, 0.4])
    pixels = ((color - statistics[0]) / statistics[1]).view(3, 1, 1).expand(3, 32, 32)
    classes = torch.zeros(32, 32, dtype=torch.long)
    save_masks([(pixels, classes, classes)], 3, tmp_path / "masks.png", processor)
    picture = np.asarray(Image.open(tmp_path / "masks.png").convert("RGB"))
    assert (np.abs(picture - 255 * color.numpy()) < 2).all(axis=-1).mean() > 0.1


def test_bad_data(tmp_path):
    args = folders(tmp_path, [0, 4])
    with pytest.raises(ValueError, match=r"a.png holds class 3, outside \[0, 3\): correct"):
        segmentation_dataset(load_segmentation_data(args)["train"], args, build_segmentation_processor(args))[0]
    (tmp_path / "train" / "masks" / "a.png").unlink()
    with pytest.raises(ValueError, match="1 have no partner of the same name, such as .*a.jpg"):
        load_segmentation_data(args)
    with pytest.raises(ValueError, match="go together"):
        SegmentationDataArguments(train_images="a")
    with pytest.raises(ValueError, match="`--num_classes`: 847 classes, but of masks at most 255"):
        SegmentationDataArguments(num_classes=847)
    with pytest.raises(ValueError, match="at most `--crop_size` 32"):
        SegmentationDataArguments(crop_size=32, stride=40)


@pytest.mark.parametrize("family", ["supmae", "vit_mae", "vit", "deit", "timm", "beit", "dinov2"])
def test_backbones(family, tmp_path):
    torch.manual_seed(0)
    name = make_model(family, tmp_path)
    model = build_upernet(load_backbone(name, image_size=64), num_classes=3, hidden_size=16)
    outputs = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64)))
    assert outputs.logits.shape == (2, 3, 64, 64)
    outputs.loss.backward()
    if family not in ("beit", "dinov2"):
        assert model.backbone.vit.embeddings.position_embeddings.shape[1] == 1 + 8 * 8
        model.save_pretrained(tmp_path / "saved")
        again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "saved").eval()
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(again(images).logits, model.eval()(images).logits)


def test_no_backbone_class(tmp_path):
    with pytest.raises(ValueError, match="no backbone class for .*clip.*SupMAE, plain ViTs, BEiT"):
        load_backbone(make_model("clip", tmp_path), 32)


def test_script_learns_the_shapes(tmp_path):
    """80 steps from random weights, without pre-training, to an mIoU above 0.5; a background alone would have 0.2."""
    models = [make_model(family, tmp_path) for family in ("supmae", "beit")]
    common = ["--crop_size", 48, "--decoder_hidden_size", 32, "--layer_decay", 1.0, "--drop_path_rate", 0, "--use_cpu"]
    common += ["--learning_rate", 3e-3, "--logging_steps", 10, "--max_eval_samples", 40]
    arguments = ["--models", models[0], "--max_steps", 80, "--warmup_steps", 10, "--save_steps", 40, *common]
    printed = run("run_semantic_segmentation.py", *arguments, "--output_dir", "out", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["mIoU"] > 50 and row["aAcc"] > 80 and "mIoU" in printed
    (pictures,) = (tmp_path / "out").glob("*/masks.png")
    assert pictures.stat().st_size > 20_000 and (tmp_path / "out" / "results.png").is_file()
    predict = pipeline("image-segmentation", model=str(pictures.parent))
    shapes = {part["label"] for part in predict(make_shapes(1, 48, seed=2)["image"][0])}
    assert shapes <= {"0", "1", "2", "3"} and len(shapes) > 1
    # a finished run is not trained again, and the table has a row for each model
    arguments = ["--models", *models, "--max_steps", 2, "--warmup_steps", 0, "--max_eval_samples", 4, *common]
    run("run_semantic_segmentation.py", *arguments, "--output_dir", "two", cwd=tmp_path)
    assert len(json.loads((tmp_path / "two" / "results.json").read_text())) == 2


@pytest.mark.parametrize("channels, pixel_type", [(1, "uint8"), (5, "uint16")], ids=["grey", "bands"])
def test_segmentation_of_other_images_than_rgb(channels, pixel_type, tmp_path):
    """Grey scans and satellite bands are segmented as their encoder was trained: no channel and no bit is lost on the way."""
    config = reference_config(num_channels=channels)
    SupMAEForPreTraining(config).save_pretrained(tmp_path / "encoder")
    build_image_processor(config, pixel_type=pixel_type).save_pretrained(tmp_path / "encoder")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        for index in range(4):  # a square that is 1/256 brighter, which 8 bits would lose
            mask = np.zeros((48, 48), np.uint8)
            top, left = generator.integers(0, 24, 2)
            mask[top : top + 20, left : left + 20] = 1
            image = np.full((48, 48, channels), 0.5) + mask[..., None] / (4 if pixel_type == "uint8" else 300)
            image = (image * np.iinfo(pixel_type).max).astype(pixel_type)
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{index}.png")
            path = tmp_path / split / "images" / str(index)
            Image.fromarray(image[..., 0]).save(f"{path}.png") if channels == 1 else np.save(f"{path}.npy", image)
    folders = {
        f"{long}_{kind}": str(tmp_path / split / kind)
        for long, split in (("train", "train"), ("validation", "val"))
        for kind in ("images", "masks")
    }
    flags = [text for name, folder in folders.items() for text in (f"--{name}", folder)]
    small = ["--num_classes", 2, "--crop_size", 48, "--decoder_hidden_size", 16, "--max_steps", 2, "--warmup_steps", 0]
    command = [
        "run_semantic_segmentation.py",
        "--models",
        "encoder",
        *flags,
        *small,
        "--use_cpu",
        "--output_dir",
        "out",
    ]
    assert "A step takes 16 images but there are only 4" in run(*command, cwd=tmp_path, fails=True)
    run(*command, "--per_device_train_batch_size", 4, cwd=tmp_path)
    folder = tmp_path / "out" / "encoder"
    assert (folder / "masks.png").is_file()
    processor = AutoImageProcessor.from_pretrained(folder)
    model = UperNetForSemanticSegmentation.from_pretrained(folder).eval()
    image = np.load(tmp_path / "val/images/0.npy") if channels > 1 else Image.open(tmp_path / "val/images/0.png")
    batch = processor(image, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, channels, 48, 48) and len(batch["pixel_values"].unique()) > 1
    (classes,) = processor.post_process_semantic_segmentation(model(**batch), target_sizes=[(48, 48)])
    assert classes.shape == (48, 48)
    if channels == 1:
        assert pipeline("image-segmentation", model=str(folder))(image)
