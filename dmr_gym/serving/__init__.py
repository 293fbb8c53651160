"""vLLM servers of a configuration: started with the right flags, waited for, and ended with everything they started.

::

    settings = read_serve_settings("configs/vllm-cpu.toml")
    with Servers(settings, Path("runs/serve")) as servers:
        print(servers.urls)
"""

from __future__ import annotations

from dmr_gym.serving.servers import Servers
from dmr_gym.serving.settings import ServeSettings, read_serve_settings

__all__ = ["ServeSettings", "Servers", "read_serve_settings"]
