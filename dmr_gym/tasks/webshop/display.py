"""Shows a `Play`: as a view of its page, and as an observation in one of the modes.

The mode "html" has the texts of the original's pages, in the same order, and what programs look for in them: the ids
``instruction-text``, ``search_input`` and ``product-image``, the classes ``btn`` and ``product-link``, and one radio
button an option value. It has none of the original's style sheets, scripts and forms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from html import escape

from dmr_gym.tasks.webshop import pages
from dmr_gym.tasks.webshop.fixes import CLICKED_OPTIONS, REWARD_ON_LAST_PAGE
from dmr_gym.tasks.webshop.pages import BUTTON, DONE, IMAGE, LINK, OPTION, START, Node, View, page_nodes
from dmr_gym.tasks.webshop.play import Play, make_url
from dmr_gym.tasks.webshop.storefront import Storefront

OBSERVATION_MODES = ("text", "text_rich", "html", "url")


class Display:
    """How one engine shows pages.

    Args:
        front: makes pieces of pages.
        mode: one of `OBSERVATION_MODES`.
        show_attributes: whether item pages have the button "Attributes".
        fixes: names from `dmr_gym.tasks.webshop.fixes.FIXES`.
    """

    def __init__(self, front: Storefront, mode: str, show_attributes: bool, fixes: frozenset[str]) -> None:
        self._front = front
        self._mode = mode
        self._show_attributes = show_attributes
        self._is_reward_shown = REWARD_ON_LAST_PAGE not in fixes
        self._are_choices_marked = CLICKED_OPTIONS in fixes

    def view(self, play: Play, goal_text: str) -> pages.View:
        """What the page is made of."""
        pieces = self._front.pieces
        return pages.View(
            play.kind,
            goal_text,
            play.number,
            play.total,
            tuple(map(pieces, play.results)) if play.kind == pages.RESULTS else (),
            None if play.product is None else pieces(play.product),
            play.options,
            play.score.value if play.score is not None and self._is_reward_shown else None,
            self._show_attributes,
        )

    def observation(self, view: pages.View, play: Play) -> str:
        """The page in the display's mode."""
        if self._mode == "text":
            return pages.page_text(view)
        if self._mode == "text_rich":
            return pages.page_text_rich(view, self._clicked_options(view, play), play.visited)
        return page_html(view) if self._mode == "html" else self.url(play)

    def url(self, play: Play) -> str:
        """The page's address."""
        return make_url(play, self.asin(play))

    def asin(self, play: Play) -> str:
        """The chosen product's asin; "" when there is none."""
        return "" if play.product is None else self._front.pieces(play.product).product.asin

    def _clicked_options(self, view: pages.View, play: Play) -> Collection[tuple[str, str]]:
        """Options, (name, value), that "text_rich" marks as clicked."""
        if view.kind != pages.ITEM or self._are_choices_marked:
            return play.options
        assert view.product is not None
        url, options = self.url(play), view.product.product.options.items()
        return {(name, value) for name, values in options for value in values if f'"{value}"' in url}


def page_html(view: View) -> str:
    """A page as an HTML document."""
    lines = ["<!DOCTYPE html>", "<html>", "<head><title>WebShop</title></head>", "<body>"]
    nodes = page_nodes(view)
    if view.kind == START:
        lines.append(_heading(next(nodes)))
    if view.kind != DONE:
        lines.append(_instruction(next(nodes), next(nodes)))
    if view.kind == START:
        lines.append('<input id="search_input" type="text" name="search_query">')
    lines += _elements(nodes)
    return "\n".join([*lines, "</body>", "</html>", ""])


def _elements(nodes: Iterator[Node]) -> Iterator[str]:
    for place, node in enumerate(nodes):
        if node.kind == BUTTON:
            yield f'<button class="btn" type="submit">{escape(node.text)}</button>'
        elif node.kind == LINK:
            yield f'<a class="product-link" href="#{escape(node.text)}">{escape(node.text)}</a>'
        elif node.kind == IMAGE:
            name = f' id="{node.name}"' if node.name else ""
            yield f'<img{name} src="{escape(node.text)}">'
        elif node.kind == OPTION:
            name, value = escape(node.name), escape(node.text)
            yield f'<input type="radio" id="option-{place}" name="{name}" value="{value}">'
            yield f'<label for="option-{place}">{value}</label>'
        else:
            yield f"<p>{escape(node.text)}</p>"


def _heading(title: Node) -> str:
    return f"<h2>{escape(title.text)}</h2>"


def _instruction(label: Node, goal: Node) -> str:
    return f'<div id="instruction-text"><h4>{escape(label.text)}<br>{escape(goal.text)}</h4></div>'
