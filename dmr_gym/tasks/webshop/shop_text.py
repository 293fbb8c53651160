"""Sentences of the generated shops: titles, descriptions, bullet points, and what customers ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmr_gym.tasks.webshop.chance import Chance
from dmr_gym.tasks.webshop.shop_words import KINDS, ProductType

Phrases = Mapping[str, Sequence[str]]
"""Attributes under each of `KINDS`."""

_OPENINGS = (
    """
i need|i am looking for|i'm looking for|i want to buy|i would like|looking for|find me|show me|can you find me
please help me find|get me|help me find|i'm trying to find|i want|i am interested in buying|where can i find
i'd like to order|please find|my sister asked me for|i have to buy|search for|could you get me|i'm shopping for
""".strip()
    .replace("\n", "|")
    .split("|")
)
_CLOSINGS = ("", "", "", "", "", "", " please", ", thank you", " for my family", " as soon as possible")
_BULLETS = {
    "before": (
        "{a} {t} for every day",
        "always {a}",
        "{a} quality you can trust",
        "tested and {a}",
        "{a} and made well",
    ),
    "with": ("made with {a}", "comes with {a}", "features {a}", "with {a} for comfort", "you will enjoy the {a}"),
    "for": ("great for {a}", "a good choice for {a}", "designed for {a}", "ideal for {a}", "perfect for {a}"),
}
_PLAIN_BULLETS = (
    "satisfaction guaranteed or write to us",
    "ships in a plain box",
    "packed by hand in small batches",
    "a thoughtful gift for friends",
    "ask our team about anything",
    "checked twice before it leaves our house",
)
_DESCRIPTIONS = (
    "{brand} brings you {t} that you will reach for again.",
    "These {t} by {brand} were drawn and tested in our own workshop.",
    "Meet the new {t} of {brand}.",
    "{brand} has made {t} for many years.",
)
_TOLD = {"before": "They are {a}.", "with": "They come with {a}.", "for": "They were made for {a}."}
_COLORS = ("in {v}", "in {v}", "in {v} color", "in the color {v}", "{v} colored")
_SIZES = ("in size {v}", "size {v}", "in a size {v}", "{v} in size", "of size {v}")
_OTHERS = ("with {v} {n}", "{n} {v}", "in {v} {n}", "{v} {n}")
_BODY_CHARS = 380


@dataclass(frozen=True, slots=True)
class Title:
    """A product's name and the nouns in it, lower-cased, in order."""

    text: str
    nouns: tuple[str, ...]


def by_kind(kind: ProductType, attributes: Sequence[str]) -> dict[str, list[str]]:
    """Sort attributes by where they stand beside the noun."""
    return {place: [a for a in attributes if a in kind.attributes[place]] for place in KINDS}


def write_title(
    chance: Chance, brand: str, kind: ProductType, shown: Sequence[str], fillers: Sequence[str], detail: str
) -> Title:
    """Name a product: brand, fillers, attributes around the type, and a detail after a comma.

    Args:
        chance: draws the order.
        brand: one or two words.
        kind: what it is.
        shown: the attributes that the title tells.
        fillers: words without meaning.
        detail: "Set of 2"; "" for none.
    """
    phrases = by_kind(kind, shown)
    cut = chance.integer(0, len(fillers))
    noun = kind.query if kind.is_pair or chance.happens(0.5) else kind.singular
    before = chance.shuffled([*phrases["before"], *fillers[:cut]])
    lead = " ".join([brand, *before])
    name = noun + "".join(f" {place} {' '.join(phrases[place])}" for place in ("with", "for") if phrases[place])
    if phrases["with"] and chance.happens(0.3):
        name = f"{phrases['with'][0]} {noun}" + "".join(f" for {' '.join(phrases['for'])}" if phrases["for"] else "")
        name += "".join(f" with {phrase}" for phrase in phrases["with"][1:])
    tail = " ".join(fillers[cut:])
    text = f"{lead} {name}" + (f" {tail}" if tail else "") + (f", {detail}" if detail else "")
    things = [word for place in ("with", "for") for phrase in phrases[place] for word in phrase.split()]
    nouns = [word.lower() for word in brand.split()] + list(kind.nouns) + things
    return Title(" ".join(_capital(word) for word in text.split()), tuple(nouns))


def write_bullets(chance: Chance, kind: ProductType, attributes: Sequence[str]) -> list[str]:
    """Say every attribute once, in random order, with a plain sentence or two between."""
    phrases = by_kind(kind, attributes)
    lines = [chance.pick(_BULLETS[place]).format(a=a, t=kind.query) for place in KINDS for a in phrases[place]]
    room = _BODY_CHARS - sum(len(line) + 1 for line in lines)
    for line in chance.sample(_PLAIN_BULLETS, chance.integer(0, 2)):
        room -= len(line) + 1
        if room >= 0:
            lines.append(line)
    return chance.shuffled(lines)


def write_description(chance: Chance, brand: str, kind: ProductType, told: Sequence[str]) -> str:
    """A sentence about the product, and one that tells some attributes."""
    phrases = by_kind(kind, told)
    lines = [chance.pick(_DESCRIPTIONS).format(brand=brand.title(), t=kind.query)]
    lines += [_TOLD[place].format(a=a) for place in KINDS for a in phrases[place]]
    return " ".join(lines)


def write_query(chance: Chance, kind: ProductType, wanted: Sequence[str]) -> str:
    """The core of a request, attributes and type in one piece: "gluten free, non gmo snack bars with real fruit"."""
    phrases = by_kind(kind, wanted)
    single = not kind.is_pair and chance.happens(0.35)
    noun = kind.singular if single else kind.query
    before, rest = phrases["before"], _after(phrases)
    if before and chance.happens(0.2):
        verb = chance.pick(("that is", "which is") if single else ("that are", "which are"))
        return f"{noun}{rest} {verb} {' and '.join(before)}"
    if phrases["with"] and chance.happens(0.3):
        rest = _after({**phrases, "with": phrases["with"][1:]})
        before = [*before, phrases["with"][0]]
    joined = chance.pick((" ", ", ", " and ")).join(before)
    return f"{joined} {noun}{rest}".strip()


def write_request(chance: Chance, kind: ProductType, wanted: Sequence[str], options: Mapping[str, str]) -> str:
    """What a customer asks for, in natural words, without the price."""
    query = write_query(chance, kind, wanted)
    opening = chance.pick(_OPENINGS)
    if kind.is_pair and chance.happens(0.4):
        opening += " a pair of"
    elif kind.singular in query and kind.query not in query:
        opening += " an" if query[0] in "aeiou" and not query.startswith("usb") else " a"
    clauses = [_clause(chance, name, value) for name, value in chance.shuffled(list(options.items()))]
    closing = chance.pick(_CLOSINGS)
    if not clauses:
        return f"{opening} {query}{closing}"
    form = chance.weighted((6, 2, 1, 1))
    if form == 1:
        wishes = " and ".join(f"{name.removesuffix(' name')} {value}" for name, value in options.items())
        return f"{opening} {query}. {chance.pick(('i want', 'it should have', 'please choose', 'i need'))} {wishes}"
    if form == 2:
        return f"{', '.join(clauses)}: {opening} {query}{closing}"
    if form == 3:
        return f"{query} {chance.pick((' ', ', ', ' and ')).join(clauses).strip()}{closing}"
    return f"{opening} {query}{chance.pick((', ', ' '))}{chance.pick((', ', ' and ', ' ')).join(clauses)}{closing}"


def write_synthetic_instruction(kind: ProductType, wanted: Sequence[str]) -> str:
    """What WebShop's own script asks for: "Find me non slip desks with steel frame for living room"."""
    phrases = by_kind(kind, wanted)
    lead = f"{', '.join(phrases['before'])} " if phrases["before"] else ""
    return f"Find me {lead}{kind.query}{_after(phrases, ', ')}"


def _after(phrases: Phrases, joint: str = " and ") -> str:
    return "".join(f" {place} {joint.join(phrases[place])}" for place in ("with", "for") if phrases[place])


def _clause(chance: Chance, name: str, value: str) -> str:
    shapes = {"color": _COLORS, "size": _SIZES}.get(name, _OTHERS)
    return chance.pick(shapes).format(v=value, n=name.removesuffix(" name"))


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
