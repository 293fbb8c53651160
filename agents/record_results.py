"""Put what a run found into RESULTS.md: its numbers under results/, its table and pictures between the page's marks.

RUN is a folder that agents/evaluate.py, compare_grpo.py, ablate.py, tree_report.py, calibrate.py or
calibrate_latency.py wrote. Its results.json, tables and pictures are copied to results/NAME/, and its tables replace
what stands between the marks of NAME in the page:

    <!-- results: NAME -->
    <!-- end of results -->

A name without marks gets them at the end of the page. What stands outside of marks is prose, and is left as it is.
tests/test_results_page.py checks that the page shows these tables, and that every number in them is one of the file's.

    python agents/record_results.py alfworld-grpo runs/compare-alfworld --pictures runs/kl-st/kl_histogram.png
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from dmr_gym.command_line import run
from dmr_gym.errors import ConfigError
from dmr_gym.runs import write_atomically

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- end of results -->"
NUMBERS = "results.json"
TABLES = ("tables.md", "returns.md")


def main(argv: Sequence[str] | None = None) -> None:
    """Copy numbers and pictures, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="of the results: small letters, digits, and hyphens")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=[], metavar="FILE", help="further pictures, such as a KL histogram"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "RESULTS.md", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z0-9-]+", args.name):
        raise ConfigError(f"NAME must be small letters, digits and hyphens, got {args.name!r}")
    tables = [args.run / name for name in TABLES if (args.run / name).is_file()]
    if not (args.run / NUMBERS).is_file() or not tables:
        raise ConfigError(f"{args.run} has no {NUMBERS}, or none of {', '.join(TABLES)}: is that run finished?")
    folder = args.page.parent / "results" / args.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (args.run / NUMBERS, *tables, *args.run.glob("*.png"), *args.pictures):
        shutil.copyfile(path, folder / path.name)
    old = args.page.read_text(encoding="utf-8") if args.page.is_file() else "# Results\n"
    page = with_block(old, args.name, body(folder))
    write_atomically(args.page, lambda part: part.write_text(page, encoding="utf-8"))
    print(f"wrote {folder} and {args.page}")


def body(folder: Path) -> str:
    """What stands on the page of a folder of results: its tables, then its pictures."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    text = "\n".join(as_section(path.read_text(encoding="utf-8")) for path in tables)
    pictures = sorted(folder.glob("*.png"))
    return text + "".join(f"\n![{p.stem}](results/{folder.name}/{p.name})\n" for p in pictures)


def as_section(text: str) -> str:
    """A table file below a heading of the page: its own title in bold, its headings a level lower."""
    return re.sub(r"(?m)^## ", "### ", re.sub(r"(?m)^# (.*)$", r"**\1**", text))


def with_block(page: str, name: str, body: str) -> str:
    """The page with a text between the marks of a name, which come at its end where it has none."""
    begin = f"<!-- results: {name} -->"
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}\n{END}\n"
    before, rest = page.split(begin, 1)
    if END not in rest:
        raise ConfigError(f"the page has {begin} without {END} below it")
    return f"{before}{begin}\n{body}{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    run(main)
