"""A native engine for ALFWorld's text games that plays exactly as TextWorld does, thousands of times faster.

The state is a handful of tuples and integers, so `AlfworldEngine.snapshot` is cheap. The goal is kept as counts that
each command updates, so checking it costs O(1) a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dmr_gym.tasks.alfworld.pddl import read_game
from dmr_gym.tasks.alfworld.world import KNIVES, EngineState, World

NOTHING_HAPPENS = "Nothing happens."
HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
_APPLIANCES = {"clean": "sinkbasintype", "heat": "microwavetype", "cool": "fridgetype"}
_ABLE = {"clean": "cleanable", "heat": "heatable", "cool": "coolable"}


def load_game(path: str | Path) -> AlfworldEngine:
    """Load an official or generated game.

    Args:
        path: a ``game.tw-pddl`` file, or the folder that holds one.

    Raises:
        TaskError: the file cannot be read or is not a playable ALFWorld game; names the file and the cause.
    """
    return AlfworldEngine.from_json(read_game(path), str(path))


class AlfworldEngine:
    """One game. `reset` starts it; `step` takes a command and returns TextWorld's answer to it."""

    def __init__(self, world: World) -> None:
        """Play in a world, which engines may share. Most callers use `load_game` or `AlfworldEngine.from_json`."""
        self.game = world.game
        self._world = world
        self._name, self._slot, self._place = world.names, world.slot, world.place
        self._here, self._able = world.here, world.able
        self._handlers: dict[str, Callable[[str, str], str]] = {
            "go": self._go, "open": self._open, "close": self._close, "take": self._take, "move": self._move,
            "examine": self._examine, "use": self._use, "slice": self._slice,
            "clean": self._clean, "heat": self._heat, "cool": self._cool,
        }  # fmt: skip
        self.reset()

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "game", task_type: str | None = None) -> AlfworldEngine:
        """Build the engine from a game file's JSON object.

        Raises:
            TaskError: the game is broken, or ``task_type`` is given and is not what the goal says.
        """
        return cls(World.from_json(data, source, task_type))

    # ------------------------------------------------------------------ public face

    @property
    def task(self) -> str:
        """The task sentence, such as "put a mug in desk."."""
        return self.game.task

    @property
    def task_type(self) -> str:
        """One of ALFWorld's six task types."""
        return self.game.goal.task_type

    @property
    def walkthrough(self) -> tuple[str, ...]:
        """Commands that win the game."""
        return self.game.walkthrough

    def reset(self) -> str:
        """Go back to the start and return the intro: the receptacles in the room and the task."""
        self.restore(self._world.start)
        return self._world.intro

    def step(self, command: str) -> str:
        """Carry out a command; an inadmissible one is answered "Nothing happens." and changes nothing."""
        command = command.strip()
        if command == "look":
            return self._look()
        if command == "inventory":
            return self._inventory()
        if command == "help":
            return HELP
        parsed = self._world.parse(command)
        if parsed is None or self._obstacle(*parsed) is not None:
            return NOTHING_HAPPENS
        return self._handlers[parsed[0]](parsed[1], parsed[2])

    @property
    def won(self) -> bool:
        """Whether the goal holds now: O(1), from counts that each command keeps."""
        if self.game.goal.lamp_type:
            return self._held in self._world.targets and self._counts.get(self._location, 0) > 0
        return self._full > 0

    @property
    def admissible(self) -> list[str]:
        """The commands that do something now, sorted."""
        commands = ["help", "inventory", "look"]
        commands += [self._world.go_commands[r] for r in self._world.receptacles if self._place[r] != self._location]
        for r in self._here.get(self._location, ()):
            commands += self._commands_at(r)
        if self._held is not None:
            commands += self._commands_with(self._held)
        return sorted(set(commands))

    def inadmissible_reason(self, command: str) -> str | None:
        """Why a command would be answered "Nothing happens."; None when it is admissible."""
        command = command.strip()
        if command in ("look", "inventory", "help"):
            return None
        parsed = self._world.parse(command)
        if parsed is not None:
            return self._obstacle(*parsed)
        verb = command.split(" ", 1)[0]
        if verb not in self._handlers:
            return f"unknown command {verb[:20]!r}" if command else "empty command"
        return f"{verb!r} names something that is not in this house, or lacks a part: see 'help'"

    def snapshot(self) -> EngineState:
        """The state of play, immutable; give it to `restore`."""
        return EngineState(
            self._location, self._held, tuple(self._inside), self._opened, self._states, self._at, self._removed
        )

    def restore(self, state: EngineState) -> None:
        """Go back to a state of this same game."""
        self._location, self._held, inside, self._opened, self._states, self._at, self._removed = state
        self._inside = list(inside)
        self._counts: dict[str, int] = {}
        self._full = 0
        for o in self._world.targets | self._world.lamps:
            self._count(o, 1)

    # ------------------------------------------------------------------ the goal, kept as counts

    def _count(self, o: str, sign: int) -> None:
        """Add (1) or take away (-1) what an object contributes to the goal. Called around each change of it."""
        goal = self.game.goal
        if o in self._world.lamps and ("istoggled", o) in self._states:
            for r in self._containers(o):
                place = self._place[r]
                self._counts[place] = self._counts.get(place, 0) + sign
        if (
            o not in self._world.targets
            or goal.lamp_type
            or any((p, o) not in self._states for p in self._world.needed)
        ):
            return
        for r in self._containers(o):
            if self._world.receptacle_type.get(r) == goal.receptacle_type:
                before = self._counts.get(r, 0)
                self._counts[r] = before + sign
                self._full += (before + sign >= goal.count) - (before >= goal.count)

    def _containers(self, o: str) -> list[str]:
        return [r for r, content in zip(self._world.receptacles, self._inside, strict=True) if o in content]

    def _set_state(self, o: str, gained: str, lost: str | None = None) -> None:
        self._count(o, -1)
        self._states = self._states - {(lost, o)} | {(gained, o)} if lost else self._states | {(gained, o)}
        self._count(o, 1)

    # ------------------------------------------------------------------ commands: what is meant, what stands against it

    def _obstacle(self, verb: str, first: str, second: str) -> str | None:
        """Why a well-formed command is inadmissible now; None when it is admissible."""
        if verb == "go":
            if first not in self._slot:
                return f"{self._name[first]} is not a place to go to"
            return f"already at {self._name[first]}" if self._place[first] == self._location else None
        if verb == "examine":
            return None if first == self._held or self._is_here(first) else f"{self._name[first]} is not at hand"
        if verb in ("open", "close"):
            return self._door_obstacle(verb, first)
        if verb == "take":
            return self._take_obstacle(first, second)
        if verb == "use":
            reachable = first in self._able["toggleable"] and any(self._is_here(r) for r in self._containers(first))
            return None if reachable else f"no switch of {self._name[first]} within reach"
        if verb == "slice":
            return self._slice_obstacle(first, second)
        return self._held_obstacle(verb, first, second)

    def _is_here(self, r: str) -> bool:
        return r in self._slot and self._place[r] == self._location

    def _door_obstacle(self, verb: str, r: str) -> str | None:
        if not self._is_here(r):
            return f"not at {self._name[r]}"
        if r not in self._able["openable"]:
            return f"{self._name[r]} has no door"
        is_done = (r in self._opened) == (verb == "open")
        return f"{self._name[r]} is already {'open' if verb == 'open' else 'closed'}" if is_done else None

    def _is_accessible(self, r: str) -> bool:
        return r not in self._able["openable"] or r in self._opened

    def _take_obstacle(self, o: str, r: str) -> str | None:
        if not self._is_here(r):
            return f"not at {self._name[r]}"
        if self._held is not None:
            return f"hands are full: carrying {self._name[self._held]}"
        if not self._is_accessible(r):
            return f"{self._name[r]} is closed"
        if o not in self._inside[self._slot[r]]:
            return f"{self._name[o]} is not in {self._name[r]}"
        return None if o in self._able["pickupable"] else f"{self._name[o]} cannot be picked up"

    def _held_obstacle(self, verb: str, o: str, r: str) -> str | None:
        if self._held != o:
            return f"not carrying {self._name[o]}"
        if not self._is_here(r):
            return f"not at {self._name[r]}"
        if verb == "move":
            if not self._is_accessible(r):
                return f"{self._name[r]} is closed"
            fits = (
                self._world.receptacle_type.get(r, ""),
                self._world.object_type.get(o, ""),
            ) in self._world.can_contain
            return None if fits else f"{self._name[o]} does not belong in {self._name[r]}"
        possible = o in self._able[_ABLE[verb]] and self._world.receptacle_type.get(r) == _APPLIANCES[verb]
        return None if possible else f"cannot {verb} {self._name[o]} with {self._name[r]}"

    def _slice_obstacle(self, o: str, knife: str) -> str | None:
        if self._held != knife or self._world.object_type.get(knife) not in KNIVES:
            return f"not carrying {self._name[knife]}, or it is no knife"
        possible = o in self._able["sliceable"] and (o, self._location) in self._at
        return None if possible else f"{self._name[o]} is not here, or cannot be sliced"

    def _commands_at(self, r: str) -> Iterable[str]:
        name, content = self._name[r], self._inside[self._slot[r]]
        yield f"examine {name}"
        if r in self._able["openable"]:
            yield f"close {name}" if r in self._opened else f"open {name}"
        for o in content:
            if o in self._able["toggleable"]:
                yield f"use {self._name[o]}"
        if not self._is_accessible(r):
            return
        if self._held is None:
            yield from (f"take {self._name[o]} from {name}" for o in content if o in self._able["pickupable"])

    def _commands_with(self, held: str) -> Iterable[str]:
        name = self._name[held]
        yield f"examine {name}"
        for r in self._here.get(self._location, ()):
            for verb, word in (("move", "to"), ("clean", "with"), ("heat", "with"), ("cool", "with")):
                if self._held_obstacle(verb, held, r) is None:
                    yield f"{verb} {name} {word} {self._name[r]}"
        if self._world.object_type.get(held) in KNIVES:
            things = (o for o, location in self._at if location == self._location and o in self._able["sliceable"])
            yield from (f"slice {self._name[o]} with {name}" for o in things)

    # ------------------------------------------------------------------ commands: what they do and say

    def _go(self, r: str, _: str) -> str:
        self._location = self._place[r]
        return f"You arrive at {self._name[r]}. {self._content(r)}"

    def _open(self, r: str, _: str) -> str:
        self._opened |= {r}
        return f"You open the {self._name[r]}. {self._content(r)}"

    def _close(self, r: str, _: str) -> str:
        self._opened -= {r}
        return f"You close the {self._name[r]}."

    def _take(self, o: str, r: str) -> str:
        self._count(o, -1)
        slot = self._slot[r]
        self._inside[slot] = tuple(other for other in self._inside[slot] if other != o)
        self._held = o
        self._at -= {(o, self._location)}
        self._removed |= {(o, r)}
        self._count(o, 1)
        return f"You pick up the {self._name[o]} from the {self._name[r]}."

    def _move(self, o: str, r: str) -> str:
        self._count(o, -1)
        slot = self._slot[r]
        self._inside[slot] = tuple(sorted({*self._inside[slot], o}))
        self._held = None
        self._at |= {(o, self._location)}
        self._removed -= {(o, r)}
        self._count(o, 1)
        return f"You move the {self._name[o]} to the {self._name[r]}."

    def _use(self, o: str, _: str) -> str:
        self._set_state(o, "istoggled")
        return f"You turn on the {self._name[o]}."

    def _slice(self, o: str, knife: str) -> str:
        self._set_state(o, "issliced")
        return f"You sliced the {self._name[o]} with the {self._name[knife]}."

    def _clean(self, o: str, r: str) -> str:
        self._set_state(o, "isclean")
        return f"You clean the {self._name[o]} using the {self._name[r]}."

    def _heat(self, o: str, r: str) -> str:
        self._set_state(o, "ishot", lost="iscool")
        return f"You heat the {self._name[o]} using the {self._name[r]}."

    def _cool(self, o: str, r: str) -> str:
        self._set_state(o, "iscool", lost="ishot")
        return f"You cool the {self._name[o]} using the {self._name[r]}."

    def _examine(self, thing: str, _: str) -> str:
        if thing in self._slot:
            return self._content(thing)
        name = self._name[thing]
        if thing in self._world.holders:
            inner = [o for outer, o in self._world.nested if outer == thing]
            return f"This is a normal {name}. In it, you see {self._world.listing(inner)}."
        clean, hot, cool, toggled, is_sliced = (
            (state, thing) in self._states for state in ("isclean", "ishot", "iscool", "istoggled", "issliced")
        )
        sliced = is_sliced and (clean or hot or cool)
        if not (clean or hot or cool):
            if toggled and thing in self._able["toggleable"]:
                return f"This {name} is on."
            return f"This is a sliced {name}." if is_sliced else f"There's nothing special about {name}."
        warmth = "hot" if hot else "cool" if cool else ""
        words = f"{warmth} and clean" if warmth and clean else warmth or "clean"
        if words == "cool" and not sliced:
            words = "cold"
        return f"This is a {words} {'sliced ' if sliced else ''}{name}."

    # ------------------------------------------------------------------ text

    def _content(self, r: str) -> str:
        name = self._name[r]
        if r not in self._able["openable"]:
            return f"On the {name}, you see {self._world.listing(self._inside[self._slot[r]])}."
        if r not in self._opened:
            return f"The {name} is closed."
        return f"The {name} is open. In it, you see {self._world.listing(self._inside[self._slot[r]])}."

    def _look(self) -> str:
        here = self._here.get(self._location, ())
        if not here:
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        facing = ", and ".join(filter(None, (", ".join(self._name[r] for r in here[:-1]), self._name[here[-1]])))
        beside = [
            o for o, r in sorted(self._removed) if (o, self._location) in self._at and self._place[r] == self._location
        ]  # once for each receptacle here that it was taken from, as TextWorld lists it
        return f"You are facing the {facing}. Next to it, you see {self._world.listing(beside)}."

    def _inventory(self) -> str:
        return (
            "You are not carrying anything." if self._held is None else f"You are carrying: a {self._name[self._held]}."
        )
