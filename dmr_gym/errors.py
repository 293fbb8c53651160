"""Every exception that dmr_gym raises on purpose.

The tree::

    DMRGymError
    ├── ConfigError         a setting is unknown, of the wrong type, or out of range (also a ValueError)
    ├── TaskError           a game file or a task id cannot be used
    ├── BackendError        an LLM backend could not answer
    ├── CacheError          a cache file is of another version, or damaged
    └── MissingDependency   an optional package is not installed (also an ImportError)

Errors of third-party libraries become one of these at the seam where they occur, with the original as
``__cause__``. Each message says what was expected, what came, and the way out.
"""

from __future__ import annotations


class DMRGymError(Exception):
    """Base of all errors raised by dmr_gym."""


class ConfigError(DMRGymError, ValueError):
    """Raised when a setting is unknown, has the wrong type, or lies outside its range."""


class TaskError(DMRGymError):
    """Raised when a game file is broken, or a task id is not in the chosen panel."""


class BackendError(DMRGymError):
    """Raised when an LLM backend cannot answer a request."""


class CacheError(DMRGymError):
    """Raised when a cache file has another version or cannot be read."""


class MissingDependency(DMRGymError, ImportError):
    """Raised when a feature needs an optional package that is not installed."""

    def __init__(self, package: str, extra: str, feature: str) -> None:
        """Name the package, the pip extra that brings it ("" for a plain install), and what asked for it."""
        target = f"dmr-gym[{extra}]" if extra else "dmr-gym"
        super().__init__(f'{feature} needs the package {package!r}: pip install "{target}"')
        self.package = package
        self.extra = extra
