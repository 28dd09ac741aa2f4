"""The page in a real browser, with a real server. What the page shows is compared with the server's own answers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mrr_model.serving.page as page_module

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

SAMPLE = json.loads((Path(page_module.__file__).parent / "web" / "sample.json").read_text(encoding="utf-8"))
QUERY, DOCUMENTS = SAMPLE["queries"][0], SAMPLE["documents"]
FULL = {"depth": 6, "keep_ratio": 1}
SMALL = {"depth": 2, "keep_ratio": 0.25}

Ranked = Callable[..., dict[str, Any]]


def check(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def order(answer: dict[str, Any]) -> list[int]:
    return [result["index"] for result in answer["results"]]


def shows(page: "Page", answer: dict[str, Any], documents: list[str] = DOCUMENTS) -> None:
    """The ranking gets to be that of the answer."""
    check(page.locator("#ranking .text")).to_have_text([documents[index] for index in order(answer)])


def press(page: "Page", selector: str, key: str, times: int = 1) -> None:
    page.focus(selector)
    for _ in range(times):
        page.keyboard.press(key)


def make_small(page: "Page") -> None:
    press(page, "#depth", "Home")
    press(page, "#keep", "Home")
    press(page, "#keep", "ArrowRight", 3)


def test_the_sample_is_ranked_at_the_server_s_default(open_page: Any, ranked: Ranked) -> None:
    with open_page() as page:
        check(page.locator("#model")).to_have_text("mini")
        page.click("#start")
        shows(page, ranked(QUERY, DOCUMENTS))
        check(page.locator("#count")).to_have_text("20 documents")
        check(page.locator("#flops")).to_have_text("100%")
        check(page.locator("#quality")).to_have_text("100.0%")
        for figure in ("#model-ms", "#trip-ms"):
            check(page.locator(figure)).to_have_text(re.compile(r"^[\d.,]+\sms$"))
        check(page.locator("#queue-note")).to_have_text(re.compile(r"^[\d.,]+ ms in the queue$"))
        page.click("#suggestions button:nth-child(3)")
        shows(page, ranked(SAMPLE["queries"][2], DOCUMENTS))


def test_sliders_moved_by_keyboard_reorder(open_page: Any, ranked: Ranked) -> None:
    full, small = ranked(QUERY, DOCUMENTS, **FULL), ranked(QUERY, DOCUMENTS, **SMALL)
    ranks = {index: rank for rank, index in enumerate(order(full))}
    moves = [ranks[index] - rank for rank, index in enumerate(order(small))]
    assert any(moves)
    with open_page() as page:
        page.click("#start")
        shows(page, full)
        make_small(page)
        check(page.locator("#depth")).to_have_attribute("aria-valuetext", "2 of 6 layers")
        check(page.locator("#keep")).to_have_attribute("aria-valuetext", "25% of the tokens")
        shows(page, small)
        check(page.locator("#flops")).to_have_text(f"{small['setting']['flops_share']:.0%}")
        check(page.locator("#quality")).to_have_text(f"{small['setting']['quality_kept']:.1%}")
        check(page.locator("#model-note")).to_have_text(re.compile(r"^at full size: [\d.,]+ ms$"))
        arrows = [f"{'▲' if move > 0 else '▼'} {abs(move)}" for move in moves if move]
        check(page.locator("#ranking .move [aria-hidden]")).to_have_text(arrows)
        words = [
            f"{abs(move)} place{'s' * (abs(move) > 1)} {'higher' if move > 0 else 'lower'} than at full size"
            for move in moves
            if move
        ]
        check(page.locator("#ranking .move .hidden")).to_have_text(words)
        moved = sum(move != 0 for move in moves)
        check(page.locator("#status")).to_contain_text(f"{moved} of 20 documents moved.")
        press(page, "#keep", "ArrowLeft")  # a keep ratio that the profile lacks
        check(page.locator("#quality")).to_have_text("not measured")
        page.click("#default")
        shows(page, full)


def test_the_cascade_brings_its_own_setting(open_page: Any) -> None:
    with open_page() as page:
        page.click("#start")
        make_small(page)
        page.check("#cascade")
        check(page.locator("#depth")).to_have_attribute("aria-valuetext", "6 of 6 layers")
        check(page.locator("#flops")).to_have_text("≤ 100%")
        check(page.locator("#quality")).to_have_text("99.9%")
        press(page, "#depth", "ArrowLeft")
        check(page.locator("#cascade")).not_to_be_checked()
        check(page.locator("#flops")).not_to_contain_text("≤")


def test_texts_stay_texts(open_page: Any, ranked: Ranked) -> None:
    documents = ["<img src=x onerror=alert(1)> sugar", "</script><b>bees</b> make honey", "a & b &amp; c"]
    with open_page() as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a text ran: {dialog.message}"))
        page.fill("#documents", "\n\n".join(documents))
        check(page.locator("#count")).to_have_text("3 documents")
        page.type("#query", "what do <i>bees</i> make?")
        shows(page, ranked("what do <i>bees</i> make?", documents), documents)
        assert page.locator("#ranking img, #ranking b, #ranking i:not(.bar i)").count() == 0
        page.fill("#documents", "one\ntwo\n\nthree\n \nfour")
        check(page.locator("#count")).to_have_text("4 documents")
        page.check("input[value=blank]", force=True)
        check(page.locator("#count")).to_have_text("3 documents")


def test_an_earlier_request_is_aborted(open_page: Any, ranked: Ranked) -> None:
    held: list[Any] = []

    def hold_full_size(route: "Route") -> None:
        if route.request.post_data_json["depth"] == 6:
            held.append(route)
        else:
            route.continue_()

    with open_page(before=lambda page: page.route("**/v2/rerank", hold_full_size)) as page:
        page.fill("#query", QUERY)
        page.fill("#documents", "\n".join(DOCUMENTS))
        with page.expect_event("requestfailed") as failed:
            page.wait_for_timeout(500)
            press(page, "#depth", "ArrowLeft")
        assert failed.value.post_data_json["depth"] == 6
        shows(page, ranked(QUERY, DOCUMENTS, depth=5, keep_ratio=1))
        check(page.locator("#banner")).to_be_hidden()
        page.unroute_all(behavior="ignoreErrors")


ANIMATIONS = """
window.animations = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...given) { window.animations += 1; return animate.apply(this, given); };
"""


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_documents_slide_unless_motion_is_to_be_reduced(open_page: Any, ranked: Ranked, motion: str) -> None:
    with open_page(reduced_motion=motion, before=lambda page: page.add_init_script(ANIMATIONS)) as page:
        page.click("#start")
        shows(page, ranked(QUERY, DOCUMENTS))
        check(page.locator("#flops")).to_have_text("100%")
        page.evaluate("window.animations = 0")
        make_small(page)
        shows(page, ranked(QUERY, DOCUMENTS, **SMALL))
        counted = page.evaluate("window.animations")
        assert counted == 0 if motion == "reduce" else counted > 0


CONTRASTS = r"""
() => {
  const numbers = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const texts = [...node.childNodes].filter((each) => each.nodeType === 3 && each.data.trim());
    const typed = node.matches("input, textarea") && (node.value || node.placeholder);
    const box = node.getBoundingClientRect();
    if ((!texts.length && !typed) || box.width < 2 || node.matches("script, style, option, :disabled")) continue;
    const style = getComputedStyle(node);
    const [one, two] = [light(numbers(style.color)), light(behind(node))].sort((a, b) => b - a);
    found.push([node.outerHTML.slice(0, 80), (one + 0.05) / (two + 0.05), parseFloat(style.fontSize)]);
  }
  return found;
}
"""
UNNAMED = """
() => [...document.querySelectorAll("button, input, select, textarea, a")].filter((node) => {
  if (node.closest("[hidden]")) return false;
  const by = (name) => (node.getAttribute(name) ?? "").split(" ").map((id) => document.getElementById(id)?.textContent);
  const labels = [...(node.labels ?? [])].map((label) => label.textContent);
  const name = [...labels, node.getAttribute("aria-label"), ...by("aria-labelledby"), node.textContent].join("").trim();
  const described = (node.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean);
  return !name || described.some((id) => !document.getElementById(id));
}).map((node) => node.outerHTML)
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names(open_page: Any, ranked: Ranked, scheme: str) -> None:
    with open_page(color_scheme=scheme, reduced_motion="reduce") as page:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")
        for _ in range(2):  # empty, and with a ranking
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 10
            assert [each for each in contrasts if each[1] < 4.5] == []
            assert page.evaluate(UNNAMED) == []
            page.click("#sample")
            make_small(page)
            shows(page, ranked(QUERY, DOCUMENTS, **SMALL))
            page.evaluate("for (const id of ['banner', 'key-form']) document.getElementById(id).hidden = false")
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
        assert len(ids) == len(set(ids))
        assert page.evaluate("[...document.querySelectorAll('h1, h2')].map((node) => node.localName)")[0] == "h1"


def test_tab_goes_from_top_to_bottom_and_shows_where_it_is(open_page: Any) -> None:
    with open_page() as page:
        page.click("#start")
        check(page.locator("#ranking li")).to_have_count(20)
        page.focus(".skip")
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")  # as the keyboard does it, so that the focus shows
        names, outlined = [], []
        while "cascade" not in names and len(names) < 20:
            node = page.evaluate(
                """() => {
                  const node = document.activeElement;
                  const style = getComputedStyle(node.matches("[name=split]") ? node.nextElementSibling : node);
                  const thumb = [...document.styleSheets[0].cssRules].some((rule) =>
                    rule.selectorText === 'input[type="range"]:focus-visible::-webkit-slider-thumb');
                  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                  return [node.id || node.value || node.textContent, node.type === "range" ? thumb : outlined];
                }"""
            )
            names.append(node[0])
            outlined.append(node[1])
            page.keyboard.press("Tab")
        expected = [
            "Skip to the ranking",
            "reference",
            "query",
            *SAMPLE["queries"],
            "sample",
            "documents",
            "line",
            "default",
        ]
        assert names == [*expected, "depth", "keep", "merge", "cascade"]
        assert all(outlined), dict(zip(names, outlined, strict=True))


def test_a_phone_shows_all_without_scrolling_sideways(open_page: Any, ranked: Ranked) -> None:
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with open_page(**phone) as page:
        page.tap("#start")
        long_word = "w" * 300
        page.fill("#documents", "\n".join([*DOCUMENTS, long_word]))
        check(page.locator("#ranking li")).to_have_count(21)
        for width in (320, 375):
            page.set_viewport_size({"width": width, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        page.locator("#ranking li").nth(12).scroll_into_view_if_needed()
        check(page.locator("#depth")).to_be_in_viewport()  # the sliders stay while the ranking scrolls
        make_small(page)
        shows(page, ranked(QUERY, [*DOCUMENTS, long_word], **SMALL), [*DOCUMENTS, long_word])
        for field in ("#query", "#documents", "#merge"):
            size = page.locator(field).evaluate("(node) => parseFloat(getComputedStyle(node).fontSize)")
            assert size >= 16  # below it, phones zoom in when a field gets the focus


def test_a_server_that_loads_or_is_busy_is_waited_for(open_page: Any, ranked: Ranked) -> None:
    answers = [(503, "the model is being loaded."), (429, "the queue is full.")]

    def refuse(route: "Route") -> None:
        [status, message] = answers.pop(0)
        route.fulfill(status=status, json={"message": message}, headers={"Retry-After": "1"})

    def before(page: "Page") -> None:
        page.route("**/page.json", refuse, times=1)
        page.route("**/v2/rerank", refuse, times=1)

    with open_page(errors=True, before=before) as page:
        check(page.locator("#banner")).to_contain_text("not ready: the model is being loaded. Trying again in 1 s.")
        page.click("#start")
        check(page.locator("#banner")).to_contain_text("busy: the queue is full.")
        shows(page, ranked(QUERY, DOCUMENTS))
        check(page.locator("#banner")).to_be_hidden()


def test_other_errors_are_said_and_can_be_tried_again(open_page: Any, ranked: Ranked) -> None:
    for_status = {504: "took too long", 413: "too much text", 500: "status 500"}
    statuses = list(for_status)

    def refuse(route: "Route") -> None:
        route.fulfill(status=statuses[0], json={"message": "it says why."}) if statuses else route.continue_()

    with open_page(errors=True, before=lambda page: page.route("**/v2/rerank", refuse)) as page:
        page.click("#start")
        for words in for_status.values():
            check(page.locator("#banner")).to_contain_text(words)
            check(page.locator("#banner")).to_contain_text("it says why.")
            statuses.pop(0)
            page.click("#again")
        shows(page, ranked(QUERY, DOCUMENTS))


def test_a_key_is_asked_for_and_kept_for_the_tab_only(open_page: Any, ranked: Ranked) -> None:
    def guard(route: "Route") -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"message": "an API key is missing."})

    def before(page: "Page") -> None:
        page.route("**/page.json", guard)
        page.route("**/v2/rerank", guard)

    with open_page(errors=True, before=before) as page:
        check(page.locator("#key")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        check(page.locator("#banner")).to_contain_text("did not accept")
        page.fill("#key", "right")
        page.keyboard.press("Enter")
        check(page.locator("#key-form")).to_be_hidden()
        page.click("#start")
        shows(page, ranked(QUERY, DOCUMENTS))
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
        page.reload()
        check(page.locator("#model")).to_have_text("mini")


def test_a_server_that_keeps_the_setting_to_itself(open_page: Any, ranked: Ranked) -> None:
    def none_allowed(route: "Route") -> None:
        route.fulfill(json={**route.fetch().json(), "allowed": []})

    sent: list[Any] = []
    with open_page(before=lambda page: page.route("**/page.json", none_allowed)) as page:
        page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
        check(page.locator("#fixed-hint")).to_have_text("This server chooses depth and keep ratio itself.")
        check(page.locator("#depth")).to_be_disabled()
        check(page.locator("#keep")).to_be_disabled()
        page.click("#start")
        shows(page, ranked(QUERY, DOCUMENTS))
        page.wait_for_timeout(200)
        assert [sorted(body) for body in sent] == [["documents", "model", "query"]]
