"""Checkpoints that are complete or absent, and runs that stop in order."""

import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import digit_pixel_values, reference_config
from sklearn.datasets import load_digits
from transformers import TrainerCallback

from supmae_hf import SupMAEForPreTraining
from supmae_hf.training.arguments import PreTrainingArguments
from supmae_hf.training.checkpointing import find_checkpoint, list_checkpoints, mark_complete, prepare_output_dir
from supmae_hf.training.trainer import PreTrainer


def arguments(tmp_path, **fields) -> PreTrainingArguments:
    return PreTrainingArguments(
        **{
            "output_dir": str(tmp_path / "run"),
            "num_train_epochs": 2,
            "warmup_epochs": 1,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **fields,
        }
    )


RUN = {"data": "digits", "learning_rate": 0.1}


def write(args, step: int, content: bytes = b"weights", complete: bool = True):
    folder = Path(args.output_dir) / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "sub" / "optimizer.pt").write_bytes(content)
    if complete:
        mark_complete(folder, Accelerator(cpu=True))


@pytest.fixture
def run(tmp_path):
    args = arguments(tmp_path)
    prepare_output_dir(args, RUN)
    return args


def names(args) -> list[str]:
    return [path.name for path in list_checkpoints(args.output_dir)]


def test_a_checkpoint_counts_when_it_is_marked(run, tmp_path):
    write(run, 1)
    write(run, 2, complete=False)
    assert find_checkpoint(run.output_dir) == tmp_path / "run" / "checkpoint-1"
    write(run, 2)
    assert find_checkpoint(run.output_dir) == tmp_path / "run" / "checkpoint-2"


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "without manifest", "empty"])
def test_damaged_checkpoints_are_reported_and_passed_over(run, tmp_path, warnings, damage):
    write(run, 9)
    write(run, 10)
    path = tmp_path / "run" / "checkpoint-10"
    if damage == "truncated":
        (path / "model.safetensors").write_bytes(b"wei")
    elif damage == "changed":
        (path / "sub" / "optimizer.pt").write_bytes(b"weighty")
    elif damage == "missing":
        (path / "sub" / "optimizer.pt").unlink()
    elif damage == "without manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text("")
    assert find_checkpoint(run.output_dir) == tmp_path / "run" / "checkpoint-9"
    if damage in ("truncated", "changed"):  # somebody may want to look at it
        assert "checkpoint-10 is not used, because" in warnings.text
        assert (tmp_path / "run" / "_damaged-checkpoint-10" / "sub").is_dir()
    else:
        assert "checkpoint-10 is incomplete: deleted" in warnings.text
    assert names(run) == ["checkpoint-9"]


# --- the folder a run writes to ---


def test_output_folder_in_use(tmp_path, warnings):
    args = arguments(tmp_path)
    assert prepare_output_dir(args, RUN) is None  # does not exist
    assert prepare_output_dir(args, RUN) is None  # empty
    (tmp_path / "run" / "runs").mkdir()
    other = {**RUN, "data": "others"}
    assert prepare_output_dir(args, other) is None  # nothing is lost
    assert prepare_output_dir(args, RUN) is None  # stopped before its first checkpoint
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert prepare_output_dir(args, RUN) is None  # the same run again
    with pytest.raises(FileExistsError, match="is not empty and holds no checkpoint.*overwrite_output_dir"):
        prepare_output_dir(args, other)
    write(args, 9)
    write(args, 10)
    assert prepare_output_dir(args, RUN) == str(tmp_path / "run" / "checkpoint-10")
    assert "Going on from" in warnings.text
    args.overwrite_output_dir = True
    assert prepare_output_dir(args, RUN) is None
    # nothing of the earlier run
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["_supmae_run.json", "thesis.txt"]


def test_another_run_is_not_gone_on_with(tmp_path):
    args = arguments(tmp_path)
    prepare_output_dir(args, RUN)
    write(args, 9)
    other = {**RUN, "learning_rate": 0.2, "version": "2", "new flag of that version": 1}
    with pytest.raises(FileExistsError) as error:
        prepare_output_dir(args, other)
    lines = str(error.value).splitlines()
    assert lines[1:-1] == ["  learning_rate: 0.1 before, 0.2 now"] and "--overwrite_output_dir True" in lines[-1]
    assert prepare_output_dir(args, RUN) == str(tmp_path / "run" / "checkpoint-9")
    args.overwrite_output_dir = True
    assert prepare_output_dir(args, other) is None
    write(args, 9)
    args.overwrite_output_dir = False
    assert prepare_output_dir(args, other) == str(tmp_path / "run" / "checkpoint-9")
    (tmp_path / "run" / "_supmae_run.json").unlink()  # somebody else's checkpoints
    with pytest.raises(FileExistsError, match="not what they were trained with"):
        prepare_output_dir(args, other)


def test_checkpoints_elsewhere_can_be_resumed(tmp_path):
    args = arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="There is no checkpoint '.*elsewhere'"):
        prepare_output_dir(args, RUN)
    (tmp_path / "elsewhere").mkdir()
    assert prepare_output_dir(args, RUN) == str(tmp_path / "elsewhere")


# --- stopping ---


class Items(torch.utils.data.Dataset):
    """Digits, of which reading one calls `event`."""

    def __init__(self, at=None, event=None):
        self.pixel_values = digit_pixel_values(range(24))
        self.at, self.event, self.count = at, event, 0

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.count += 1
        pixel_values = self.pixel_values[index]
        if self.count == self.at:
            pixel_values = self.event(pixel_values)
        return {"pixel_values": pixel_values, "labels": load_digits().target[index]}


def trainer(tmp_path, items, **fields) -> PreTrainer:
    args = arguments(tmp_path, **fields)
    prepare_output_dir(args, RUN)
    torch.manual_seed(0)
    return PreTrainer(model=SupMAEForPreTraining(reference_config()), args=args, train_dataset=items)


def test_losses_that_are_not_finite_end_the_run(tmp_path):
    # the fourth batch is read while the third step runs
    broken = Items(at=30, event=lambda pixel_values: pixel_values * torch.nan)
    run = trainer(tmp_path, broken)
    with pytest.raises(FloatingPointError) as error:
        run.train()
    message = str(error.value)
    assert message.startswith("Step 4: the loss is not finite (")
    assert "reconstruction_loss nan" in message and "classification_loss nan" in message
    assert "checkpoint-3" in message and "--base_learning_rate" in message
    assert names(run.args) == ["checkpoint-2", "checkpoint-3"]


class Break(TrainerCallback):
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:  # counted at the end of the step
            model.decoder.decoder_norm.weight.data[0] = torch.inf


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = trainer(tmp_path, Items(), save_steps=3)
    run.add_callback(Break())
    with pytest.raises(FloatingPointError, match=r"Step 3: the weight decoder\.decoder_norm\.weight is not finite"):
        run.train()
    assert names(run.args) == []


def test_sigterm_saves_and_stops(tmp_path):
    def terminate(pixel_values):
        os.kill(os.getpid(), signal.SIGTERM)
        return pixel_values

    handler = signal.getsignal(signal.SIGTERM)
    run = trainer(tmp_path, Items(at=30, event=terminate), save_steps=100)
    run.train()
    assert run.was_stopped and 3 <= run.state.global_step < 6
    assert names(run.args) == [f"checkpoint-{run.state.global_step}"]
    assert find_checkpoint(run.args.output_dir) is not None
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:  # a file is where the checkpoint's folder would be
                (tmp_path / "run" / "checkpoint-2").write_text("in the way")

    run = trainer(tmp_path, Items())
    run.add_callback(Fill())
    with pytest.raises(
        OSError, match="step 2 cannot be written to .*run: .*The last one kept is checkpoint-1. Make room"
    ):
        run.train()
    assert find_checkpoint(run.args.output_dir) == tmp_path / "run" / "checkpoint-1"


def test_the_newest_checkpoints_and_the_best_one_stay(tmp_path):
    run = trainer(tmp_path, Items())
    run.train()
    assert names(run.args) == ["checkpoint-5", "checkpoint-6"]
    items = Items()
    args = arguments(tmp_path, output_dir=str(tmp_path / "best"), eval_strategy="steps", eval_steps=1)
    args.metric_for_best_model, args.greater_is_better = "reconstruction_loss", True  # the first, then
    args.load_best_model_at_end = True
    prepare_output_dir(args, RUN)
    torch.manual_seed(0)
    model = SupMAEForPreTraining(reference_config())
    run = PreTrainer(model=model, args=args, train_dataset=items, eval_dataset=items)
    run.train()
    best = Path(run.state.best_model_checkpoint).name
    assert best in names(args) and len(names(args)) == 2
