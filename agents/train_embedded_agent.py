"""Train an embedded agent: a small Qwen3-architecture LLM that acts in one world, by cloning that world's expert.

    python agents/train_embedded_agent.py --out runs/alfworld --updates 4500
    python agents/train_embedded_agent.py --world webshop --vocab-size 3072 --observation-weight 0.05 \
        --induction --drill-updates 128 --muon-lr 0.005 --adam-lr 0.0015 --warmup 40 \
        --updates 2400 --out runs/webshop

Every episode is played in a fresh generated house or shop, never of a task panel (the seeds are disjoint). In most of
the episodes some commands are replaced by mistakes; they carry no loss, the expert's way back does, so the agent learns
to recover. The loss covers the expert's commands and, with less weight, the world's texts: predicting those is what
makes copying of names and numbers form. In the shop it takes drills as well: an expert's answer there is one in twenty
tokens, so the model begins with written induction heads, and the first updates ask for copies of everything on a page.
Matrices are trained by Muon, the rest by AdamW.

A killed run goes on from its last checkpoint with ``--resume`` and ends in the same weights: batch t is a function of
(seed, t) alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import string
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dmr_gym.command_line import run
from dmr_gym.induction import write_induction
from dmr_gym.optim import Muon
from dmr_gym.runs import provenance, write_json
from dmr_gym.tasks.alfworld import demonstrations as alfworld
from dmr_gym.tasks.webshop import demonstrations as webshop
from dmr_gym.training import claim_folder, load_training_state, save_training_state

CHECKPOINT = "checkpoint.safetensors"
FIGURES = ("loss", "command_loss", "command_accuracy")
MACHINE = ("out", "resume", "threads", "device", "compile")
WORLDS = ("alfworld", "webshop")
TOKENIZER_EPISODES = {"alfworld": 4000, "webshop": 800}
END_OF_TEXT = "<|endoftext|>"
ASIN = "|".join(
    [r" ?(?<![0-9a-z])b0(?=[0-9a-z]{8}(?![0-9a-z]))"]
    + [rf"(?<=b0[0-9a-z]{{{n}}})[0-9a-z]{{2}}(?=[0-9a-z]{{{6 - n}}}(?![0-9a-z]))" for n in (0, 2, 4, 6)]
)
"""WebShop's product numbers in five pieces of two: rare enough on a page to be copied one after the other."""
WORDS = Regex(ASIN + r"| ?[\[\]]| ?\p{L}+| ?\p{N}+|\n| ?[^\s\p{L}\p{N}\[\]]+|\s")


@dataclass(frozen=True)
class Args:
    """Settings of a run; every one is a command-line option."""

    world: str = "alfworld"
    """alfworld or webshop"""
    out: str = "runs/embedded_agent"
    """folder of checkpoints, logs and the final model"""
    updates: int = 4500
    """optimizer updates in all"""
    tokens_per_update: int = 2048
    """tokens of one update, padding included"""
    max_tokens: int = 1024
    """longest sequence; a longer transcript is cut there, a longer prompt is left out"""
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
    drill_updates: int = 0
    """first updates, which are copying drills of rising length (WebShop)"""
    induction: bool = False
    """begin with written induction heads, which copy rare names at once, and keep rare tokens apart (WebShop)"""
    noisy_episodes: float = 0.6
    """share of episodes with mistakes"""
    noise: float = 0.15
    """chance of a mistake at a step of such an episode"""
    seed: int = 0
    """seed of initial weights and of the demonstrations"""
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


def sequences(seed: int, args: Args) -> Iterator[list[tuple[str, float]]]:
    """Yield the training sequences of one demonstration, each a list of (text, loss weight).

    ALFWorld's prompts only grow, so an episode is one sequence. WebShop's prompt is written anew at every step, so each
    of the expert's answers is a sequence with its own prompt.
    """
    if args.world == "alfworld":
        weights = {"world": args.observation_weight, "expert": 1.0, "mistake": 0.0}
        episode = alfworld.demonstration(seed, args.noisy_episodes, args.noise)
        yield [(text, weights[author]) for text, author in episode]
        return
    for prompt, answer, author in webshop.demonstration(seed, args.noisy_episodes, args.noise):
        if author == "expert":
            yield [(prompt, args.observation_weight), (answer, 1.0)]


BRACKETS = re.compile(r"\[(?!back to|< prev|next >|description|features|reviews|buy now)([^\[\]\n]+)\]")


def drill(prompt: str, seed: int, hardness: float) -> list[tuple[str, float]]:
    """A copying exercise on a page: answers that repeat what stands in brackets and spans of the task, in random order.

    Args:
        prompt: of a step.
        seed: of the demonstration.
        hardness: 0 shows two names alone, 1 the whole prompt.
    """
    rng = random.Random(f"drill {seed} {prompt}")
    task, page = prompt.split("\n", 1)
    words = task.split()[1:]
    starts = [rng.randrange(len(words)) for _ in range(3)]
    spans = [" ".join(words[start : start + rng.randint(2, 6)]) for start in starts]
    names = list(dict.fromkeys([*BRACKETS.findall(page), spans[0]]))
    rng.shuffle(names)
    names = names[: 2 + round(hardness * rng.random() * len(names))]
    answers = [f"click[{name}]" for name in names]
    if rng.random() < hardness:
        shown = f"Copy{prompt.removeprefix('Task')}"
        answers = [answer for answer in answers if spans[0] not in answer] + [f"search[ {span}]" for span in spans]
    else:
        shown = "Copy: " + " ".join(f"[{name}]" for name in names) + "\n>"
        answers *= 2
    rng.shuffle(answers)
    return [(shown, 0.05), ("\n>".join(f" {answer}" for answer in answers) + "\n", 1.0)]


def train_tokenizer(args: Args, episodes: int | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose pieces never span two words or numbers; a space belongs to what follows it."""
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
    demonstrations = (sequences(-1 - index, args) for index in range(episodes or TOKENIZER_EPISODES[args.world]))
    texts = ["".join(text for text, _ in sequence) for sequence in itertools.chain.from_iterable(demonstrations)]
    numbers = " ".join(str(number) for number in range(1, 41))
    texts += [f" {numbers}"] * 100
    if args.world == "webshop":
        pairs = ["".join(pair) for pair in itertools.product(string.digits + string.ascii_lowercase, repeat=2)]
        # Option values stand behind a bracket, where no space begins them.
        words = Counter(word for text in texts for word in re.findall(r" ([a-z]{2,})", text))
        texts += [f"[{word}]" * (count // 4) for word, count in words.items()]
        texts += [f"[b0{''.join(pairs[first : first + 4])}]" for first in range(0, len(pairs), 4)] * 200
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def encode(
    seed: int, tokenizer: PreTrainedTokenizerFast, args: Args, hardness: float = 1.0
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield token ids and loss weights of each sequence of one demonstration; of drills while hardness is below 1."""
    for sequence in sequences(seed, args):
        if hardness < 1:
            sequence = drill(sequence[0][0], seed, hardness)
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in sequence:
            piece = tokenizer(text)["input_ids"]
            ids += piece
            weights += [weight] * len(piece)
        # A prompt that is cut has lost its answer; a transcript that is cut has lost only its end.
        if args.world == "alfworld" or len(ids) <= args.max_tokens:
            yield ids[: args.max_tokens], weights[: args.max_tokens]


POOL = 16


def pool_rows(pool: int, tokenizer: PreTrainedTokenizerFast, args: Args) -> list[tuple[list[int], list[float]]]:
    """Draw the sequences of one pool: enough of them for `POOL` updates."""
    rows: list[tuple[list[int], list[float]]] = []
    first, tokens = args.seed * 10**8 + pool * 1000, 0
    for seed in range(first, first + 1000):
        if tokens >= POOL * args.tokens_per_update:
            break
        for row in encode(seed, tokenizer, args, pool * POOL / args.drill_updates if args.drill_updates else 1.0):
            rows.append(row)
            tokens += len(row[0])
    return rows


def batches(tokenizer: PreTrainedTokenizerFast, args: Args, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ((B, T) int64 ids, (B, T) float32 weights) for updates start, start + 1, ...

    Each pool of `POOL` updates draws its own demonstrations, sorts their sequences by length and shuffles the batches,
    so padding is rare and update t is a function of (seed, t).
    """
    for pool in range(start // POOL, math.ceil(args.updates / POOL)):
        rng = random.Random(f"pool {args.seed} {pool}")
        rows = sorted(pool_rows(pool, tokenizer, args), key=lambda row: len(row[0]))
        groups, group = [], [rows[0]]
        for row in rows[1:]:
            if (len(group) + 1) * len(row[0]) > args.tokens_per_update:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        order = rng.sample(range(len(groups)), min(POOL, len(groups)))
        order += rng.choices(range(len(groups)), k=POOL - len(order))
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


# ---------------------------------------------------------------- run


def learning_rate_scale(update: int, args: Args) -> float:
    """Warm up, stay, then fall linearly to zero."""
    falling = (args.updates - update) / (args.decay * args.updates)
    return min(1.0, (update + 1) / args.warmup, falling)


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


def train(args: Args) -> Path:
    """Train, log, and return the folder of the final bf16 model."""
    torch.set_num_threads(args.threads)
    folder = Path(args.out)
    claim_folder(folder, asdict(args), args.resume, MACHINE)
    tokenizer = train_tokenizer(args)
    model = build_model(args)
    if args.induction:
        write_induction(model, args.seed)
    model.to(args.device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    optimizers = [
        Muon(matrices, args.muon_lr),
        torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.95), weight_decay=0),
    ]
    peaks = [args.muon_lr, args.adam_lr]
    progress = load_training_state(folder / CHECKPOINT, model, optimizers)
    start = int(progress.get("update", 0))
    log, began = SummaryWriter(str(folder / "tensorboard")), time.perf_counter() - progress.get("seconds", 0.0)
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
        kept = absent_rows(model, ids) if args.induction else None
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if kept is not None:
            with torch.no_grad():
                model.get_input_embeddings().weight[kept[0]] = kept[1]
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
            progress = {"update": update + 1, "seconds": round(spent)}
            save_training_state(folder / CHECKPOINT, model, optimizers, progress)
            save_model(folder / "model", model, tokenizer)
            record = dict(zip(FIGURES, (round(value, 5) for value in smooth.tolist()), strict=True))
            write_json(folder / "training.json", {"settings": asdict(args), **progress, **record, **provenance()})
            with (folder / "history.jsonl").open("a") as file:
                file.write(json.dumps(progress | record) + "\n")
    log.close()
    return folder / "model"


def absent_rows(model: Qwen3ForCausalLM, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens a batch does not have, (V,) bool, and their embeddings, to be put back after the update.

    They feel only the softmax, all in one direction. Adam would blow that up to full steps until rare tokens cannot be
    told apart, which copying needs.
    """
    embedding = model.get_input_embeddings().weight.detach()
    absent = torch.ones(len(embedding), dtype=torch.bool, device=ids.device).index_fill_(0, ids.flatten(), False)
    return absent, embedding[absent].clone()


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
            choices = WORLDS if name == "world" else None
            text = f"{text} (default {default})"
            parser.add_argument(option, type=type(default), default=default, choices=choices, help=text)
    print(f"model: {train(Args(**vars(parser.parse_args(argv))))}")


if __name__ == "__main__":
    run(main)
