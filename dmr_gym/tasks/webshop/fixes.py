"""The original's quirks that hurt its users. The engine keeps them, and mends those that it is asked to mend."""

from __future__ import annotations

from collections.abc import Collection

from dmr_gym.errors import ConfigError

OPTION_COLORS = "option_colors"
GOAL_HISTORY = "goal_history"
REWARD_ON_LAST_PAGE = "reward_on_last_page"
OPTION_BRACKETS = "option_brackets"
CLICKED_OPTIONS = "clicked_options"
PAGE_KIND = "page_kind"

FIXES: dict[str, str] = {
    OPTION_COLORS: (
        "Options are compared after a reduction to colour words, so that a value such as 'standard' (which contains "
        "'tan') does not match itself and some goals cannot score 1.0. Mended: a wanted value that was chosen counts."
    ),
    GOAL_HISTORY: (
        "Every session's goal is kept for ever: memory grows, and a session seen before gets its old goal, also when "
        "a name and a number are written alike. Mended: nothing is kept; a number always means the goal of that "
        "number, and a name draws a goal each time."
    ),
    REWARD_ON_LAST_PAGE: (
        "The last page prints the reward, so that an agent or a judge that reads it sees the score. Mended: the page "
        "ends before it."
    ),
    OPTION_BRACKETS: (
        "An option value that contains '[' cannot be clicked, because the last '[' of an action begins the argument. "
        "Mended: the first one does."
    ),
    CLICKED_OPTIONS: (
        "In text_rich an option is marked as clicked when its value occurs in double quotes in the page's address. "
        "That hides chosen values with quotes or non-ASCII letters, and marks others that happen to be quoted there. "
        "Mended: exactly the chosen options are marked."
    ),
    PAGE_KIND: (
        "'< Prev' goes by words found in the page's address, which a search for 'item_page' or 'search_results' "
        "forges. Mended: it goes by the page."
    ),
}


def check_fixes(fixes: Collection[str]) -> frozenset[str]:
    """The fixes as a set. Raises ConfigError for a name that is not in `FIXES`."""
    if isinstance(fixes, str):
        raise ConfigError(f"fixes must be a collection of names, such as ({fixes!r},); got the text {fixes!r}")
    if not isinstance(fixes, Collection):
        raise ConfigError(f"fixes must be a collection of names; got {fixes!r:.60}")
    unknown = [name for name in fixes if not isinstance(name, str) or name not in FIXES]
    if unknown:
        raise ConfigError(f"fixes must be among {', '.join(FIXES)}; got {unknown[0]!r:.60}")
    return frozenset(fixes)
