"""The comparison of captions and dense labels: its pictures and captions, and a small run of it."""

import json

import pytest
import torch
from conftest import example_command, load_example, make_mnist, run_command


@pytest.fixture(scope="module")
def script():
    return load_example("experiments/supervision.py")


def test_pictures_hold_their_pieces_whole(script):
    images = torch.zeros(5, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 2:30, 2:30] = torch.tensor([10, 20, 30, 40, 50], dtype=torch.uint8).view(5, 1, 1, 1)
    torch.manual_seed(0)
    ids = torch.randint(5, (50, 2))
    pictures = script.pictures(images, ids)
    assert pictures.shape == (50, 1, 64, 64)
    places = []
    for picture, (first, second) in zip(pictures, ids.tolist()):
        sizes = [int((picture == 10 * (place + 1)).sum()) for place in (first, second)]
        assert set(picture.unique().tolist()) <= {0, 10 * (first + 1), 10 * (second + 1)}
        assert max(sizes) >= 784 and sum(sizes) > 1.7 * 784 * (1 if first != second else 1.5)
        places.append(int(picture.sum(dim=(0, 2)).argmax()))
    assert len(set(places)) > 10
    assert script.caption_of([8, 5]) == "a bag and a sandal"


def test_shapes_and_their_masks_are_mirrored_alike(script):
    images, masks = script.load_shapes(6, seed=0)
    assert images.shape == (6, 3, 64, 64) and masks.shape == (6, 64, 64) and masks.max() == 3
    torch.manual_seed(1)
    mirrored, classes = script.flipped(images, masks)
    turned = [not torch.equal(*pair) for pair in zip(images, mirrored)]
    assert 0 < sum(turned) < 6
    for index, is_turned in enumerate(turned):
        assert torch.equal(mirrored[index], images[index].flip(-1) if is_turned else images[index])
        assert torch.equal(classes[index], masks[index].flip(-1) if is_turned else masks[index])


@pytest.mark.slow
def test_a_small_run_that_goes_on(tmp_path):
    data = make_mnist(tmp_path / "data", splits=((0, 1000), (1000, 1100)))
    arguments = ["--data", data, "--tflops", 0.01, "--seeds", 1, "--processes", 1, "--output_dir", "out"]
    command = example_command("experiments/supervision.py", *arguments)
    assert run_command(command, tmp_path).count(" minutes)") == 10
    rows = json.loads((tmp_path / "out" / "results_captions.json").read_text())
    arms = [
        ("SupMAE, captions", 0.1),
        ("SupMAE, captions", 1),
        ("SupMAE, classes", 0.1),
        ("SupMAE, classes", 1),
        ("MAE", 0),
    ]
    assert [(row["arm"], row["weight"]) for row in rows] == arms
    assert ["pre-trained branch" in row for row in rows] == [True] * 4 + [False]
    rows = json.loads((tmp_path / "out" / "results_dense.json").read_text())
    assert all(0 < row["mIoU"] < 1 for row in rows) and len(rows) == 5
    assert run_command(command, tmp_path).count(" minutes)") == 0
