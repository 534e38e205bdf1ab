"""Categories of the Amazon releases, and how datasets are named after them.

Releases share names of categories, not products or users, so a name always says the release:
amazon14-baby, amazon18-arts, amazon23-baby-products.
"""

from __future__ import annotations

from collections.abc import Mapping

CATEGORIES: Mapping[int, tuple[str, ...]] = {
    2014: (
        "Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books",
        "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
        "Digital_Music", "Electronics", "Grocery_and_Gourmet_Food", "Health_and_Personal_Care",
        "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV", "Musical_Instruments",
        "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors",
        "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
    ),
    2018: (
        "AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive",
        "Books", "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry",
        "Digital_Music", "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food",
        "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store", "Luxury_Beauty",
        "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products",
        "Patio_Lawn_and_Garden", "Pet_Supplies", "Prime_Pantry", "Software",
        "Sports_and_Outdoors", "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
    ),
    2023: (
        "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive",
        "Baby_Products", "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl",
        "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music",
        "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products",
        "Health_and_Household", "Health_and_Personal_Care", "Home_and_Kitchen",
        "Industrial_and_Scientific", "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV",
        "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies",
        "Software", "Sports_and_Outdoors", "Subscription_Boxes", "Tools_and_Home_Improvement",
        "Toys_and_Games", "Unknown", "Video_Games",
    ),
}  # fmt: skip
"""The categories of each release, spelt as in the names of its files."""

_SHORT = {
    "Arts_Crafts_and_Sewing": "arts",
    "Beauty_and_Personal_Care": "beauty",
    "Clothing_Shoes_and_Jewelry": "clothing",
    "Office_Products": "office",
    "Sports_and_Outdoors": "sports",
    "Toys_and_Games": "toys",
}


def find_category(year: int, word: str) -> str | None:
    """The category of a release that is called `word` (lower case, hyphens), short or in full."""
    names = CATEGORIES[year]
    return next((name for name in names if word in (_SHORT.get(name), long_name(name))), None)


def short_name(category: str) -> str:
    """A category as names of datasets end with it: "sports", "video-games"."""
    return _SHORT.get(category, long_name(category))


def long_name(category: str) -> str:
    """A category as its release spells it, in lower case and with hyphens."""
    return category.lower().replace("_", "-")


def prefix(year: int) -> str:
    """What the names of all datasets of a release begin with: "amazon14"."""
    return f"amazon{year % 100}"


def with_category(word: str) -> list[str]:
    """Names of the datasets of every release that has a category called `word`."""
    found = {year: find_category(year, word) for year in CATEGORIES}
    return [f"{prefix(year)}-{short_name(name)}" for year, name in found.items() if name]
