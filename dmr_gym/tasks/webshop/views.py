"""What prompts show of the engine's present page."""

from __future__ import annotations

from collections.abc import Collection

from dmr_gym.prompts.webshop import PageView, item_body, page_summary, results_body, text_body
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.pages import DONE, ITEM, RESULTS, SEPARATOR, START, ProductPieces

BUTTONS = ("back to search", "< prev", "next >", "description", "features", "reviews", "attributes", "buy now")
_HEAD = ("WebShop", "Instruction:")


def clickable_names(engine: WebShopEngine) -> list[str]:
    """What a click does something with, in page order; WebShop also offers a search button and some values in vain."""
    names = engine.available["clickables"]
    return [name for name in names if engine.inadmissible_reason(f"click[{name}]") is None]


def page_view(engine: WebShopEngine, names: Collection[str]) -> PageView:
    """The present page as the short prompt shows it; ``names`` are its `clickable_names`."""
    play, catalogue = engine.snapshot().play, engine.shop.catalogue
    buttons = tuple(name for name in names if name in BUTTONS)
    product = None if play.product is None else catalogue[play.product]
    if play.kind == START:
        return PageView(page_summary(START), has_search_bar=True)
    if play.kind == RESULTS:
        shown = [catalogue[number] for number in play.results]
        lines = results_body(((each.asin, each.price_label, each.title) for each in shown), play.visited)
        return PageView(page_summary(RESULTS, keywords=play.query or "", number=play.number), lines, buttons)
    assert product is not None
    body: tuple[str, ...] = ()
    if play.kind == ITEM:
        chosen = dict(play.options)
        body = item_body(product.price_label, product.title, product.options.items(), names, chosen)
    elif play.kind != DONE:
        body = text_body(node.text for node in ProductPieces(product).nodes(play.kind, show_attributes=False))
    return PageView(page_summary(play.kind, product.asin), body, buttons)


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
