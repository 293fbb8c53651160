"""Training state goes to disk and comes back bit for bit; a folder belongs to one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmr_gym.errors import ConfigError
from dmr_gym.training import claim_folder, load_training_state, save_training_state


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


def test_without_a_file_nothing_is_loaded(tmp_path: Path) -> None:
    """A new run has no progress."""
    model, optimizer = make()
    assert load_training_state(tmp_path / "none.safetensors", model, [optimizer]) == {}


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
