"""Writes orders.jsonl: `python -m examples.orders.make_orders`. The same seed gives the same file."""

import itertools
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Final
from uuid import UUID

from examples.orders.model import CURRENCIES, Case, Line, Order, save_cases

SEED: Final = 20_240_229
COUNT: Final = 1_000

NAMES: Final = (
    "Ada Lovelace", "Zoë Brontë", "Søren Ærø", "Łukasz Żółć", "Ngô Thị Hằng", "İbrahim Çağlayan", "Þórður Ólafsson",
    "Иван Щукин", "Оксана Їжакевич", "Γιώργος Ξενάκης", "Անի Պետրոսյան", "გიორგი ბერიძე", "שרה כהן", "محمد الفارسي",
    "فاطمه رضایی", "अनिता शर्मा", "রবীন্দ্রনাথ ঠাকুর", "தமிழ்ச்செல்வி", "ಕಾವ್ಯ ಗೌಡ", "สมชาย ใจดี", "សុខ សុភា", "မောင်မောင်",
    "ཚེ་རིང་", "田中 太郎", "𠮷野家 花子", "김민수", "王小明", "ᓄᓇᕗᑦ ᐃᓄᒃ", "አበበ ቢቂላ", "ᏣᎳᎩ ᎠᏰᎵ", "Miles O'Brien",
    "Robert'); DROP TABLE orders;--", "Anna \"Nan\" Back\\slash", "Joe\u0301 Combining",
    "\u200fRTL mark\u200e", "Emoji 👩‍🚀🏳️‍🌈",
    "ẞtraße Groß", "ﬁ ligature", "null", "𝕌𝕟𝕚 𝕄𝕒𝕥𝕙",
)  # fmt: skip

PRODUCTS: Final = (
    "Tea pot", "Kaffee, gemahlen", "Crème brûlée", "Борщ", "寿司セット", "ร่ม", "كتاب", "10\" nails \\ box",
    "Ünïcödé socks",
    "Μέλι", "김치", "Snow ❄ globe", "चाय", "Piñata", "Smörgåsbord", "Tab\there", "ספר",
)  # fmt: skip

DOMAINS: Final = ("example.com", "example.org", "bücher.example", "пример.example", "例え.example")


def generate(seed: int = SEED) -> Iterator[Case]:
    """Cases without end; the first n are the same whatever n is."""
    rng = random.Random(seed)
    for number in itertools.count(1):
        expect = _expect(number)
        yield Case(_order(rng, number, expect), expect)


def _expect(number: int) -> str:
    """How order `number` ends: about one in seventeen is declined, one in twenty-three has an unknown product."""
    if number % 17 == 5:
        return "Declined"
    return "UnknownProduct" if number % 23 == 11 else "succeeded"


def _order(rng: random.Random, number: int, expect: str) -> Order:
    currency = rng.choice(list(CURRENCIES))
    lines = [_line(rng, CURRENCIES[currency]) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 8, 12)))]
    if expect == "UnknownProduct":
        at = rng.randrange(len(lines))
        lines[at] = Line(f"X-{rng.randrange(10_000):04}", "gone from the catalogue", 1, lines[at].price)
    card = f"card_{rng.randrange(16**8):08x}"
    if expect == "Declined":
        card = rng.choice(("declined_", "expired_", "stolen_")) + card
    # A few ids need care wherever they are put into a path or a header.
    ident = f"заказ/{number:05} №" if number % 50 == 7 else f"MK-{number:05}"
    return Order(
        id=ident,
        customer=UUID(int=rng.getrandbits(128), version=4),
        name=rng.choice(NAMES),
        email=f"customer{number}@{rng.choice(DOMAINS)}",
        currency=currency,
        card=card,
        lines=tuple(lines),
    )


def _line(rng: random.Random, digits: int) -> Line:
    index = rng.randrange(400)
    price = Decimal(rng.randrange(1, 10 ** rng.choice((2, 4, 5)))).scaleb(-digits)
    return Line(f"P-{index:04}", PRODUCTS[index % len(PRODUCTS)], rng.choice((1, 1, 1, 2, 3, 10, 144)), price)


if __name__ == "__main__":
    save_cases(itertools.islice(generate(), COUNT))
