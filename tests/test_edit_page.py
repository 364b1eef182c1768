"""The page of dials.anacor_edit in a real browser: Chromium without a display, by WebDriver.

Needs chromedriver on PATH, or one that runs elsewhere on this machine, named by ANACOR_WEBDRIVER
(http://127.0.0.1:9515).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from anacor_dials.jobs.editing import LabelEditor
from anacor_dials.jobs.label_preview import LabelPreview
from anacor_dials.report.edit_server import EditServer
from anacor_dials.sample import previews
from anacor_dials.sample.hand_made import read_hand_made
from anacor_dials.sample.tomogram_files import read_preview, read_sample_file, write_sample_file
from anacor_dials.sample.volumes import LabelVolume, Tomogram

pytestmark = pytest.mark.slow

SHAPE = (40, 44, 48)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of elements in the W3C's WebDriver
PATIENCE = 300  # seconds, on a busy machine


class Browser:
    """A session of a WebDriver (https://www.w3.org/TR/webdriver2/)."""

    def __init__(self, driver: str) -> None:
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                            "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
                            "--window-size=1500,1000"]}  # fmt: skip
        self.address = f"{driver}/session"
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "timeouts": {"script": 1000 * PATIENCE, "pageLoad": 1000 * PATIENCE},
        }
        made = self.call("", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/{made['sessionId']}"

    def call(self, what, body=None, method="POST"):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self.address + what, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def open(self, address):
        self.call("/url", {"url": address})

    def run(self, script, *arguments):
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script, *arguments):
        """What a script returns once that is something."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.run(script, *arguments)
            if found:
                return found
            time.sleep(0.2)
        message = self.run("return document.getElementById('message')?.textContent")
        raise AssertionError(f"{script} did not come true; the page says {message!r}")

    def find(self, css):
        return self.call("/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css):
        self.call(f"/element/{self.find(css)}/click")

    def key(self, *keys):
        presses = [{"type": "keyDown", "value": k} for k in keys]
        presses += [{"type": "keyUp", "value": k} for k in reversed(keys)]
        self.call("/actions", {"actions": [{"type": "key", "id": "k", "actions": presses}]})

    def drag(self, points):
        """The left button held from the first point (x, y in the window) to the last."""
        (x, y), *rest = [(round(x), round(y)) for x, y in points]
        steps = [{"type": "pointerMove", "x": x, "y": y}, {"type": "pointerDown", "button": 0}]
        steps += [{"type": "pointerMove", "x": x, "y": y, "duration": 100} for x, y in rest]
        steps += [{"type": "pointerUp", "button": 0}]
        self.call("/actions", {"actions": [{"type": "pointer", "id": "m", "actions": steps}]})

    def picture(self):
        """A screenshot; again where a busy machine takes too long to draw."""
        for _ in range(20):
            try:
                return base64.b64decode(self.call("/screenshot", method="GET"))
            except AssertionError:
                time.sleep(5)
        raise AssertionError("The browser made no picture.")

    def close(self):
        self.call("", method="DELETE")


@pytest.fixture(scope="module")
def driver():
    """The address of a WebDriver."""
    named = os.environ.get("ANACOR_WEBDRIVER")
    if named:
        yield named.rstrip("/")
        return
    program = shutil.which("chromedriver")
    if program is None:
        pytest.skip("There is no chromedriver (apt-get install chromium chromium-driver).")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def browser(driver):
    browser = Browser(driver)
    yield browser
    browser.close()


@pytest.fixture
def truth():
    x, y, z = np.indices(SHAPE) - np.array([20, 22, 24])[:, None, None, None]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[x**2 + y**2 + z**2 < 18**2] = 1
    labels[(abs(x) < 7) & (abs(y + 2) < 6) & (abs(z - 1) < 8)] = 3
    return labels


@pytest.fixture
def page(tmp_path, truth):
    """A server with a sample of whose crystal a part was missed, and doubted."""
    labels = truth.copy()
    labels[:, :, 28:][labels[:, :, 28:] == 3] = 1
    p = np.zeros((4, *SHAPE), dtype=np.uint8)
    for label in range(4):
        p[label][labels == label] = 255
    missed = labels != truth
    p[1][missed], p[3][missed] = 150, 105
    values = 0.012 * np.array([0.0, 1.0, 0.6, 1.4])[truth]
    values += 2e-4 * np.random.default_rng(0).standard_normal(SHAPE)
    path = tmp_path / "tomo.h5"
    mu = [0, 0.012, 0.0072, 0.0168]
    write_sample_file(path, Tomogram(values, 1.2), LabelVolume(labels, 1.2), mu, 3.5, p)
    server = EditServer(LabelEditor(path))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(10)


def on_screen(browser, axis, row, column):
    """Where the middle of a voxel of a slice is in the window."""
    return browser.run(
        "const [axis, row, column] = arguments;"
        "const box = document.querySelector(`.pane[data-axis='${axis}']`).getBoundingClientRect();"
        "const [x, y] = toScreen(axis, row + 0.5, column + 0.5);"
        "return [box.left + x, box.top + y];",
        axis, row, column,
    )  # fmt: skip


READY = "return document.body && document.body.dataset.ready === 'yes'"
STEPS = "return state && state.undo === arguments[0] && !state.busy"


def test_an_expert_puts_labels_right(browser, page, truth):
    """Open, step to a doubtful place, draw, follow, undo, reload: what is seen is in the file."""
    path = page.editor.path
    first = read_sample_file(path).labels.values
    browser.open(page.address)
    browser.wait(READY)

    # the worst place is where the crystal was missed
    browser.key("n")
    cross = browser.run("return cross")
    assert truth[tuple(cross)] == 3
    assert first[tuple(cross)] == 1
    browser.wait("return document.querySelector('.pane').dataset.drawn == cross[0]")
    # the slices are drawn: not one colour
    colours = browser.run(
        "const c = document.querySelector('.pane canvas'), d = c.getContext('2d');"
        "return new Set(d.getImageData(0, 0, c.width, c.height).data).size"
    )
    assert colours > 10

    # a stroke of the brush, with the label crystal, across the missed part
    browser.key("4")
    x, y, _ = cross
    row = int(np.clip(y, 17, 23))
    browser.drag([on_screen(browser, 0, row, 29), on_screen(browser, 0, row, 31)])
    browser.wait(STEPS, 1)
    drawn = read_hand_made(path)
    where = np.argwhere(drawn.by_hand)
    assert set(where[:, 0]) == {x}
    assert where[:, 1].min() <= row - 3
    assert where[:, 1].max() >= row + 3
    assert np.all(drawn.labels[drawn.by_hand] == 3)
    assert drawn.by_hand[x, row, 30]

    # it goes on into the neighbours
    browser.key("g")
    browser.wait(STEPS, 2)
    followed = read_sample_file(path).labels.values
    missed = (truth == 3) & (first == 1) & ~drawn.by_hand
    assert np.mean(followed[missed] == 3) > 0.3
    assert np.all(followed[drawn.by_hand] == 3)

    # what it is worth is shown
    browser.wait("return document.getElementById('rms')")

    # back, and on again
    browser.key("\ue009", "z")
    browser.wait(STEPS, 1)
    np.testing.assert_array_equal(
        read_sample_file(path).labels.values, np.where(drawn.by_hand, 3, first)
    )
    browser.key("\ue009", "y")
    browser.wait(STEPS, 2)
    np.testing.assert_array_equal(read_sample_file(path).labels.values, followed)

    # a polygon, around one corner of a slice
    browser.key("3")
    browser.key(",")  # the label before the crystal: loop
    for corner in ((3, 3), (3, 9), (9, 3)):
        browser.drag([on_screen(browser, 0, *corner)])
    browser.key("\ue007")
    browser.wait(STEPS, 3)
    assert 10 < np.count_nonzero(read_sample_file(path).labels.values[x] == 2) < 40

    # the page that is loaded anew shows what is in the file
    browser.open(page.address)
    browser.wait(READY)
    assert browser.run("return state.by_hand") == read_hand_made(path).n_voxels
    assert browser.run("return document.getElementById('message').textContent") == ""


def test_the_three_dimensional_view(browser, page):
    """WebGL, by SwiftShader where there is no graphics card."""
    browser.open(page.address)
    browser.wait(READY)
    browser.click("#draw3d")
    browser.wait("return document.getElementById('view3d').dataset.drawn")
    assert browser.run("return document.querySelectorAll('#plot canvas').length") > 0
    if folder := os.environ.get("ANACOR_PICTURES"):
        with open(os.path.join(folder, "edit-page.png"), "wb") as file:
            file.write(browser.picture())


def test_a_large_volume_is_there_at_reduced_size_first(browser, page, monkeypatch):
    """The page opens on the preview, cannot draw on it, and changes to the whole when it is read."""
    monkeypatch.setattr(previews, "LARGEST_WITHOUT", 1000)
    monkeypatch.setattr(previews, "VOXELS", np.prod(SHAPE) / 8)
    path, editor = page.editor.path, page.editor
    write_sample_file(path, editor.tomogram, editor.first, editor.mu_first, 3.5)
    page.editor = LabelPreview(read_preview(path))
    go_on = threading.Event()
    page.open(lambda: (go_on.wait(PATIENCE), LabelEditor(path))[1])
    browser.open(page.address)
    browser.wait(READY)
    assert browser.run("return [state.shape, state.reading]") == [[n // 2 for n in SHAPE], True]
    assert "reduced size" in browser.run("return document.getElementById('message').textContent")
    browser.run("post('paint', {axis: 0, index: 3, label: 2, runs: [[5, 5]]})")
    go_on.set()
    browser.wait(f"{READY} && !state.reading")
    assert browser.run("return state.shape") == list(SHAPE)
    assert page.editor.done == []


def test_a_hostile_page_gets_nothing(browser, page):
    """A page of another origin can neither read slices nor draw, even if it knew the address."""
    browser.open("data:text/html,<p>hostile</p>")
    outcome = browser.run(
        "const [address] = arguments, found = [];"
        "const tries = [[address + 'state', {}], [address + 'state', {mode: 'no-cors'}],"
        " [address + 'undo', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}}],"
        " [address + 'paint', {method: 'POST', mode: 'no-cors', body: JSON.stringify({axis: 0, index: 3,"
        " label: 2, runs: [5, 5]})}]];"
        "return Promise.all(tries.map(([a, o]) => fetch(a, o).then(r => r.text()).catch(e => 'refused')));",
        page.address,
    )
    assert outcome[0] == outcome[2] == "refused"
    assert set(outcome) <= {"refused", ""}
    assert page.editor.done == []
