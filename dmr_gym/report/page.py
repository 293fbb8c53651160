"""One self-contained HTML file: records as a JSON block, with the style and the script of the page inline.

Whatever a model, a world or a data file wrote is in the JSON block alone, where nothing can end it, and the script puts
it on the page as text. A Content-Security-Policy lets the page load nothing and run no other script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from dmr_gym.report.records import WorldRecord
from dmr_gym.runs import finite, write_atomically

SCRIPTS = ("dom.js", "charts.js", "figures.js", "viewer.js", "page.js")
"""Parts of the page's script, in their order."""

_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def render(worlds: Sequence[WorldRecord], made: str) -> str:
    """The whole page.

    Args:
        worlds: to show, the first one at first.
        made: what made the page, in words.
    """
    style, script = _part("page.css"), "\n".join(map(_part, SCRIPTS))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    names = ", ".join(dict.fromkeys(world.title for world in worlds))
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(f"{names} · dmr-gym report"),
        "STYLE": style,
        "DATA": embed({"made": made, "worlds": [asdict(world) for world in worlds]}),
        "SCRIPT": script,
    }
    # One pass, so that nothing in a part is taken for the place of another.
    pieces = _part("page.html").split("{{")
    filled = [parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:])]
    return pieces[0] + "".join(filled)


def write_page(worlds: Sequence[WorldRecord], made: str, path: Path) -> int:
    """Write the page, whole or not at all; returns its size in bytes."""
    content = render(worlds, made).encode("utf-8", "replace")  # half a pair of surrogates is no text
    write_atomically(path, lambda part: part.write_bytes(content))
    return len(content)


def embed(data: Any) -> str:
    """JSON that can stand in an HTML file: ASCII, without any character that HTML or a script reads as markup."""
    return json.dumps(finite(data), allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _part(name: str) -> str:
    return resources.files("dmr_gym.report").joinpath(name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline part."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
