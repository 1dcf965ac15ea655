"""Features of images as Parquet files: the right ones, once each, whatever interrupts it."""

import json
import re
import subprocess
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, example_command, run_command, run_example
from evaluation.zoo import ENCODERS, make_model
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from supmae_hf.data.arguments import EvaluationDataArguments
from supmae_hf.data.sources import load_splits
from supmae_hf.evaluation.arguments import FeatureArguments
from supmae_hf.evaluation.encode import ImageEncoder
from supmae_hf.evaluation.features import extract_features, read_features
from supmae_hf.preparation import Preparation


SCRIPT = "extract_features.py"


def rows_of(folder) -> dict[str, list]:
    """All rows of a folder, by way of pyarrow alone."""
    columns = {}
    for path in sorted(folder.glob("*.parquet")):
        for name, values in pq.read_table(path).to_pydict().items():
            columns.setdefault(name, []).extend(values)
    return columns


def test_nearest_neighbours_of_the_digits_equal_those_of_the_probe(tmp_path):
    model = make_model("supmae", tmp_path)
    run_example(SCRIPT, "--model", model, "--pooling", "cls", "--output_dir", "features", cwd=tmp_path)
    splits = datasets.load_dataset(str(tmp_path / "features"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 1437, "validation": 360}
    train, held_out = (splits[name].with_format("numpy") for name in ("train", "validation"))
    neighbors = KNeighborsClassifier(20, weights="distance", metric="cosine")
    neighbors.fit(train["vector"][:], train["label"][:])
    accuracy = neighbors.score(held_out["vector"][:], held_out["label"][:])
    probe = ["--model_name_or_path", model, "--probe", "knn", "--eval_crop_ratio", 0.875]
    run_example("run_linear_probe.py", *probe, "--output_dir", "probe", "--report_to", "none", cwd=tmp_path)
    expected = json.loads((tmp_path / "probe" / "eval_results.json").read_text())["eval_top1"]
    assert accuracy == pytest.approx(expected) and accuracy > 0.5


@pytest.mark.parametrize("family", ENCODERS)
def test_any_encoder_with_tokens(tmp_path, family, digit_folder):
    model = make_model(family, tmp_path)
    encoder, transform = ImageEncoder(model), Preparation.load(model)
    splits = load_splits(EvaluationDataArguments(image_dir=str(digit_folder / "train")))
    (tmp_path / "out").mkdir()
    options = {"output_dir": str(tmp_path / "out"), "per_device_eval_batch_size": 16, "use_cpu": True}
    extract_features(encoder, splits, transform, FeatureArguments(model=model, tokens=True, **options))
    rows = rows_of(tmp_path / "out")
    assert len(rows["path"]) == 40 and len(set(rows["path"])) == 40
    for place in (0, 17, 39):
        path = rows["path"][place]
        assert rows["label"][place] == path.split("/")[-2]
        image = transform(Image.open(path).convert("RGB")).unsqueeze(0)
        with torch.no_grad():
            vector, tokens = encoder.encode(image)
            assert torch.equal(encoder(image), vector)
        np.testing.assert_allclose(rows["vector"][place], vector[0], atol=1e-5)
        np.testing.assert_allclose(rows["tokens"][place], tokens[0], atol=1e-5)
        if family not in ("resnet", "beit"):
            assert len(rows["tokens"][place]) == 16
        if family in ("vit", "deit", "dinov2"):  # class token and the like are not among them
            everything = encoder.model(image).last_hidden_state[0]
            assert torch.equal(tokens[0], everything[-16:])


def test_images_without_labels_and_broken_ones(tmp_path, digit_folder):
    model = make_model("supmae", tmp_path)
    folder = digit_folder / "train"
    broken = sorted(folder.rglob("*.png"))[3]
    broken.write_bytes(b"not an image")
    Image.new("RGB", (20, 20)).save(folder / "unlabelled.png")
    arguments = ["--model", model, "--image_dir", folder, "--output_dir", "out"]
    assert f"{broken} (image" in run_example(SCRIPT, *arguments, cwd=tmp_path, fails=True)
    arguments += ["--on_bad_image", "skip", "--overwrite_output_dir", "True", "--images_per_file", 7]
    run_example(SCRIPT, *arguments, cwd=tmp_path)
    rows = rows_of(tmp_path / "out")
    assert len(rows["path"]) == 40 and str(broken) not in rows["path"]
    labels = dict(zip(rows["path"], rows["label"]))
    assert labels.pop(str(folder / "unlabelled.png")) is None and None not in labels.values()
    assert len(set(rows["index"])) == 40 and max(rows["index"]) == 40


def test_the_code_of_the_documentation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = make_model("supmae", tmp_path)
    run_example(SCRIPT, "--model", model, "--pooling", "cls", "--output_dir", "outputs/features", cwd=tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "features.md").read_text(), re.DOTALL)
    assert len(blocks) == 3 and all(len(block.splitlines()) <= 10 for block in blocks)
    for block in blocks:
        exec(block, {})
    printed = capsys.readouterr().out
    assert printed.count("->") == 3 and "cluster" in printed and printed.strip().endswith("%")


class Interrupted(Exception):
    pass


def test_interrupted_runs_go_on(tmp_path, digit_folder):
    model = make_model("supmae", tmp_path)
    encoder, transform = ImageEncoder(model), Preparation.load(model)
    splits = load_splits(EvaluationDataArguments(image_dir=str(digit_folder / "train")))

    def extract(folder, encoder=encoder):
        folder.mkdir(exist_ok=True)
        options = {"output_dir": str(folder), "per_device_eval_batch_size": 4, "use_cpu": True}
        extract_features(encoder, splits, transform, FeatureArguments(model=model, images_per_file=8, **options))

    extract(tmp_path / "whole")

    class Failing(ImageEncoder):
        calls = 0

        def encode(self, pixel_values):
            self.calls += 1
            if self.calls == 4:  # in the middle of the second file
                raise Interrupted
            return super().encode(pixel_values)

    with pytest.raises(Interrupted):
        extract(tmp_path / "out", Failing(model))
    first = tmp_path / "out" / "train-00000.parquet"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [first.name]
    written = first.stat().st_mtime_ns
    extract(tmp_path / "out")
    assert first.stat().st_mtime_ns == written
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole") and len(rows_of(tmp_path / "out")["path"]) == 40


def test_other_features_and_other_files_are_left_alone(tmp_path, digit_folder):
    model = make_model("supmae", tmp_path)
    arguments = ["--model", model, "--image_dir", digit_folder / "train", "--output_dir", "out"]
    run_example(SCRIPT, *arguments, cwd=tmp_path)
    before = rows_of(tmp_path / "out")
    error = run_example(SCRIPT, *arguments, "--pooling", "cls", cwd=tmp_path, fails=True)
    assert "pooling: model before, cls now" in error and rows_of(tmp_path / "out") == before
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    run_example(SCRIPT, *arguments, "--pooling", "cls", "--overwrite_output_dir", "True", cwd=tmp_path)
    assert rows_of(tmp_path / "out")["vector"] != before["vector"]
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_nearest_images(tmp_path, digit_folder):
    model = make_model("dinov2", tmp_path)
    query = sorted((digit_folder / "train").rglob("*.png"))[5]
    arguments = ["--model", model, "--image_dir", digit_folder / "train", "--output_dir", "out", "--num_nearest", 3]
    printed = run_example(SCRIPT, *arguments, "--nearest", query, cwd=tmp_path)
    rows = json.loads((tmp_path / "out-nearest" / f"{query.stem}.json").read_text())
    assert str(query) not in [row["path"] for row in rows] and len(rows) == 3  # it is not its own neighbour
    assert str(query) in printed and (tmp_path / "out-nearest" / f"{query.stem}.png").stat().st_size > 5_000
    vectors = read_features(tmp_path / "out").with_format("numpy")["vector"][:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = rows_of(tmp_path / "out")["path"]
    similarities = vectors @ vectors[paths.index(str(query))]
    expected = np.sort(similarities)[::-1][1:4]
    np.testing.assert_allclose([row["similarity"] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`--model` is missing"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
        (["--model", "{vit}", "--image_dir", "none"], "'none' is not a folder of images"),
        (["--model", "{vit}", "--split", "dev"], "no split 'dev', only ['train', 'validation']"),
        (["--model", "{vit}", "--nearest", "none.png"], "`--nearest` names none.png, which is not a file"),
        (["--model", "{vit}", "--images_per_file", "0"], "`--images_per_file` must be 1 or more, got 0"),
        (["--model", "{resnet}", "--pooling", "cls"], "has no class token: choose another `--pooling`"),
    ],
)
def test_bad_input_ends_in_one_error(tmp_path, arguments, message):
    models = {family: make_model(family, tmp_path) for family in ("vit", "resnet")}
    arguments = [argument.format(**models) for argument in arguments]
    assert message in run_example(SCRIPT, *arguments, "--output_dir", "out", cwd=tmp_path, fails=True)
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.slow
def test_two_processes_that_are_killed_end_with_the_rows_of_one(tmp_path, digit_folder):
    arguments = ["--model", make_model("supmae", tmp_path), "--images_per_file", 100, "--use_cpu", "True"]
    run_example(SCRIPT, *arguments, "--output_dir", "one", cwd=tmp_path)
    command = example_command(SCRIPT, *arguments, "--output_dir", "two", processes=2)
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while len(list((tmp_path / "two").glob("*.parquet"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)])
    process.wait()
    run_command(example_command(SCRIPT, *arguments, "--output_dir", "two", processes=2), tmp_path)
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")
