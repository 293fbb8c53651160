"""Run the benchmarks of this folder: every bench_*.py, or those named on the command line.

    python bench/run.py              all of them
    python bench/run.py env          bench_env.py alone

A benchmark is a module with ``main(argv)``, which prints its own table and returns its figures as plain data. The
figures go to runs/bench.json with the versions and the commit they were measured on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dmr_gym.command_line import run
from dmr_gym.runs import provenance, write_json

FOLDER = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> None:
    """Run benchmarks one after the other and record their figures."""
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description="run the benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} cores, load {load:.2f} before the start", flush=True)
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    figures = {}
    for name in args.names or known:
        print(f"\n== {name}", flush=True)
        figures[name] = importlib.import_module(f"bench_{name}").main([])
    write_json(args.out, {"figures": figures, "cores": os.cpu_count(), "load_before": load, **provenance()})
    print(f"\nfigures written to {args.out}")


if __name__ == "__main__":
    run(main)
