"""The words of the simulated shop: what a product has, and two ways of saying it.

The catalogue and its shoppers rarely use the same word for one thing, so a match of words finds
little and a match of meanings finds much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rectrain.data.simulate.columns import Floats

__all__ = [
    "BRANDS",
    "CATEGORIES",
    "COLOURS",
    "COPIES",
    "MATERIALS",
    "PRICE_WORDS",
    "SIZES",
    "STYLES",
    "TYPES",
    "Phrase",
    "Type",
    "column",
]


@dataclass(frozen=True, slots=True)
class Phrase:
    """One meaning.

    Attributes:
        catalogue: words that product texts use for it.
        shopper: words that queries and ad contexts use for it.
        effect: a number the meaning carries; what it moves is said where the list is defined.
    """

    catalogue: tuple[str, ...]
    shopper: tuple[str, ...]
    effect: float = 0.0


@dataclass(frozen=True, slots=True)
class Type:
    """A kind of product: its category (position in `CATEGORIES`) and its words.

    `words.effect` is how easily stolen goods of this type are sold on: +1 easily, -1 hardly.
    It is balanced within every category, so that the category alone tells nothing of it.
    """

    category: int
    words: Phrase


def column(phrases: tuple[Phrase, ...]) -> Floats:
    """The effects of a list of phrases, float64 [len(phrases)]."""
    return np.array([phrase.effect for phrase in phrases])


def _phrases(text: str) -> tuple[Phrase, ...]:
    """Parses lines "effect | catalogue words, … | shopper words, …"."""
    phrases = []
    for line in text.strip().splitlines():
        effect, catalogue, shopper = (part.strip() for part in line.split("|"))
        words = tuple(word.strip() for word in catalogue.split(","))
        phrases.append(Phrase(words, tuple(w.strip() for w in shopper.split(",")), float(effect)))
    return tuple(phrases)


# Effect: log of the typical price.
CATEGORIES = _phrases("""
2.9 | Kitchen | cooking, kitchen
2.8 | Home | living room, home
3.6 | Electronics | gadgets, tech
3.2 | Jewellery | ornaments to wear, jewels
3.1 | Fashion | clothes, wardrobe
2.7 | Toys | children's play, toys
3.3 | Garden | backyard, garden
2.6 | Stationery | desk and paper, writing
""")

_TYPE_LINES = (
    """
+1 | espresso machine | coffee maker
+1 | knife set | chef blades
+1 | stand mixer | dough kneader, cake beater
-1 | mug | coffee cup, drinking cup
-1 | mixing bowl | salad dish, serving dish
-1 | teapot | tea brewer, pot for tea
""",
    """
+1 | table lamp | desk light, bedside light
+1 | wall clock | hanging timepiece
+1 | rug | carpet, floor covering
-1 | cushion | throw pillow, sofa pillow
-1 | candle holder | tealight stand
-1 | picture frame | photo holder
""",
    """
+1 | headphones | earphones, headset
+1 | smartwatch | fitness tracker
+1 | tablet | touchscreen computer
-1 | phone case | mobile cover
-1 | charging cable | usb lead, power cord
-1 | mouse mat | pointer pad
""",
    """
+1 | necklace | pendant chain
+1 | bracelet | bangle, wrist band
+1 | ring | finger band
-1 | hair clip | barrette
-1 | brooch | decorative pin
-1 | trinket box | little keepsake case
""",
    """
+1 | handbag | purse, shoulder bag
+1 | sunglasses | shades, eyewear
+1 | sneakers | trainers, running shoes
-1 | scarf | shawl, neck wrap
-1 | socks | hosiery, foot warmers
-1 | umbrella | rain cover, parasol
""",
    """
+1 | drone | quadcopter, flying robot
+1 | game console | video gaming system
+1 | model train | miniature railway
-1 | teddy bear | stuffed animal, plush
-1 | jigsaw puzzle | picture brain teaser
-1 | building blocks | stacking bricks
""",
    """
+1 | barbecue grill | bbq cooker
+1 | hedge trimmer | bush cutter
+1 | patio heater | outdoor warmer
-1 | plant pot | flower container
-1 | watering can | sprinkling jug
-1 | bird feeder | seed dispenser for birds
""",
    """
+1 | fountain pen | ink writer
+1 | desk chair | office seat
+1 | label printer | sticker machine
-1 | notebook | journal, diary
-1 | gift wrap | present paper
-1 | greeting card | birthday message
""",
)
TYPES = tuple(
    Type(category, words) for category, lines in enumerate(_TYPE_LINES) for words in _phrases(lines)
)

# Effect: how festive, which moves the risk of an order (gifts are sent elsewhere).
STYLES = _phrases("""
-1 | vintage, retro | old fashioned, nostalgic
-1 | modern, minimalist | contemporary, clean and simple
-1 | rustic, farmhouse | country cottage, countryside
+1 | floral, rose print | flowery, with blossoms
+1 | Christmas, festive | xmas, holiday season
-1 | nautical, anchor | seaside, maritime
+1 | romantic, heart | valentine, for lovers
-1 | industrial, workshop | factory look, raw
+1 | unicorn, fairy tale | magical, for little princesses
+1 | tropical, palm leaf | jungle, exotic island
""")

# Effect: log of the price against the typical one.
MATERIALS = _phrases("""
+0.0 | wooden, oak | timber, made of wood
-0.1 | ceramic, porcelain | china, pottery
+0.1 | glass, crystal | see-through, transparent
+0.0 | steel, metal | iron, metallic
+0.2 | leather, suede | hide, cowskin
-0.1 | cotton, linen | fabric, cloth
-0.3 | plastic, acrylic | synthetic, polymer
-0.3 | paper, cardboard | card, papery
+0.4 | silver, platinum | sterling, precious metal
+0.2 | marble, granite | stone, rock
""")

COLOURS = _phrases("""
0 | red, crimson | scarlet, ruby
0 | blue, navy | azure, sky coloured
0 | green, emerald | olive, grassy
0 | yellow, amber | lemon, sunny
0 | pink, magenta | blush, salmon
0 | black, jet | dark, ebony
0 | white, ivory | pale, snowy
0 | purple, violet | lilac, lavender
""")

# Effect: log of the price against the typical one; the words differ from those above.
BRANDS = _phrases("""
+0.6 | Regent | regent
+0.5 | Monarch | monarch
+0.4 | Summit | summit
+0.3 | Orchid | orchid
+0.2 | Falcon | falcon
+0.1 | Harbor | harbor
+0.0 | Willow | willow
+0.0 | Maple | maple
-0.1 | Acorn | acorn
-0.2 | Robin | robin
-0.3 | Meadow | meadow
-0.4 | Penny | penny
-0.5 | Basic | basic
-0.6 | Thrift | thrift
""")

# Effect: log of the price against the typical one. No word at all for the middle size.
SIZES = _phrases("""
-0.2 | small, mini | little, tiny
+0.0 | |
+0.2 | large, big | huge, oversized
""")

# What an advertisement says before the product. Effect: how well it works everywhere.
COPIES = _phrases("""
+0.1 | last chance, ends tonight, only a few left | -
+0.2 | bestseller, top rated, customers love it | -
-0.1 | sale, price drop, half price | -
-0.2 | handmade, made with care, small batch | -
""")

# Effect: what a shopper who says so wants of the price: -1 low, +1 high, 0 nothing said.
PRICE_WORDS = _phrases("""
-1 | - | cheap, budget, affordable, low cost
+0 | |
+1 | - | luxury, premium, high end, exclusive
""")
