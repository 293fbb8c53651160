"""What WebShop's pages show, as texts: the observation modes "text" and "text_rich".

A page is a sequence of nodes, the pieces of text that a browser would show, in order. "text" joins them; "text_rich"
writes one a line and marks what can be clicked. What a page says of a product is made once and kept with it
(`ProductPieces`), so that an observation in "text" mode is a join of a few ready strings.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.catalogue import Product

SEPARATOR = " [SEP] "
PAGE_SIZE = 10
START, RESULTS, ITEM, DONE = "start", "results", "item", "done"
SUB_PAGES = {"description": "Description", "features": "Features", "reviews": "Reviews", "attributes": "Attributes"}
TEXT, BUTTON, OPTION, LINK, IMAGE = "text", "button", "option", "link", "image"
_INSTRUCTION = "Instruction:"
_BACK, _PREVIOUS, _NEXT, _BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
_FIRST_RESULTS_BUTTONS = (_BACK.lower(), _NEXT.lower())
_LATER_RESULTS_BUTTONS = (_BACK.lower(), _PREVIOUS.lower(), _NEXT.lower())
_HTML_SPACES = " \t\n\r\f"
_JSON_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&'"})


class Node(NamedTuple):
    """A piece of a page.

    Attributes:
        kind: "text", "button", "option", "link" (to a product) or "image".
        text: what it says, spaces included; an image's address.
        name: an option's name, for an option.
    """

    kind: str
    text: str
    name: str = ""


class View(NamedTuple):
    """What a page is made of.

    Attributes:
        kind: "start", "results", "item", "description", "features", "reviews", "attributes" or "done".
        goal_text: the instruction.
        number: page number of the results.
        total: number of products found.
        results: the products on this page of the results.
        product: the product of an item page, its sub-pages, or the purchase.
        options: chosen options, (name, value) in the order in which their names were first chosen.
        reward: shown after the purchase; None leaves it out.
        show_attributes: whether item pages have the button "Attributes".
    """

    kind: str
    goal_text: str
    number: int = 0
    total: int = 0
    results: tuple[ProductPieces, ...] = ()
    product: ProductPieces | None = None
    options: tuple[tuple[str, str], ...] = ()
    reward: float | None = None
    show_attributes: bool = False


class ProductPieces:
    """What pages say of one product, made when it is first shown."""

    def __init__(self, product: Product) -> None:
        """Keep the product; nothing is made yet."""
        self.product = product
        self.link = product.asin.lower()
        self._clickables: dict[bool, dict[str, str | None]] = {}

    def clickables(self, show_attributes: bool) -> Mapping[str, str | None]:
        """What can be clicked on the item page, in page order: option values with their names, buttons with None.

        A value that occurs twice, or is also a button's text, has one entry: at the place of the first, with the name
        of the last.
        """
        found = self._clickables.get(show_attributes)
        if found is None:
            found = {node.text.lower(): None for node in self.nodes(ITEM, show_attributes) if node.kind == BUTTON}
            found = {_BACK.lower(): None, _PREVIOUS.lower(): None, **found}
            for name, values in self.product.options.items():
                found.update(dict.fromkeys(values, name))
            self._clickables[show_attributes] = found
        return found

    @cached_property
    def result_nodes(self) -> tuple[Node, ...]:
        """The product among the results."""
        product = self.product
        return (
            Node(IMAGE, product.image),
            Node(LINK, product.asin),
            Node(TEXT, product.title),
            Node(TEXT, product.price_label),
        )

    @cached_property
    def result_text(self) -> str:
        """The product among the results, in "text" mode."""
        return to_text(self.result_nodes) or ""

    @cached_property
    def _item_nodes(self) -> tuple[Node, ...]:
        product = self.product
        nodes = [Node(IMAGE, product.image, "product-image")]
        for name, values in product.options.items():
            nodes.append(Node(TEXT, name))
            nodes += [Node(OPTION, value, name) for value in values]
        nodes += [Node(TEXT, product.title), Node(TEXT, f"Price: {product.price_label}"), Node(TEXT, "Rating: N.A.")]
        nodes += [Node(BUTTON, SUB_PAGES[key]) for key in ("description", "features", "reviews")]
        return tuple(nodes)

    def nodes(self, kind: str, show_attributes: bool) -> tuple[Node, ...]:
        """What follows the buttons at the top of the item page or of one of its sub-pages."""
        product = self.product
        if kind == ITEM:
            attributes = (Node(BUTTON, SUB_PAGES["attributes"]),) if show_attributes else ()
            return (*self._item_nodes, *attributes, Node(BUTTON, _BUY))
        if kind == "description":
            return (Node(TEXT, product.description),)
        if kind == "features":
            return tuple(Node(TEXT, f" {bullet}") for bullet in product.bullets)
        if kind == "attributes":
            own = (Node(TEXT, f" {attribute}") for attribute in product.attributes)
            return (*own, *(Node(TEXT, text) for text in (product.category, product.query, product.product_category)))
        return ()

    @cached_property
    def _item_text(self) -> str:
        return to_text(self._item_nodes) or ""

    @cached_property
    def _description_text(self) -> str | None:
        return to_text(self.nodes("description", False))

    @cached_property
    def _features_text(self) -> str | None:
        return to_text(self.nodes("features", False))

    def text(self, kind: str, show_attributes: bool) -> str | None:
        """The same as `nodes` in "text" mode; None when nothing is shown."""
        if kind == ITEM:
            return self._item_text + (_ITEM_END_WITH_ATTRIBUTES if show_attributes else _ITEM_END)
        if kind == "description":
            return self._description_text
        if kind == "features":
            return self._features_text
        return to_text(self.nodes(kind, show_attributes))


_DONE_HEAD = (
    "Thank you for shopping with us!",
    "Your code: ",
    "None",
    " (Paste it in your MTurk interface.)",
    "Purchased",
    "asin",
)
_DONE_REST = (
    *("attrs", "None", "category", "None", "query", "None", "product category", "None"),
    *("Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"),
    *("Goal ", "None"),
)
_ITEM_END = f"{SEPARATOR}{_BUY}"
_ITEM_END_WITH_ATTRIBUTES = f"{SEPARATOR}{SUB_PAGES['attributes']}{_ITEM_END}"


# ---------------------------------------------------------------------- pages as nodes


def page_nodes(view: View) -> Iterator[Node]:
    """Every node of a page, in order."""
    if view.kind == DONE:
        yield from (Node(TEXT, text) for text in _done_texts(view))
        return
    if view.kind == START:
        yield from (Node(TEXT, "WebShop"), Node(TEXT, f"{_INSTRUCTION} "), Node(TEXT, view.goal_text))
        yield Node(BUTTON, "Search")
        return
    yield from (Node(TEXT, _INSTRUCTION), Node(TEXT, view.goal_text), Node(BUTTON, _BACK))
    if view.kind == RESULTS:
        yield from _results_nodes(view)
    else:
        assert view.product is not None
        yield Node(BUTTON, _PREVIOUS)
        yield from view.product.nodes(view.kind, view.show_attributes)


def _results_nodes(view: View) -> Iterator[Node]:
    yield Node(TEXT, _page_line(view))
    if view.number > 1:
        yield Node(BUTTON, _PREVIOUS)
    yield Node(BUTTON, _NEXT)
    for pieces in view.results:
        yield from pieces.result_nodes


def _page_line(view: View) -> str:
    return f"Page {view.number} (Total results: {view.total})"


def _done_texts(view: View) -> list[str]:
    """The purchase. The original fills in nothing of the goal but the reward, hence the "None" and the gaps."""
    assert view.product is not None
    options = json.dumps(dict(view.options), sort_keys=True).translate(_JSON_ESCAPES)
    texts = [*_DONE_HEAD, view.product.product.asin, "options", options, *_DONE_REST]
    if view.reward is not None:
        texts += ["Reward", "Your score (min 0.0, max 1.0)", repr(view.reward), "Reward Details ", "None"]
    return texts


def page_clickables(view: View) -> Mapping[str, str | None]:
    """What can be clicked on a page, lower-cased, in page order: option values with their names, the rest with None."""
    if view.kind == START:
        return {"search": None}
    if view.kind == DONE:
        return {}
    if view.kind == RESULTS:
        buttons = _LATER_RESULTS_BUTTONS if view.number > 1 else _FIRST_RESULTS_BUTTONS
        return dict.fromkeys((*buttons, *[pieces.link for pieces in view.results]))
    if view.kind == ITEM:
        assert view.product is not None
        return view.product.clickables(view.show_attributes)
    return {_BACK.lower(): None, _PREVIOUS.lower(): None}


# ---------------------------------------------------------------------- nodes as texts


def visible_text(node: Node) -> str | None:
    """What a browser shows of a node; None when that is nothing.

    Text of spaces alone is one space, or nothing when a line break is among them, as the original's HTML parser has it.
    """
    if node.kind == IMAGE or not node.text:
        return None
    if node.text.strip(_HTML_SPACES):
        return node.text
    return None if "\n" in node.text else " "


def to_text(nodes: Iterable[Node]) -> str | None:
    """Nodes in "text" mode: stripped, joined by " [SEP] "; None when none is visible."""
    texts = [
        text
        for kind, whole, _ in nodes
        # What is left after stripping is visible; the other cases are rare.
        if kind != IMAGE and ((text := whole.strip()) or visible_text(Node(kind, whole)) is not None)
    ]
    return SEPARATOR.join(texts) if texts else None


def page_text(view: View) -> str:
    """A page in "text" mode: equal to ``to_text(page_nodes(view))``, from ready parts."""
    if view.kind == DONE:
        return SEPARATOR.join(text.strip() for text in _done_texts(view))
    if view.kind == START:
        return to_text(page_nodes(view)) or ""
    goal = to_text((Node(TEXT, view.goal_text),))
    parts = [_INSTRUCTION, _BACK] if goal is None else [_INSTRUCTION, goal, _BACK]
    if view.kind == RESULTS:
        parts.append(_page_line(view))
        parts += (_PREVIOUS, _NEXT) if view.number > 1 else (_NEXT,)
        parts += [pieces.result_text for pieces in view.results]
    else:
        assert view.product is not None
        parts.append(_PREVIOUS)
        rest = view.product.text(view.kind, view.show_attributes)
        if rest is not None:
            parts.append(rest)
    return SEPARATOR.join(parts)


def page_text_rich(view: View, clicked: Collection[tuple[str, str]], visited: Collection[str]) -> str:
    """A page in "text_rich" mode: a node a line, with marks around what can be clicked.

    Args:
        view: the page.
        clicked: options, (name, value), marked as clicked; each is also announced at the top, the last one first.
        visited: asins of products that are marked as clicked.
    """
    lines, announced = [], []
    for node in page_nodes(view):
        text = visible_text(node)
        if text is None:
            continue
        if node.kind == BUTTON:
            text = f"[button] {text} [button_]"
        elif node.kind == OPTION:
            mark = "button"
            if (node.name, node.text) in clicked:
                mark = "clicked button"
                announced.append(f"You have clicked {text}.\n")
            text = f"  [{mark}] {text} [{mark}_]"
        elif node.kind == LINK:
            mark = "clicked button" if text in visited else "button"
            text = f"\n[{mark}] {text} [{mark}_]"
        lines.append(f"{text}\n")
    return "".join([*reversed(announced), *lines])
