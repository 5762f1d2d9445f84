"""A reviewer never waits: not for pictures that are being made, not for the list of all images, not for what others decide meanwhile.

What is waited for is held here until the test lets it go, so that nothing depends on the machine's pace.
"""

import threading
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from comfyui_flenwheel.flywheel import views

from .pages import all_saved, await_review, post, press, shown, text

pytestmark = [pytest.mark.browser, pytest.mark.comfy]


class Held:
    """Requests that are not answered before `let_go`. `fetched`: the server has answered them by then, and the answer has grown old."""

    def __init__(self, tab, which, *, fetched=False):
        self.fetched, self.closed, self.waiting = fetched, True, []
        tab.route(which, self.hold)

    def hold(self, route):
        if self.closed:
            self.waiting.append((route, route.fetch() if self.fetched else None))
        else:
            route.continue_()

    def let_go(self):
        self.closed = False
        for route, answer in self.waiting:
            route.fulfill(response=answer) if answer else route.continue_()


def is_list(part):
    return lambda address: "/enriched/v1?" in address and "pass=" in address and part(address)


def begin_with_six(tab):
    """A visit begins with 48 images where there are ten times as many; so that a test needs fewer, with six."""
    tab.route(lambda address: "head=48" in address, lambda route: route.continue_(url=route.request.url.replace("head=48", "head=6")))


def decided(tab):
    return text(tab, "#decided")


class Relay(BaseHTTPRequestHandler):
    """Hands requests on to the real server; pictures stay on their connections until they are let go."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        if "/flenwheel/image/" in self.path:
            self.server.let_go.wait()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        request = urllib.request.Request(
            self.server.origin + self.path, body, {"Content-Type": self.headers.get("Content-Type", "")}, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as answer:
                status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, content = error.code, "application/json", error.read()
        with suppress(ConnectionError):  # the page has thought better of it
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def relay(server):
    with ThreadingHTTPServer(("127.0.0.1", 0), Relay) as between:
        between.origin, between.let_go, between.daemon_threads, between.block_on_close = server.address, threading.Event(), True, False
        threading.Thread(target=between.serve_forever, daemon=True).start()
        yield between
        between.let_go.set()
        between.shutdown()


def test_pictures_leave_a_way_for_verdicts(server, relay, new_tab):
    reviewed = await_review(server, "slow pictures", 24)
    tab = shown(new_tab(reviewed.address.replace(server.address, f"http://127.0.0.1:{relay.server_port}")))
    press(tab, ["1", "3", "Enter", "1"])  # the large view asks for more of them
    all_saved(tab)  # were the browser's six connections all taken by pictures, it would wait until one came
    assert reviewed.labels()[:4] == ["good", "reject", "good", None]
    assert not tab.evaluate("[...document.images].some(({ naturalWidth }) => naturalWidth)")
    relay.let_go.set()
    press(tab, ["Escape"])
    tab.wait_for_function("[...document.querySelectorAll('.card img')].every(({ naturalWidth }) => naturalWidth)")


def test_the_first_screen_comes_before_the_list_of_all(server, new_tab):
    reviewed = await_review(server, "long list", 120)
    tab = new_tab("about:blank")
    begin_with_six(tab)
    whole = Held(tab, is_list(lambda address: "head=" not in address))
    tab.goto(reviewed.address)
    shown(tab)
    assert (
        tab.locator(".card").count() == 6
        and decided(tab) == "0 of 120 decided"
        and text(tab, "#filters [data-filter=undecided] span") == "120"
    )
    press(tab, "13")
    all_saved(tab)
    assert decided(tab) == "2 of 120 decided" and reviewed.labels()[:3] == ["good", "reject", None]
    place = tab.locator(".card.current").bounding_box()
    whole.let_go()
    tab.wait_for_function("document.querySelector('#grid').getAttribute('aria-rowcount') > 10")
    assert tab.locator(".card.current").bounding_box() == place and decided(tab) == "2 of 120 decided"
    press(tab, ["End", "2"])
    all_saved(tab)
    assert reviewed.labels()[-1] == "needs_correction"


def test_a_later_visit_begins_where_the_last_one_ended_and_shows_what_lies_before(server, new_tab):
    reviewed = await_review(server, "second visit", 120)
    first = shown(new_tab(reviewed.address))
    press(first, ["f", *["ArrowDown"] * 8, "1", "1"])
    all_saved(first)
    went_on = first.get_attribute("#grid", "aria-activedescendant")
    stage = reviewed.project.stage("enriched")
    while f"candidate-{(views.stopped_at(stage, 'reviewer', 'first') or {}).get('key')}" != went_on:
        first.wait_for_timeout(50)  # until it has told the server where it is
    first.close()
    tab = new_tab("about:blank", visitor="later")
    begin_with_six(tab)
    whole = Held(tab, is_list(lambda address: "head=" not in address))
    tab.goto(reviewed.address)
    shown(tab)
    assert tab.get_attribute("#grid", "aria-activedescendant") == went_on
    height = tab.locator(".card.current").bounding_box()["y"]
    whole.let_go()
    tab.wait_for_function("document.querySelector('#grid').getAttribute('aria-rowcount') > 10")
    assert tab.get_attribute("#grid", "aria-activedescendant") == went_on
    assert abs(tab.locator(".card.current").bounding_box()["y"] - height) < 1
    press(tab, ["Home", "3"])
    all_saved(tab)
    assert reviewed.labels()[0] == "reject"


def test_an_old_answer_takes_no_verdict_from_the_screen_and_is_not_asked_for_again(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    news = Held(tab, is_list(lambda address: "since=" in address), fetched=True)
    labels = reviewed.address.partition("?")[0] + f"/{reviewed.project.folder_name}/enriched/v1/labels"
    post(labels, {"reviewer": "script", "events": [{"key": reviewed.keys[11], "label": "reject"}]})
    while not news.waiting:
        tab.wait_for_timeout(20)
    for number in range(3):  # more becomes known while the first question is open
        press(tab, ["1"])
        all_saved(tab)
        post(labels, {"reviewer": "script", "events": [{"key": reviewed.keys[10 - number], "label": "reject"}]})
    assert len(news.waiting) == 1  # one question at a time
    assert decided(tab) == "3 of 12 decided"
    news.let_go()
    tab.wait_for_function("document.querySelector('#decided').textContent === '7 of 12 decided'")
    assert reviewed.labels() == ["good"] * 3 + [None] * 5 + ["reject"] * 4
    assert [card.get_attribute("data-label") for card in tab.locator(".card").all()][:4] == ["good", "good", "good", "undecided"]


def test_pictures_that_did_not_come_are_asked_for_again_when_the_server_is_back(mortal, new_tab):
    server, reviewed = mortal
    tab = new_tab("about:blank")
    tab.route("**/flenwheel/image/**", lambda route: route.abort())
    tab.goto(reviewed.address)
    shown(tab)
    tab.wait_for_selector(".picture.broken")
    server.kill()
    tab.unroute("**/flenwheel/image/**")
    server.start()
    tab.wait_for_function("[...document.querySelectorAll('.card img')].every(({ naturalWidth }) => naturalWidth)")
    assert tab.locator(".picture.broken").count() == 0
