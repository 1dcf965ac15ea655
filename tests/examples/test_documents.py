"""Every command and every block of Python of README and docs runs, in the order of the page; those that need the Hub are skipped."""

import json
import re
import shlex
import shutil

import datasets
import pytest
from conftest import ROOT, TINY, run_example
from PIL import Image


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
NEEDS_THE_HUB = ("facebook/", "me/name", "there")
ELSEWHERE = (
    "make ",
    "hf ",
    "torchrun",
    "accelerate",
    "source ",
    "experiments/",
    "$",
)  # other tests, or several machines
STAND_INS = {
    "FOLDER_OR_NAME": "captions",
    "NAME": "captions",
    "cifar": "photos",
    "clothes": "photos",
    "clothes-test": "photos",
    "untrained": "outputs/digits-pretrain",
}
TRAINING = ["--max_steps", 2, "--warmup_epochs", 0, "--use_cpu", "--per_device_train_batch_size", 8]
SHORTER = {
    "run_pretrain": [*TRAINING, "--num_reconstructions", 2],
    "run_finetune": TRAINING,
    "convert_checkpoint": ["--num_attention_heads", 4, "--decoder_num_attention_heads", 4],
    "pack_images": ["--dataloader_num_workers", 0],
    "publish": ["--dry_run"],
}


@pytest.fixture
def workspace(tmp_path, photographs):
    """What the pages take for granted: the demo's models, a folder of photographs with masks, a table with captions and boxes."""
    folder = tmp_path
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, photograph in zip(("cat", "dog"), photographs):
        for parent in ("photos", "masks"):
            (folder / parent / name).mkdir(parents=True)
        for index in range(12):
            image = photograph[20 * index : 20 * index + 64, 30 * index : 30 * index + 64]
            Image.fromarray(image).save(folder / "photos" / name / f"{index}.png")
            Image.fromarray(image[..., 0] // 86).save(folder / "masks" / name / f"{index}.png")
    Image.fromarray(photographs[0]).save(folder / "photo.jpg")
    Image.fromarray(photographs[0]).save(folder / "scan.tif", format="png")  # the model there is one of 8-bit images
    shutil.copy(ROOT / "tests" / "fixtures" / "official_pretrain_tiny.pth", folder / "supmae_pretrained.pth")
    images = [Image.open(path) for path in sorted((folder / "photos").rglob("*.png"))]
    objects = {"bbox": [[4, 4, 30, 30]], "category": ["leaf"]}
    rows = {"image": images, "text": ["a photo of a cat", "a dog on a roof"] * 12, "objects": [objects] * len(images)}
    (folder / "captions").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(folder / "captions" / "train.parquet")
    model = ["--model_config", json.dumps(TINY), "--max_train_samples", 64, "--max_eval_samples", 20, *TRAINING]
    run_example("run_pretrain.py", *model, "--output_dir", "outputs/digits-pretrain", cwd=folder)
    start = ["--model_name_or_path", "outputs/digits-pretrain", "--output_dir", "outputs/digits-finetune"]
    run_example("run_finetune.py", *start, *model[2:], cwd=folder)
    run_example("export_stock.py", "outputs/digits-finetune", "outputs/digits-finetune-stock", cwd=folder)
    return folder


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(bash|python)\n(.*?)```", (ROOT / page).read_text(), re.S)


def run_command(command: str, folder):
    """In this process, for two steps: each would take seconds to import what it needs."""
    words = [STAND_INS.get(word, word) for word in shlex.split(command, comments=True)]
    script = re.search(r"examples/(\w+)\.py", words[1])[1]
    if script in ("run_pretrain", "run_finetune", "convert_checkpoint"):  # another page's run of the same name
        place = 3 if script == "convert_checkpoint" else words.index("--output_dir") + 1
        shutil.rmtree(folder / words[place], ignore_errors=True)
    if script == "run_pretrain" and ("--model_name_or_path" not in words or "photos_small" in words[2]):
        given = json.loads(words.pop(words.index("--model_config") + 1)) if "--model_config" in words else {}
        words = [word for word in words if word != "--model_config"]
        words += ["--model_config", json.dumps({**TINY, **given})]
    run_example(f"{script}.py", *words[2:], *SHORTER.get(script, []), cwd=folder)


def test_commands_and_code_run(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for page, language, text in ((name, *block) for name in PAGES for block in blocks(name)):
        if language == "python":
            code = "\n".join(line for line in text.splitlines() if not any(name in line for name in NEEDS_THE_HUB))
            exec(compile(code, page, "exec"), {"__name__": "__main__"})
            continue
        for command in text.replace("\\\n", " ").splitlines():
            command = command.strip()
            is_ours = command.startswith("python ") and not any(
                part in command for part in (*NEEDS_THE_HUB, *ELSEWHERE)
            )
            if is_ours:
                run_command(command, workspace)


def test_figures_of_an_accelerator_are_the_raw_results():
    section = (ROOT / "docs/performance.md").read_text().split("## On an accelerator")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    raw = json.loads((ROOT / "docs/results/accelerator/accelerator_nvidia-h200.json").read_text())["rows"]
    measured = {(row["batch"], row["mode"], row["model"]): row for row in raw}
    column = "SupMAE's best is faster by"
    assert len(rows) == len(measured)
    for batch, mode, model, rate, faster, memory, *share in rows:
        row = measured[int(batch.replace(",", "")), mode, model]
        assert [rate, faster] == [f"{row['images/s']:,.0f}", f"{row[column]:.2f}"]
        assert memory == f"{row['peak GiB']:.1f}"
        assert share == ([f"{row['share of matmul rate']:.2f}"] if model == "SupMAE" else [])
    raw = json.loads((ROOT / "docs/results/accelerator/accelerator_checks_nvidia-h200.json").read_text())["rows"]
    checks = re.findall(r"\| ([^|]+) \| (\d\.\de-\d) \| (\de-\d) \|", section)
    assert [(name, float(found), float(most)) for name, found, most in checks] == [
        (row["check"].replace(",", ""), float(row["gradient differs by"]), float(row["at most"]))
        for row in raw
        if "gradient differs by" in row
    ]
