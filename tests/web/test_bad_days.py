"""What a review lives through: files that go, several people, several servers, clocks. Each time every verdict is kept and the page says what is."""

import os
import socket
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from comfyui_flenwheel.flywheel import ledger
from comfyui_flenwheel.flywheel.candidates import adopt
from comfyui_flenwheel.flywheel.project import open_project
from comfyui_flenwheel.nodes.launch import Server

from .pages import all_saved, await_review, portrait, post, press, shown, text, undisturbed

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

TOKEN = "a-long-enough-token"
AWAY_S = float(os.environ.get("FLEN_AWAY_S", "1"))  # 60 for the minute of the issue


def decided(tab, number, total=12):
    tab.wait_for_function(f"document.querySelector('#decided').textContent === '{number} of {total} decided'")


SLOW = """(() => {
  const real = fetch
  const quick = new Promise((done) => { window.quicken = done })
  window.sent = []
  window.fetch = async (where, options) => {
    if (!String(where).endsWith("/labels")) return real(where, options)
    window.sent.push(JSON.parse(options.body).events.length)
    const lost = window.sent.length === 2
    await quick
    const answer = await real(where, options)
    if (lost) throw new TypeError("the answer was lost on its way")
    return answer
  }
})()"""


def look(tab):
    """The person comes back to the page from another program."""
    tab.evaluate("dispatchEvent(new Event('focus'))")


def labels_address(reviewed):
    return reviewed.address.partition("?")[0] + f"/{reviewed.project.folder_name}/enriched/v1/labels"


def names(reviewed):
    """Who decided, by the order of the page."""
    stands = ledger.labels(reviewed.project)
    return [stands[key].reviewer if key in stands else None for key in reviewed.keys]


def test_an_image_deleted_while_open_is_told_and_the_place_is_kept(reviewed, new_tab):
    tab = shown(new_tab(reviewed.address))
    press(tab, ["1", "1", "ArrowRight"])
    all_saved(tab)
    images = reviewed.candidates.images
    reviewed.candidates.path(images[3]).unlink()
    look(tab)
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "deleted" in text(tab, "#trouble-text") and tab.locator(".card").count() == 11
    assert tab.get_attribute("#grid", "aria-activedescendant") == f"candidate-{reviewed.keys[4]}"
    tab.click("#trouble-close")
    press(tab, ["1"])
    all_saved(tab)
    assert reviewed.labels()[:6] == ["good", "good", None, None, "good", None]
    assert not tab.is_visible("#trouble")


def test_an_image_changed_on_disk_is_not_shown_as_the_one_decided_on(reviewed, new_tab):
    tab = undisturbed(new_tab, reviewed.address)
    file = reviewed.candidates.path(reviewed.candidates.images[1])
    file.write_bytes(file.read_bytes() + b"more")
    press(tab, ["Enter", "ArrowRight"])
    tab.wait_for_function("document.querySelector('#candidate-figure.broken')?.dataset.broken.includes('was changed on disk')")
    press(tab, ["Escape", "Home", "1"])
    all_saved(tab)
    assert reviewed.labels()[:2] == ["good", None]
    tab.unroute("**/pulse*")
    tab.reload()  # every visit begins with a look at every file
    shown(tab)
    tab.wait_for_function("document.querySelector('#trouble-text').textContent.includes('was changed on disk')")
    decided(tab, 1, 11)


def test_an_image_that_cannot_be_decoded_is_marked_and_can_be_rejected(server, new_tab):
    reviewed = await_review(server, "half a file", 4, spoil={2: lambda png: png[:40]})
    tab = shown(new_tab(reviewed.address))
    tab.wait_for_function("document.querySelectorAll('.picture.broken').length === 1")
    assert "cannot be shown" in tab.evaluate("getComputedStyle(document.querySelector('.picture.broken'), '::after').content")
    press(tab, ["ArrowRight", "ArrowRight", "Enter"])
    tab.wait_for_selector("#candidate-figure.broken")
    press(tab, ["3"])
    all_saved(tab)
    assert reviewed.labels() == [None, None, "reject", None]


def test_no_image_is_said_and_the_first_one_appears_by_itself(server, new_tab):
    stage = open_project(
        server.base / "output" / "flenwheel", "empty yet", instance_token="ohwx_char", class_noun="person", medium="photographs"
    ).stage("enriched")
    stage.folder.mkdir(parents=True)
    tab = new_tab(f"{server.address}/flenwheel/review?project={stage.project.folder_name}&stage=enriched&version=v1")
    tab.wait_for_selector("#empty:not([hidden])")
    press(tab, ["1", "u", "End", "n", "Enter", "s", "Control+a", "3", "r", "q"])
    assert "No candidates here yet" in text(tab, "#empty") and tab.is_disabled("#continue")
    adopt(stage, [portrait(1)], caption="photo of ohwx_char person")
    look(tab)
    shown(tab)
    press(tab, ["1"])
    all_saved(tab)
    assert text(tab, "#decided") == "All 1 decided"
    assert [event.label for event in ledger.labels(stage.project).values()] == ["good"]


@pytest.mark.slow
def test_nothing_is_lost_while_the_server_is_gone_in_a_burst(mortal, new_tab):
    server, reviewed = mortal
    tab = shown(new_tab(reviewed.address))
    press(tab, "123" * 3)
    server.kill()
    press(tab, "123" * 3)
    tab.wait_for_selector("header .saving[data-state=away]")
    time.sleep(AWAY_S)
    press(tab, "123" * 3)
    unsaved = int(text(tab, "header .saving").split()[0])
    assert unsaved >= 18 and text(tab, "#decided") == "27 of 40 decided" and "kept in this browser" in text(tab, "#trouble-text")
    assert tab.evaluate("!dispatchEvent(new Event('beforeunload', { cancelable: true }))")  # the tab warns
    server.start()
    all_saved(tab)
    assert reviewed.labels() == ["good", "needs_correction", "reject"] * 9 + [None] * 13
    assert len([event for key in reviewed.keys for event in ledger.history(reviewed.project, key)]) == 27
    assert tab.evaluate("dispatchEvent(new Event('beforeunload', { cancelable: true }))") and not tab.is_visible("#trouble")


def test_fast_keys_go_together_over_a_slow_line(server, new_tab):
    reviewed = await_review(server, "slow line", 60)
    tab = new_tab("about:blank")
    tab.add_init_script(SLOW)
    tab.goto(reviewed.address)
    shown(tab)
    press(tab, "123" * 20)
    assert text(tab, "header .saving") == "Saving 60" and text(tab, "#decided") == "All 60 decided"
    tab.evaluate("quicken()")
    all_saved(tab)
    assert tab.evaluate("sent") == [1, 59, 59]  # the second one's answer was lost: sent again
    assert reviewed.labels() == ["good", "needs_correction", "reject"] * 20
    events = [ledger.history(reviewed.project, key) for key in reviewed.keys]
    assert [len(each) for each in events] == [1] * 60
    ids = [event.id for (event,) in events]
    assert ids == sorted(ids) and len({event.batch for (event,) in events}) == 60
    press(tab, "uu")
    all_saved(tab)
    assert reviewed.labels()[56:] == ["reject", "good", None, None]  # each is a step of its own


def test_two_tabs_and_a_script_at_once_end_with_the_same(server, new_tab):
    reviewed = await_review(server, "at once", 40)
    one, two = shown(new_tab(reviewed.address)), shown(new_tab(reviewed.address, visitor="two"))
    press(two, ["End"])

    def script():
        for key in reviewed.keys[16:24]:
            post(labels_address(reviewed), {"reviewer": "script", "events": [{"key": key, "label": "needs_correction"}]})

    other = threading.Thread(target=script)
    other.start()
    for number in range(16):
        press(one, ["1"])
        press(two, ["3", "End", *["ArrowLeft"] * (number + 1)])  # from the other end
    other.join()
    for tab in (one, two):
        all_saved(tab)
    want = reviewed.labels()
    assert want == ["good"] * 16 + ["needs_correction"] * 8 + ["reject"] * 16
    for tab in (one, two):
        tab.wait_for_function("document.querySelector('#decided').textContent === 'All 40 decided'")
        seen = tab.evaluate(
            "async (keys) => { const { items } = await (await fetch(location.pathname + '/' + keys + '/enriched/v1')).json(); return items.map(({ label }) => label) }",
            reviewed.project.folder_name,
        )
        assert seen == want


def test_two_people_on_one_image_both_stand_in_the_history_and_each_undoes_their_own(reviewed, new_tab):
    one, two = shown(new_tab(reviewed.address)), new_tab("about:blank", visitor="two")
    two.context.add_init_script("localStorage.setItem('flenwheel.reviewer', 'Grace')")
    two.goto(reviewed.address)
    shown(two)
    press(one, ["1"])
    decided(two, 1)
    press(two, ["Home", "3"])
    all_saved(two)
    one.wait_for_function("document.querySelector('.card').dataset.label === 'reject'")
    assert names(reviewed)[0] == "Grace" and "good" not in text(two, "#undo-what").lower()
    press(one, ["u"])
    all_saved(one)
    history = ledger.history(reviewed.project, reviewed.keys[0])
    assert [(event.reviewer, event.label, event.undone) for event in history] == [("reviewer", "good", True), ("Grace", "reject", False)]
    assert reviewed.labels()[0] == "reject"  # undoing one's own verdict leaves the other's
    one.wait_for_function("document.querySelector('.card').dataset.label === 'reject'")
    press(one, ["Home", "Enter"])
    one.wait_for_function("document.querySelectorAll('#history li').length === 2")
    assert "Grace" in text(one, "#history") and "undone" in text(one, "#history")


def test_a_clock_that_was_set_back_changes_no_order(reviewed, new_tab):
    tomorrow = (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(timespec="milliseconds")
    ledger.record(reviewed.project, [ledger.LabelEvent(reviewed.keys[0], "reject", reviewer="reviewer", at=tomorrow)])
    tab = shown(new_tab(reviewed.address))
    press(tab, ["f", "Home", "1"])
    all_saved(tab)
    assert reviewed.labels()[0] == "good" and text(tab, "#undo-what") == "Undo “Good”"
    press(tab, ["u"])
    all_saved(tab)
    assert reviewed.labels()[0] == "reject"


@pytest.fixture(scope="module")
def neighbour(server, comfyui, tmp_path_factory):
    """A second ComfyUI process on the same output folder, which listens on the network."""
    shared = ("--output-directory", str(server.base / "output"), "--listen", "0.0.0.0")
    with Server(
        comfyui, Path(sys.executable), tmp_path_factory.mktemp("neighbour"), extra_args=shared, env={**os.environ, "FLENWHEEL_TOKEN": TOKEN}
    ) as running:
        yield running


@pytest.mark.slow
def test_two_servers_on_one_project_lose_nothing_and_see_each_other(reviewed, neighbour, server, new_tab):
    here = shown(new_tab(reviewed.address))
    there = shown(new_tab(reviewed.address.replace(server.address, neighbour.address), visitor="two"))
    press(there, ["End"])
    for number in range(5):
        press(here, ["1"])
        press(there, ["3", "End", *["ArrowLeft"] * (number + 1)])  # from the other end
    all_saved(here)
    all_saved(there)
    for tab in (here, there):
        look(tab)
        decided(tab, len([label for label in reviewed.labels() if label]))
    assert reviewed.labels() == ["good"] * 5 + [None, None] + ["reject"] * 5
    assert len([event for key in reviewed.keys for event in ledger.history(reviewed.project, key)]) == 10


@pytest.mark.slow
def test_a_tablet_in_the_house_needs_the_token_once(reviewed, neighbour, server, new_tab):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing; says by which address others would see us
        except OSError:
            pytest.skip("this machine has no address but its own")
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but its own")
    address = reviewed.address.replace(server.address, f"http://{own}:{neighbour.port}")
    tab = new_tab(address, viewport={"width": 820, "height": 1180}, has_touch=True)
    assert "token" in tab.text_content("body")
    tab.goto(f"{address}&token={TOKEN}")
    tab.wait_for_selector(".card")
    tab.goto(address)  # from now on it is known
    shown(tab)
    assert tab.evaluate("!window.isSecureContext && !navigator.locks")  # plain http: what browsers then leave out is done without
    tab.tap(".card >> nth=0")
    tab.tap(".verdict.good")
    tab.tap(".verdict.reject")
    all_saved(tab)
    assert reviewed.labels()[:3] == ["good", "reject", None]
    tab.wait_for_function("document.querySelector('#picture').naturalWidth === 192")
    tab.evaluate("document.querySelector('#viewer-repair').click()")
    tab.get_by_text("Edit in another program").tap()
    tab.wait_for_function("document.querySelector('.dialog-trouble').textContent.includes('machine that runs ComfyUI')")
