"""What to make of which model, and what no method or scheme can do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmr_gym.errors import ConfigError
from dmr_gym.runs import file_digest
from dmr_gym.tasks.alfworld import demonstrations as alfworld
from dmr_gym.tasks.webshop import demonstrations as webshop

METHODS = ("gptq", "awq", "rtn")
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A16", "W8A8")
CALIBRATION_PANEL, HELD_OUT_PANEL = "calibration", "validation"
TRANSCRIPTS = {"alfworld": alfworld.panel_transcripts, "webshop": webshop.panel_transcripts}


@dataclass(frozen=True)
class Settings:
    """What to make of which model.

    Attributes:
        model: checkpoint folder, hub id, or "embedded:WORLD/NAME".
        method: one of `METHODS`; "rtn" rounds to nearest.
        scheme: one of `SCHEMES`: bits of weights and of activations.
        group_size: weights of a row that share a scale; None is one scale a row, an output channel.
        calibration: "transcripts", "c4", or the path of a .txt or .jsonl file.
        out: folder of the copy.
        samples: calibration texts.
        max_length: tokens kept of each of them.
        held_out: transcripts for the perplexity.
        world: whose transcripts calibrate and give the perplexity; None is that of an embedded agent.

    Raises:
        ConfigError: settings that are out of range, or contradict one another.
    """

    model: str
    method: str
    scheme: str
    group_size: int | None
    calibration: str
    out: Path
    samples: int
    max_length: int
    held_out: int
    world: str | None = None

    def __post_init__(self) -> None:
        """Check the settings against one another."""
        named = world_of(self.model)
        if self.world and named and self.world != named:
            raise ConfigError(f"{self.model} is an agent of {named}, but --world {self.world} is another: leave it out")
        if self.method == "rtn" and self.calibration != "transcripts":
            raise ConfigError(
                "rtn rounds to nearest and reads no text: leave --calibration out, or "
                "say transcripts where a file of --config has another; or take gptq or awq"
            )
        if not (self.world or named) and self.calibration == "transcripts" and self.method != "rtn":
            raise ConfigError(f"--world must say whose transcripts calibrate {self.model}: {' or '.join(TRANSCRIPTS)}")
        if self.scheme == "W8A8" and self.group_size is not None:
            raise ConfigError("W8A8 has one weight scale a channel: give --group-size channel")
        if min(self.samples, self.max_length, self.held_out, 1 if self.group_size is None else self.group_size) < 1:
            raise ConfigError("--samples, --max-length, --held-out and --group-size must be at least 1")

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return int(self.scheme[1])

    @property
    def transcript_world(self) -> str:
        """The world whose transcripts calibrate and give the perplexity; ALFWorld for the latter where none is said."""
        return self.world or world_of(self.model) or "alfworld"

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the copy, beside the base: plain data without the folders of this machine.

        Raises:
            ConfigError: the file of the calibration cannot be read.
        """
        plain = asdict(self) | {"model": name_of(self.model), "calibration": name_of(self.calibration)}
        plain |= {"group_size": self.group_size or "channel", "world": self.transcript_world}
        if self.calibration not in ("transcripts", "c4"):
            try:
                plain["calibration_file"] = file_digest(Path(self.calibration))
            except OSError as error:
                raise ConfigError(
                    f'--calibration {self.calibration}: expected "transcripts", "c4", or a .txt or .jsonl file that '
                    f"can be read, got {error!r}"
                ) from error
        del plain["out"]
        return plain


def world_of(model: str) -> str | None:
    """The world of an embedded agent, "embedded:WORLD/NAME"; None for other models. Raises ConfigError for a third."""
    if not model.startswith("embedded:"):
        return None
    world = model.removeprefix("embedded:").partition("/")[0]
    if world not in TRANSCRIPTS:
        raise ConfigError(f'expected "embedded:WORLD/NAME" with WORLD {" or ".join(TRANSCRIPTS)}, found {model!r}')
    return world


def name_of(source: str) -> str:
    """A folder's or file's own name; a hub id as it is."""
    return Path(source).resolve().name if Path(source).exists() else source
