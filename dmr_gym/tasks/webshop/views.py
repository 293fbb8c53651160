"""What prompts show of the engine's present page."""

from __future__ import annotations

from collections.abc import Collection

from dmr_gym.prompts.webshop import PageView, item_body, page_summary, results_body, text_body
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.pages import DONE, ITEM, PAGE_SIZE, RESULTS, SEPARATOR, START, ProductPieces

BUTTONS = ("back to search", "< prev", "next >", "description", "features", "reviews", "attributes", "buy now")
_HEAD = ("WebShop", "Instruction:")


def clickable_names(engine: WebShopEngine) -> list[str]:
    """What a click does something with, in page order; WebShop also offers a search button and some values in vain."""
    names = engine.available["clickables"]
    return [name for name in names if engine.inadmissible_reason(f"click[{name}]") is None]


def page_view(engine: WebShopEngine, names: Collection[str]) -> PageView:
    """The present page as the short prompt shows it; ``names`` are its `clickable_names`."""
    play, catalogue = engine.snapshot().play, engine.shop.catalogue
    first = PAGE_SIZE * (play.number - 1) + 1
    numbers = {product: str(number) for number, product in enumerate(play.results, first)}
    buttons = tuple(name for name in names if name in BUTTONS)
    product = None if play.product is None else catalogue[play.product]
    if play.kind == START:
        return PageView(page_summary(START), has_search_bar=True)
    if play.kind == RESULTS:
        shown = {number: catalogue[product] for product, number in numbers.items()}
        visited = {number for number, each in shown.items() if each.asin in play.visited}
        lines = results_body(((number, each.price_label, each.title) for number, each in shown.items()), visited)
        links = {number: each.asin.lower() for number, each in shown.items() if each.asin.lower() in names}
        summary = page_summary(RESULTS, keywords=play.query or "", number=play.number)
        return PageView(summary, lines, buttons, links=links)
    assert product is not None
    assert play.product is not None
    # An address that a query has forged can show a product that no result of this page led to.
    number = numbers.get(play.product, product.asin.lower())
    body: tuple[str, ...] = ()
    if play.kind == ITEM:
        chosen = dict(play.options)
        body = item_body(product.price_label, product.title, product.options.items(), names, chosen)
    elif play.kind != DONE:
        body = text_body(node.text for node in ProductPieces(product).nodes(play.kind, show_attributes=False))
    return PageView(page_summary(play.kind, number), body, buttons, links={number: product.asin.lower()})


def page_pieces(engine: WebShopEngine, mode: str) -> list[str]:
    """The texts of the present page in order, as WebShop's mode "text" or "text_rich" has them.

    The instruction is left out, which prompts show once, and of the last page what says nothing or tells the reward.
    """
    page, goal, text = engine.page, engine.instruction, engine.observation
    if page.kind == DONE:
        return ["Thank you for shopping with us!", "Purchased", page.asin or ""]
    if mode == "text":
        head = f"Instruction:{SEPARATOR}{goal.strip()}{SEPARATOR}"
        before, found, rest = text.partition(head)
        return (rest if found else before).split(SEPARATOR)
    # Here the chosen options are told before the instruction.
    before, found, rest = text.partition(f"{goal}\n")
    told = [line for line in before.splitlines() if not found or line.strip() not in _HEAD]
    return told + [line for line in rest.splitlines() if line.strip()]
