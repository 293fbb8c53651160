"""Write one HTML file of what runs have found: tables, figures, and every step of every episode.

RUN is the --out folder of a recipe, or a folder that holds some, such as what agents/demo.py leaves behind: evaluations
(agents/evaluate.py), KL data sets (agents/collect_kl.py), trainings (agents/train_kl_st.py, train_grpo.py,
train_ppo.py), routing trees (agents/build_trees.py) and their reports (agents/tree_report.py). Runs of the same world
and precisions go together. The page shows what there is, and names what is missing with the command that makes it.

    python agents/report.py runs/demo
    python agents/report.py runs/evaluation runs/kl runs/kl-st runs/trees runs/tree-report --out runs/report.html

The file needs no network and no server. What was not chosen is shown in the step viewer as far as it is known: from
other episodes in the same state, from what ``--alternatives`` of agents/evaluate.py has recorded, and from trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmr_gym.command_line import recipe_parser, run
from dmr_gym.errors import ConfigError
from dmr_gym.report.page import write_page
from dmr_gym.report.records import WorldRecord
from dmr_gym.report.runs import find_runs
from dmr_gym.report.worlds import read_worlds
from dmr_gym.runs import provenance


def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs and write the page."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, or of runs")
    add("--out", type=Path, metavar="FILE", help="the page (default: report.html in the first RUN)")
    add("--mb", type=float, default=4.0, metavar="X", help="most megabytes of episodes (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.mb < float("inf"):
        raise ConfigError(f"--mb must be a finite number above 0, got {args.mb}")
    path = args.out or args.runs[0] / "report.html"
    worlds = read_worlds(find_runs(args.runs), int(args.mb * 1e6))
    made = provenance()
    size = write_page(worlds, f"dmr-gym {made['versions']['dmr-gym']}, commit {made['git'] or 'unknown'}", path)
    show(worlds)
    print(f"report: {path} ({size / 1e6:.1f} MB)")


def show(worlds: Sequence[WorldRecord]) -> None:
    """Say what the page has, what it leaves out, and what the runs lack."""
    for world in worlds:
        kls = {kl.folder for kl in world.kls}
        counts = {"evaluation": len(world.evaluations), "KL data set": len(kls), "training": len(world.trainings)}
        parts = [f"{number} {name}{'s' * (number != 1)}" for name, number in counts.items()]
        print(f"{world.title}: {', '.join(parts)}")
        for evaluation in world.evaluations:
            for note in evaluation.notes:
                print(f"  {note}")
            viewer = evaluation.viewer
            if viewer.left_out:
                shown = f"{len(viewer.tasks)} of {evaluation.tasks} tasks"
                print(f"  the step viewer of {evaluation.folder} has room for {shown}: --mb makes more")
        for missing in world.missing:
            print(f"  without {missing.part}: {missing.command}")


if __name__ == "__main__":
    run(main)
