"""Several views of an image that is decoded once."""

import io
import itertools
import json

import datasets
import numpy as np
import torch
from conftest import TINY, reference_config, run_example
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

from supmae_hf.data.dataset import Dealing, ImageDataset, ImageStream, collate_views
from supmae_hf.data.labels import Labels
from supmae_hf.data.sources import load_digits
from supmae_hf.data.transforms import TrainTransform
from supmae_hf.preparation import build_image_processor


def photographs(count: int) -> datasets.Dataset:
    files = []
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(load_sample_images().images[index % 2]).resize((120 + index, 90)).save(file, "JPEG")
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": files, "label": [i % 2 for i in range(count)]}, features=features)


def of(dataset, num_views: int, **options) -> ImageDataset:
    kind = ImageDataset if isinstance(dataset, datasets.Dataset) else ImageStream
    transform = TrainTransform(build_image_processor(reference_config()), num_views=num_views)
    options = {"num_patches": 16, "seed": 0, **options}
    return kind(dataset, Labels.of(dataset), transform, **options)


def test_views_are_crops_of_one_image():
    several, single = of(photographs(3), 3), of(photographs(3), 1)
    for position in (0, 2, 4):  # the last one in the second epoch
        item, one = several[position], single[position]
        assert item["pixel_values"].shape == (3, 3, 32, 32) and item["noise"].shape == (3, 16)
        assert item["labels"].tolist() == [one["labels"].item()] * 3
        # a crop at least twice as large as the model's images is decoded smaller if it is the only one
        torch.testing.assert_close(item["pixel_values"][0], one["pixel_values"], atol=0.5, rtol=0)
        assert (item["pixel_values"][0] - one["pixel_values"]).abs().mean() < 0.05
        assert torch.equal(item["noise"][0], one["noise"])
        distances = [(item["pixel_values"][0] - item["pixel_values"][other]).abs().mean() for other in (1, 2)]
        assert min(distances) > 0.05 and not torch.equal(item["noise"][1], item["noise"][2])
    batch = collate_views([several[0], several[1]])
    assert batch["pixel_values"].shape == (6, 3, 32, 32) and batch["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(batch["pixel_values"][4], several[1]["pixel_values"][1])


def test_broken_images_are_counted_once():
    records = photographs(4)
    broken = {"bytes": b"no image", "path": None}
    records = records.map(
        lambda record, index: {"image": broken if index == 1 else record["image"]}, with_indices=True
    )
    items = of(records.cast_column("image", datasets.Image()), 2, skip_bad_images=True)
    assert items[1]["skipped"].tolist() == [1, 0] and items[0]["skipped"].tolist() == [0, 0]


def test_streams_pass_over_whole_batches_of_views():
    images = load_digits()["train"].select(range(24))
    stream = of(images.to_iterable_dataset(num_shards=2), 2, dealing=Dealing(num_images=24, batch_size=4))
    stream.epoch = 1
    first = list(itertools.islice(stream, 24))
    stream.skip_batches(2)  # of four images, twice each
    again = list(itertools.islice(stream, 24))
    assert again[:8] == [{}] * 8 and again[8]
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first[8:], again[8:]))


def test_both_scripts_train_on_views(tmp_path):
    run = ["--model_config", json.dumps(TINY), "--num_train_epochs", 1, "--warmup_epochs", 0, "--logging_steps", 1]
    run += ["--max_train_samples", 128, "--max_eval_samples", 20, "--report_to", "none", "--disable_tqdm", "True"]
    run += ["--save_strategy", "no", "--eval_strategy", "no", "--use_cpu", "--per_device_train_batch_size", 64]
    weights = []
    for script in ("run_pretrain.py", "run_pretrain_no_trainer.py"):
        run_example(script, *run, "--repeated_augmentation", 2, "--output_dir", script, cwd=tmp_path)
        weights.append(load_file(tmp_path / script / "model.safetensors"))
        log = json.loads((tmp_path / script / "trainer_state.json").read_text())["log_history"]
        steps = [entry for entry in log if "loss" in entry]
        assert len(steps) == 4 and all(entry["labeled_images_per_step"] == 64 for entry in steps)
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_all_views_are_in_one_batch(tmp_path):
    arguments = ["--repeated_augmentation", 3, "--per_device_train_batch_size", 64, "--output_dir", "out"]
    error = run_example("run_pretrain.py", *arguments, cwd=tmp_path, fails=True)
    assert "`--repeated_augmentation` 3 does not divide `--per_device_train_batch_size` 64" in error
