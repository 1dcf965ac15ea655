"""The arithmetic of the reproduction; the README's test runs it."""

import numpy as np
import pytest
from conftest import load_example


@pytest.fixture(scope="module")
def script():
    return load_example("experiments/efficiency.py")


def rows(accuracies, method, cost):
    return [
        {"method": method, "epochs": epochs, "TFLOPs": cost * epochs, "probe": accuracy}
        for epochs, accuracy in zip((2, 4, 8, 16), accuracies)
    ]


def test_share_of_epochs_and_compute(script):
    table = rows([0.6, 0.8, 0.9, 0.95], "SupMAE", 1.0) + rows([0.5, 0.6, 0.7, 0.8], "MAE", 2.0)
    assert script.reaches(table, "probe", "epochs") == pytest.approx(4 / 16)
    assert script.reaches(table, "probe", "TFLOPs") == pytest.approx(4 / 32)
    table[-1]["probe"] = 0.85  # half-way between 4 and 8 epochs, on a logarithmic axis
    assert script.reaches(table, "probe", "epochs") == pytest.approx(np.sqrt(4 * 8) / 16)
    table[-1]["probe"] = 0.5
    assert "12.5% of its epochs or less and 6.2% of its TFLOPs or less" in script.say_where(table, "probe")
    table[-1]["probe"] = 0.99
    assert "in none of its runs" in script.say_where(table, "probe")


def test_equal_effort_and_cost(script):
    assert len({len(trials) for trials in script.TRIALS.values()}) == 1
    for method, trials in script.TRIALS.items():
        settings = {**trials[0], "finetuning_epochs": 10}
        short, long = (script.schedule_of(method, settings, epochs) for epochs in (8, 16))
        assert long.pretraining(1) == 2 * short.pretraining(1) and long.finetuning(1) == short.finetuning(1)


def test_held_out_digits_are_not_tuned_on(script):
    data = script.prepare([3])
    (kept, held_out), (train, _), copies = data["tuning"], data["final"], data["corrupted"]
    assert len(kept[1]) + len(held_out[1]) == len(train[1]) == 1437
    known = {image.numpy().tobytes() for image in train[0]}
    assert all(image.numpy().tobytes() in known for part in (kept, held_out) for image in part[0])
    assert copies.shape == (15, 360, 1, 32, 32) and copies.abs().max() <= 1
    assert len({copy.mean().item() for copy in copies}) == 15
