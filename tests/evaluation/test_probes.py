import numpy as np
import pytest
import torch
from conftest import digit_pixel_values, reference_config
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from supmae_hf import SupMAEForImageClassification
from supmae_hf.data.dataset import collate
from supmae_hf.evaluation.arguments import DeviceArguments
from supmae_hf.evaluation.encode import knn_scores
from supmae_hf.evaluation.probes import (
    LinearProbe,
    LinearProbeArguments,
    LinearProbeTrainer,
    compute_features,
    fit_linear,
)


DEVICE = DeviceArguments(per_device_eval_batch_size=16, use_cpu=True)


def arguments(tmp_path, **fields):
    return LinearProbeArguments(
        **{
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 20,
            "per_device_eval_batch_size": 16,
            "num_train_epochs": 3,
            "warmup_epochs": 1,
            "base_learning_rate": 1.0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
    )


def items(size=60, classes=10):
    labels = torch.tensor(load_digits().target[:size]) % classes
    return [{"pixel_values": x, "labels": y} for x, y in zip(digit_pixel_values(range(size)), labels)]


def build(use_mean_pooling=True, **fields) -> SupMAEForImageClassification:
    torch.manual_seed(0)
    return SupMAEForImageClassification(reference_config(use_mean_pooling=use_mean_pooling, **fields))


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_a_trained_probe_becomes_a_classifier_with_the_same_logits(tmp_path, use_mean_pooling):
    model = build(use_mean_pooling, hidden_dropout_prob=0.5)  # which a frozen encoder must not apply
    before = {name: tensor.clone() for name, tensor in model.vit.state_dict().items()}
    probe = LinearProbe(model)
    trainer = LinearProbeTrainer(model=probe, args=arguments(tmp_path), train_dataset=items(), data_collator=collate)
    trainer.train()
    assert not probe.encoder.training and all(torch.equal(t, before[n]) for n, t in model.vit.state_dict().items())

    probe.eval()
    pixel_values = digit_pixel_values(range(60, 80))
    with torch.no_grad():
        expected = probe(pixel_values).logits
        classifier = probe.to_classifier()
        torch.testing.assert_close(classifier(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)
    classifier.save_pretrained(tmp_path / "saved")
    loaded = SupMAEForImageClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)


def test_lars_steps_equal_the_formula(tmp_path):
    """The trust ratio is for the weight only; momentum 0.9, no weight decay (MoCo v3)."""
    probe = LinearProbe(build())
    weight, bias = probe.classifier.weight, probe.classifier.bias
    expected = [weight.detach().clone(), bias.detach().clone()]
    gradients = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: gradients.append((p, p.grad.clone()))) for p in (weight, bias)
    ]
    args = arguments(tmp_path, num_train_epochs=1, warmup_epochs=0, lr_scheduler_type="constant")
    trainer = LinearProbeTrainer(model=probe, args=args, train_dataset=items(), data_collator=collate)
    trainer.train()
    for hook in hooks:
        hook.remove()
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    steps = [
        (next(g for p, g in pair if p is weight), next(g for p, g in pair if p is bias))
        for pair in (gradients[0:2], gradients[2:4], gradients[4:6])
    ]
    for step in steps:
        for index, gradient in enumerate(step):
            if index == 0:
                gradient = gradient * 0.001 * expected[0].norm() / gradient.norm()
            momenta[index] = 0.9 * momenta[index] + gradient
            expected[index] = expected[index] - args.learning_rate * momenta[index]
    torch.testing.assert_close(weight.detach(), expected[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(bias.detach(), expected[1], atol=1e-6, rtol=1e-4)
    assert args.learning_rate == pytest.approx(20 / 256)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_features_are_what_the_classifier_sees(tmp_path, use_mean_pooling):
    model = build(use_mean_pooling).eval()
    features, labels = compute_features(model, items(), DEVICE)
    assert features.shape == (60, 64) and labels.tolist() == load_digits().target[:60].tolist()
    with torch.no_grad():
        expected = model(digit_pixel_values(range(60))).logits
        torch.testing.assert_close(model.classifier(torch.tensor(features)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("classes", "num_labels"), [(10, 10), (2, 2), (2, 3), (10, 12)])
def test_logistic_regression_becomes_the_classifier(tmp_path, classes, num_labels):
    model = build(num_labels=num_labels).eval()
    train = items(100, classes)
    features, labels = compute_features(model, train, DEVICE)
    fit_linear(model, features, labels, c=0.5)
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(C=0.5, max_iter=2000).fit(scaler.transform(features), labels)
    expected = regression.predict_proba(scaler.transform(features))
    with torch.no_grad():
        actual = model(torch.stack([item["pixel_values"] for item in train])).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(actual[:, :classes], expected, atol=1e-3)
    assert actual[:, classes:].sum() == 0


def test_several_classes_and_numbers_are_fitted_and_voted_on():
    model = build(num_labels=3, problem_type="multi_label_classification").eval()
    features, digits = compute_features(model, items(100), DEVICE)
    labels = np.stack([digits % 2 == 0, np.isin(digits, [0, 6, 8, 9]), digits < 0], axis=1).astype(np.float32)
    labels[:10, 0] = -100  # not known
    scaler = StandardScaler().fit(features)
    fit_linear(model, features, labels, c=0.5)
    logits = model.classifier(torch.tensor(features)).detach().numpy()
    votes = knn_scores(features, labels, features[:20] + 0.01, num_labels=3, num_neighbors=5)
    assert (logits[:, 2] < -1e3).all() and (votes[:, 2] == 0).all()  # the class of no image
    for column, places in ((0, slice(10, None)), (1, slice(None))):
        answers = labels[places, column]
        regression = LogisticRegression(C=0.5, max_iter=2000).fit(scaler.transform(features[places]), answers)
        expected = regression.decision_function(scaler.transform(features))
        np.testing.assert_allclose(logits[:, column], expected, atol=1e-3)
        neighbors = KNeighborsRegressor(5, weights="distance", metric="cosine").fit(features[places], answers)
        np.testing.assert_allclose(votes[:, column], neighbors.predict(features[:20] + 0.01))

    model = build(num_labels=1, problem_type="regression").eval()
    fit_linear(model, features, digits.astype(np.float32), c=0.5)
    expected = Ridge(alpha=2.0).fit(scaler.transform(features), digits).predict(scaler.transform(features))
    values = model.classifier(torch.tensor(features)).detach().numpy()[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-3)


def test_neighbors_vote(tmp_path):
    model = build().eval()
    features, labels = compute_features(model, items(100), DEVICE)
    scores = knn_scores(features[:80], labels[:80], features[80:], num_labels=12, num_neighbors=5)
    expected = KNeighborsClassifier(5, weights="distance", metric="cosine").fit(features[:80], labels[:80])
    assert scores.shape == (20, 12) and scores[:, 10:].sum() == 0
    assert (scores.argmax(axis=1) == expected.predict(features[80:])).all()
    # more neighbours than images
    assert knn_scores(features[:3], labels[:3], features[80:], 12, 20).shape == (20, 12)
