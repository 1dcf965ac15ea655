"""Scripts that lose nothing, run nothing foreign, and end when they are told."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, TINY, digit_images, example_command, free_port, make_dataset, run_example
from hub_server import HubServer
from safetensors.torch import load_file
from test_records import tree, write
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from supmae_hf import SupMAEConfig, SupMAEForImageClassification, SupMAEForPreTraining, records
from supmae_hf.preparation import build_image_processor
from supmae_hf.records import MANIFEST, complete_checkpoint, find_checkpoint, list_checkpoints


RUN = ["--model_config", json.dumps(TINY), "--max_steps", 4, "--warmup_epochs", 0, "--save_strategy", "steps"]
RUN += ["--save_steps", 2, "--eval_strategy", "no", "--report_to", "none", "--disable_tqdm", "True", "--use_cpu"]
T, L = "run_pretrain.py", "run_pretrain_no_trainer.py"


def make_photos(folder: Path, classes=("a", "b"), count=6) -> Path:
    for index, image in enumerate(digit_images(count)):
        path = folder / classes[index % len(classes)] / f"{index}.png" if classes else folder / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def save_model(folder: Path, kind=SupMAEForImageClassification) -> Path:
    config = SupMAEConfig(**TINY, num_labels=10)
    kind(config).save_pretrained(folder)
    build_image_processor(config).save_pretrained(folder)
    return folder


# --- what is not ours ---


@pytest.mark.parametrize("script", [T, L, "run_finetune.py"])
def test_checkpoints_of_a_stock_trainer_are_left_alone(tmp_path, script):
    for step in (500, 1000):
        write(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors")
    before = tree(tmp_path)
    model = ["--model_name_or_path", save_model(tmp_path / "model")] if script == "run_finetune.py" else []
    for overwrite in ([], ["--overwrite_output_dir", "True"]):
        error = run_example(script, *RUN, *model, "--output_dir", "out", *overwrite, cwd=tmp_path, fails=True)
        assert "out is not empty and holds no run of ours (checkpoint-1000, checkpoint-500)" in error
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("output", [".", "table", "table/out"])
@pytest.mark.parametrize("script", ["pack_images.py", "extract_features.py", T, "run_eval.py"])
def test_outputs_that_touch_an_input_are_refused(tmp_path, script, output):
    rows = make_dataset({"image": digit_images(8)}, {"image": datasets.Image()})
    (tmp_path / "table").mkdir()
    rows.to_parquet(tmp_path / "table" / "train-00000-of-00001.parquet")
    model = save_model(tmp_path.with_name(tmp_path.name + "-model"))
    flags = {"extract_features.py": ["--model", model], T: RUN, "run_eval.py": ["--models", model]}.get(script, [])
    before = tree(tmp_path)
    flags = [*flags, "--dataset_name", "table", "--output_dir", output, "--overwrite_output_dir", "True"]
    error = run_example(script, *flags, cwd=tmp_path, fails=True)
    assert "table, which is read: choose another folder to write to." in error
    assert tree(tmp_path) == before


def test_a_model_is_an_input_too(tmp_path):
    save_model(tmp_path / "out" / "checkpoint-5", SupMAEForPreTraining)
    before = tree(tmp_path)
    flags = ["--model_name_or_path", "out/checkpoint-5", "--output_dir", "out", "--overwrite_output_dir", "True"]
    assert "out holds out/checkpoint-5, which is read" in run_example(T, *RUN, *flags, cwd=tmp_path, fails=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("script", ["convert_checkpoint.py", "export_stock.py"])
def test_photographs_are_not_replaced_by_a_model(tmp_path, script):
    make_photos(tmp_path / "photos", count=20)
    source = save_model(tmp_path / "model")
    before = tree(tmp_path)
    error = run_example(script, source, "photos", "--overwrite", cwd=tmp_path, fails=True)
    assert "photos holds files that no conversion or export wrote" in error and tree(tmp_path) == before
    for _ in range(2):  # its own output is
        run_example(script, source, "out", "--overwrite", cwd=tmp_path)
    assert "lies in" in run_example(script, source, source / "out", cwd=tmp_path, fails=True)


def test_tables_do_not_overwrite_those_of_others(tmp_path):
    write(tmp_path / "cost.json")
    write(tmp_path / "cost.png")
    for _ in range(2):
        run_example("estimate_cost.py", "--output_dir", ".", cwd=tmp_path)
    assert (tmp_path / "_aside-cost.json").read_text() == (tmp_path / "_aside-cost.png").read_text() == "years of work"
    assert len(list(tmp_path.glob("_aside-*"))) == 2


@pytest.mark.slow
def test_the_same_command_twice(tmp_path, monkeypatch):
    command = example_command(T, *RUN, "--max_steps", 10_000, "--output_dir", "out")
    process = start(command, tmp_path)
    monkeypatch.setattr(records, "LOCK_SECONDS", 0.1)
    try:
        while not list_checkpoints(tmp_path / "out"):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        flags = [*RUN, "--max_steps", 10_000, "--output_dir", "out"]
        for script in (T, L):
            error = run_example(script, *flags, cwd=tmp_path, fails=True)
            assert f"Process {process.pid} on " in error and "is writing to out" in error
    finally:
        process.kill()
        process.wait()


# --- what is foreign is not run ---


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with finished runs of both scripts, in `trainer` and `loop`."""
    folder = tmp_path_factory.mktemp("finished")
    run_example(T, *RUN, "--output_dir", "trainer", cwd=folder)
    run_example(L, *RUN, "--output_dir", "loop", cwd=folder)
    return folder


FILES = [(L, "custom_checkpoint_0.pkl"), (L, "random_states_0.pkl"), (L, "optimizer.bin"), (L, "scheduler.pt")]
FILES += [(T, "rng_state.pth"), (T, "optimizer.pt"), (T, "scheduler.pt")]


@pytest.mark.parametrize(("script", "name"), FILES)
def test_pickles_in_a_checkpoint_do_not_run(tmp_path, finished, script, name):
    checkpoint = shutil.copytree(
        finished / ("loop" if script == L else "trainer") / "checkpoint-2", tmp_path / "there"
    )
    with open(checkpoint / name, "wb") as file:
        pickle.dump(Bomb(tmp_path / "called"), file)
    (checkpoint / MANIFEST).unlink()
    complete_checkpoint(checkpoint)  # whoever changes files can change their checksums
    flags = ["--resume_from_checkpoint", "there", "--output_dir", "out"]
    with contextlib.suppress(AssertionError):  # what accelerate knows of random numbers is not needed
        run_example(script, *RUN, *flags, cwd=tmp_path, fails=True)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("run_eval.py", ["--models", "foreign"]),
        ("extract_features.py", ["--model", "foreign"]),
        ("run_semantic_segmentation.py", ["--models", "foreign"]),
        ("run_few_shot.py", ["--models", "foreign"]),
        ("export_stock.py", ["foreign", "out"]),
        ("publish.py", ["foreign", "me/name", "--dry_run"]),
        (T, ["--model_name_or_path", "foreign"]),
    ],
)
def test_code_of_others_does_not_run(tmp_path, monkeypatch, script, flags):
    (tmp_path / "foreign").mkdir()
    code = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoModelForImageClassification": "code.M"}
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": code}))
    (tmp_path / "foreign" / "code.py").write_text(f"open({str(tmp_path / 'called')!r}, 'w')")
    (tmp_path / "foreign" / "README.md").write_text("---\nlicense: mit\n---\n# x\n")
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("it asks whether to run the code"))
    error = run_example(script, *flags, cwd=tmp_path, fails=True)
    assert "foreign" in error and not (tmp_path / "called").exists()
    if script != T:
        assert "needs code of its own, which is not run" in error


def damage(folder: Path, kind: str):
    """Make a checkpoint one that cannot be loaded."""
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if kind == "header":
        weights.write_bytes(b"\xff" * 100)
    elif kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "pickle":
        weights.unlink()
        torch.save({"bomb": Bomb(folder / "called")}, folder / "pytorch_model.bin")
    else:
        (folder / "config.json").write_text(
            json.dumps({**config, **{"type": {"hidden_size": "wide"}, "act": {"hidden_act": "nonsense"}}[kind]})
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("header", "'damaged' has damaged weights (Error while deserializing header"),
        ("cut off", "'damaged' has damaged weights"),
        ("pickle", "'damaged' holds other objects than tensors (posix.system)"),
        ("type", "damaged"),
        ("act", "nonsense"),
    ],
)
@pytest.mark.parametrize("stock", [False, True])
def test_checkpoints_that_cannot_be_loaded_are_named(tmp_path, kind, message, stock):
    if stock:
        fields = {name: TINY[name] for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")}
        fields |= {"num_attention_heads": 2, "intermediate_size": 64, "num_labels": 10}
        ViTForImageClassification(ViTConfig(**fields)).save_pretrained(tmp_path / "damaged")
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "damaged")
    else:
        save_model(tmp_path / "damaged")
    damage(tmp_path / "damaged", kind)
    commands = [
        ("run_eval.py", ["--models"]),
        ("extract_features.py", ["--model"]),
        (T, [*RUN, "--model_name_or_path"]),
    ]
    commands += [("convert_checkpoint.py", [])] if stock else [("export_stock.py", [])]
    for script, flags in commands:
        more = ["out"] if script in ("convert_checkpoint.py", "export_stock.py") else ["--output_dir", "out"]
        error = run_example(script, *flags, "damaged", *more, cwd=tmp_path, fails=True).splitlines()
        said = next(line for line in error if line)
        assert message in said and len(said) < 600 and "weights_only" not in said
        assert not (tmp_path / "out").exists() and not (tmp_path / "damaged" / "called").exists()


# --- going on from a path ---


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, finished, name, damage):
    checkpoint = shutil.copytree(finished / "trainer" / "checkpoint-2", tmp_path / "there")
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).unlink() if damage == "missing" else (checkpoint / name).write_bytes(content)
    flags = ["--resume_from_checkpoint", "there", "--output_dir", "out"]
    error = run_example(T, *RUN, *flags, cwd=tmp_path, fails=True)
    assert "`--resume_from_checkpoint` there cannot be used, because" in error
    assert not (tmp_path / "out").exists()


def test_going_on_from_a_path_never_goes_back(tmp_path, finished, warnings):
    shutil.copytree(finished / "trainer" / "checkpoint-2", tmp_path / "there")
    flags = [*RUN, "--resume_from_checkpoint", "there", "--output_dir", "out"]
    run_example(T, *flags, cwd=tmp_path)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == (finished / "trainer" / "model.safetensors").read_bytes()
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-4"]
    run_example(T, *flags, cwd=tmp_path)  # as after a kill
    assert "Going on from out/checkpoint-4 in the place of there, which is older" in warnings.text
    other = run_example(T, *flags, "--weight_decay", 0.5, "--output_dir", "other", cwd=tmp_path, fails=True)
    assert "there is of another run (weight_decay: 0.05 before, 0.5 now)" in other


# --- ends ---


def start(command, cwd, env: dict | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which background jobs of a shell ignore
    )


ACCELERATE = ["-m", "accelerate.commands.launch"]
LAUNCHERS = {
    ("python", 1): [],
    ("accelerate", 1): [*ACCELERATE, "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no", "--cpu"],
    ("accelerate", 2): [*ACCELERATE, "--config_file", ROOT / "examples/configs/accelerate/cpu_2_processes.yaml"],
    ("torchrun", 1): ["-m", "torch.distributed.run", "--nproc_per_node", 1],
    ("torchrun", 2): ["-m", "torch.distributed.run", "--nproc_per_node", 2],
}


def end(tmp_path, launcher: str, processes: int, number: int, script: str = T) -> tuple[int, float, str]:
    """Send a signal to what was started; its exit status, seconds until the last process is gone, and what it printed."""
    port = {"accelerate": "--main_process_port", "torchrun": "--master_port"}.get(launcher)
    command = [sys.executable, *LAUNCHERS[launcher, processes], *([port, free_port()] if port else [])]
    flags = [*RUN, "--max_steps", 100_000, "--save_steps", 10, "--output_dir", "out"]
    flags += [
        "--per_device_train_batch_size",
        64 // processes,
        "--dataloader_num_workers",
        1,
        "--report_to",
        "tensorboard",
    ]
    process = start([*command, ROOT / "examples" / script, *flags], tmp_path)
    try:
        while not list_checkpoints(tmp_path / "out"):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        began = time.monotonic()
        process.send_signal(number)
        process.wait(60)
        gone, alive = psutil.wait_procs([x for x in family if isinstance(x, psutil.Process)], 60)
        assert not alive
        return process.returncode, time.monotonic() - began, process.stdout.read()
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("script", [T, L])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("launcher", "processes"), LAUNCHERS)
def test_signals_end_every_process(tmp_path, launcher, processes, number, script):
    status, seconds, printed = end(tmp_path, launcher, processes, number, script)
    print(f"{launcher} {processes} {number.name}: status {status}, {seconds:.1f} s")
    assert seconds < 40
    if (launcher, number) == ("python", signal.SIGKILL):
        assert status == -signal.SIGKILL
        return
    assert launcher != "python" or (status == 128 + number and f"Stopped by {number.name}" in printed)
    assert "; saved in out. The same command goes on from there." in printed, printed
    assert find_checkpoint(tmp_path / "out") == list_checkpoints(tmp_path / "out")[-1]


@pytest.mark.slow
def test_a_run_ends_with_its_launcher(tmp_path):
    status, seconds, _ = end(tmp_path, "accelerate", 1, signal.SIGKILL)
    assert status == -signal.SIGKILL and seconds < 40 and find_checkpoint(tmp_path / "out") is not None


@pytest.mark.slow
def test_a_launcher_that_is_killed_at_once(tmp_path):
    """While its process is still importing what it needs."""
    command = [sys.executable, *LAUNCHERS["accelerate", 1], ROOT / "examples" / T, *RUN, "--max_steps", 100_000]
    process = start([*command, "--output_dir", "out"], tmp_path)
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    process.kill()
    assert not psutil.wait_procs(children, 60)[1]
    assert not list_checkpoints(tmp_path / "out") or find_checkpoint(tmp_path / "out")


# --- the Hub ---


def hub_environment(server: HubServer, home: Path) -> dict:
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": "hf_token", "NO_PROXY": "127.0.0.1"}
    return {**environment, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


PUSH = ["--push_to_hub", "--hub_model_id", "org/pushed", "--hub_strategy", "checkpoint"]


@pytest.mark.slow
def test_a_hub_that_never_answers_holds_nothing_up(tmp_path):
    with HubServer() as server:
        server.hang = True
        command = [sys.executable, ROOT / "examples" / T, *RUN, *PUSH, "--hub_timeout", 3, "--output_dir", "out"]
        process = start(command, tmp_path, env=hub_environment(server, tmp_path / "home"))
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1, printed
    assert "not published: the Hub did not answer in 3 seconds" in printed and "hf upload org/pushed out ." in printed
    assert {"README.md", "model.safetensors", "eval_results.json", "curves.png"} <= tree(tmp_path / "out").keys()
    assert not (tmp_path / "out" / "_uploading").exists()


@pytest.mark.slow
def test_a_hub_that_never_answers_does_not_hold_up_sigterm(tmp_path):
    with HubServer() as server:
        server.hang = True
        command = [sys.executable, ROOT / "examples" / T, *RUN, "--max_steps", 100_000, *PUSH, "--output_dir", "out"]
        process = start(command, tmp_path, env=hub_environment(server, tmp_path / "home"))
        while len(list_checkpoints(tmp_path / "out")) < 2:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(40) == 128 + signal.SIGTERM


# --- FSDP2 ---

FSDP = """
import os, runpy, sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

# accelerate shards on accelerators alone; the CPU can do it, too
PartialState._prepare_backend = lambda self, *arguments: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
torch.distributed.init_process_group("gloo")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOAD = """
import sys
from transformers import AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, model.num_parameters())
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [T, L])
def test_sharded_runs_leave_what_others_leave(tmp_path, script):
    (tmp_path / "fsdp.py").write_text(FSDP)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [ROOT / "examples/configs/accelerate/fsdp.yaml", "--num_processes", 2, "--mixed_precision", "no"]
    launch += ["--main_process_port", free_port()]
    flags = [flag for flag in RUN if flag != "--use_cpu"] + ["--per_device_train_batch_size", 32]
    environment = {"ACCELERATE_TORCH_DEVICE": "cpu", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    for output in ("out", "out"):  # the second time it is over
        process = start(
            [*launch, "fsdp.py", ROOT / "examples" / script, *flags, "--max_steps", 4, "--output_dir", output],
            tmp_path,
            env=environment,
        )
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0, printed
    folder = tmp_path / "out"
    assert {"README.md", "reconstructions.png", "modeling_supmae.py"} <= tree(folder).keys()
    assert not [name for name in tree(folder) if "fsdp" in name.lower() and name.endswith(".py")]
    for place in ("out", "out/checkpoint-2"):
        assert "FSDP" not in (tmp_path / place / "config.json").read_text()
        code = [sys.executable, "-c", LOAD, place]
        blocked = tmp_path / "blocked"  # the package, so that the code beside the weights is run
        write(blocked / "supmae_hf" / "__init__.py", "raise ImportError")
        loaded = subprocess.run(
            code,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(blocked), "HF_HOME": "home"},
        )
        assert "SupMAEForPreTraining" in loaded.stdout, loaded.stderr
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    expected = SupMAEForPreTraining(SupMAEConfig(**TINY, num_labels=10)).state_dict()
    assert shapes == {name: tensor.shape for name, tensor in expected.items()}


def test_what_cannot_shard_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for script in (T, L):
        error = run_example(script, *RUN, "--output_dir", script, cwd=tmp_path, fails=True)
        assert "FSDP needs several accelerators, and this run is NO" in error


# --- packing and features ---


def test_a_packed_file_that_is_cut_off_is_written_again(tmp_path):
    make_photos(tmp_path / "photos")
    flags = ["--image_dir", "photos", "--output_dir", "packed", "--images_per_file", 3]
    run_example("pack_images.py", *flags, cwd=tmp_path)
    part = tmp_path / "packed" / "train-00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    run_example("pack_images.py", *flags, cwd=tmp_path)
    assert part.read_bytes() == whole


def test_the_number_of_packed_images_is_the_number_that_was_written(tmp_path):
    make_photos(tmp_path / "photos")
    for path in (tmp_path / "photos").rglob("*.png"):
        if path.stem != "3":
            path.write_bytes(b"broken")
    flags = ["--image_dir", "photos", "--output_dir", "packed", "--on_bad_image", "skip"]
    assert "1 images in 1 files" in run_example("pack_images.py", *flags, cwd=tmp_path)
    (tmp_path / "photos" / "b" / "3.png").write_bytes(b"broken")
    flags[3] = "nothing"
    assert "None of the images can be decoded" in run_example("pack_images.py", *flags, cwd=tmp_path, fails=True)


def test_features_of_a_flat_folder(tmp_path):
    make_photos(tmp_path / "photos", classes=())
    flags = ["--model", save_model(tmp_path / "model"), "--image_dir", "photos", "--use_cpu", "--output_dir", "out"]
    assert "for 6 images" in run_example("extract_features.py", *flags, cwd=tmp_path)


# --- publishing ---


def test_only_pictures_of_the_checkpoint_go_up(tmp_path, finished, warnings):
    source = shutil.copytree(finished / "trainer", tmp_path / "source")
    assert "reconstructions.png" not in (source / "README.md").read_text()  # held-out images, for which nobody asked
    (source / "link.png").symlink_to("/etc/passwd")
    (source / "linked").symlink_to(tmp_path)
    write(tmp_path / "secret.png")
    write(source / ".git" / "config")
    names = ["link.png", "linked/secret.png", "../secret.png", "training_args.bin", ".git/config", "curves.png"]
    card = source / "README.md"
    card.write_text(card.read_text() + "".join(f"\n![x]({name})" for name in names))
    script = ["publish.py", source, "me/name", "--license", "mit", "--dry_run"]
    listed = {line.split()[-1] for line in run_example(*script, cwd=tmp_path).splitlines()[1:]}
    assert "curves.png" in listed and not listed & {*names[:-1], "secret.png", "config", "reconstructions.png"}
    assert "link.png is named by the card but is no picture" in warnings.text
    error = run_example(*script[:4], "Apache 2!", "--dry_run", cwd=tmp_path, fails=True)
    assert "'Apache 2!' is none of the Hub's identifiers" in error


def test_weights_that_are_not_finite_are_not_published(tmp_path, finished):
    source = shutil.copytree(finished / "trainer", tmp_path / "source")
    model = SupMAEForPreTraining.from_pretrained(source)
    torch.nn.init.constant_(model.decoder.mask_token, np.nan)
    model.save_pretrained(source)
    error = run_example("publish.py", source, "me/name", "--license", "mit", "--dry_run", cwd=tmp_path, fails=True)
    assert "its weight decoder.mask_token holds NaN or infinity" in error
