"""Training state goes to disk and comes back bit for bit; a folder belongs to one run."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from dmr_gym.errors import ConfigError
from dmr_gym.training import (
    HISTORY_FILE,
    RunLog,
    claim_folder,
    load_extra,
    load_training_state,
    read_history,
    save_training_state,
    stop_on_signal,
    update_seed,
)


def make(width: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model with its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(width, 2)
    return model, torch.optim.AdamW(model.parameters(), 0.1)


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on a fixed loss."""
    optimizer.zero_grad()
    model(torch.arange(4.0)).square().sum().backward()
    optimizer.step()


def test_a_restored_run_goes_on_bit_identically(tmp_path: Path) -> None:
    """Two updates, then save and load, then two more, equal four updates in one go."""
    whole, first, second = make(), make(), make()
    for _ in range(4):
        update(*whole)
    for _ in range(2):
        update(*first)
    path = tmp_path / "state.safetensors"
    save_training_state(path, first[0], [first[1]], {"update": 2, "seconds": 1.5})
    update(*second)  # whatever it held is replaced
    assert load_training_state(path, second[0], [second[1]]) == {"update": 2.0, "seconds": 1.5}
    for _ in range(2):
        update(*second)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True))


def test_further_tensors_come_back_and_do_no_harm(tmp_path: Path) -> None:
    """They are in the same file, which goes into a model as it would without them."""
    model, optimizer = make()
    update(model, optimizer)
    path = tmp_path / "state.safetensors"
    save_training_state(path, model, [optimizer], {"update": 1}, {"actions": torch.tensor([[1, -1]])})
    assert load_training_state(path, *make()[:1], [make()[1]]) == {"update": 1.0}
    [(name, value)] = load_extra(path).items()
    assert (name, value.dtype, value.tolist()) == ("actions", torch.int64, [[1, -1]])


def test_without_a_file_nothing_is_loaded(tmp_path: Path) -> None:
    """A new run has no progress and no further tensors."""
    model, optimizer = make()
    assert load_training_state(tmp_path / "none.safetensors", model, [optimizer]) == {}
    assert load_extra(tmp_path / "none.safetensors") == {}


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    """The message names the file, the tensor and both shapes."""
    model, optimizer = make()
    save_training_state(tmp_path / "state.safetensors", model, [optimizer], {})
    wide, other = make(width=5)
    with pytest.raises(ConfigError, match=r"state.safetensors .* expected weight of \(2, 5\), found \(2, 4\)"):
        load_training_state(tmp_path / "state.safetensors", wide, [other])


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    """A second start is refused, so is a resumption with other settings; those that may differ may."""
    claim_folder(tmp_path / "run", {"lr": 0.1, "betas": (0.9, 0.95), "threads": 1}, resume=False)
    with pytest.raises(ConfigError, match="holds a run: --resume"):
        claim_folder(tmp_path / "run", {"lr": 0.1, "betas": (0.9, 0.95), "threads": 1}, resume=False)
    with pytest.raises(ConfigError, match="begun with other lr: choose"):
        claim_folder(tmp_path / "run", {"lr": 0.2, "betas": (0.9, 0.95), "threads": 1}, resume=True)
    claim_folder(tmp_path / "run", {"lr": 0.1, "betas": (0.9, 0.95), "threads": 2}, resume=True, free=["threads"])


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """What its settings lack is taken as it is; from then on it counts."""
    claim_folder(tmp_path, {"lr": 0.1}, resume=False)
    claim_folder(tmp_path, {"lr": 0.1, "tasks_digest": "a"}, resume=True)
    with pytest.raises(ConfigError, match="begun with other tasks_digest: choose"):
        claim_folder(tmp_path, {"lr": 0.1, "tasks_digest": "b"}, resume=True)


def test_a_folder_of_an_earlier_version_skipped_no_tasks(tmp_path: Path) -> None:
    """It has no such setting, and goes on as a run that skips none, not as any other."""
    claim_folder(tmp_path, {"lr": 0.1}, resume=False)
    with pytest.raises(ConfigError, match="begun with other skip_tasks: choose"):
        claim_folder(tmp_path, {"lr": 0.1, "skip_tasks": 5}, resume=True)
    claim_folder(tmp_path, {"lr": 0.1, "skip_tasks": 0}, resume=True)
    claim_folder(tmp_path, {"lr": 0.1, "skip_tasks": 0}, resume=True)


def test_settings_that_only_add_work_may_grow(tmp_path: Path) -> None:
    """Longer lists that keep all they had and higher numbers, not lists that lose a value, nor lower numbers."""
    settings = {"lambdas": [0.1, 0.2], "seeds": 2, "tasks": None}
    claim_folder(tmp_path, settings, resume=False)
    growing = ("lambdas", "seeds", "tasks")
    claim_folder(tmp_path, settings | {"lambdas": [0.3, 0.2, 0.1], "seeds": 3}, resume=True, growing=growing)
    with pytest.raises(ConfigError, match="begun with other lambdas, seeds, tasks: choose"):
        claim_folder(tmp_path, {"lambdas": [0.1, 0.2], "seeds": 2, "tasks": 5}, resume=True, growing=growing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_an_end_and_the_loop_chooses_when(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is raised where the signal arrives; `leave` ends with the shell's status and says how to go on."""
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        stop.leave("update 1")
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) is before  # a second signal ends at once
        with pytest.raises(SystemExit) as caught:
            stop.leave("update 2")
    assert caught.value.code == 128 + number
    assert f"stopped by {number.name} after update 2; --resume" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_messages_name_what_is_finished_and_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe without --resume says how it is continued."""
    with stop_on_signal("episode", "the same command") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            stop.leave("task 3")
    errors = capsys.readouterr().err
    assert "saving after this episode" in errors
    assert "after task 3; the same command goes on from there" in errors


def test_handlers_are_put_back_when_no_signal_came() -> None:
    """Outside the context signals mean what they meant before."""
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_trains_without_handlers() -> None:
    """Python takes signal handlers in the main thread alone; elsewhere the loop runs without them."""
    seen: list[object] = []

    def work() -> None:
        with stop_on_signal() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def test_a_resumed_course_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """Lines behind the saved update, and a line that a kill has cut, are forgotten and written anew."""
    with RunLog(tmp_path / "whole", 0) as log:
        for update in range(1, 5):
            log.write(update, {"train/loss": 1 / update})
    with RunLog(tmp_path / "killed", 0) as log:
        for update in range(1, 4):
            log.write(update, {"train/loss": 1 / update})
    path = tmp_path / "killed" / HISTORY_FILE
    path.write_text(path.read_text() + '{"update": 4, "tra')
    with RunLog(tmp_path / "killed", 2) as log:
        assert [entry["update"] for entry in log.history] == [1, 2]
        for update in range(3, 5):
            log.write(update, {"train/loss": 1 / update})
    assert path.read_text() == (tmp_path / "whole" / HISTORY_FILE).read_text()
    assert read_history(tmp_path / "killed")[-1] == {"update": 4, "train/loss": 0.25}
    assert read_history(tmp_path / "none") == []


def test_seeds_of_updates_differ_by_run_update_and_purpose() -> None:
    """Each part of the key changes the seed; the same key gives the same one, within torch's range."""
    seeds = {update_seed(0, 0), update_seed(1, 0), update_seed(0, 1), update_seed(0, 0, "tasks"), update_seed(0, 10)}
    assert len(seeds) == 5
    assert update_seed(3, 4, "x") == update_seed(3, 4, "x")
    assert all(0 <= seed < 2**63 for seed in seeds)
