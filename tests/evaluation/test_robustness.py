import numpy as np
import pytest
import torch
from evaluation.zoo import make_model
from PIL import Image
from sklearn.metrics import accuracy_score
from timm.data import ImageNetInfo

from supmae_hf.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, Corrupt, corrupt
from supmae_hf.evaluation.robustness import (
    ALEXNET_ERRORS,
    corruption_errors,
    mean_corruption_error,
    robustness_score,
    subset_accuracy,
    subset_classes,
)
from supmae_hf.preparation import Preparation


@pytest.mark.parametrize(
    ("columns", "score"),  # mCE, A, R, Sketch, as published
    [((51.7, 35.9, 48.3, 34.5), 41.8), ((47.4, 27.9, 45.3, 32.0), 39.5), ((48.1, 35.5, 51.0, 36.0), 43.6)],
    ids=["MAE", "DeiT", "SupMAE"],
)
def test_published_scores(columns, score):
    assert round(robustness_score(*columns), 1) == score


def test_mean_corruption_error_by_hand():
    as_alexnet = {(name, level): ALEXNET_ERRORS[name] for name in CORRUPTIONS for level in SEVERITIES}
    assert mean_corruption_error(as_alexnet) == pytest.approx(1)
    # half of AlexNet's error on one corruption, and severities that average to it on another
    halved = {**as_alexnet, **{("fog", level): 0.819324 * level / 6 for level in SEVERITIES}}
    assert mean_corruption_error(halved) == pytest.approx(14.5 / 15)
    assert corruption_errors(halved)["fog"] == pytest.approx(0.819324 / 2)
    assert mean_corruption_error({**halved, ("spatter", 1): 1.0}) == pytest.approx(14.5 / 15)  # an extra one
    del halved["fog", 3]
    with pytest.raises(ValueError, match="1 are missing, such as .'fog', 3."):
        mean_corruption_error(halved)
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS


@pytest.mark.parametrize("name", ["a", pytest.param("r", marks=pytest.mark.slow)])
def test_subsets(name):
    classes, names = subset_classes(name), ImageNetInfo().label_names()
    places = [names.index(synset) for synset in classes]
    assert len(set(classes)) == 200 and places == sorted(places)


def test_known_members_of_the_subsets():
    # of the lists of both data sets: ImageNet-A has the fox squirrel and no goldfish, ImageNet-R the goldfish
    assert "n02356798" in subset_classes("a") and "n01443537" not in subset_classes("a")
    assert "n01443537" in subset_classes("r")


def test_subset_accuracy_ignores_other_classes():
    generator = np.random.default_rng(0)
    logits, classes = generator.normal(size=(500, 20)), [1, 4, 7, 19]
    labels = generator.choice(classes, 500)
    expected = [max(classes, key=lambda c: row[c]) for row in logits]
    assert subset_accuracy(logits, labels, classes) == accuracy_score(labels, expected)
    labels[:250] = -100
    assert subset_accuracy(logits, labels, classes) == accuracy_score(labels[250:], expected[250:])
    assert subset_accuracy(logits, labels, range(20)) == accuracy_score(labels[250:], logits[250:].argmax(1))


@pytest.mark.parametrize("name", CORRUPTIONS + EXTRA_CORRUPTIONS)
def test_corruptions_are_reproducible_and_grow(name, photographs):
    image = Image.fromarray(photographs[0]).resize((160, 120))
    copies = [np.asarray(corrupt(image, name, severity, 7), dtype=float) for severity in (1, 5)]
    assert all(np.array_equal(corrupt(image, name, 5, 7), copies[1]) for _ in range(2))
    weak, strong = (np.abs(copy - np.asarray(image, dtype=float)).mean() for copy in copies)
    assert 0 < weak < strong
    grey = corrupt(image.convert("L"), name, 3, 0)
    assert grey.mode == "L" and grey.size == image.size
    if name in ("gaussian_noise", "impulse_noise", "glass_blur", "snow"):
        assert not np.array_equal(corrupt(image, name, 5, 8), copies[1])


def test_bad_corruptions(photographs):
    image = Image.fromarray(photographs[0])
    with pytest.raises(ValueError, match="no corruption 'rain': choose from gaussian_noise"):
        corrupt(image, "rain", 1)
    with pytest.raises(ValueError, match="1, 2, 3, 4 or 5, got 6"):
        corrupt(image, "fog", 6)
    with pytest.raises(ValueError, match="16x16 pixels is too small"):
        corrupt(image.resize((16, 16)), "fog", 1)


def test_corruption_comes_between_crop_and_normalisation(tmp_path, photographs):
    transform = Preparation.load(make_model("vit", tmp_path))
    image = Image.fromarray(photographs[0])
    result = Corrupt(transform, "contrast", 5)(image)  # which is not random
    torch.testing.assert_close(result, transform.normalize(corrupt(transform.crop(image), "contrast", 5)))
    assert result.std() < transform(image).std() / 2
    noisy = Corrupt(transform, "gaussian_noise", 2)
    assert torch.equal(noisy(image), noisy(image))
