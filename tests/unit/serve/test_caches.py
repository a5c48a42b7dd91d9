"""Answers are kept for a while, the last ones used, by version and request."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from serve.caches import AnswerCache
from serve.schemas import Answer, Item, Options, Versions

OLD, NEW = Versions(small="1", large=None), Versions(small="2", large=None)


class Request(BaseModel):
    query: str
    options: Options = Options()


def answer(name: str, *, items: int = 0, versions: Versions = OLD) -> Answer:
    listed = tuple(Item(item_id=str(n), score=0.0, by="small") for n in range(items))
    return Answer(
        items=listed, model=name, versions=versions, deferred=False, reason="no_large",
        confidence=None,
    )  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_is_kept_for_its_time():
    clock = Clock()
    cache = AnswerCache(2, ttl_s=60, clock=clock)
    key = cache.key(OLD, "rank", Request(query="a"))
    cache.put(key, answer("a"))
    clock.now = 59.9
    assert cache.get(key) == answer("a")
    clock.now = 60
    assert cache.get(key) is None
    assert len(cache) == 0


def test_the_one_used_longest_ago_goes_first():
    cache = AnswerCache(2, ttl_s=60, clock=Clock())
    for name in (b"a", b"b"):
        cache.put(name, answer(name.decode()))
    cache.get(b"a")
    cache.put(b"c", answer("c"))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]


def test_long_ids_count_as_the_items_whose_memory_they_take():
    cache = AnswerCache(2, ttl_s=60, clock=Clock())
    long = Item(item_id="x" * 4000, score=0.0, by="small")
    kept = answer("a").model_copy(update={"items": (long, long)})
    cache.put(b"a", kept)
    assert cache.num_items == 2 * (1 + 15)
    cache.put(b"b", kept)
    assert cache.num_items == 64
    cache.put(b"c", kept.model_copy(update={"items": (long,)}))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [False, True, True]
    cache.put(b"d", kept.model_copy(update={"items": (long,) * 5}))
    assert len(cache) == 2  # alone it is more than all that is kept


def test_all_answers_together_have_32_items_an_answer_at_most():
    clock = Clock()
    cache = AnswerCache(4, ttl_s=60, clock=clock)
    for name, items in ((b"a", 60), (b"b", 60), (b"b", 10)):  # the same again takes no more
        cache.put(name, answer("-", items=items))
    assert cache.num_items == 70
    cache.put(b"c", answer("-", items=100))
    assert ([cache.get(name) is None for name in (b"a", b"b")], cache.num_items) == (
        [True, False],
        110,
    )
    cache.put(b"d", answer("-", items=129))  # more than all: the others stay
    assert (len(cache), cache.get(b"d"), cache.num_items) == (2, None, 110)
    clock.now = 60
    assert [cache.get(name) for name in (b"b", b"c")] == [None, None]
    assert (len(cache), cache.num_items) == (0, 0)


def test_what_a_large_model_had_a_part_in_can_be_forgotten():
    cache = AnswerCache(4, ttl_s=60, clock=Clock())
    for name, large in ((b"a", None), (b"b", "large"), (b"c", "other")):
        cache.put(name, answer("-", items=1, versions=Versions(small="1", large=large)))
    cache.forget("large")
    assert [cache.get(name) is None for name in (b"a", b"b", b"c")] == [False, True, False]
    assert cache.num_items == 2


@pytest.mark.parametrize(
    "other",
    [
        (NEW, "rank", Request(query="a")),
        (OLD, "ctr", Request(query="a")),
        (OLD, "rank", Request(query="b")),
        (OLD, "rank", Request(query="a", options=Options(route="large"))),
    ],
)
def test_what_decides_an_answer_is_in_its_key(other):
    cache = AnswerCache(1, ttl_s=1)
    assert cache.key(*other) != cache.key(OLD, "rank", Request(query="a"))


def test_the_wish_for_timings_decides_nothing():
    cache = AnswerCache(1, ttl_s=1)
    asked = Request(query="a", options=Options(timings=True))
    assert cache.key(OLD, "rank", asked) == cache.key(OLD, "rank", Request(query="a"))


def test_a_cache_of_nothing_keeps_nothing():
    cache = AnswerCache(0, ttl_s=60)
    cache.put(cache.key(OLD, "rank", Request(query="a")), answer("a"))
    assert len(cache) == 0
