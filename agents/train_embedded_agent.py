"""Train the embedded agent: a small Qwen3-architecture LLM that plays ALFWorld, by cloning an exploring expert.

    python agents/train_embedded_agent.py --out runs/agent --updates 4000

Every transcript is a fresh generated house, never seen twice and never of a task panel (the seeds are disjoint). In
most of the episodes some commands are replaced by mistakes; they carry no loss, the expert's way back does, so the
agent learns to recover. The loss covers the expert's commands and, with less weight, the world's answers: predicting
those is what makes copying of names and numbers form. Matrices are trained by Muon, the rest by AdamW.

A killed run goes on from its last checkpoint with ``--resume`` and ends in the same weights: batch t is a function of
(seed, t) alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dmr_gym.errors import ConfigError, DMRGymError
from dmr_gym.runs import provenance, write_atomically, write_json
from dmr_gym.tasks.alfworld.demonstrations import demonstration

CHECKPOINT = "checkpoint.safetensors"
FIGURES = ("loss", "command_loss", "command_accuracy")
MACHINE = ("out", "resume", "threads", "device", "compile")
END_OF_TEXT = "<|endoftext|>"
WORDS = Regex(r" ?\p{L}+| ?\p{N}+|\n| ?[^\s\p{L}\p{N}]+|\s")


@dataclass(frozen=True)
class Args:
    """Settings of a run; every one is a command-line option."""

    out: str = "runs/embedded_agent"
    """folder of checkpoints, logs and the final model"""
    updates: int = 4500
    """optimizer updates in all"""
    tokens_per_update: int = 2048
    """tokens of one update, padding included"""
    max_tokens: int = 1024
    """longest transcript; longer ones are cut there"""
    vocab_size: int = 1024
    """entries of the byte-pair vocabulary, a multiple of 128"""
    hidden_size: int = 128
    """width; quantization groups of 128 need a multiple of 128"""
    intermediate_size: int = 384
    """width of the MLPs, a multiple of 128"""
    layers: int = 6
    """Transformer layers"""
    heads: int = 4
    """query heads of 64; half as many key-value heads"""
    muon_lr: float = 0.02
    """peak learning rate of the matrices"""
    adam_lr: float = 3e-3
    """peak learning rate of embeddings and norms"""
    warmup: int = 100
    """updates until the peak"""
    decay: float = 0.6
    """last share of the run in which the rates fall linearly to zero"""
    observation_weight: float = 0.2
    """loss weight of the world's tokens; the expert's commands weigh 1"""
    noisy_episodes: float = 0.6
    """share of episodes with mistakes"""
    noise: float = 0.15
    """chance of a mistake at a step of such an episode"""
    seed: int = 0
    """seed of initial weights and of the houses"""
    checkpoint_every: int = 250
    """updates between checkpoints"""
    threads: int = 2
    """CPU threads"""
    compile: bool = False
    """compile the model first: 1 to 2 minutes, then about twice the tokens/s on a CPU (needs a C++ compiler)"""
    device: str = "cpu"
    """torch device"""
    resume: bool = False
    """go on from the last checkpoint in --out"""


# ---------------------------------------------------------------- data


def transcript(seed: int, args: Args) -> Iterator[tuple[str, float]]:
    """Yield (text, loss weight) pieces of one demonstration."""
    weights = {"world": args.observation_weight, "expert": 1.0, "mistake": 0.0}
    for text, author in demonstration(seed, args.noisy_episodes, args.noise):
        yield text, weights[author]


def train_tokenizer(args: Args) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which a word or a number, with the space before it, is never split across pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in transcript(-1 - index, args)) for index in range(4000))
    numbers = " ".join(str(number) for number in range(1, 41))
    tokenizer.train_from_iterator([*texts, *[f" {numbers}"] * 100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def encode(seed: int, tokenizer: PreTrainedTokenizerFast, args: Args) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of one transcript."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in transcript(seed, args):
        piece = tokenizer(text)["input_ids"]
        ids += piece
        weights += [weight] * len(piece)
    return ids[: args.max_tokens], weights[: args.max_tokens]


POOL = 16


def batches(tokenizer: PreTrainedTokenizerFast, args: Args, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ((B, T) int64 ids, (B, T) float32 weights) for updates start, start + 1, ...

    Each pool of `POOL` updates draws its own transcripts, sorts them by length and shuffles the batches, so padding is
    rare and update t is a function of (seed, t).
    """
    for pool in range(start // POOL, math.ceil(args.updates / POOL)):
        rng = random.Random(f"pool {args.seed} {pool}")
        size = POOL * args.tokens_per_update // 280
        first = args.seed * 10**8 + pool * max(1000, size)
        rows = [encode(first + index, tokenizer, args) for index in range(size)]
        rows.sort(key=lambda row: len(row[0]))
        groups, group = [], [rows[0]]
        for row in rows[1:]:
            if (len(group) + 1) * len(row[0]) > args.tokens_per_update:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        order = rng.sample(range(len(groups)), min(POOL, len(groups))) + rng.choices(
            range(len(groups)), k=max(0, POOL - len(groups))
        )
        for update, chosen in enumerate(order, pool * POOL):
            if start <= update < args.updates:
                yield pad(groups[chosen])


def pad(rows: Sequence[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad to the longest row; padding weighs nothing."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    weights = torch.zeros(len(rows), length)
    for index, (row_ids, row_weights) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        weights[index, : len(row_weights)] = torch.tensor(row_weights)
    return ids, weights


# ---------------------------------------------------------------- optimizer


def orthogonalise(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration of Muon on a (N, rows, columns) stack, rows <= columns, in float32.

    torch.optim.Muon iterates in bfloat16, one matrix at a time: many times slower on a CPU without bfloat16 units.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: Keller Jordan's Muon with Nesterov momentum, for 2-D parameters."""

    def __init__(self, params: Sequence[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        """Take the matrices; ``lr`` is scaled by sqrt(max(1, rows / columns)) for each."""
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix; those of one shape are orthogonalised as one batch."""
        group = self.param_groups[0]
        stacks: dict[tuple[int, ...], list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
        for p in group["params"]:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"])
            update = update.T if p.shape[0] > p.shape[1] else update
            stacks.setdefault(tuple(update.shape), []).append((p, update))
        for members in stacks.values():
            updates = orthogonalise(torch.stack([update for _, update in members]))
            for (p, _), update in zip(members, updates, strict=True):
                tall = p.shape[0] > p.shape[1]
                p.sub_(update.T if tall else update, alpha=group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def learning_rate_scale(update: int, args: Args) -> float:
    """Warm up, stay, then fall linearly to zero."""
    falling = (args.updates - update) / (args.decay * args.updates)
    return min(1.0, (update + 1) / args.warmup, falling)


# ---------------------------------------------------------------- run


def build_model(args: Args) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights."""
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads // 2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation="eager")


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of the next token; loss and greedy accuracy on the expert's command tokens, (2,)."""
    targets, scale = ids[:, 1:], weights[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    is_command = scale == 1.0
    right = (logits[:, :-1].argmax(-1) == targets)[is_command].float().mean()
    return (losses * scale).sum() / scale.sum(), torch.stack([losses[is_command].mean().detach(), right])


def save_checkpoint(
    folder: Path, update: int, seconds: float, model: Qwen3ForCausalLM, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write weights, optimizer state and progress as one safetensors file, whole or not at all."""
    tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": value for key, value in state.items()}
    progress = {"update": str(update), "seconds": str(round(seconds))}
    write_atomically(folder / CHECKPOINT, lambda part: save_file(tensors, part, metadata=progress))


def load_checkpoint(
    folder: Path, model: Qwen3ForCausalLM, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, int]:
    """Read what `save_checkpoint` wrote and return the updates and the seconds done; (0, 0) where there is none."""
    if not (folder / CHECKPOINT).is_file():
        return 0, 0
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        progress = file.metadata()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{index}."):
                number, key = name.split(".")[2:]
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(progress["update"]), int(progress["seconds"])


def claim_folder(folder: Path, args: Args) -> None:
    """Write the settings into the run's folder, or compare them with those of the run that is there.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed or has other settings.
    """
    path = folder / "args.json"
    settings = {key: value for key, value in asdict(args).items() if key not in MACHINE}
    if path.is_file():
        if not args.resume:
            raise ConfigError(f"{folder} holds a run: --resume goes on with it, another --out starts a new one")
        found = {key: value for key, value in json.loads(path.read_text()).items() if key not in MACHINE}
        changed = sorted(key for key in settings if settings[key] != found.get(key))
        if changed:
            raise ConfigError(f"{folder} was begun with other {', '.join(changed)}: choose another --out")
    write_json(path, asdict(args))


def train(args: Args) -> Path:
    """Train, log, and return the folder of the final bf16 model."""
    torch.set_num_threads(args.threads)
    folder = Path(args.out)
    claim_folder(folder, args)
    tokenizer = train_tokenizer(args)
    model = build_model(args).to(args.device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    optimizers = [
        Muon(matrices, args.muon_lr),
        torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.95), weight_decay=0),
    ]
    peaks = [args.muon_lr, args.adam_lr]
    start, seconds = load_checkpoint(folder, model, optimizers)
    log, began = SummaryWriter(str(folder / "tensorboard")), time.perf_counter() - seconds
    stream = zip(range(start, args.updates), batches(tokenizer, args, start), strict=False)
    bar = tqdm(stream, initial=start, total=args.updates, unit="update", mininterval=5)
    smooth = torch.zeros(3)
    forward = torch.compile(model, dynamic=True) if args.compile else model
    for update, (ids, weights) in bar:
        ids, weights = ids.to(args.device), weights.to(args.device)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_scale(update, args)
        loss, command = weighted_loss(forward(input_ids=ids, use_cache=False).logits, ids, weights)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        figures = torch.tensor([loss.item(), *command.tolist()])
        # A batch of one long transcript that is cut before the expert speaks has no command to be right about.
        figures = torch.where(figures.isnan(), smooth, figures)
        smooth = figures if update == start else smooth.lerp(figures, 0.02)
        bar.set_postfix_str(f"loss {smooth[0]:.3f} command loss {smooth[1]:.4f} right {smooth[2]:.4f}", refresh=False)
        for name, value in zip(FIGURES, figures.tolist(), strict=True):
            log.add_scalar(f"train/{name}", value, update)
        log.add_scalar("train/gradient_norm", norm.item(), update)
        if (update + 1) % args.checkpoint_every == 0 or update + 1 == args.updates:
            spent = time.perf_counter() - began
            save_checkpoint(folder, update + 1, spent, model, optimizers)
            save_model(folder / "model", model, tokenizer)
            record = dict(zip(FIGURES, (round(value, 5) for value in smooth.tolist()), strict=True))
            progress = {"updates": update + 1, "seconds": round(spent), **record}
            write_json(folder / "training.json", {"settings": asdict(args), **progress, **provenance()})
            with (folder / "history.jsonl").open("a") as file:
                file.write(json.dumps(progress) + "\n")
    log.close()
    return folder / "model"


def save_model(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a bf16 checkpoint that transformers and vLLM load."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = re.findall(r'^    (\w+): .*\n    """(.*)"""', Path(__file__).read_text(), flags=re.MULTILINE)
    for name, text in helps:
        default = getattr(Args(), name)
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true", help=text)
        else:
            parser.add_argument(option, type=type(default), default=default, help=f"{text} (default {default})")
    try:
        print(f"model: {train(Args(**vars(parser.parse_args(argv))))}")
    except DMRGymError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
