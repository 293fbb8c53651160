"""What stays constant while an ALFWorld game is played: its things, their names, and what a command refers to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dmr_gym.errors import TaskError
from dmr_gym.tasks.alfworld.pddl import Facts, GameData, parse_game

KNIVES = frozenset({"knifetype", "butterknifetype"})
_JOINS = {"take": " from ", "move": " to ", "clean": " with ", "heat": " with ", "cool": " with ", "slice": " with "}
VERBS = frozenset({"go", "open", "close", "examine", "use", *_JOINS})
_ABILITIES = ("openable", "pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable")
_STATES = ("isclean", "ishot", "iscool", "istoggled", "issliced")
_MOST_REMEMBERED = 10_000

Command = tuple[str, str, str]
"""(verb, first id, second id or "")."""


class EngineState(NamedTuple):
    """Everything that changes during play; ids are those of the game file.

    ``removed`` holds (object, receptacle) pairs that a take has ended: TextWorld lists such objects as lying "next to"
    a receptacle when they come to lie at the same location again.
    """

    location: str
    held: str | None
    inside: tuple[tuple[str, ...], ...]
    opened: frozenset[str]
    states: frozenset[tuple[str, str]]
    at_location: frozenset[tuple[str, str]]
    removed: frozenset[tuple[str, str]]


class World:
    """Tables of one game, which play does not change.

    Attributes:
        names: id -> the name that players see, such as "cabinet 4".
        receptacles: ids of those that have a location, sorted.
        slot: receptacle -> its index in ``receptacles``.
        place: receptacle -> its location.
        here: location -> the receptacles there.
        object_type, receptacle_type: id -> type.
        able: predicate such as "openable" -> the things it holds of.
        can_contain: (receptacle type, object type) pairs.
        holders, nested: objects that hold others, and their (holder, inner object) pairs.
        targets: objects that the goal is about and that can be treated as it asks.
        needed: states that a target must be in, such as ("isclean",).
        lamps: objects whose light the goal asks for.
        start: the first state.
        intro: the text that opens the game.
    """

    def __init__(self, game: GameData) -> None:
        """Index a parsed game.

        Raises:
            TaskError: a thing of some fact has no name or no type.
        """
        self.game = game
        self.names = game.names
        self._ids = {name: identifier for identifier, name in game.names.items()}
        self._commands: dict[str, Command | None] = {}
        facts = game.facts
        self.place = dict(sorted(_pairs(facts, "receptacleatlocation")))
        self.receptacles = tuple(self.place)
        self.slot = {r: index for index, r in enumerate(self.receptacles)}
        self.here: dict[str, tuple[str, ...]] = {}
        for r, location in self.place.items():
            self.here[location] = (*self.here.get(location, ()), r)
        self.object_type = dict(_pairs(facts, "objecttype"))
        self.receptacle_type = dict(_pairs(facts, "receptacletype"))
        self.able = {ability: frozenset(_singles(facts, ability)) for ability in _ABILITIES}
        self.can_contain = frozenset(_pairs(facts, "cancontain"))
        self.holders = frozenset(_singles(facts, "isreceptacleobject"))
        self.nested = sorted((outer, inner) for inner, outer in _pairs(facts, "inreceptacleobject"))
        self._index_goal()
        self._check_names()
        self.go_commands = {r: f"go to {self.names[r]}" for r in self.receptacles}
        self.start = self._first_state(facts)
        self.intro = (
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. "
            f"Looking quickly around you, you see {self.listing(self.receptacles)}.\n\nYour task is to: {game.task}"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "game", task_type: str | None = None) -> World:
        """Index a game file's JSON object.

        Raises:
            TaskError: the game is broken, or ``task_type`` is given and is not what the goal says.
        """
        game = parse_game(data, source)
        if task_type is not None and task_type != game.goal.task_type:
            raise TaskError(f"{source}: task_type is {task_type!r}, but the goal is one of {game.goal.task_type!r}")
        return cls(game)

    def _index_goal(self) -> None:
        goal = self.game.goal
        abilities = [state for state in goal.states if state in self.able]
        self.needed = tuple(state for state in goal.states if state not in self.able)
        self.targets = frozenset(
            o
            for o, kind in self.object_type.items()
            if kind == goal.object_type and all(o in self.able[ability] for ability in abilities)
        )
        self.lamps = frozenset(
            o for o, kind in self.object_type.items() if kind == goal.lamp_type and o in self.able["toggleable"]
        )

    def _check_names(self) -> None:
        things = {*self.place, *self.object_type, *self.receptacle_type, *self.holders}
        things.update(*self.able.values(), *self.nested, (o for o, _ in _pairs(self.game.facts, "inreceptacle")))
        nameless = sorted(things - self.names.keys())
        if nameless:
            raise TaskError(f"{self.game.source}: expected ids of the form Type_bar_..., found {nameless[:3]}")

    def _first_state(self, facts: Facts) -> EngineState:
        inside: list[list[str]] = [[] for _ in self.receptacles]
        for o, r in sorted(set(_pairs(facts, "inreceptacle"))):
            if r in self.slot:
                inside[self.slot[r]].append(o)
        held = [o for _, o in _pairs(facts, "holds")]
        return EngineState(
            location=facts["atlocation"][0][1],
            held=held[0] if held else None,
            inside=tuple(map(tuple, inside)),
            opened=frozenset(_singles(facts, "opened")),
            states=frozenset((state, o) for state in _STATES for o in _singles(facts, state)),
            at_location=frozenset(_pairs(facts, "objectatlocation")),
            removed=frozenset(),
        )

    def listing(self, things: Iterable[str]) -> str:
        """Things as TextWorld lists them: "nothing", "a bed 1", or "a bed 1, and a desk 1"."""
        words = [f"a {self.names[thing]}" for thing in things]
        if len(words) < 2:
            return words[0] if words else "nothing"
        return f"{', '.join(words[:-1])}, and {words[-1]}"

    def parse(self, command: str) -> Command | None:
        """What a command refers to, or None when a word or a thing is unknown. Remembered for each command."""
        try:
            return self._commands[command]
        except KeyError:
            parsed = self._read(command)
        if len(self._commands) < _MOST_REMEMBERED:
            self._commands[command] = parsed
        return parsed

    def _read(self, command: str) -> Command | None:
        verb, _, rest = command.partition(" ")
        if verb == "go":
            if not rest.startswith("to "):
                return None
            rest = rest[3:]
        join = _JOINS.get(verb)
        first, found, second = rest.partition(join) if join else (rest, "", "")
        if (
            verb not in VERBS
            or first not in self._ids
            or bool(join) != bool(found)
            or (found and second not in self._ids)
        ):
            return None
        return verb, self._ids[first], self._ids[second] if found else ""


def _pairs(facts: Facts, predicate: str) -> list[tuple[str, str]]:
    return [(fact[0], fact[1]) for fact in facts.get(predicate, ())]


def _singles(facts: Facts, predicate: str) -> list[str]:
    return [fact[0] for fact in facts.get(predicate, ())]
