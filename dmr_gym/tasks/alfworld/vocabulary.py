"""The words of ALFWorld's houses: rooms, receptacles, objects, what holds what, and what can be done to what.

`HOMES` is both ALFWorld's ``canContain`` relation and a prior: the number, 1 to 9, is how readily an object type starts
out in a receptacle of that type. `data/NOTICE` names the source and its licence.
"""

from __future__ import annotations

from typing import NamedTuple


class Room(NamedTuple):
    """What one kind of room may hold.

    Attributes:
        required: receptacle types that every such room has once.
        extras: further receptacle types, as (weight, most instances that can be added).
        objects: object types, as weights.
    """

    required: tuple[str, ...]
    extras: dict[str, tuple[int, int]]
    objects: dict[str, int]


def _weights(text: str) -> dict[str, int]:
    """Read "Apple:9 Bread:3"."""
    pairs = (word.split(":") for word in text.split())
    return {name: int(weight) for name, weight in pairs}


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENABLE = _set("Cabinet Drawer Fridge Microwave Safe")
TABLE_TOP_CAPACITY = 8
CAPACITY = _weights(
    "Cabinet:4 CoffeeMachine:1 Drawer:3 GarbageCan:3 HandTowelHolder:1 LaundryHamper:2 Microwave:2 Safe:3 Shelf:4 "
    "SinkBasin:4 StoveBurner:1 Toaster:0 Toilet:3 ToiletPaperHanger:1 TowelHolder:1 BathtubBasin:3"
)
"""Most objects that a receptacle starts with; those not named start with `TABLE_TOP_CAPACITY` at most."""

RECEPTACLE_OBJECTS = _set("Bowl Box Cup Mug Pan Plate Pot")
CLEANABLE = _set(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato SoapBar "
    "Spatula Spoon Tomato"
)
HEATABLE = _set("Apple Bread Cup Egg Mug Plate Potato Tomato")
COOLABLE = _set("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle")
SLICEABLE = _set("Apple Bread Egg Lettuce Potato Tomato")
TOGGLEABLE = _set("DeskLamp")

_HOMES = {
    "AlarmClock": "CoffeeTable:1 CounterTop:1 Desk:9 DiningTable:2 Dresser:5 Shelf:6 SideTable:5",
    "Apple": "CoffeeTable:1 CounterTop:9 DiningTable:6 Fridge:9 GarbageCan:5 Microwave:5 SideTable:1 SinkBasin:3",
    "BaseballBat": "Bed:1 CoffeeTable:1 CounterTop:1 DiningTable:1 SideTable:1",
    "BasketBall": "ArmChair:1 Bed:1 CoffeeTable:1 CounterTop:1 Desk:1 DiningTable:1 Dresser:1 Ottoman:1 SideTable:1 "
    "Sofa:1",
    "Book": "ArmChair:1 Bed:9 Cabinet:1 CoffeeTable:1 CounterTop:3 Desk:3 DiningTable:1 Drawer:2 Dresser:2 Ottoman:1 "
    "Shelf:1 SideTable:1 Sofa:1",
    "Bowl": "Cabinet:9 CoffeeTable:1 CounterTop:5 Desk:2 DiningTable:4 Dresser:1 Fridge:5 Microwave:1 Shelf:2 "
    "SideTable:1 SinkBasin:1",
    "Box": "ArmChair:1 Cabinet:2 CoffeeTable:8 CounterTop:1 Desk:3 DiningTable:9 Dresser:1 Ottoman:1 Shelf:3 "
    "SideTable:3 Sofa:9",
    "Bread": "CoffeeTable:1 CounterTop:9 DiningTable:5 Fridge:2 GarbageCan:1 Microwave:1 SideTable:1",
    "ButterKnife": "CoffeeTable:1 CounterTop:9 DiningTable:4 Drawer:1 SideTable:1 SinkBasin:1",
    "CD": "Cabinet:1 CoffeeTable:1 CounterTop:1 Desk:6 DiningTable:2 Drawer:9 Dresser:4 GarbageCan:3 Safe:1 Shelf:2 "
    "SideTable:4",
    "Candle": "Cabinet:4 Cart:1 CoffeeTable:1 CounterTop:9 Desk:1 DiningTable:1 Drawer:4 Dresser:1 Shelf:2 "
    "SideTable:2 Toilet:9",
    "CellPhone": "ArmChair:1 Bed:9 CoffeeTable:1 CounterTop:3 Desk:5 DiningTable:3 Drawer:9 Dresser:4 Ottoman:1 "
    "Safe:1 Shelf:2 SideTable:4 Sofa:1",
    "Cloth": "ArmChair:1 BathtubBasin:9 Cabinet:6 Cart:1 CoffeeTable:1 CounterTop:5 Desk:1 DiningTable:1 Drawer:5 "
    "Dresser:1 GarbageCan:1 LaundryHamper:1 Ottoman:1 Shelf:1 SideTable:1 SinkBasin:2 Sofa:1 Toilet:1",
    "CreditCard": "ArmChair:2 CoffeeTable:2 CounterTop:2 Desk:4 DiningTable:2 Drawer:9 Dresser:3 Ottoman:1 Safe:1 "
    "Shelf:5 SideTable:5 Sofa:3",
    "Cup": "Cabinet:9 CoffeeTable:1 CounterTop:8 Desk:1 DiningTable:6 Dresser:1 Fridge:8 Microwave:3 Shelf:1 "
    "SideTable:1 SinkBasin:4",
    "DishSponge": "BathtubBasin:1 Cabinet:8 Cart:1 CoffeeTable:1 CounterTop:9 DiningTable:4 Drawer:8 GarbageCan:2 "
    "Shelf:1 SideTable:1 SinkBasin:3 Toilet:1",
    "Egg": "CoffeeTable:1 CounterTop:9 DiningTable:4 Fridge:9 GarbageCan:4 Microwave:4 SideTable:1 SinkBasin:5",
    "Fork": "CoffeeTable:1 CounterTop:9 DiningTable:5 Drawer:5 SideTable:1 SinkBasin:2",
    "Glassbottle": "Cabinet:9 CoffeeTable:1 CounterTop:8 Desk:1 DiningTable:4 Dresser:1 Fridge:3 Microwave:1 Shelf:1 "
    "SideTable:1 SinkBasin:3",
    "HandTowel": "BathtubBasin:1 Cabinet:1 Cart:1 CoffeeTable:1 CounterTop:1 DiningTable:1 Drawer:1 GarbageCan:1 "
    "HandTowelHolder:9 Shelf:1 SideTable:1 SinkBasin:1 Toilet:1",
    "Kettle": "Cabinet:5 CoffeeTable:1 CounterTop:6 DiningTable:1 Shelf:1 SideTable:1 SinkBasin:1 StoveBurner:9",
    "KeyChain": "ArmChair:2 CoffeeTable:3 CounterTop:1 Desk:5 DiningTable:2 Drawer:9 Dresser:4 Ottoman:1 Safe:1 "
    "Shelf:5 SideTable:6 Sofa:2",
    "Knife": "CoffeeTable:1 CounterTop:9 DiningTable:5 Drawer:4 SideTable:1 SinkBasin:1",
    "Ladle": "Cabinet:5 CoffeeTable:1 CounterTop:9 DiningTable:3 Drawer:4 SideTable:1 SinkBasin:1",
    "Laptop": "ArmChair:1 Bed:9 CoffeeTable:2 CounterTop:1 Desk:2 DiningTable:2 Dresser:1 Ottoman:1 SideTable:1 Sofa:2",
    "Lettuce": "CoffeeTable:1 CounterTop:9 DiningTable:6 Fridge:5 GarbageCan:1 SideTable:1 SinkBasin:1",
    "Mug": "Cabinet:5 Cart:1 CoffeeMachine:6 CoffeeTable:1 CounterTop:9 Desk:2 DiningTable:4 Dresser:1 Fridge:4 "
    "Microwave:2 Shelf:1 SideTable:1 SinkBasin:2",
    "Newspaper": "ArmChair:3 Bed:1 Cabinet:1 CoffeeTable:8 CounterTop:1 Desk:1 DiningTable:8 Drawer:1 Dresser:4 "
    "GarbageCan:1 Ottoman:1 Shelf:5 SideTable:6 Sofa:9 Toilet:1",
    "Pan": "Cabinet:1 CoffeeTable:1 CounterTop:6 DiningTable:1 Fridge:1 SideTable:1 SinkBasin:1 StoveBurner:9",
    "Pen": "CoffeeTable:1 CounterTop:2 Desk:9 DiningTable:4 Drawer:7 Dresser:6 GarbageCan:1 Shelf:5 SideTable:5",
    "Pencil": "CoffeeTable:1 CounterTop:2 Desk:8 DiningTable:3 Drawer:9 Dresser:4 GarbageCan:3 Shelf:6 SideTable:8",
    "PepperShaker": "Cabinet:9 CoffeeTable:1 CounterTop:8 DiningTable:4 Drawer:4 Shelf:1 SideTable:1",
    "Pillow": "ArmChair:1 Bed:9 Ottoman:1 Sofa:3",
    "Plate": "Cabinet:9 CoffeeTable:1 CounterTop:7 Desk:1 DiningTable:5 Dresser:1 Fridge:2 Microwave:1 Shelf:1 "
    "SideTable:1 SinkBasin:1",
    "Plunger": "Cabinet:1 Cart:1",
    "Pot": "Cabinet:1 CoffeeTable:1 CounterTop:2 DiningTable:1 Fridge:1 Shelf:1 SideTable:1 SinkBasin:1 StoveBurner:9",
    "Potato": "CoffeeTable:1 CounterTop:9 DiningTable:5 Fridge:8 GarbageCan:2 Microwave:3 SideTable:1 SinkBasin:3",
    "RemoteControl": "ArmChair:3 CoffeeTable:9 CounterTop:1 Desk:2 DiningTable:4 Drawer:4 Dresser:3 Ottoman:1 Shelf:1 "
    "SideTable:6 Sofa:7",
    "SaltShaker": "Cabinet:9 CoffeeTable:1 CounterTop:9 DiningTable:5 Drawer:4 Shelf:1 SideTable:1",
    "SoapBar": "BathtubBasin:5 Cabinet:6 Cart:1 CoffeeTable:1 CounterTop:9 DiningTable:1 Drawer:5 GarbageCan:3 "
    "Shelf:2 SideTable:1 SinkBasin:7 Toilet:7",
    "SoapBottle": "Cabinet:8 Cart:1 CoffeeTable:1 CounterTop:9 Desk:1 DiningTable:4 Drawer:1 GarbageCan:3 Shelf:1 "
    "SideTable:1 Toilet:2",
    "Spatula": "CoffeeTable:1 CounterTop:9 DiningTable:5 Drawer:4 SideTable:1 SinkBasin:2",
    "Spoon": "CoffeeTable:1 CounterTop:9 DiningTable:5 Drawer:7 SideTable:1 SinkBasin:3",
    "SprayBottle": "Cabinet:5 Cart:1 CoffeeTable:1 CounterTop:9 Desk:1 DiningTable:1 Drawer:1 Dresser:1 GarbageCan:3 "
    "Shelf:2 SideTable:1 Toilet:6",
    "Statue": "Cart:1 CoffeeTable:5 CounterTop:4 Desk:1 DiningTable:4 Dresser:2 Safe:1 Shelf:9 SideTable:4",
    "TennisRacket": "Bed:1 CoffeeTable:1 CounterTop:1 Desk:1 DiningTable:1 Dresser:1 SideTable:1",
    "TissueBox": "Cabinet:1 Cart:1 CoffeeTable:8 CounterTop:7 Desk:4 DiningTable:6 Drawer:7 Dresser:1 GarbageCan:1 "
    "Shelf:9 SideTable:6 TVStand:2 Toilet:1",
    "ToiletPaper": "Cabinet:4 Cart:1 CoffeeTable:1 CounterTop:9 Desk:1 DiningTable:1 Drawer:4 Dresser:1 GarbageCan:4 "
    "Shelf:2 SideTable:1 Toilet:9 ToiletPaperHanger:4",
    "Tomato": "CoffeeTable:1 CounterTop:8 DiningTable:5 Fridge:9 GarbageCan:2 Microwave:1 SideTable:1 SinkBasin:2",
    "Towel": "TowelHolder:9",
    "Vase": "Cabinet:4 Cart:1 CoffeeTable:2 CounterTop:4 Desk:1 DiningTable:2 Dresser:2 Safe:1 Shelf:9 SideTable:2",
    "Watch": "CoffeeTable:8 CounterTop:1 Desk:1 DiningTable:5 Drawer:9 Dresser:4 Safe:1 Shelf:3 SideTable:6",
    "WateringCan": "Cabinet:1 CoffeeTable:9 CounterTop:1 Desk:1 DiningTable:1 Drawer:1 Dresser:1 Shelf:6 SideTable:2",
    "WineBottle": "Cabinet:6 CoffeeTable:1 CounterTop:9 Desk:1 DiningTable:6 Dresser:1 Fridge:1 GarbageCan:2 Shelf:1 "
    "SideTable:1",
}
HOMES = {name: _weights(homes) for name, homes in _HOMES.items()}
FIXTURES = {
    "DeskLamp": _weights("SideTable:5 Dresser:3 Desk:3 Shelf:1"),
    "HousePlant": _weights("CounterTop:4 SideTable:3 DiningTable:2 CoffeeTable:1 Shelf:1 Desk:1 Dresser:1"),
    "Television": _weights("TVStand:3 Dresser:2 SideTable:1"),
}
"""Objects that stand in a receptacle and cannot be taken."""

ROOMS = {
    "kitchen": Room(
        required=("CounterTop", "Fridge", "GarbageCan", "Microwave", "SinkBasin", "StoveBurner"),
        extras={
            "Cabinet": (9, 6), "CoffeeMachine": (4, 1), "CounterTop": (4, 2), "DiningTable": (2, 1), "Drawer": (7, 4),
            "Shelf": (2, 3), "SideTable": (1, 1), "StoveBurner": (4, 3), "Toaster": (3, 1),
        },
        objects=_weights(
            "Apple:9 Bowl:9 Bread:8 ButterKnife:9 Cup:9 DishSponge:9 Egg:9 Fork:9 Glassbottle:3 Kettle:5 Knife:9 "
            "Ladle:4 Lettuce:9 Mug:9 Pan:8 PepperShaker:9 Plate:9 Pot:8 Potato:9 SaltShaker:9 SoapBottle:9 Spatula:9 "
            "Spoon:9 Statue:1 Tomato:9 Vase:1 WineBottle:4 Book:1 CreditCard:1 CellPhone:1 SprayBottle:1 HousePlant:3"
        ),
    ),
    "living": Room(
        required=("ArmChair", "CoffeeTable", "GarbageCan", "SideTable", "Sofa"),
        extras={
            "ArmChair": (4, 1), "Cabinet": (2, 4), "CoffeeTable": (1, 1), "Desk": (1, 1), "DiningTable": (3, 1),
            "Drawer": (7, 6), "Dresser": (2, 1), "Ottoman": (1, 1), "Safe": (1, 1), "Shelf": (4, 5),
            "SideTable": (4, 2), "Sofa": (2, 1), "TVStand": (2, 1),
        },
        objects=_weights(
            "Book:4 Bowl:2 Box:7 Candle:2 CellPhone:3 CreditCard:9 KeyChain:8 Laptop:9 Newspaper:6 Pen:3 Pencil:3 "
            "Pillow:7 Plate:3 RemoteControl:9 Statue:9 TissueBox:5 Vase:7 Watch:6 WateringCan:2 DeskLamp:4 "
            "HousePlant:5 Television:6"
        ),
    ),
    "bedroom": Room(
        required=("Bed", "Desk", "Drawer", "GarbageCan", "SideTable"),
        extras={
            "ArmChair": (2, 1), "Bed": (1, 1), "Cabinet": (1, 3), "Desk": (1, 1), "DiningTable": (1, 1),
            "Drawer": (8, 6), "Dresser": (3, 1), "LaundryHamper": (2, 1), "Safe": (1, 1), "Shelf": (5, 5),
            "SideTable": (2, 1),
        },
        objects=_weights(
            "AlarmClock:9 BaseballBat:1 BasketBall:1 Book:9 Bowl:4 Box:1 CD:9 CellPhone:9 Cloth:2 CreditCard:9 "
            "KeyChain:9 Laptop:9 Mug:4 Pen:9 Pencil:9 Pillow:9 RemoteControl:2 Statue:2 TennisRacket:1 TissueBox:2 "
            "Vase:1 Watch:1 DeskLamp:6 HousePlant:2 Television:1"
        ),
    ),
    "bathroom": Room(
        required=("CounterTop", "GarbageCan", "SinkBasin", "Toilet", "ToiletPaperHanger"),
        extras={
            "BathtubBasin": (4, 1), "Cabinet": (7, 4), "Cart": (1, 1), "CounterTop": (1, 1), "Drawer": (5, 4),
            "Dresser": (1, 1), "HandTowelHolder": (6, 2), "Shelf": (3, 3), "SideTable": (1, 1), "SinkBasin": (3, 1),
            "TowelHolder": (6, 2),
        },
        objects=_weights(
            "Candle:8 Cloth:9 DishSponge:3 HandTowel:8 Plunger:1 SoapBar:9 SoapBottle:8 SprayBottle:9 TissueBox:3 "
            "ToiletPaper:9 Towel:7 HousePlant:1"
        ),
    ),
}  # fmt: skip
ROOMS_OF_TASK = {
    "pick_and_place_simple": _weights("bathroom:3 bedroom:3 kitchen:3 living:3"),
    "look_at_obj_in_light": _weights("bedroom:4 living:2"),
    "pick_clean_then_place_in_recep": _weights("kitchen:7 bathroom:2"),
    "pick_heat_then_place_in_recep": _weights("kitchen:1"),
    "pick_cool_then_place_in_recep": _weights("kitchen:1"),
    "pick_two_obj_and_place": _weights("bathroom:3 bedroom:3 kitchen:3 living:3"),
}
"""In which kinds of room a task type is set, as weights."""

_PICK = _set(
    "ArmChair Bed Cabinet Cart CoffeeTable CounterTop Desk DiningTable Drawer Dresser Fridge GarbageCan Microwave "
    "Ottoman Safe Shelf SideTable Sofa Toilet"
)
DESTINATIONS_OF_TASK = {
    "pick_and_place_simple": _PICK | {"StoveBurner", "ToiletPaperHanger"},
    "look_at_obj_in_light": frozenset[str](),
    "pick_clean_then_place_in_recep": _set(
        "Cabinet Cart CoffeeMachine CounterTop DiningTable Drawer Dresser Fridge GarbageCan Microwave Shelf SideTable "
        "StoveBurner Toilet"
    ),
    "pick_heat_then_place_in_recep": _set(
        "Cabinet CoffeeMachine CounterTop DiningTable Fridge GarbageCan Shelf SideTable"
    ),
    "pick_cool_then_place_in_recep": _set(
        "Cabinet CoffeeMachine CounterTop DiningTable GarbageCan Microwave Shelf SideTable StoveBurner"
    ),
    "pick_two_obj_and_place": _PICK,
}
"""Where a task type may ask to put its target."""
