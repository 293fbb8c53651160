"""Pages as HTML: the observation mode "html".

The page has the texts of the original's, in the same order, and what programs look for in it: the ids
``instruction-text``, ``search_input`` and ``product-image``, the classes ``btn`` and ``product-link``, and one radio
button an option value. It has none of the original's style sheets, scripts and forms.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from dmr_gym.tasks.webshop.pages import BUTTON, DONE, IMAGE, LINK, OPTION, START, Node, View, page_nodes


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
