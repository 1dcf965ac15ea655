"""Folders: nothing is deleted or overwritten that a run of ours has not written, and one process writes at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supmae_hf import records
from supmae_hf.records import (
    Record,
    begin_checkpoint,
    complete_checkpoint,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    new_folder,
    output_folder,
    remove_checkpoint,
    require_apart,
    rotate_checkpoints,
)


RUN = {"job": "pre-training", "learning_rate": 0.1}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, but for the record and the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_supmae_run"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write(path: Path, content: str = "years of work"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def open_folder(folder, run=RUN, **options):
    with output_folder(folder, run, **options) as record:
        return record


def checkpoint(run: Path, step: int, complete: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    begin_checkpoint(folder)
    for name in ("model.safetensors", "sub/optimizer.pt"):
        write(folder / name, f"{name} of step {step}")
    if complete:
        complete_checkpoint(folder)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    open_folder(tmp_path / "run")
    return tmp_path / "run"


# --- whose folder it is ---


@pytest.mark.parametrize(
    "files",
    [
        ["checkpoint-500/model.safetensors", "checkpoint-1000/trainer_state.json"],
        ["README.md", "runs/events", "widget/cat.png", "checkpoint-7/x", "all_results.json"],
        ["train-00000-of-00001.parquet"],
        ["precious-00000.parquet", "_supmae_run.json"],
        ["results.json"],
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_left_alone(tmp_path, files, overwrite):
    for name in files:
        write(tmp_path / "theirs" / name)
    before = tree(tmp_path / "theirs")
    with pytest.raises(FileExistsError, match="choose another `--output_dir`"):
        open_folder(tmp_path / "theirs", overwrite=overwrite)
    assert tree(tmp_path / "theirs") == before and not (tmp_path / "theirs" / records.LOCK_FILE).exists()


def test_only_what_the_record_lists_is_deleted(run):
    with output_folder(run, RUN) as record:
        record.claim("README.md", "widget/*.png", "runs/**/events.out.tfevents.*")
    ours = ["README.md", "widget/0.png", "runs/host/events.out.tfevents.1"]
    theirs = ["thesis.txt", "widget/cat.jpg", "runs/notes.txt", "checkpoint-7/model.bin", "checkpoint-9/notes.txt"]
    for name in [*ours, *theirs[:-1]]:
        write(run / name)
    write(checkpoint(run, 9) / "notes.txt")
    open_folder(run, {**RUN, "learning_rate": 0.2}, overwrite=True)
    left = {name.replace("_aside-", "") for name in tree(run)}
    assert left == set(theirs)


def test_files_in_the_way_are_moved_aside(run):
    write(run / "README.md", "mine")
    write(run / "_aside-README.md", "mine, too")
    with output_folder(run, RUN) as record:
        record.claim("README.md")
        write(run / "README.md", "the card")
    with output_folder(run, RUN) as record:  # now it is the run's own
        record.claim("README.md")
    assert tree(run) == {"README.md": b"the card", "_aside-README.md": b"mine, too", "_aside-README.md-2": b"mine"}


@pytest.mark.parametrize("pattern", ["../thesis.txt", "{outside}/*", "link/*.txt"])
def test_a_record_reaches_nothing_outside(run, pattern):
    outside = run.parent
    write(outside / "thesis.txt")
    (run / "link").symlink_to(outside)
    facts = {**RUN, "files": [pattern.format(outside=outside)]}
    (run / records.RUN_FILE).write_text(json.dumps(facts))
    open_folder(run, overwrite=True)
    assert (outside / "thesis.txt").exists()


def test_another_run_is_not_gone_on_with(run):
    write(run / "model.safetensors")
    assert Record(run).differences({**RUN, "flag of a newer version": 1}) == []
    with pytest.raises(FileExistsError) as error:
        open_folder(run, {**RUN, "learning_rate": 0.2})
    lines = str(error.value).splitlines()
    assert lines[1:-1] == ["  learning_rate: 0.1 before, 0.2 now"] and "--overwrite_output_dir True" in lines[-1]
    open_folder(run)
    (run / records.RUN_FILE).write_text("{")
    with pytest.raises(FileExistsError, match="_supmae_run.json cannot be read"):
        open_folder(run, overwrite=True)


@pytest.mark.parametrize(
    ("output", "source", "how"),
    [
        ("photos", "photos", "is"),
        ("photos/out", "photos", "lies in"),
        (".", "photos", "holds"),
        ("link", "photos", "is"),
    ],
)
def test_outputs_and_inputs_are_apart(tmp_path, monkeypatch, output, source, how):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("link").symlink_to("photos")
    with pytest.raises(ValueError, match=f"{how} {source}, which is read"):
        require_apart(output, [None, "organisation/name", source])
    require_apart("photos-2", [source])


# --- the lock ---

HOLD = """
import sys, time
from supmae_hf.records import output_folder
with output_folder("run", {"job": "pre-training", "learning_rate": 0.1}):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_at_a_time(tmp_path, monkeypatch):
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "holds\n"
    monkeypatch.setattr(records, "LOCK_SECONDS", 0.1)
    with pytest.raises(FileExistsError, match=f"Process {holder.pid} on .* is writing to .*run"):
        open_folder(tmp_path / "run")
    holder.kill()  # which cannot clean up
    holder.wait()
    open_folder(tmp_path / "run")


# --- folders that appear whole ---


def test_folders_appear_complete_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match="exists already.*--overwrite"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert tree(tmp_path / "out") == {"a": b"x"}  # the old folder goes only when the new one is complete
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "b").write_text("x")
    assert tree(tmp_path / "out") == {"b": b"x"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("with_record", [False, True])
def test_folders_with_other_files_are_not_replaced(tmp_path, with_record):
    if with_record:
        with new_folder(tmp_path / "photos") as folder:
            (folder / "model").write_text("x")
    for index in range(3):
        write(tmp_path / "photos" / f"{index}.jpg")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="no conversion or export wrote"), new_folder(tmp_path / "photos", True):
        pass
    assert tree(tmp_path) == before


# --- checkpoints ---


def test_a_checkpoint_counts_when_it_is_complete(run):
    assert find_checkpoint(run) is None
    checkpoint(run, 9)
    checkpoint(run, 10, complete=False)
    assert find_checkpoint(run) == run / "checkpoint-9"
    assert [path.name for path in run.iterdir() if not path.name.startswith("_")] == ["checkpoint-9"]  # no remains
    checkpoint(run, 10)
    assert find_checkpoint(run) == run / "checkpoint-10"


@pytest.mark.parametrize("flipped", range(0, 200, 7))
def test_no_flipped_byte_deletes_a_checkpoint(run, flipped):
    checkpoint(run, 9)
    manifest = checkpoint(run, 10) / records.MANIFEST
    content = bytearray(manifest.read_bytes())
    content[flipped % len(content)] ^= 1
    manifest.write_bytes(content)
    before = set(tree(run).values())
    newest = find_checkpoint(run)
    assert newest == run / "checkpoint-9" and set(tree(run).values()) == before
    assert find_checkpoint(run) == newest and (run / "_aside-checkpoint-10" / "sub" / "optimizer.pt").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "model.safetensors").write_bytes(b"wei"), "model.safetensors is damaged"),
        (lambda path: (path / "sub" / "optimizer.pt").write_bytes(b"weighty"), "sub/optimizer.pt is damaged"),
        (lambda path: (path / "sub" / "optimizer.pt").unlink(), "sub/optimizer.pt is missing"),
        (lambda path: (path / records.MANIFEST).write_text(""), "manifest.json or another file cannot be read"),
        (lambda path: (path / records.MANIFEST).write_text('{"a": "b"}'), "cannot be read"),
    ],
)
def test_damaged_checkpoints_are_moved_aside_and_said(run, warnings, damage, reason):
    checkpoint(run, 9)
    damage(checkpoint(run, 10))
    assert reason in find_damage(run / "checkpoint-10")
    assert find_checkpoint(run) == run / "checkpoint-9"
    assert "is not used, because" in warnings.text and "_aside-checkpoint-10" in warnings.text


def test_checkpoints_that_cannot_be_read_now_are_kept(run, monkeypatch):
    checkpoint(run, 9)

    def fails(self):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        find_checkpoint(run)
    assert find_damage(run / "_aside-checkpoint-9") is None


def test_checkpoints_of_others_are_moved_aside(run):
    write(run / "checkpoint-3" / "manifest.json", '{"format": "of another tool"}')
    write(run / "checkpoint-5" / "pytorch_model.bin")
    checkpoint(run, 9)
    before = set(tree(run).values())
    assert find_checkpoint(run) == run / "checkpoint-9"
    rotate_checkpoints(run, 1)
    assert set(tree(run).values()) == before


def test_rotation_keeps_the_newest_and_the_best(run):
    for step in (1, 2, 3, 4):
        checkpoint(run, step)
    rotate_checkpoints(run, None)
    assert len(list_checkpoints(run)) == 4
    rotate_checkpoints(run, 2, best=str(run / "checkpoint-1"))
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-1", "checkpoint-4"]
    rotate_checkpoints(run, 1, best=str(run / "checkpoint-1"))
    assert len(list_checkpoints(run)) == 2


def test_an_interrupted_removal_is_gone_on_with(run, monkeypatch):
    checkpoint(run, 8)
    write(checkpoint(run, 9) / "notes.txt")
    removed = []

    def unlink(self, missing_ok=False):
        if len(removed) == 1:
            raise KeyboardInterrupt
        removed.append(self)
        os.unlink(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        remove_checkpoint(run / "checkpoint-9")
    assert find_checkpoint(run) == run / "checkpoint-8"
    assert [name for name in tree(run) if "checkpoint-9" in name] == ["_aside-checkpoint-9/notes.txt"]
