"""LIBERO-PRO's objects that hf-libero does not define: LIBERO's own in other colours and sizes.

Each behaves as an object that hf-libero has (joints, how it lies, when it is open), under another
mesh of the asset packages.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

VARIANTS = {
    "bigger_akita_black_bowl": "akita_black_bowl",
    "bigger_alphabet_soup": "alphabet_soup",
    "bigger_milk": "alphabet_soup",
    "black_bowl": "akita_black_bowl",
    "blue_ketchup": "alphabet_soup",
    "brown_rack": "wine_rack",
    "green_bbq_sauce": "bbq_sauce",
    "green_butter": "butter",
    "green_chocolate_pudding": "chocolate_pudding",
    "green_ketchup": "ketchup",
    "red_akita_black_bowl": "akita_black_bowl",
    "red_alphabet_soup": "alphabet_soup",
    "red_basket": "basket",
    "red_cream_cheese": "cream_cheese",
    "red_orange_juice": "orange_juice",
    "red_ramekin": "glazed_rim_porcelain_ramekin",
    "red_salad_dressing": "salad_dressing",
    "red_yellow_book": "porcelain_mug",
    "white_bottle": "wine_bottle",
    "white_porcelain_mug": "porcelain_mug",
    "wine_rack_stand": "wine_rack",
    "yellow_bowl": "akita_black_bowl",
    "yellow_cabinet": "wooden_cabinet",
    "yellow_cookies": "cookies",
    "yellow_desk_caddy": "desk_caddy",
    "yellow_milk": "alphabet_soup",
    "yellow_moka_pot": "moka_pot",
    "yellow_plate": "plate",
    "yellow_stove": "flat_stove",
    "yellow_tomato_sauce": "tomato_sauce",
}
"""Object -> the one of hf-libero that behaves as LIBERO-PRO defines it to (not always the one it
looks like: a bigger milk stands as a can does)."""


def define(objects: MutableMapping[str, Any]) -> None:
    """Adds them to LIBERO's table of classes (`OBJECTS_DICT`); what is there already stays."""
    for name, model in VARIANTS.items():
        if name not in objects:
            objects[name] = _variant(name, objects[model])


def _variant(name: str, model: type) -> type:
    """A class of its own, since LIBERO takes an object's category from its class's name."""

    def build(self: Any, name: str = name, obj_name: str = name, **options: Any) -> None:
        model.__init__(self, name, obj_name, **options)  # type: ignore[misc]

    title = "".join(part.capitalize() for part in name.split("_"))
    return type(title, (model,), {"__init__": build})
