"""The command lines of all recipes: every option says what it is."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator

import pytest

from dmr_gym.command_line import RecipeParser
from tests.recipes import ROOT, load_recipe

RECIPES = sorted(
    path.stem for path in (ROOT / "agents").glob("*.py") if "recipe_parser(" in path.read_text(encoding="utf-8")
)


class Built(Exception):
    """Carries a parser out of the recipe that has built it."""


def parser_of(name: str) -> ArgumentParser:
    """A recipe's parser with all of its options."""

    def leave(parser: ArgumentParser, *_: object) -> None:
        raise Built(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeParser, "parse_known_args", leave)
        with pytest.raises(Built) as caught:
            load_recipe(name).main([])
    return caught.value.args[0]


def options_of(parser: ArgumentParser) -> Iterator[tuple[str, str]]:
    """Name and help of every option, those of commands included."""
    for action in parser._actions:
        yield "/".join(action.option_strings) or action.dest, action.help or ""
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from options_of(command)


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_says_more_than_its_default(name: str) -> None:
    """Without "(default ...)" there is still a text, and it does not only point somewhere else."""
    texts = {option: re.sub(r"\(default[^)]*\)?", "", text).strip() for option, text in options_of(parser_of(name))}
    assert len(texts) > 1
    assert [option for option, text in texts.items() if not text or text.startswith("see ")] == []
