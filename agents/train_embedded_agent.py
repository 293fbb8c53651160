"""Train an embedded agent: a small Qwen3-architecture LLM that acts in one world, by cloning that world's expert.

    python agents/train_embedded_agent.py --out runs/alfworld --updates 4500
    python agents/train_embedded_agent.py --world webshop --vocab-size 3072 --observation-weight 0.05 \
        --other-tasks 6 --induction --drill-updates 128 --muon-lr 0.005 --adam-lr 0.0015 --warmup 40 \
        --updates 5500 --bfloat16 --compile --out runs/webshop
    python agents/train_embedded_agent.py --help    (the shipped WebShop agent has two stages, see its card)

Every episode is played in a fresh generated house or shop, never of a task panel (the seeds are disjoint). In most of
the episodes some commands are replaced by mistakes; they carry no loss, the expert's way back does, so the agent learns
to recover. The loss covers the expert's commands and, with less weight, the world's texts: predicting those is what
makes copying of names and numbers form. In the shop that takes more, for an expert's answer is a small part of each
prompt: the model begins with written induction heads, and the first updates ask for copies of everything on a page.
Matrices are trained by Muon, the rest by AdamW.

A killed run goes on from its last checkpoint with ``--resume`` and ends in the same weights: batch t is a function of
(seed, t) alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dmr_gym import agent_tokenizer
from dmr_gym.cloning import Demonstrations, batches, sequences, weighted_loss
from dmr_gym.command_line import recipe_parser, run
from dmr_gym.errors import ConfigError
from dmr_gym.induction import absent_rows_kept, write_induction
from dmr_gym.optim import Muon
from dmr_gym.runs import provenance, write_json
from dmr_gym.training import claim_folder, load_training_state, save_training_state

CHECKPOINT = "checkpoint.safetensors"
FIGURES = ("loss", "command_loss", "command_accuracy")
MACHINE = ("out", "resume", "threads", "device", "compile")
WORLDS = ("alfworld", "webshop")
TOKENIZER_EPISODES = {"alfworld": 4000, "webshop": 800}
HEAD_DIM = 64


def option(default: Any, text: str) -> Any:
    """A field of `Args` with the help of its command-line option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Args:
    """Settings of a run; every one is a command-line option."""

    world: str = option("alfworld", "alfworld or webshop")
    out: str = option("runs/embedded_agent", "folder of checkpoints, logs and the final model")
    updates: int = option(4500, "optimizer updates in all")
    tokens_per_update: int = option(2048, "tokens of one update, padding included")
    max_tokens: int = option(1024, "longest sequence; a longer transcript is cut there, a longer prompt is left out")
    vocab_size: int = option(1024, "entries of the byte-pair vocabulary, a multiple of 128")
    hidden_size: int = option(128, "width; quantization groups of 128 need a multiple of 128")
    intermediate_size: int = option(384, "width of the MLPs, a multiple of 128")
    layers: int = option(6, "Transformer layers")
    heads: int = option(4, "query heads of 64; half as many key-value heads")
    muon_lr: float = option(0.02, "peak learning rate of the matrices")
    adam_lr: float = option(3e-3, "peak learning rate of embeddings and norms")
    warmup: int = option(100, "updates until the peak")
    decay: float = option(0.6, "last share of the run in which the rates fall linearly to zero")
    observation_weight: float = option(0.2, "loss weight of the world's tokens; the expert's commands weigh 1")
    drill_updates: int = option(0, "first updates, which are copying drills of rising length (WebShop)")
    other_tasks: int = option(0, "further tasks asked about each page (WebShop); a page costs far more than an answer")
    init: str = option("", "folder of a model to begin with, weights and tokenizer (default: random weights)")
    induction: bool = option(
        False, "begin with written induction heads, which copy rare names at once, and keep rare tokens apart"
    )
    noisy_episodes: float = option(0.6, "share of episodes with mistakes")
    noise: float = option(0.15, "chance of a mistake at a step of such an episode")
    seed: int = option(0, "seed of initial weights and of the demonstrations")
    checkpoint_every: int = option(250, "updates between checkpoints")
    threads: int = option(2, "CPU threads")
    bfloat16: bool = option(False, "multiply matrices in bfloat16: faster where the processor has units for it")
    compile: bool = option(
        False, "compile the model: 1 to 2 minutes, then twice the tokens/s on a CPU; needs a C++ compiler"
    )
    device: str = option("cpu", "torch device")
    resume: bool = option(False, "go on from the last checkpoint in --out")

    def __post_init__(self) -> None:
        counts = ("updates", "tokens_per_update", "max_tokens", "layers", "warmup", "checkpoint_every", "threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("vocab_size", "hidden_size", "intermediate_size"):
            if getattr(self, name) < 128 or getattr(self, name) % 128:
                raise ConfigError(f"--{name.replace('_', '-')} must be a multiple of 128, got {getattr(self, name)}")
        if self.heads < 2 or self.heads % 2:
            raise ConfigError(f"--heads must be even, two query heads share one of keys and values; got {self.heads}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"--decay is a share of the run in (0, 1], got {self.decay}")
        for name in ("drill_updates", "other_tasks"):
            value = getattr(self, name)
            if value < 0 or (value and self.world != "webshop"):
                option_name = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option_name} must be at least 0, and 0 but for --world webshop; got {value}")


# ---------------------------------------------------------------- run


def cloned(args: Args) -> Demonstrations:
    """The part of the settings that says what is cloned."""
    return Demonstrations(**{entry.name: getattr(args, entry.name) for entry in fields(Demonstrations)})


def train_tokenizer(args: Args, episodes: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a world, trained on demonstrations that no batch has, or that of ``--init``."""
    if args.init:
        return PreTrainedTokenizerFast.from_pretrained(args.init, local_files_only=True)
    demonstrations = (
        sequences(-1 - index, cloned(args)) for index in range(episodes or TOKENIZER_EPISODES[args.world])
    )
    texts = ["".join(text for text, _ in sequence) for sequence in itertools.chain.from_iterable(demonstrations)]
    tokenizer = agent_tokenizer.train_tokenizer(texts, args.vocab_size)
    end = agent_tokenizer.END_OF_TEXT
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def learning_rate_scale(update: int, args: Args) -> float:
    """Warm up, stay, then fall linearly to zero."""
    falling = (args.updates - update) / (args.decay * args.updates)
    return min(1.0, (update + 1) / args.warmup, falling)


def build_model(args: Args) -> Qwen3ForCausalLM:
    """The model to begin with: that of ``--init``, or a Qwen3 with random weights.

    Raises:
        ConfigError: there is no model, or induction heads do not fit its sizes.
    """
    if args.init:
        if not (Path(args.init) / "config.json").is_file():
            raise ConfigError(f"--init {args.init} is no folder of a model: it has no config.json")
        options = {"attn_implementation": "eager", "dtype": torch.float32, "use_safetensors": True}
        return Qwen3ForCausalLM.from_pretrained(args.init, local_files_only=True, **options)
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM._from_config(config, attn_implementation="eager")
    if args.induction:
        write_induction(model, args.seed)
    return model


def make_optimizers(model: Qwen3ForCausalLM, args: Args) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    adam = torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.95), weight_decay=0)
    return [Muon(matrices, args.muon_lr), adam]


@dataclass
class Trainer:
    """A model with its optimizers; ``forward`` is the model, compiled or not."""

    args: Args
    model: Qwen3ForCausalLM
    optimizers: list[torch.optim.Optimizer]
    forward: Any

    def step(self, update: int, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Learn from a batch, (B, T) ids and weights; returns the values of `FIGURES`, (3,), and the gradient norm."""
        for optimizer, peak in zip(self.optimizers, (self.args.muon_lr, self.args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_scale(update, self.args)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.args.bfloat16):
            logits = self.forward(input_ids=ids, use_cache=False).logits
        loss, command = weighted_loss(logits.float(), ids, weights)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        embedding = self.model.get_input_embeddings().weight
        with absent_rows_kept(embedding, ids) if self.args.induction else contextlib.nullcontext():
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return torch.tensor([loss.item(), *command.tolist()]), norm.item()


def train(args: Args) -> Path:
    """Train, log, and return the folder of the final bf16 model."""
    torch.set_num_threads(args.threads)
    folder = Path(args.out)
    model = build_model(args)  # first, as sizes that do not fit must not claim a folder
    claim_folder(folder, asdict(args), args.resume, MACHINE)
    tokenizer = train_tokenizer(args)
    model.to(args.device)
    forward = torch.compile(model, dynamic=True) if args.compile else model
    trainer = Trainer(args, model, make_optimizers(model, args), forward)
    progress = load_training_state(folder / CHECKPOINT, model, trainer.optimizers)
    start = int(progress.get("update", 0))
    log, began = SummaryWriter(str(folder / "tensorboard")), time.perf_counter() - progress.get("seconds", 0.0)
    stream = zip(range(start, args.updates), batches(tokenizer, cloned(args), start, args.updates), strict=False)
    bar = tqdm(stream, initial=start, total=args.updates, unit="update", mininterval=5)
    smooth = torch.zeros(len(FIGURES))
    for update, (ids, weights) in bar:
        figures, norm = trainer.step(update, ids.to(args.device), weights.to(args.device))
        # A batch of one long transcript that is cut before the expert speaks has no command to be right about.
        figures = torch.where(figures.isnan(), smooth, figures)
        smooth = figures if update == start else smooth.lerp(figures, 0.02)
        bar.set_postfix_str(f"loss {smooth[0]:.3f} command loss {smooth[1]:.4f} right {smooth[2]:.4f}", refresh=False)
        for name, value in zip((*FIGURES, "gradient_norm"), (*figures.tolist(), norm), strict=True):
            log.add_scalar(f"train/{name}", value, update)
        if (update + 1) % args.checkpoint_every == 0 or update + 1 == args.updates:
            progress = {"update": update + 1, "seconds": round(time.perf_counter() - began)}
            save_training_state(folder / CHECKPOINT, model, trainer.optimizers, progress)
            save_model(folder / "model", model, tokenizer)
            write_record(folder, args, progress, smooth)
    log.close()
    return folder / "model"


def write_record(folder: Path, args: Args, progress: dict[str, float], smooth: torch.Tensor) -> None:
    """Write training.json, all of the run so far, and a line of history.jsonl."""
    record = dict(zip(FIGURES, (round(value, 5) for value in smooth.tolist()), strict=True))
    write_json(folder / "training.json", {"settings": asdict(args), **progress, **record, **provenance()})
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(progress | record) + "\n")


def save_model(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a bf16 checkpoint that transformers and vLLM load."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parse_args(argv: Sequence[str] | None) -> Args:
    """Read the command line: an option for each field of `Args`."""
    parser = recipe_parser(__doc__)
    for entry in fields(Args):
        name, default = f"--{entry.name.replace('_', '-')}", entry.default
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true", help=entry.metadata["help"])
        else:
            choices = WORLDS if entry.name == "world" else None
            text = f"{entry.metadata['help']} (default: %(default)s)"
            parser.add_argument(name, type=type(default), default=default, choices=choices, help=text)
    return Args(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options and train."""
    print(f"model: {train(parse_args(argv))}")


if __name__ == "__main__":
    run(main)
