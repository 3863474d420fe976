"""The page at /dashboard in a real Chromium, before the endpoint as `freshet serve` starts it, with a key.

The tests run in the order of the file: the first opens the page before there are figures, the last, which takes as long
as all the others, restarts the process. Pictures of the page are left in var/page.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, expect

from infra.clock import now_ms
from infra.kafka.broker import LocalBroker
from infra.storage import ObjectStore
from streams.catalogue import semantic_id_key
from streams.client import flush, producer, send
from streams.events import DeadLetter, VideoRemoved, VideoUploaded
from streams.figures import write_figures
from streams.topics import DEAD_LETTERS, SEMANTIC_IDS, UPLOADS
from tests.browser import chromium
from tests.integration.serving_process import START_S, Endpoint, new_settings, start
from tests.page_figures import figures, swap
from tests.tiny_serving import assigned, publish_tiny_codebook

pytestmark = pytest.mark.integration

PICTURES = Path(__file__).parents[2] / "var" / "page"
API_KEY = "the key of the page's test"
NUM_VIDEOS = 30
SCRIPT = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>"
WIDE, NARROW = 1280, 390
REACT_MS = 60_000

expect.set_options(timeout=REACT_MS)
Open = Callable[..., Page]
ColorScheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def endpoint(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Thirty videos, one of which has markup for a title, and a model; always at the same port."""
    folder = tmp_path_factory.mktemp("page")
    settings = new_settings(broker, SERVE__API_KEY=API_KEY, SERVE__PORT=str(free_port()))
    publish_tiny_codebook(ObjectStore(str(folder / "store")))
    client = producer(settings.kafka)
    for number in range(NUM_VIDEOS):
        video = assigned(number, age_h=number, append_time_ms=now_ms())
        more: dict[str, Any] = {"assigned_time_ms": now_ms()}
        if number == 0:
            more["title"] = SCRIPT
        video = video.model_copy(update=more)
        send(client, settings.kafka, SEMANTIC_IDS, semantic_id_key(video.video_id, 1), video)
    flush(client)
    endpoint = start_with_key(settings, folder)
    endpoint.promote(endpoint.checkpoint(1))
    endpoint.until(lambda: bool(endpoint.status()["ready"]), "the model to be loaded")
    yield endpoint
    stop(endpoint)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start_with_key(settings: Any, folder: Path) -> Endpoint:
    endpoint = start(settings, folder)
    endpoint.http.headers["X-API-Key"] = API_KEY
    return endpoint


def stop(endpoint: Endpoint) -> None:
    endpoint.http.close()
    endpoint.process.send_signal(signal.SIGTERM)
    endpoint.process.wait(START_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(endpoint: Endpoint, browser: Browser) -> Iterator[Open]:
    """Opens pages, and finds at their end that they asked nobody else, and broke no policy and no script."""
    base = str(endpoint.http.base_url).rstrip("/")
    pages: list[Page] = []
    wrong: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(f"{base}/") or API_KEY in request.url:
            wrong.append(request.url)

    def note_error(error: Error) -> None:
        wrong.append(str(error))

    def note_line(said: ConsoleMessage) -> None:
        if said.type == "error":
            wrong.append(said.text)

    def make(
        *, key: str = API_KEY, scheme: ColorScheme = "light", width: int = WIDE, of: str = ""
    ) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", note)
        page.on("pageerror", note_error)
        page.on("console", note_line)
        if key:
            page.add_init_script(f"sessionStorage.setItem('freshet.api_key', {key!r})")
        page.goto(f"{base}/dashboard{of}")
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.close()
    refused = "Failed to load resource"  # the browser's own line for what an answer's status or absence says anyway
    assert [line for line in wrong if not line.startswith(refused)] == []


def write(endpoint: Endpoint, **more: Any) -> None:
    write_figures(ObjectStore(str(endpoint.folder / "store")), figures(now_ms(), **more))


def section(page: Page, name: str) -> Any:
    return page.get_by_role("region", name=name, exact=True).first


def test_page_asks_for_the_key_and_keeps_it_in_the_tab(open_page: Open) -> None:
    page = open_page(key="")
    field = page.get_by_label("API key")
    expect(field).to_be_visible()
    expect(page.get_by_role("heading", name="Cold start by arm")).to_have_count(0)
    field.fill("another")
    field.press("Enter")
    expect(page.get_by_text("does not take that key")).to_be_visible()
    field.fill(API_KEY)
    field.press("Enter")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.url.endswith("/dashboard")


def test_without_any_figures_the_page_says_so(endpoint: Endpoint, open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_text("The freshness worker has written no figures yet.")).to_be_visible()
    expect(page.get_by_text("Nothing was shown yet.")).to_be_visible()
    expect(section(page, "Pipeline")).to_contain_text("not yet")
    expect(page.locator(".facts")).to_contain_text(f"{NUM_VIDEOS}")  # of the replica, not figures


def test_figures_change_as_the_worker_writes_them(endpoint: Endpoint, open_page: Open) -> None:
    write(endpoint)
    page = open_page()
    facts, arms = page.locator(".facts"), page.locator(".arms")
    expect(facts).to_contain_text("14.9 %")
    expect(arms.get_by_role("row")).to_have_count(5)
    expect(arms.get_by_role("row", name="lrm fresh")).to_contain_text("23.9 %")
    expect(section(page, "Pipeline")).to_contain_text("658 ms")
    expect(section(page, "Pipeline")).to_contain_text("all so far 731 ms")
    expect(page.get_by_role("log")).not_to_contain_text("lrm 45")
    write(endpoint, coverage=0.777, swaps_newest=[swap(45, now_ms())])
    expect(facts).to_contain_text("77.7 %")
    expect(page.get_by_role("log")).to_contain_text("lrm 45")


def test_charts_are_drawn_and_can_be_read_as_tables(endpoint: Endpoint, open_page: Open) -> None:
    write(endpoint)
    page = open_page()
    part = section(page, "Prequential recall")
    drawn = part.locator("canvas").evaluate(
        "one => new Set(new Uint32Array(one.getContext('2d')"
        ".getImageData(0, 0, one.width, one.height).data.buffer)).size"
    )
    assert drawn > 3  # colours: ground, grid, lines
    part.get_by_text("Recall at 10, by round, as a table").click()
    expect(part.get_by_role("row").nth(1)).to_contain_text("%")


def test_figures_that_are_odd_cost_their_own_part_only(endpoint: Endpoint, open_page: Open) -> None:
    write(endpoint, newest_uploads=[None], cold_start="none", by_arm=5, delays_s=None, swaps=[])
    page = open_page()
    expect(page.get_by_text("This part cannot be drawn")).to_have_count(1)
    expect(page.get_by_role("heading", name="Ask")).to_be_visible()
    write(endpoint)
    expect(page.get_by_text("This part cannot be drawn")).to_have_count(0)
    expect(page.locator(".uploads").get_by_role("row")).to_have_count(13)


def test_keyboard_alone_asks_and_hears_why(endpoint: Endpoint, open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    tab_to(page, "User")
    page.keyboard.type("viewer")
    page.keyboard.press("Tab")
    page.keyboard.press("s")  # the first surface with that letter
    page.keyboard.press("Tab")
    page.keyboard.type("something about the sea")
    with page.expect_request("**/v1/recommendations") as sent:
        page.keyboard.press("Enter")
    assert sent.value.post_data_json == {
        "user_id": "viewer", "surface": "shorts", "intent": "something about the sea", "k": 10,
    }  # fmt: skip
    rows = page.locator(".answer tbody tr")
    expect(rows).to_have_count(10)
    expect(page.get_by_text("10 videos recommended.")).to_have_count(1)
    tab_to(page, "Why ")
    page.keyboard.press("Enter")
    expect(page.locator(".why")).to_contain_text("Made of the evidence")
    page.keyboard.press("Enter")
    expect(page.locator(".why")).to_have_count(0)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus goes by a name that begins so."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate(
            "(name) => { const has = document.activeElement;"
            "const says = has.ariaLabel || has.labels?.[0]?.textContent || has.textContent;"
            "return says.trim().startsWith(name.trim()) }",
            name,
        ):
            return
    raise AssertionError(f"Tab does not lead to {name!r}")


def test_answer_has_title_score_age_and_source(endpoint: Endpoint, open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Recommend").click()
    first = page.locator(".answer tbody tr").first
    expect(first).to_be_visible()
    asked = endpoint.ask(k=10)["items"][0]
    assert asked["score"] is not None
    expect(page.locator(".answer")).to_contain_text(asked["title"])
    expect(page.locator(".answer")).to_contain_text(f"{asked['score']:.2f}")
    expect(page.locator(".answer")).to_contain_text(asked["source"])


def test_titles_are_text_wherever_they_stand(endpoint: Endpoint, open_page: Open) -> None:
    upload = figures(now_ms())["newest_uploads"][0] | {"title": SCRIPT}
    write(endpoint, newest_uploads=[upload])
    page = open_page()
    page.locator(".uploads").get_by_role("button", name=SCRIPT).click()
    expect(page.get_by_role("dialog").get_by_role("heading", name=SCRIPT)).to_be_visible()
    assert page.evaluate("window.ran") is None


def test_trace_of_a_video_opens_follows_and_closes(endpoint: Endpoint, open_page: Open) -> None:
    write(endpoint)
    page, asked = open_page(), "somebody-new"
    title = page.locator(".uploads .title").nth(1)
    title.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Video 1")).to_be_visible()
    expect(dialog).to_contain_text("it can be recommended now")
    expect(dialog.locator(".way li", has_text="Semantic ID")).to_contain_text(
        "A1 B0 C0, codebook 1"
    )
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(title).to_be_focused()
    page.get_by_label("Where is my upload?").fill(asked)
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("No replica knows this id")
    event = assigned(40).model_copy(update={"video_id": asked, "title": "Here now"})
    endpoint.publish(SEMANTIC_IDS, semantic_id_key(asked, 1), event)
    expect(dialog.get_by_role("heading", name="Here now")).to_be_visible()
    page.go_back()
    expect(dialog).to_have_count(0)


def test_trace_says_what_became_of_an_upload_that_is_not_live(
    endpoint: Endpoint, open_page: Open
) -> None:
    page = open_page(of="#video=sent")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("No replica knows this id")
    endpoint.publish(UPLOADS, "sent", upload("uploaded"))
    expect(dialog).to_contain_text("On its way")
    expect(dialog.locator(".way li.done")).to_have_text([re.compile("^Uploaded")])
    letter = DeadLetter(
        topic=UPLOADS.name, partition=0, offset=0, reason="media_gone", detail="", refused_time_ms=1
    )
    endpoint.publish(DEAD_LETTERS[UPLOADS.name], "sent", letter)
    expect(dialog.locator(".state")).to_contain_text("Refused: media gone")
    expect(dialog.locator(".way li")).to_have_count(2)
    endpoint.publish(UPLOADS, "sent", upload("removed"))
    expect(dialog.locator(".state")).to_contain_text("Removed")
    assert violations(page) == []


def upload(kind: Literal["uploaded", "removed"]) -> VideoUploaded | VideoRemoved:
    if kind == "removed":
        return VideoRemoved(video_id="sent", event_time_ms=1, type="removed")
    return VideoUploaded(video_id="sent", event_time_ms=1, title="A film")


def test_address_of_a_trace_opens_it(endpoint: Endpoint, open_page: Open) -> None:
    page = open_page(of="#video=v-3")
    expect(page.get_by_role("dialog").get_by_role("heading", name="Video 3")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_page_is_accessible_and_fits(
    endpoint: Endpoint, open_page: Open, scheme: ColorScheme, width: int
) -> None:
    write(endpoint)
    page = open_page(scheme=scheme, width=width)
    page.get_by_label("User").fill("viewer")
    page.get_by_role("button", name="Recommend").click()
    page.locator(".answer").get_by_role("button", name="Why").first.click()
    expect(page.locator(".why small")).to_be_visible()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 245)"
    assert light == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{scheme}-{width}.png", full_page=True)
    page.locator(".uploads .title").nth(4).click()
    expect(page.locator(".way li.done").first).to_be_visible()
    assert violations(page) == []
    page.screenshot(path=PICTURES / f"{scheme}-{width}-trace.png")


def violations(page: Page) -> list[str]:
    """Return what axe-core finds: WCAG 2.2 A and AA, and its best practices."""
    return [
        f"{found['id']}: {found['help']}: {node['html'][:200]}"
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
    ]


def test_figures_stay_while_nobody_answers_and_go_on_by_themselves(
    endpoint: Endpoint, open_page: Open
) -> None:
    write(endpoint, coverage=0.123)
    page = open_page()
    expect(page.locator(".facts")).to_contain_text("12.3 %")
    page.context.set_offline(True)
    expect_last_figures(page, "12.3 %")
    page.screenshot(path=PICTURES / "no-answer.png")
    page.get_by_role("button", name="Recommend").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    write(endpoint, coverage=0.456)
    page.context.set_offline(False)
    expect_live_figures(page, "45.6 %")


@pytest.mark.long
def test_restarted_server_is_found_again(endpoint: Endpoint, open_page: Open) -> None:
    write(endpoint, coverage=0.123)
    page = open_page()
    expect(page.locator(".facts")).to_contain_text("12.3 %")
    stop(endpoint)
    expect_last_figures(page, "12.3 %")
    again = start_with_key(endpoint.settings, endpoint.folder)
    endpoint.process, endpoint.http = again.process, again.http
    write(endpoint, coverage=0.456)
    expect_live_figures(page, "45.6 %")


def expect_last_figures(page: Page, coverage: str) -> None:
    expect(page.get_by_text("No answer", exact=True)).to_be_visible()
    expect(page.locator("main.stale")).to_contain_text("The figures are those of")
    expect(page.locator(".facts")).to_contain_text(coverage)


def expect_live_figures(page: Page, coverage: str) -> None:
    expect(page.locator(".facts")).to_contain_text(coverage)
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.locator("main.stale")).to_have_count(0)
