"""The page of `distcam serve`, used as a person would: in headless Chromium, against a real server on a free port."""

from __future__ import annotations

import base64
import copy
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the server needs pip install 'distcam[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs pip install 'distcam[serve]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
)

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no `chromium` to test the page in"),
    pytest.mark.filterwarnings("ignore:what lines are measured against:distcam.remarks.DistcamWarning"),
]

PATIENCE_MS = 8000
HOSTILE = "<img src=x onerror=alert(1)>"


# --- A server, a browser, and pages that must stay quiet -------------------------------------------------------------


class Served:
    """An application on a free port of this machine, in a thread."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> Served:
        self.thread.start()
        end = time.monotonic() + 30
        while not self.server.started:
            assert self.thread.is_alive()
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def gallery_folder(small_encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of scenes, a column, kept maps, a threshold, and one image whose name and label are markup."""
    from distcam.index import Gallery
    from distcam.synthetic.blueprint import blueprints
    from distcam.synthetic.scene_set import write_scenes

    folder = tmp_path_factory.mktemp("page")
    write_scenes(folder / "set", classes=blueprints(4), splits={"photos": 6}, size=64, two_object_share=0.0)
    photos = folder / "set" / "photos"
    rows = [(path.relative_to(photos), path.parent.name) for path in sorted(photos.glob("*/*.jpg"))]
    hostile = photos / f"{HOSTILE}.jpg"
    shutil.copy(photos / rows[0][0], hostile)
    lines = [f"{path},{label},{number % 3}" for number, (path, label) in enumerate(rows)]
    lines.append(f'"{HOSTILE}.jpg","{HOSTILE}",<b>7</b>')
    (photos / "list.csv").write_text("\n".join(["path,label,camera", *lines]), encoding="utf-8")
    out = folder / "page.gallery"
    with Gallery.build(photos / "list.csv", small_encoder, out=out, precision="fp32", store_maps=True) as gallery:
        gallery.calibrate(false_alarm_rate=0.2)
    return out


@pytest.fixture(scope="module")
def server(gallery_folder: Path) -> Iterator[Served]:
    from distcam.server.app import create_app
    from distcam.server.settings import ServerSettings

    with Served(create_app(ServerSettings(gallery=gallery_folder, rate=0))) as served:
        yield served


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Visit:
    """A page with a few words for what the tests do again and again."""

    def __init__(self, page: Any, served: Served) -> None:
        self.page, self.base = page, served.address

    def open(self, state: str = "") -> Visit:
        self.page.goto("about:blank")  # a change of the hash alone would not load the page anew
        self.page.goto(self.base + state)
        return self

    def answered(self) -> Visit:
        """Wait for matches with their maps."""
        self.page.locator("#status", has_text="Answered in").wait_for(timeout=PATIENCE_MS)
        return self

    def ask(self, stored: int, state: str = "") -> Visit:
        return self.open(f"#id={stored}&{state}").answered()

    def upload(self, picture: bytes, name: str = "probe.png", kind: str = "image/png") -> Visit:
        self.page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": picture})
        return self.answered()

    def expect(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for(timeout=PATIENCE_MS)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.text_content())

    def pixels(self, selector: str) -> np.ndarray[Any, Any]:
        url = self.page.locator(selector).first.evaluate("canvas => canvas.toDataURL('image/png')")
        data = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)

    def hash(self) -> str:
        return urlsplit(self.page.url).fragment

    def matches(self) -> list[int]:
        return [int(each) for each in self.page.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.id)")]

    def set(self, selector: str, value: str) -> None:
        """Move a slider as a hand does."""
        script = "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }"
        self.page.locator(selector).evaluate(script, value)


class Visits:
    """Opens pages, and looks afterwards that none complained or called elsewhere."""

    def __init__(self, chromium: Any, served: Served) -> None:
        self.chromium, self.served = chromium, served
        self.troubles: list[str] = []
        self.allowed: tuple[str, ...] = ()
        self.contexts: list[Any] = []
        self.requests: list[Any] = []

    def __call__(self, **options: Any) -> Visit:
        context = self.chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and self.troubles.append(said.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", self._note)
        page.on("dialog", lambda dialog: (self.troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.contexts.append(context)
        return Visit(page, self.served)

    def _note(self, request: Any) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.served.address, "data:", "blob:")):
            self.troubles.append(f"request to {request.url}")

    def count(self, path: str) -> int:
        return sum(urlsplit(request.url).path == path for request in self.requests)

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        unexpected = [trouble for trouble in self.troubles if not any(part in trouble for part in self.allowed)]
        assert unexpected == []


@pytest.fixture
def visits(chromium: Any, server: Served) -> Iterator[Visits]:
    opened = Visits(chromium, server)
    yield opened
    opened.close()


@pytest.fixture
def visit(visits: Visits) -> Visit:
    return visits()


@pytest.fixture(scope="module")
def probe(gallery_folder: Path) -> bytes:
    """An image as PNG: its pixels are the same on both sides of the wire."""
    from distcam.index import Gallery

    with Gallery.open(gallery_folder) as gallery:
        file = gallery.file(8)
    stream = io.BytesIO()
    Image.open(file).resize((120, 90)).save(stream, "PNG")
    return stream.getvalue()


TRANSFER = """([data, name, kind]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: kind }));
  return transfer;
}"""


def transfer_of(visit: Visit, picture: bytes, name: str = "dropped.png", kind: str = "image/png") -> Any:
    data = base64.b64encode(picture).decode()
    return visit.page.evaluate_handle(TRANSFER, [data, name, kind])


# --- How an image comes in ------------------------------------------------------------------------------------------


def test_a_dropped_image_finds_its_matches_and_shows_them_with_maps(visit: Visit, probe: bytes) -> None:
    visit.open()
    visit.expect("#gallery-facts", "25 images")
    visit.page.locator("#drop").dispatch_event("drop", {"dataTransfer": transfer_of(visit, probe)})
    visit.answered()
    assert len(visit.matches()) == 10
    assert visit.text("#query-name") == "dropped.png"
    assert visit.text("#query-size") == "120 × 90"
    assert "similarity" in str(visit.page.locator(".card").first.get_attribute("aria-label"))
    assert visit.pixels("#query-canvas").shape == (90, 120, 3)
    assert "upload=" in visit.hash()
    visit.expect("#meaning", "rank correlation")


@pytest.mark.slow
def test_a_pasted_image_is_taken_and_other_things_are_not(visit: Visit, probe: bytes) -> None:
    visit.open()
    visit.expect("#gallery-facts", "images")
    paste = "transfer => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer }))"
    transfer_of(visit, b"words", "notes.txt", "text/plain").evaluate(paste)
    visit.expect("#alert", "That is not an image.")
    transfer_of(visit, probe).evaluate(paste)
    visit.answered()
    assert visit.page.locator("#alert").is_hidden()


def test_a_stored_image_is_found_by_filter_and_page_and_becomes_the_query(visits: Visits) -> None:
    visit, visits.allowed = visits(), ("400",)
    visit.open()
    visit.page.locator("#starter-list .thumb").first.wait_for()
    visit.page.locator("#browse").click()
    visit.page.locator("#browser-where").fill("camra=1")
    visit.page.keyboard.press("Enter")
    visit.expect("#browser-error", "did you mean 'camera'?")
    visit.page.locator("#browser-where").fill("camera=1")
    visit.page.keyboard.press("Enter")
    visit.expect("#browser-place", "1–8 of 8 images")
    assert visit.page.locator("#browser-error").is_hidden()
    third = visit.page.locator("#browser-list .thumb").nth(2)
    stored = third.get_attribute("data-id")
    third.click()
    visit.answered()
    assert f"id={stored}" in visit.hash()
    assert int(str(stored)) not in visit.matches()  # an image is not its own match


def sideways() -> tuple[bytes, Image.Image]:
    """A JPEG of four colours that is stored lying down, and how it is meant to be seen."""
    upright = Image.new("RGB", (40, 64))
    for box, colour in {(0, 0, 20, 32): "red", (20, 0, 40, 32): "lime", (0, 32, 20, 64): "blue"}.items():
        upright.paste(colour, box)
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to see it
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=98, exif=exif, subsampling=0)
    return stream.getvalue(), upright


def test_the_browser_and_the_server_turn_an_image_the_same_way(visit: Visit) -> None:
    data, upright = sideways()
    visit.open()
    visit.expect("#gallery-facts", "images")
    visit.upload(data, "phone.jpg", "image/jpeg")
    assert visit.text("#query-size") == "40 × 64"  # in the server's words
    visit.set("#opacity", "0")
    assert np.abs(visit.pixels("#query-canvas") - np.asarray(upright).astype(int)).mean() < 4


@pytest.mark.slow
def test_an_image_that_is_too_large_for_the_server_is_made_smaller_by_the_browser(visits: Visits) -> None:
    visit = visits()
    limits = {"image_bytes": 4000, "pixels": 64_000_000, "k": 100}

    def answer(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"limits": limits})

    visit.page.route("**/api/v1/gallery", answer)
    visit.open()
    visit.expect("#gallery-facts", "images")
    noise = np.random.default_rng(0).integers(0, 60, (60, 80, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    visit.upload(stream.getvalue())
    visit.expect("#query-note", "Larger than the server takes: sent as 80 × 60 pixels.")


@pytest.mark.slow
def test_a_kind_of_image_that_only_the_browser_reads_is_turned_into_a_png(visit: Visit, probe: bytes) -> None:
    visit.open()
    visit.expect("#gallery-facts", "images")
    as_png = visit.upload(probe).matches()
    stream = io.BytesIO()
    Image.open(io.BytesIO(probe)).save(stream, "BMP")
    visit.upload(stream.getvalue(), "probe.bmp", "image/bmp")
    visit.expect("#query-note", "Sent to the server as a PNG.")
    assert visit.matches() == as_png


# --- Maps ------------------------------------------------------------------------------------------------------------


def test_the_opacity_slider_changes_the_pixels_of_both_sides(visit: Visit) -> None:
    visit.ask(3, "weighting=caam")
    seen = {}
    for opacity in ("0", "50", "100"):
        visit.set("#opacity", opacity)
        seen[opacity] = (visit.pixels("#query-canvas"), visit.pixels(".card canvas"))
    for bare, half, full in zip(seen["0"], seen["50"], seen["100"], strict=True):
        assert np.abs(half - (bare + full) / 2).mean() < 2  # half of the colours, half of the way
        assert np.abs(full - bare).mean() > 8
    assert visit.text("#opacity-value") == "100 %"
    visit.page.locator("body").press("[")
    assert visit.text("#opacity-value") == "95 %"


def test_a_map_has_the_values_that_the_library_gives_it(visit: Visit, gallery_folder: Path) -> None:
    from distcam.explain import colourise, normalise, upsample
    from distcam.retrieval import Retriever

    visit.ask(3, "weighting=dist*s&scale=own&opacity=100&k=2")
    got = visit.pixels("#query-canvas")
    visit.set("#opacity", "0")
    picture = visit.pixels("#query-canvas")
    matches = Retriever(gallery_folder).query_stored(3, k=2)
    raw = matches.explain(weighting="dist*s").query_maps[:1]
    heat = upsample(normalise(raw), picture.shape[:2])[0].numpy()
    share = 0.25 + 0.75 * heat[..., None]
    wanted = picture + share * (colourise(heat) - picture.astype(float))
    assert np.abs(got - wanted).mean() < 3


DRAWN = """async (view) => {
  const { draw, layerOf } = await import("/static/maps.js");
  const picture = document.createElement("canvas"), drawn = document.createElement("canvas");
  [picture.width, picture.height] = [100, 50];
  picture.getContext("2d").fillRect(0, 0, 100, 50);
  const layer = layerOf({ rows: 1, columns: 2, values: [3, 7] }, [3, 7], false);
  draw(drawn, picture, 100, { layer, view, size: [200, 100], opacity: 1 });
  const { data } = drawn.getContext("2d").getImageData(0, 25, 100, 1);
  return [2, 20, 30, 48, 52, 70, 80, 97].map((x) => data[4 * x]);
}"""


def test_a_map_lies_on_the_part_of_the_image_that_was_seen(visit: Visit) -> None:
    visit.open()
    cropped = visit.page.evaluate(DRAWN, [50, 0, 150, 100])  # in pixels of the image, which is shown at half its size
    assert cropped[:2] == cropped[-2:]  # nothing but shade outside
    assert max(cropped[:2]) < 16
    assert cropped[2] < 10 < cropped[3] < cropped[4] < cropped[5]
    assert cropped[5] > 240
    padded = visit.page.evaluate(DRAWN, [0, -50, 200, 150])  # beyond the image above and below
    assert padded[0] < 10
    assert padded == sorted(padded)
    assert padded[-1] > 240


def test_another_weighting_costs_one_small_request_and_signed_maps_have_their_zero_in_the_middle(
    visits: Visits,
) -> None:
    visit = visits().ask(3, "scale=shared")
    before = visit.pixels("#query-canvas")
    asked = visits.count("/api/v1/search/stored"), visits.count("/api/v1/explain")
    visit.page.locator("#weighting").select_option("dot_centered")
    visit.expect("#meaning", "Orange speaks for the match, blue against it")
    assert (visits.count("/api/v1/search/stored"), visits.count("/api/v1/explain")) == (asked[0], asked[1] + 1)
    assert np.abs(visit.pixels("#query-canvas") - before).mean() > 1
    low, high = (float(visit.text(f"#legend-{end}").replace("−", "-").strip("aginstfor ")) for end in ("low", "high"))
    assert low == -high < 0
    assert np.abs(visit.pixels("#legend-canvas")[0, 127] - (242, 242, 238)).max() < 6
    visit.expect("#weighting-hint", "dot_centered: ")


def test_what_is_taken_off_is_chosen_for_root_ratio_and_kept_in_the_address(visit: Visit) -> None:
    visit.ask(3, "scale=shared")
    visit.expect("#meaning", "is taken off")
    visit.page.locator("#mean").select_option("border")
    visit.expect("#meaning", "What lies at the edges of this gallery's images is taken off")
    visit.page.wait_for_url("**mean=border*")
    visit.page.locator("#weighting").select_option("dist")
    visit.expect("#weighting-hint", "dist: ")
    assert visit.page.locator("#mean").is_disabled()
    assert "mean=" not in visit.page.url


@pytest.mark.slow
def test_one_scale_for_all_differs_from_each_its_own(visit: Visit) -> None:
    visit.ask(3, "weighting=dot")
    visit.page.locator(".card canvas").nth(8).wait_for()
    own = visit.pixels(".card:nth-child(5) canvas")
    visit.page.locator("#scale").check()
    visit.expect("#legend-high", "for")
    assert np.abs(visit.pixels(".card:nth-child(5) canvas") - own).mean() > 0.5
    visit.page.wait_for_url("**scale=shared*")  # written once the controls rest


def test_a_first_hit_that_is_the_query_itself_leaves_the_others_their_maps(visit: Visit) -> None:
    visit.ask(3, "weighting=dot_centered&box=8,8,48,48&opacity=100")
    visit.page.locator(".card canvas").nth(8).wait_for()
    assert not visit.page.locator("#scale").is_checked()
    for card in (1, 2, 5, 9):  # the strongest colours of the scale are somewhere on every map
        picture = visit.pixels(f".card:nth-child({card}) canvas")
        assert (picture.max(-1) - picture.min(-1)).max() > 90


def test_after_a_refused_upload_nothing_of_the_answer_before_it_is_left(visits: Visits, probe: bytes) -> None:
    visit, visits.allowed = visits(), ("415", "404")
    visit.open().expect("#gallery-facts", "25 images")
    for refused in (b"no image at all", probe[:60]):
        visit.upload(probe)
        assert visit.page.locator("#class-list button").count()
        visit.page.locator("#file").set_input_files({"name": "text.jpg", "mimeType": "image/jpeg", "buffer": refused})
        visit.page.locator("#alert-text").wait_for()
        assert visit.text("#query-name") == "text.jpg"
        assert visit.matches() == []
        for selector in (
            "#query-size",
            "#query-note",
            "#classes",
            "#verdict",
            "#legend",
            "#box-tools",
            "#hint",
            "#stage",
        ):
            assert not visit.page.locator(selector).is_visible(), selector
        assert visit.page.locator("#export-png").is_disabled()
    visit.upload(probe)
    visit.ask(3)
    visit.page.evaluate("location.hash = '#id=4711'")
    visit.expect("#alert", "There is no image 4711")
    assert visit.matches() == []
    assert not visit.page.locator("#stage-figure").is_visible()


def test_a_server_with_a_read_token_asks_for_it_once(chromium: Any, gallery_folder: Path) -> None:
    from distcam.server.app import create_app
    from distcam.server.settings import ServerSettings

    with Served(
        create_app(ServerSettings(gallery=gallery_folder, rate=0, read_token="a-token-to-read-with"))
    ) as served:
        visits = Visits(chromium, served)
        visits.allowed = ("401",)
        visit = visits().open()
        visit.expect("#alert", "This server asks for its read token")
        for token, then in (("a wrong one", "That is not the read token"), ("a-token-to-read-with", "")):
            visit.page.locator("#token").fill(token)
            visit.page.locator("#token-form button").click()
            if then:
                visit.expect("#alert", then)
        visit.expect("#gallery-facts", "25 images")
        visit.ask(3)
        visit.page.locator(".card canvas").nth(4).wait_for()
        assert "a-token" not in visit.page.url
        visits.close()


def test_why_not_this_class_sets_every_match_against_it(visit: Visit) -> None:
    visit.ask(3)
    chip = visit.page.locator("#class-list button").nth(1)
    other = str(chip.get_attribute("data-label"))
    chip.click()
    visit.expect("#meaning", f"Orange speaks for the match, blue for {other}.")
    visit.expect("#legend-low", f"for {other}")
    assert visit.page.locator("#versus").input_value() == other
    assert visit.page.locator("#class-list button").nth(1).get_attribute("aria-pressed") == "true"
    visit.page.locator("#class-list button").nth(1).click()
    visit.expect("#legend-low", "low")
    assert "versus" not in visit.hash()


@pytest.mark.slow
def test_the_query_is_compared_with_the_nearest_prototype_or_a_class(visit: Visit) -> None:
    visit.ask(3)
    visit.page.locator("#against").select_option("prototype")
    visit.expect("#meaning", "The map on the query is for the prototype of")
    visit.page.locator("#against").select_option("label")
    nearest = visit.page.locator("#class-list button").nth(2).get_attribute("data-label")
    visit.page.locator("#against-class").fill(str(nearest))
    visit.page.locator("#against-class").press("Enter")
    visit.expect("#meaning", f"prototype of {nearest}")
    assert "The query with its map for prototype" in str(
        visit.page.locator("#query-canvas").get_attribute("aria-label")
    )


def test_an_uploaded_image_that_the_server_forgot_is_sent_again(visits: Visits, probe: bytes) -> None:
    visit, visits.allowed = visits(), ("410",)
    visit.open()
    visit.expect("#gallery-facts", "images")
    visit.upload(probe)
    sent = visits.count("/api/v1/search")
    visit.page.locator("#weighting").select_option("dot")
    visit.expect("#weighting-hint", "dot: ")
    visit.expect("#meaning", "Orange")
    assert visits.count("/api/v1/search") == sent  # the token was enough
    forgotten = {"detail": "this query is not kept any more; send the image again"}
    visit.page.route("**/api/v1/explain", lambda route: route.fulfill(status=410, json=forgotten), times=1)
    visit.page.locator("#weighting").select_option("caam")
    visit.expect("#legend-low", "low")
    assert visits.count("/api/v1/search") == sent + 1
    assert visit.page.locator("#alert").is_hidden()


# --- Searching -------------------------------------------------------------------------------------------------------


def test_a_box_is_drawn_with_the_mouse_typed_and_taken_away(visit: Visit) -> None:
    whole = visit.ask(3).matches()
    frame = visit.page.locator("#stage").bounding_box()
    left, top, scale = frame["x"], frame["y"], frame["width"] / 64
    visit.page.mouse.move(left + 8 * scale, top + 8 * scale)
    visit.page.mouse.down()
    visit.page.mouse.move(left + 30 * scale, top + 40 * scale, steps=4)
    visit.page.mouse.up()
    visit.page.wait_for_url("**box=**")
    visit.answered()
    edges = [visit.page.locator(f"#box-{edge}").input_value() for edge in ("left", "top", "right", "bottom")]
    assert np.abs(np.array(edges, int) - (8, 8, 30, 40)).max() <= 1
    assert visit.page.locator("#box").is_visible()
    visit.page.locator("#box-tools summary").click()
    visit.page.locator("#box-left").fill("33")
    visit.page.locator("#box-right").fill("20")
    visit.page.locator("#box-form button").click()
    assert not visit.page.locator("#box-right").evaluate("field => field.validity.valid")
    visit.page.locator("#box-right").fill("64")
    visit.page.locator("#box-form button").click()
    visit.page.wait_for_url("**box=33*")
    visit.page.locator("#answer-title").click(force=True)
    visit.page.keyboard.press("Escape")
    visit.page.locator("#box").wait_for(state="hidden")
    visit.answered()
    assert "box" not in visit.hash()
    assert visit.matches() == whole


def test_labels_and_expressions_filter_and_a_wrong_one_is_answered_in_the_servers_words(visits: Visits) -> None:
    visit, visits.allowed = visits().ask(3), ("400",)
    visit.page.locator("#label").focus()
    visit.page.locator("#labels option").nth(3).wait_for(state="attached")
    labels = visit.page.locator("#labels option").evaluate_all("options => options.map(o => o.value)")
    assert HOSTILE in labels
    visit.page.locator("#label").fill(labels[2])
    visit.page.locator("#label").press("Enter")
    visit.expect("#status", "6 matches")
    visit.page.locator("#where").fill("camera=0 or camera=1")
    visit.page.locator("#where").press("Enter")
    visit.expect("#status", "4 matches")
    visit.page.locator("#where").fill("camera=")
    visit.page.locator("#where").press("Enter")
    visit.expect("#where-error", "write for example")
    assert visit.page.locator("#where").get_attribute("aria-invalid") == "true"
    assert len(visit.matches()) == 4  # what was there stays
    visit.page.locator("#where").fill("camera=9")
    visit.page.locator("#where").press("Enter")
    visit.expect("#verdict", "No image of the gallery fits the filter.")
    assert visit.page.locator("#where-error").is_hidden()
    assert visit.page.locator(".card").count() == 0


def test_beyond_the_threshold_there_is_no_match_and_the_rest_is_dimmed(visit: Visit) -> None:
    visit.ask(3)
    visit.page.locator("#threshold").select_option("number")
    visit.page.locator("#max-distance").fill("0.0000001")
    visit.page.locator("#max-distance").press("Enter")
    visit.expect("#verdict", "No match")
    visit.expect("#status", "No match.")
    assert visit.page.locator(".card.is-rejected").count() == 10
    assert "not near enough" in visit.text(".card")
    visit.page.locator("#threshold").select_option("gallery")
    visit.page.wait_for_url("**threshold=gallery*")
    visit.answered()
    assert visit.text("#verdict").startswith(("Known", "No match"))
    visit.page.locator("#threshold").select_option("")
    visit.page.locator("#verdict").wait_for(state="hidden")


# --- Links, history, files -------------------------------------------------------------------------------------------


def test_a_link_brings_the_whole_view_back_elsewhere(visits: Visits, gallery_folder: Path) -> None:
    from distcam.index import Gallery

    with Gallery.open(gallery_folder) as gallery:
        other = gallery.prototypes.labels[2]
    state = (
        "k=4&where=camera%21%3D2&box=4%2C4%2C60%2C50&threshold=0.5&weighting=dot&versus=label%3A{}&opacity=35&match=3"
    )
    first = visits().ask(3, state.format(other))
    first.page.locator("#share").click()
    link = first.page.locator("#share-link").input_value()
    assert "same view" in first.text("#share-note")
    second = visits()
    second.page.goto(link)
    second.answered()
    assert second.matches() == first.matches()
    assert second.page.locator(".card[aria-selected=true]").get_attribute("data-id") == str(first.matches()[2])
    for field, value in {
        "#k": "4",
        "#where": "camera!=2",
        "#weighting": "dot",
        "#opacity": "35",
        "#max-distance": "0.5",
    }.items():
        assert second.page.locator(field).input_value() == value
    assert second.page.locator("#versus").input_value() == other
    assert np.abs(second.pixels("#query-canvas") - first.pixels("#query-canvas")).max() <= 1


@pytest.mark.slow
def test_a_link_says_that_it_cannot_carry_an_uploaded_image(visits: Visits, probe: bytes) -> None:
    first = visits()
    first.open("#k=3&weighting=dot")
    first.expect("#gallery-facts", "images")
    first.upload(probe)
    first.page.locator("#share").click()
    assert "cannot carry your image" in first.text("#share-note")
    second = visits()
    second.page.goto(first.page.locator("#share-link").input_value())
    second.expect("#alert", "Drop that image here")
    second.upload(probe)
    assert second.matches() == first.matches()
    assert len(second.matches()) == 3
    assert second.page.locator("#weighting").input_value() == "dot"


@pytest.mark.slow
def test_back_and_forward_go_through_the_views(visit: Visit, probe: bytes) -> None:
    visit.open()
    visit.expect("#gallery-facts", "images")
    uploaded = visit.upload(probe).matches()
    visit.page.locator("#k").fill("3")
    visit.page.locator("#k").press("Enter")
    visit.expect("#status", "3 matches")
    visit.page.go_back()
    visit.expect("#status", "10 matches")
    assert visit.matches() == uploaded  # the image is still in this tab
    visit.page.go_back()
    visit.expect("#query-title", "Which of these is this?")
    assert visit.page.locator("#matches").is_hidden()
    visit.page.go_forward()
    visit.page.go_forward()
    visit.expect("#status", "3 matches")


def test_the_view_is_saved_as_an_image_and_as_data(visit: Visit) -> None:
    visit.ask(3, "k=4&versus=rank%3A4&weighting=dot")
    visit.page.locator(".card canvas").nth(7).wait_for(state="attached")
    with visit.page.expect_download() as coming:
        visit.page.locator("#export-png").click()
    assert coming.value.suggested_filename.endswith(".png")
    panel = Image.open(coming.value.path())
    assert panel.format == "PNG"
    assert panel.width > 1200
    assert len(np.unique(np.asarray(panel.convert("L")))) > 100
    with visit.page.expect_download() as coming:
        visit.page.locator("#export-json").click()
    data = json.loads(Path(coming.value.path()).read_text(encoding="utf-8"))
    assert [match["id"] for match in data["search"]["matches"]] == visit.matches()
    assert [each["rank"] for each in data["explanation"]["references"]] == [1, 2, 3]  # the fourth is the other side
    assert data["state"]["weighting"] == "dot"


# --- When something is wrong -----------------------------------------------------------------------------------------


def test_a_server_that_is_busy_is_asked_again_and_one_that_is_gone_is_said_so(visits: Visits) -> None:
    visit, visits.allowed = visits(), ("429", "net::ERR_FAILED")
    refusals = iter([429])

    def refuse(route: Any) -> None:
        if next(refusals, None):
            return route.fulfill(status=429, headers={"Retry-After": "1"}, json={"detail": "25 requests are at work"})
        return route.continue_()

    visit.page.route("**/api/v1/search/stored", refuse)
    visit.open("#id=3")
    visit.expect("#alert", "Too many requests: 25 requests are at work. Asking again in 1 s.")
    visit.answered()
    assert visit.page.locator("#alert").is_hidden()
    visit.page.route("**/api/v1/explain", lambda route: route.abort())
    visit.page.locator("#weighting").select_option("dot")
    visit.expect("#alert", "The server cannot be reached.")
    visit.page.unroute("**/api/v1/explain")
    visit.page.locator("#alert-again").click()
    visit.answered()


@pytest.mark.slow
def test_what_is_no_image_and_what_is_gone_is_answered_in_the_servers_words(visits: Visits) -> None:
    visit, visits.allowed = visits(), ("415", "404")
    visit.open("#id=4711")
    visit.expect("#alert", "There is no image 4711")
    visit.page.locator("#file").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    visit.expect("#alert", "Expected an image as JPEG, PNG or WebP")


def test_names_and_labels_that_are_markup_are_shown_as_text(visit: Visit, gallery_folder: Path) -> None:
    from distcam.index import Gallery

    with Gallery.open(gallery_folder) as gallery:
        (hostile,) = gallery.ids_where('camera="<b>7</b>"')
    visit.ask(int(hostile))
    assert visit.text("#query-title") == HOSTILE
    assert HOSTILE in visit.text("#query-name")
    visit.ask(0, "k=25")
    visit.page.locator("#details").check()
    card = visit.page.locator(f".card[data-id='{hostile}']")
    assert f"{HOSTILE}.jpg" in str(card.text_content())
    assert "<b>7</b>" in str(card.text_content())
    assert visit.page.locator("main img, main b").count() == 0


# --- Hands, eyes, and small screens ----------------------------------------------------------------------------------


def test_everything_can_be_done_with_the_keyboard_alone(visit: Visit) -> None:
    visit.open()
    visit.page.locator("#starter-list .thumb").first.wait_for()
    press = visit.page.keyboard.press
    press("?")
    visit.page.locator("#help-dialog").wait_for()
    press("Escape")
    press("g")
    visit.page.locator("#browser-list .thumb").nth(3).wait_for()
    visit.page.locator("#browser-where").focus()
    for _ in range(3):  # past the button, to the second image
        press("Tab")
    press("Enter")
    visit.answered()
    for _ in range(60):
        if visit.page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
        press("Tab")
    active = "document.activeElement.getAttribute('aria-label')"
    assert "Match 1:" in visit.page.evaluate(active)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert visit.page.evaluate(outline) == "solid"
    press("ArrowRight")
    press("ArrowDown")
    press("ArrowLeft")
    rank = int(visit.page.evaluate(active).partition(":")[0].removeprefix("Match "))
    assert rank > 2
    press("Home")
    press("ArrowRight")
    visit.expect(".card[aria-selected=true] .rank", "2")
    assert "for match 2" in str(visit.page.locator("#query-canvas").get_attribute("aria-label"))
    press("Enter")
    visit.expect("#pair-title", "Match 2")
    press("ArrowRight")
    visit.expect("#pair-title", "Match 3")
    press("Escape")
    visit.expect(".card:focus .rank", "3")
    press("w")
    visit.page.wait_for_url("**weighting=**")
    press("/")
    assert visit.page.evaluate("document.activeElement.id") == "where"


@pytest.mark.slow
def test_dark_and_light_follow_the_system_or_the_switch_which_is_remembered(visits: Visits) -> None:
    visit = visits(color_scheme="dark").open()
    paper = "getComputedStyle(document.body).backgroundColor"
    assert visit.page.evaluate(paper) == "rgb(20, 24, 31)"
    visit.page.locator("#theme").click()
    assert visit.page.locator("#theme").get_attribute("aria-label") == "Theme: light"
    assert visit.page.evaluate(paper) == "rgb(246, 247, 249)"
    visit.open()
    assert visit.page.evaluate(paper) == "rgb(246, 247, 249)"


def test_a_phone_has_one_column_large_targets_and_draws_boxes_by_touch(visits: Visits) -> None:
    visit = visits(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).ask(3)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    for name in ("find", "explain"):
        visit.page.locator(f"#{name}-group summary").tap()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    targets = visit.page.locator("button:visible, select:visible, summary:visible, input[type=search]:visible")
    sizes = targets.evaluate_all("nodes => nodes.map(n => [n.offsetHeight, n.id || n.textContent])")
    assert [name for height, name in sizes if height < 44] == []
    visit.page.locator(".card").nth(1).tap()
    visit.expect("#pair-title", "Match 2")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    visit.page.locator("#pair [data-close]").tap()
    visit.page.locator("#box-draw").tap()
    visit.page.locator("#stage").scroll_into_view_if_needed()
    frame = visit.page.locator("#stage").bounding_box()
    touch = visit.page.context.new_cdp_session(visit.page)
    places = [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75)]
    for kind, places_now in (("touchStart", places[:1]), ("touchMove", places[1:2]), ("touchMove", places[2:])):
        points = [{"x": frame["x"] + x * frame["width"], "y": frame["y"] + y * frame["height"]} for x, y in places_now]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visit.page.wait_for_url("**box=**")
    visit.answered()


def test_words_are_searched_by_and_joined_with_an_image(
    chromium: Any, gallery_folder: Path, small_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from wordy import TinyTower

    from distcam import Encoder, Gallery
    from distcam.server.app import create_app
    from distcam.server.settings import ServerSettings

    encoder = copy.deepcopy(small_encoder)
    with Gallery.open(gallery_folder) as gallery:
        encoder.text = TinyTower(torch.from_numpy(gallery.embeddings(gallery.ids)))
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: encoder)
    with Served(create_app(ServerSettings(gallery=gallery_folder, rate=0))) as served:
        visits = Visits(chromium, served)
        visit = visits(viewport={"width": 390, "height": 800}).open()
        visit.page.locator("#words").fill("image 7")
        visit.page.locator("#words").press("Enter")
        visit.answered()
        assert visit.hash() == "text=image+7"
        assert visit.matches()[0] == 7
        assert visit.text("#query-title") == "Your words"
        mapped = visit.pixels(".card canvas")
        visit.set("#opacity", "0")
        assert (visit.pixels(".card canvas") != mapped).any()
        visit.ask(3, "text=image+7&textWeight=90")
        assert visit.matches()[0] == 7
        assert visit.text("#text-weight-value") == "90 %, image 10 %"
        for width in (390, 1400):
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        visits.close()


# --- The atlas -------------------------------------------------------------------------------------------------------


def pixel_of(visit: Visit, image: int) -> tuple[float, float]:
    """The place of an image's point on the screen: where the grid finds it, and the pointer shows its name."""
    (left, top, width, height) = (
        visit.page.locator("#atlas canvas").first.bounding_box()[k] for k in ("x", "y", "width", "height")
    )
    data = visit.page.evaluate("fetch('api/v1/atlas').then(answer => answer.json())")
    points = np.frombuffer(base64.b64decode(data["points"]), "<f4").reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    middle, extent = (low + high) / 2, (high - low).max()
    x, y = (points[data["ids"].index(image)] - middle) / extent * [1, -1] * 0.92 * min(width, height)
    return left + width / 2 + x, top + height / 2 + y


def test_of_two_points_of_the_atlas_the_maps_are_shown(visit: Visit, gallery_folder: Path) -> None:
    from distcam.index import Gallery

    visit.open("atlas")
    visit.expect("#axes", "25 images by principal components")
    with Gallery.open(gallery_folder) as gallery:
        (hostile,) = gallery.ids_where('camera="<b>7</b>"').tolist()
    visit.page.mouse.move(*pixel_of(visit, hostile))
    visit.expect(".atlas-tip", HOSTILE)
    assert visit.page.locator(".atlas-tip img").count() == 1  # the thumbnail, and no other
    for image in (hostile, 3):
        visit.page.mouse.click(*pixel_of(visit, image))
    visit.expect(".atlas-pair", "Distance")
    assert visit.page.locator(".atlas-pair canvas").count() == 2
    assert len(np.unique(visit.pixels(".atlas-pair canvas").reshape(-1, 3), axis=0)) > 50
    link = visit.page.locator(".atlas-item a").nth(1)
    assert link.get_attribute("href") == "./#id=3"
    link.click()
    visit.answered()


def test_the_legend_of_the_atlas_filters_and_the_lasso_lists_what_is_left(visit: Visit) -> None:
    visit.open("atlas")
    visit.expect("#axes", "25 images")
    visit.page.locator(".atlas-legend button").first.click()
    assert visit.page.locator(".atlas-legend [aria-pressed=true]").count() == 1
    box = visit.page.locator("#atlas canvas").first.bounding_box()
    corners = [(2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2), (2, box["height"] - 2), (2, 4)]
    visit.page.get_by_role("button", name="Lasso").click()
    for number, (x, y) in enumerate(corners):
        visit.page.mouse.move(box["x"] + x, box["y"] + y)
        if not number:
            visit.page.mouse.down()
    visit.page.mouse.up()
    visit.expect(".atlas-aside [role=status]", "6 of 25 images")
    with visit.page.expect_download() as saved:
        visit.page.get_by_role("button", name="Save as CSV").click()
    lines = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,path,label,camera"
    assert len(lines) == 7
    visit.page.get_by_role("button", name="Show all").click()
    visit.page.locator("#atlas select").select_option("outlier score")
    visit.expect(".atlas-aside h3", "outlier score")
    visit.page.locator(".atlas-ramp").wait_for()


def test_the_atlas_is_gone_through_with_the_keyboard_and_fits_a_phone(visits: Visits) -> None:
    visit = visits(viewport={"width": 390, "height": 844}, color_scheme="dark").open("atlas")
    visit.expect("#axes", "25 images")
    visit.page.locator("#atlas canvas").first.focus()
    for key in ("+", "ArrowLeft", "-", "0"):
        visit.page.keyboard.press(key)
    visit.page.keyboard.press("Space")
    visit.expect(".atlas-aside [role=status]", "25 of 25 images")
    visit.page.keyboard.press("Enter")
    visit.expect(".atlas-aside [role=status]", "One image")
    visit.page.keyboard.press("Escape")
    visit.expect(".atlas-aside [role=status]", "Nothing is taken")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_written_atlas_needs_nothing_else(chromium: Any, gallery_folder: Path, tmp_path: Path) -> None:
    from distcam.index import Gallery
    from distcam.retrieval.atlas import write_atlas

    with Gallery.open(gallery_folder) as gallery:
        file = write_atlas(tmp_path / "atlas.html", gallery, gallery.atlas())
    page = chromium.new_page()
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
    page.goto(file.as_uri())
    page.locator("canvas").first.focus()
    page.keyboard.press("Space")
    page.locator(".atlas-item img").nth(24).wait_for()
    assert HOSTILE in str(page.locator(".atlas-legend").text_content())
    page.close()
    assert troubles == []


def test_the_page_itself_holds_to_its_rules() -> None:
    """No markup from text, nothing inline, nothing from elsewhere."""
    import distcam.server

    folder = Path(distcam.server.__file__).parent / "static"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.*") if path.suffix != ".ico"}
    assert len(texts) > 10
    for name, text in texts.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, f"{word} in {name}"
        assert "https://" not in text
        assert not any("//" in part and "w3.org" not in part for part in text.split("http:")[1:])
    assert " style=" not in texts["index.html"]
    assert " onclick" not in texts["index.html"]
