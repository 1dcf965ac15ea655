import evaluate
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score

from supmae_hf.evaluation.metrics import TopKAccuracy


def test_top_k_accuracy_is_scikit_learns():
    images, classes = load_digits(return_X_y=True)
    scores = LogisticRegression(max_iter=5).fit(images[:200], classes[:200]).decision_function(images[200:])
    metric = TopKAccuracy(ks=(1, 2, 5), keep_in_memory=True)
    assert isinstance(metric, evaluate.Metric)
    result = metric.compute(predictions=scores, references=classes[200:])
    for k in (1, 2, 5):
        expected = top_k_accuracy_score(classes[200:], scores.astype(np.float32), k=k)
        assert result[f"top{k}"] == pytest.approx(expected)
    assert result["top1"] < result["top2"] < result["top5"]


def test_by_hand():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.4, 0.2], [0.0, 0.0, 1.0]]
    metric = TopKAccuracy(ks=(1, 2, 5), keep_in_memory=True)
    # ranks of the true classes: 1, 2, 3; the last image has no label
    assert metric.compute(predictions=scores, references=[1, 1, 2, -100]) == {
        "top1": pytest.approx(1 / 3),
        "top2": pytest.approx(2 / 3),
    }
