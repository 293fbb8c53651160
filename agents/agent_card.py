r"""Measure every precision of an agent and write the results into its model card.

For each precision: success, the world's mean score and mean steps on the embedded test panel, and on official data
where its folder is given. For each low precision: KL(high || low) of every step of the high precision's episodes
(exact, mean over the action block, in nats; paper section 4.2), with a histogram on a logarithmic scale. Each precision
plays alone.

    python agents/agent_card.py --out dmr_gym/weights/alfworld --official PATH_OF_ALFWORLD --official-panel valid_unseen
    python agents/agent_card.py --out runs/card --official PATH_OF_ALFWORLD --set backend.kind=local \
        --set 'backend.models={w4 = "runs/w4", bf16 = "runs/bf16"}' --precisions w4 bf16

Writes ``agent_card.json``, ``kl_histogram.png``, and the table into ``README.md`` between two marks; the rest of that
file stays as it is. Answers are cached in runs/agent_card, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dmr_gym.backends import embedded_precisions, with_world
from dmr_gym.backends.kernels import DEQUANTIZED, no_kernel
from dmr_gym.calibration import KL_FLOOR
from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run
from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError
from dmr_gym.figures import pyplot
from dmr_gym.kl_dataset import label_trajectory
from dmr_gym.metrics import Summary, summarize
from dmr_gym.policies import FixedPrecision
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.runs import file_digest, provenance, write_atomically, write_json
from dmr_gym.vector import PrecisionRoutingVectorEnv

BEGIN, END = "<!-- results: agents/agent_card.py -->", "<!-- end of results -->"
CRITICAL_KL = 0.1
DEQUANTIZED_NOTE = (
    f" {DEQUANTIZED.capitalize()}: no kernel computes with so few bits, so the weights are unpacked to 16 and as fast"
    " as those; a latency of the copy can only be projected."
)
CACHE = Path("runs/agent_card")
"""Default folder of the completion cache: not in --out, which may be in the package."""


@dataclass(frozen=True)
class Panel:
    """Tasks to measure on: a name for the table, and the environment's settings for them."""

    name: str
    config: EnvConfig
    panel: str


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the card")
    parser.add_argument("--precisions", nargs="+", metavar="NAME", help="in ascending order (default: all embedded)")
    parser.add_argument("--official", metavar="DIR", help="the world's data folder, to measure on its tasks as well")
    parser.add_argument("--official-panel", default="test", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--official-precisions", nargs="+", metavar="NAME", help="on those tasks (default: all)")
    parser.add_argument("--tasks", type=int, metavar="N", help="only the first N tasks of each panel")
    add_env_options(parser)
    parser.set_defaults(num_envs=16)
    return parser.parse_args(argv)


def ascending(names: Sequence[str]) -> tuple[str, ...]:
    """Order names such as "w3-gptq" and "bf16" by their first number, the bits of a weight."""
    return tuple(sorted(names, key=lambda name: (int((re.findall(r"\d+", name) or ["0"])[0]), name)))


def resolve(args: argparse.Namespace) -> tuple[str, EnvConfig]:
    """The environment in which single precisions play: no latency is priced, and no encoder is needed.

    Returns:
        Its registered id and its keywords.

    Raises:
        ConfigError: fewer than two precisions, or a setting of the environment that is wrong.
    """
    env_id, config = chosen_env(args, CACHE)
    config = replace(config, backend=with_world(config.backend, config.task))
    names = tuple(args.precisions or config.precisions)
    if not args.precisions and config.backend.get("kind") == "embedded":
        names = ascending(embedded_precisions(config.backend["world"]))
    if len(names) < 2:
        raise ConfigError(f"a card compares two precisions or more, found {', '.join(names) or 'none'}")
    free = {"ms_per_token": dict.fromkeys(names, 0.0), "router_ms": 0.0}
    return env_id, replace(config, precisions=names, latency=free, encoder={"kind": "hash", "dim": 8})


def panels(config: EnvConfig, args: argparse.Namespace) -> list[Panel]:
    """The embedded test panel, and the official one where its folder is given.

    Raises:
        ConfigError: the official one is to be played by a precision that is not measured, or by one alone.
    """
    found = [Panel("embedded test", config, "test")]
    if args.official:
        names = tuple(args.official_precisions or config.precisions)
        if set(names) - set(config.precisions) or len(set(names)) < 2:
            known, got = ", ".join(config.precisions), ", ".join(names)
            raise ConfigError(f"--official-precisions must be two or more of {known}; found {got}")
        names = tuple(name for name in config.precisions if name in names)
        latency = {"ms_per_token": dict.fromkeys(names, 0.0), "router_ms": 0.0}
        kwargs = {**config.task_kwargs, "source": args.official}
        official = replace(config, precisions=names, latency=latency, task_kwargs=kwargs)
        found.append(Panel(f"official {args.official_panel}", official, args.official_panel))
    return found


def measure(
    panel: Panel, envs: PrecisionRoutingVectorEnv, tasks: Sequence[str], with_kl: bool
) -> tuple[list[Summary], dict[str, Any]]:
    """Let every precision play a panel's tasks alone, and close its environment.

    Returns:
        A summary a precision, and the KL of each low precision at every step of the high precision, (S,) float32 nats.
    """
    with closing(envs):  # so that weights are given back before those of the next panel load
        summaries, played = [], []
        for index, name in enumerate(panel.config.precisions):
            title = f"{panel.name}, {name}"
            played = rollout(envs, FixedPrecision(index), tasks, keep_turns=True, progress=title)
            summaries.append(summarize(name, [episode.result(index) for episode in played], lambda_=0.0))
        return summaries, step_kls(played, envs.backend, panel.name) if with_kl else {}


def step_kls(episodes: Sequence[Trajectory], backend: Any, name: str) -> dict[str, NDArray[np.float32]]:
    """KL(high || low) at each step of the high precision's episodes, one array of all steps for each low precision."""
    bar = tqdm(episodes, desc=f"{name}, KL", unit="episode")
    kls = np.concatenate([label_trajectory(episode, backend).kl_action for episode in bar])
    return {low: kls[:, index] for index, low in enumerate(backend.precisions[:-1])}


def copy_facts(config: EnvConfig) -> dict[str, dict[str, Any]]:
    """What the checkpoint folder of each precision says of itself: size, digest, and how it was quantized."""
    kind, models = config.backend["kind"], dict(config.backend.get("models", {}))
    if kind == "embedded":
        models = {name: f"embedded:{config.backend['world']}/{name}" for name in config.precisions}
    elif kind != "local":
        return {name: {} for name in config.precisions}
    from dmr_gym.backends.checkpoint import resolve_checkpoint

    facts = {}
    for name in config.precisions:
        folder = resolve_checkpoint(models[name])
        weights = sorted(folder.glob("*.safetensors"))
        card = folder / "quantization.json"
        quantized = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
        facts[name] = {
            "bytes": sum(path.stat().st_size for path in weights),
            "sha256": {path.name: file_digest(path) for path in weights},
            **{key: quantized[key] for key in ("method", "scheme", "group_size", "perplexity") if key in quantized},
        }
    return facts


def summary_figures(summary: Summary) -> dict[str, Any]:
    """What the record keeps of one precision on one panel."""
    return {
        "episodes": summary.episodes,
        "success": summary.success,
        "success_ci": [summary.success_ci.low, summary.success_ci.high],
        "score": summary.score,
        "score_ci": [summary.score_ci.low, summary.score_ci.high],
        "steps": summary.steps,
        "completion_tokens": summary.completion_tokens,
    }


def kl_figures(kl: NDArray[np.float32]) -> dict[str, float]:
    """Reduce the KLs of all steps to the numbers of the table, in nats."""
    return {
        "steps": len(kl),
        "mean": float(kl.mean()),
        "median": float(np.median(kl)),
        "p90": float(np.quantile(kl, 0.9)),
        f"share_above_{CRITICAL_KL}": float((kl > CRITICAL_KL).mean()),
    }


def draw_histogram(kls: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Draw the share of steps by KL, one line for each low precision; smaller KLs than `KL_FLOOR` count as that."""
    edges = np.logspace(np.log10(KL_FLOOR), 2, 61)
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for name, kl in kls.items():
        weights = np.full(len(kl), 1 / len(kl))
        axes.hist(kl.clip(KL_FLOOR, edges[-1]), bins=edges, weights=weights, histtype="step", linewidth=1.6, label=name)
    axes.axvline(CRITICAL_KL, color="0.5", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("KL(high || low) of a step in nats, mean over its action's tokens")
    axes.set_ylabel("share of steps")
    axes.legend(title="low precision", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda part: figure.savefig(part, dpi=120, metadata={"Software": None}))
    pyplot().close(figure)


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table, highest precision first."""
    names = list(results["precisions"])
    panel_names = list(results["panels"])
    head = ["precision", "made by", "MB"]
    for panel in panel_names:
        head += [f"success, {panel} ({results['panels'][panel][names[-1]]['episodes']} tasks)", "score", "steps"]
    head += ["KL median", "KL mean", f"KL > {CRITICAL_KL}"]
    rows = [head, ["---"] * len(head)]
    for name in reversed(names):
        facts, kl = results["precisions"][name], results["kl"].get(name)
        made = f"{facts['method'].upper()} {facts['scheme']}, g {facts['group_size']}" if "method" in facts else "–"
        if "scheme" in facts and no_kernel(int(facts["scheme"][1])):
            made += f", {DEQUANTIZED}"
        row = [name, made, f"{facts['bytes'] / 1e6:.2f}" if facts else "–"]
        for panel in panel_names:
            cell = results["panels"][panel].get(name)
            if cell is None:
                row += ["–"] * 3
                continue
            low, high = (100 * bound for bound in cell["success_ci"])
            success = f"{100 * cell['success']:.1f} % ({low:.1f} to {high:.1f})"
            row += [success, f"{cell['score']:.3f}", f"{cell['steps']:.1f}"]
        share = f"share_above_{CRITICAL_KL}"
        row += [f"{kl['median']:.2g}", f"{kl['mean']:.2g}", f"{100 * kl[share]:.1f} %"] if kl else ["–"] * 3
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_card(results: Mapping[str, Any], out: Path) -> None:
    """Put the table between the marks of ``README.md``, which is begun where there is none."""
    path = out / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {out.resolve().name}\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1] if END in rest else "\n"
    first, rows = next(iter(results["panels"])), table(results)
    body = (
        f"{rows}\n\nEach precision plays alone, at most {results['max_steps']} steps a task. In parentheses: "
        "95 % bootstrap intervals over tasks. Score and steps: means over all tasks. KL: KL(high || low) in nats at "
        f"each step of the highest precision's episodes, panel {first!r}, mean over the tokens of the action."
        f"{DEQUANTIZED_NOTE if f', {DEQUANTIZED}' in rows else ''}\n\n"
        "![Histogram of the KL of each step, logarithmic scale](kl_histogram.png)\n"
    )
    write_atomically(path, lambda part: part.write_text(f"{before}{BEGIN}\n{body}{END}{after}", encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write the card, print its table; returns what ``agent_card.json`` holds.

    Raises:
        ConfigError, BackendError, TaskError: a setting is wrong, a checkpoint or a folder of games is missing.
        MissingDependency: matplotlib is not installed.
    """
    args = parse(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last task
    env_id, config = resolve(args)
    with ExitStack() as stack:
        opened = []
        for panel in panels(config, args):  # all of them first: a wrong folder is told before hours of measuring
            envs = stack.enter_context(closing(make_envs(panel.config, panel.panel, args.num_envs)))
            opened.append((panel, envs, first_tasks(envs, args.tasks)))
        results: dict[str, Any] = {"env": env_id, "max_steps": config.max_steps, "precisions": copy_facts(config)}
        results |= {"panels": {}, "kl": {}}
        for panel, envs, tasks in opened:
            summaries, kls = measure(panel, envs, tasks, with_kl=panel is opened[0][0])
            results["panels"][panel.name] = {s.policy: summary_figures(s) for s in summaries}
            if kls:
                results["kl"] = {name: kl_figures(kl) for name, kl in kls.items()}
                draw_histogram(kls, args.out / "kl_histogram.png")
    results["provenance"] = provenance()
    write_json(args.out / "agent_card.json", results)
    write_card(results, args.out)
    print(table(results))
    print(f"written to {args.out}: README.md, agent_card.json, kl_histogram.png")
    return results


if __name__ == "__main__":
    run(main)
