"""The pages in a real browser, on real Ray Serve with two tiny packages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import WIDTHS, Tab

from serving.target import TOKENS, Target


@pytest.fixture(scope="module")
def url(target: Target) -> str:
    return target.url


class Shop(Tab):
    """A tab of the server's pages."""

    def __init__(self, browser: Any, *, width: int = 1280, token: str | None = TOKENS[0]) -> None:
        super().__init__(browser, width=width)
        self.context.set_default_timeout(120_000)
        if token:
            self.context.add_init_script(f"sessionStorage.setItem('token', '{token}')")

    def settle(self) -> None:
        """Waits until every panel has its answer."""
        # By selectors: a function would have to be evaluated, which the page's policy forbids.
        idle = "body:not(:has([aria-busy])) #risk .path p"
        self.page.wait_for_selector(idle, state="attached")


@pytest.fixture
def tab(browser: Any, url: str) -> Iterator[Shop]:
    """The shop, loaded, with a token."""
    opened = Shop(browser)
    opened.page.goto(url)
    opened.settle()
    yield opened
    opened.context.close()


def test_the_shop_loads_from_this_server_alone_and_without_complaint(tab, url):
    assert tab.complaints == []
    assert all(one.startswith((url, "data:")) for one in tab.asked)
    assert tab.texts("section .path .ms") and not tab.texts(".failed")


def test_a_query_gives_the_products_in_the_answers_order_and_the_path_taken(tab):
    tab.page.fill("#query", "purple mug")
    with tab.page.expect_response("**/v1/rank") as caught:
        tab.page.press("#query", "Enter")
    tab.settle()
    asked, answer = caught.value.request.post_data_json, caught.value.json()
    expected = [asked["candidates"][one["index"]]["item_text"] for one in answer["items"]][:12]
    assert asked["query"] == "purple mug"
    assert tab.texts("#rank .products b") == expected
    assert (answer["deferred"], answer["reason"]) == (True, "doubtful")
    assert tab.texts("#rank .way .model") == ["small", "large"]
    assert "in doubt" in tab.page.inner_text("#rank .why")
    assert [text.split()[0] for text in tab.texts("#rank .by")] == ["large"] * 3 + ["small"] * 9


def test_the_small_model_alone_answers_where_it_is_chosen(tab):
    tab.page.check("[name=route][value=small]")
    tab.settle()
    assert tab.texts("section .way .model") == ["small"] * 4


def test_the_keyboard_is_enough(browser, url):
    tab = Shop(browser)
    tab.page.goto(url)
    tab.settle()
    keys = tab.page.keyboard
    keys.press("/")
    keys.type("blue vase")
    keys.press("Enter")
    tab.page.wait_for_selector("#status >> text=blue vase", state="attached")
    tab.settle()
    bought = tab.page.inner_text("#bought")
    for _ in range(40):
        keys.press("Tab")
        focused = "document.activeElement"
        assert tab.page.evaluate(
            f"getComputedStyle({focused}).outlineStyle !== 'none' || {focused}.type === 'radio'"
        )
        if tab.page.evaluate(f"{focused}.textContent") == "Buy":
            break
    keys.press("Enter")
    tab.settle()
    assert int(tab.page.inner_text("#bought")) == int(bought) + 1
    assert tab.page.evaluate("document.getElementById('order').value") == "bought"
    tab.context.close()


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_wider_than_the_screen(browser, url, width, path):
    tab = Shop(browser, width=width)
    tab.page.goto(f"{url}{path}")
    tab.page.wait_for_selector("#rank .products li, .opblock")
    assert tab.fits()
    assert tab.complaints == []
    assert all(one.startswith((url, "data:")) for one in tab.asked)
    tab.context.close()


@pytest.mark.parametrize(("path", "ready"), [("/", "#rank .products li"), ("/docs", ".opblock")])
def test_a_token_is_asked_for_until_it_is_right(browser, url, path, ready):
    tab = Shop(browser, token=None)
    tab.page.goto(f"{url}{path}")
    for token, seen in (("wrong", "text=does not know this token"), (TOKENS[0], ready)):
        tab.page.wait_for_selector("#token")
        tab.page.fill("#token", token)
        tab.page.press("#token", "Enter")
        tab.page.wait_for_selector(seen)
    assert not tab.page.is_visible("#token")
    tab.context.close()


def test_a_package_without_a_catalogue_and_without_a_large_model_says_so(tab):
    tab.page.select_option("#model", "bare")
    tab.settle()
    assert "no catalogue" in tab.page.inner_text("#recommend .failed")
    assert "there is no large model" in tab.page.inner_text("#rank .why")
    assert tab.page.is_hidden("#route")


def test_no_model_is_offered_where_the_server_leaves_no_choice(browser, url, tab):
    assert tab.page.is_visible("#route")
    bound = Shop(browser)

    def leave_none(route: Any) -> None:
        answer = route.fetch()
        models = [{**one, "routes": ["auto"]} for one in answer.json()]
        route.fulfill(response=answer, json=models)

    bound.page.route("**/v1/models", leave_none)
    bound.page.goto(url)
    bound.settle()
    assert bound.page.is_hidden("#route")
    bound.context.close()


def test_what_an_answer_costs_is_shown_where_the_server_knows(tab):
    assert "per 1,000" not in "".join(tab.texts(".path .ms"))

    def priced(route: Any) -> None:
        assert route.request.post_data_json["options"]["cost"] is True
        answer = route.fetch()
        cost = {"currency": "EUR", "per_1000": 0.0123456}
        route.fulfill(response=answer, json={**answer.json(), "cost": cost})

    tab.page.route("**/v1/rank", priced)
    tab.page.fill("#query", "red lamp")
    tab.page.press("#query", "Enter")
    tab.page.wait_for_selector("#rank .path .ms >> text=EUR 0.0123 per 1,000")


def test_a_busy_server_is_asked_again_when_it_says(tab):
    busy = {"code": "overload", "message": "more requests wait", "request_id": ""}
    refused = []

    def once(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, json=busy, headers={"Retry-After": "2"})

    tab.page.route("**/v1/rank", once)
    tab.page.fill("#query", "red lamp")
    tab.page.press("#query", "Enter")
    tab.page.wait_for_selector("#rank .failed >> text=Asking again in")
    tab.page.wait_for_selector("#rank .products li")
    assert len(refused) == 1


def test_a_server_that_is_gone_is_reported(tab):
    tab.page.route("**/v1/rank", lambda route: route.abort())
    tab.page.fill("#query", "red lamp")
    tab.page.press("#query", "Enter")
    tab.page.wait_for_selector("#rank .failed >> text=does not answer")
    tab.page.unroute("**/v1/rank")
    assert tab.texts("#rank .products li") == []
    tab.page.click("#rank .failed button")
    tab.settle()
    assert tab.texts("#rank .products li") and not tab.texts("#rank .failed")


def test_products_of_ones_own_take_the_place_of_the_samples(tab, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        '{"item_id": "i1", "item_text": "alpha lamp", "price": 3}\n'
        '{"item_id": "i2", "item_text": "beta lamp"}\n'
    )
    tab.page.set_input_files("#file", mine)
    tab.page.wait_for_selector("text=2 products of mine.jsonl")
    tab.settle()
    assert sorted(tab.texts("#rank .products b")) == ["alpha lamp", "beta lamp"]
    mine.write_text('{"name": "a lamp"}')
    tab.page.set_input_files("#file", mine)
    tab.page.wait_for_selector("#notice >> text=item_id")
