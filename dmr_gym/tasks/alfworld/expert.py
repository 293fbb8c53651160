"""An expert that sees only text: it explores a house as a newcomer would, then does the task.

It never reads the walkthrough or the state. Its next command is a function of the transcript, which makes it a teacher
that a language model can imitate, also from the states that somebody else's mistakes have led to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dmr_gym.errors import TaskError
from dmr_gym.tasks.alfworld.vocabulary import HOMES

LIKELY_PLACES: Mapping[str, tuple[str, ...]] = {
    name.lower(): tuple(place.lower() for place in sorted(places, key=lambda place: (-places[place], place)))
    for name, places in HOMES.items()
}
"""Where to look first: receptacles by how readily an object starts out in them."""
_SEEN_IN_ROOM = re.compile(r"Looking quickly around you, you see (.*)\.")
_THING = re.compile(r"an? ([a-z]+ \d+)")
_CONTENT = re.compile(r"(?:On the|The) ([a-z]+ \d+)(?: is open\. In it)?, you see ([^.]*)\.")
_CLOSED = re.compile(r"The ([a-z]+ \d+) is closed\.")
_CLOSE = re.compile(r"You close the ([a-z]+ \d+)\.")
_ARRIVE = re.compile(r"You arrive at ([a-z]+ \d+)\.")
_TAKE = re.compile(r"You pick up the ([a-z]+ \d+) from the ([a-z]+ \d+)\.")
_MOVE = re.compile(r"You move the ([a-z]+ \d+) to the ([a-z]+ \d+)\.")
_TREAT = re.compile(r"You (clean|heat|cool) the ([a-z]+ \d+) using the ([a-z]+ \d+)\.")
_APPLIANCE = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_TASKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:examine the|look at) (?P<object>\w+) (?:with|under) the (?P<lamp>\w+)\."), ""),
    (re.compile(r"(?:put two|find two) (?P<object>\w+) (?:in|and put them in) (?P<receptacle>\w+)\."), ""),
    (re.compile(r"(?:clean some|put a clean) (?P<object>\w+) (?:in|and put it in) (?P<receptacle>\w+)\."), "clean"),
    (re.compile(r"(?:heat some|put a hot) (?P<object>\w+) (?:in|and put it in) (?P<receptacle>\w+)\."), "heat"),
    (re.compile(r"(?:cool some|put a cool) (?P<object>\w+) (?:in|and put it in) (?P<receptacle>\w+)\."), "cool"),
    (re.compile(r"put (?:a|some) (?P<object>\w+) (?:in|on) (?P<receptacle>\w+)\."), ""),
)


def kind(name: str) -> str:
    """The base name of a thing: "cabinet" of "cabinet 4"."""
    return name.rsplit(" ", 1)[0]


class ExploringExpert:
    """Plays one game from its texts: call `act` for a command and `observe` with what any command led to."""

    def __init__(self, intro: str, likely_places: Mapping[str, Sequence[str]] = LIKELY_PLACES) -> None:
        """Read the room and the task.

        Args:
            intro: the engine's introduction.
            likely_places: for an object's base name, base names of receptacles, the likeliest first.

        Raises:
            TaskError: the introduction or the task sentence is none of ALFWorld's.

        Attributes:
            target: base name of the object that the task is about.
        """
        room = _SEEN_IN_ROOM.search(intro)
        task = intro.rsplit("Your task is to: ", 1)[-1].strip()
        match, self._treatment = next(((m, t) for p, t in _TASKS if (m := p.fullmatch(task))), (None, ""))
        if room is None or match is None:
            raise TaskError(f"expected an ALFWorld introduction and one of its task sentences, found {intro[-200:]!r}")
        parts = match.groupdict()
        self.target, self._lamp = parts["object"], parts.get("lamp", "")
        self._goal_kind, self._count = parts.get("receptacle", ""), 2 if " two " in f" {task}" else 1
        self._receptacles = _THING.findall(room[1])
        self._goal = next((r for r in self._receptacles if kind(r) == self._goal_kind), "")
        places = list(likely_places.get(self.target, ()))
        rank = {place: index for index, place in enumerate(places)}
        self._route = sorted(self._receptacles, key=lambda r: rank.get(kind(r), len(places)))
        self._content: dict[str, list[str]] = {}
        self._closed: set[str] = set()
        self._treated: set[str] = set()
        self._here = self._held = self._taken_from = ""
        self._blocked: set[str] = set()
        self._last = ""

    def act(self) -> str:
        """The next command, given everything observed so far."""
        self._last = self._choose()
        return self._last

    def observe(self, command: str, observation: str) -> None:
        """Take in what a command led to; the command need not have been the expert's."""
        if observation == "Nothing happens.":
            if command.startswith("go to ") and command[6:] in self._receptacles:
                self._here = command[6:]  # it stands beside the one we are at, so there is no way to go
            elif command == self._last:
                self._blocked.add(command)
            return
        if match := _ARRIVE.search(observation):
            self._here = match[1]
        if match := _CLOSED.search(observation) or _CLOSE.search(observation):
            self._closed.add(match[1])
        if match := _CONTENT.search(observation):
            self._content[match[1]] = _THING.findall(match[2])
            self._closed.discard(match[1])
        if match := _TAKE.search(observation):
            self._held, self._taken_from = match[1], match[2]
            if self._held in self._content.get(match[2], ()):
                self._content[match[2]].remove(self._held)
        if match := _MOVE.search(observation):
            self._held = ""
            self._content.setdefault(match[2], []).append(match[1])
        if match := _TREAT.search(observation):
            self._treat(match[1], match[2])

    def _treat(self, verb: str, thing: str) -> None:
        if verb == self._treatment:
            self._treated.add(thing)
        elif {verb, self._treatment} == {"heat", "cool"}:
            self._treated.discard(thing)

    def _choose(self) -> str:
        if self._held and kind(self._held) != self.target:
            return self._place(self._taken_from)
        if not self._held:
            return self._fetch(self.target)
        if self._lamp:
            return self._fetch(self._lamp)
        if self._treatment and self._held not in self._treated:
            appliance = next((r for r in self._receptacles if kind(r) == _APPLIANCE[self._treatment]), "")
            return self._go(appliance) or f"{self._treatment} {self._held} with {appliance}"
        return self._place(self._goal)

    def _go(self, receptacle: str) -> str:
        """The command that leads there; "" when already there."""
        return "" if self._here == receptacle else f"go to {receptacle}"

    def _reach_into(self, receptacle: str) -> str:
        """The command that leads there with its door open; "" when nothing stands in the way."""
        opening = f"open {receptacle}" if receptacle in self._closed else ""
        return self._go(receptacle) or opening

    def _place(self, receptacle: str) -> str:
        return self._reach_into(receptacle) or f"move {self._held} to {receptacle}"

    def _fetch(self, wanted: str) -> str:
        """Take (or switch on) a thing of a kind that was seen somewhere; else look further."""
        for receptacle in sorted(self._content, key=lambda r: r != self._here):
            if self._count == 2 and receptacle == self._goal:
                continue
            for thing in self._content[receptacle]:
                use = f"use {thing}" if wanted == self._lamp else f"take {thing} from {receptacle}"
                if kind(thing) == wanted and use not in self._blocked:
                    return self._reach_into(receptacle) or use
        return self._explore()

    def _explore(self) -> str:
        opening = f"open {self._here}"
        if self._here in self._closed and self._here not in self._content and opening not in self._blocked:
            return opening
        for receptacle in self._route:
            if receptacle not in self._content and f"open {receptacle}" not in self._blocked:
                return self._go(receptacle) or f"examine {receptacle}"
        return "look"
