"""A stand-in for an interpreter that has vLLM: a script that is healthy after a while, and has a process of its own.

What it does is read from its --model: "fine", "dies" (says why, status 3), "stuck" (never healthy), "stubborn" (ignores
SIGTERM).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SCRIPT = """#!{python} -S
import http.server, json, os, signal, subprocess, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    sys.exit(0)
model = arguments[arguments.index("--model") + 1]
port = int(arguments[arguments.index("--port") + 1])
print("starting", model, flush=True)
if model == "dies":
    sys.exit(print("out of memory", flush=True) or 3)
engine = subprocess.Popen([{python!r}, "-S", "-c", "import time; time.sleep(600)"])
if model == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open({started!r}, "a") as file:
    kept = {{key: value for key, value in os.environ.items() if "VLLM" in key}}
    file.write(json.dumps({{"arguments": arguments, "pids": [os.getpid(), engine.pid], "environment": kept}}) + "\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if model != "stuck" else 503)
        self.end_headers()
    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class FakeVLLM:
    """The interpreter, and what was started with it.

    Attributes:
        python: path for ``python`` of [serve].
    """

    def __init__(self, folder: Path) -> None:
        self._started = folder / "started.jsonl"
        self.python = str(folder / "python")
        Path(self.python).write_text(SCRIPT.format(python=sys.executable, started=str(self._started)))
        Path(self.python).chmod(0o755)

    @property
    def started(self) -> list[dict[str, object]]:
        """Arguments, pids (server and engine) and environment of every start."""
        lines = self._started.read_text().splitlines() if self._started.is_file() else []
        return [json.loads(line) for line in lines]

    @property
    def pids(self) -> list[int]:
        """Of every process that was ever started."""
        return [pid for start in self.started for pid in start["pids"]]  # type: ignore[attr-defined]
