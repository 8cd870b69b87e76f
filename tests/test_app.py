"""The page in a real browser (headless Chromium): drawing, scrubbing, a bad file, two visitors, a narrow window.

Skipped where gradio (ddpm[app]), selenium, chromium or chromedriver are missing.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm import generate, play
from tests.test_play import saved

pytestmark = pytest.mark.slow

PATIENCE = 120
"""Seconds that a busy machine may take for one thing."""


def wait(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not seen within {PATIENCE} s: {what}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("app") / "model.pt", network__classes=10)


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    """The page of the command, in a process of its own."""
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'ddpm[app]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = model.with_name("log.txt")
    with log.open("w") as file:
        command = [sys.executable, "-m", "ddpm", "app", str(model), "--port", str(port), "--device", "cpu"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait("the page's address", lambda: "app  " in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if find_spec("selenium") is None:
        pytest.skip("selenium is not installed: pip install 'ddpm[app-test]'")
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = str(programs[0])
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.set_window_size(1280, 1400)
    yield driver
    driver.quit()


class Page:
    """One visitor's page."""

    def __init__(self, driver: Any, address: str):
        self.driver, self.address = driver, address
        driver.get(address)
        wait("the page", lambda: driver.find_elements("id", "draw-go"))
        self.window = driver.current_window_handle

    def find(self, selector: str) -> Any:
        return wait(selector, lambda: self.driver.find_elements("css selector", selector))[0]

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", element)

    def tab(self, name: str) -> None:
        def press() -> bool:
            for button in self.driver.find_elements("css selector", "button[role=tab]"):
                if button.text == name:
                    button.click()
                    return True
            return False

        wait(f"the tab {name}", press)

    def enter(self, selector: str, value: str) -> None:
        self.driver.execute_script(
            "const e = arguments[0], kinds = ['input', 'change', 'blur', 'pointerup'];"
            "e.value = arguments[1]; for (const kind of kinds) e.dispatchEvent(new Event(kind, {bubbles: true}))",
            self.find(selector),
            value,
        )

    def said(self, key: str, words: str) -> None:
        wait(f"{key}: {words}", lambda: words in self.find(f"#{key}-said").text)

    def note(self) -> str:
        """What the page warns of, once it is shown."""

        def texts() -> list[str]:
            return [note.text for note in self.driver.find_elements("css selector", ".toast-body") if note.text]

        return str(wait("a note", texts)[0])

    def image(self, selector: str) -> np.ndarray:
        source = wait(selector, lambda: self.find(f"{selector} img").get_attribute("src"))
        assert source.startswith(self.address), source
        with urllib.request.urlopen(source) as answer, Image.open(io.BytesIO(answer.read())) as picture:
            return np.asarray(picture.convert("L"))


def expected(model: Path, **changes: Any) -> np.ndarray:
    images = generate.sample(generate.load(model, device="cpu"), 4, sampler="ddim", eta=0.0, **changes)
    return np.asarray(play._sheet(images)[..., 0])


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """The same but for a grey level: the page's process may have other threads."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


def test_draw_scrub_and_download(browser: Any, address: str, model: Path, tmp_path: Path) -> None:
    page = Page(browser, address)
    assert "8 x 8, grey, T = 20" in page.find("#facts").text
    page.enter("#steps input[type=number]", "6")
    page.click("#draw-go")
    page.said("draw", "t = 0: the picture")
    wait("the scrubber", lambda: page.find("#draw-scrub input[type=number]").is_enabled())
    assert close(page.image("#draw-x"), expected(model, steps=6, seed=0))
    page.enter("#draw-scrub input[type=number]", "0")
    page.said("draw", "t = 17")
    assert not np.array_equal(page.image("#draw-x"), page.image("#draw-x0"))
    page.enter("#draw-scrub input[type=number]", "5")
    page.said("draw", "t = 0: the picture")
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    for key, name in (("png", "grid.png"), ("gif", "reverse-process.gif")):
        page.click(f"#draw-{key}")
        path = tmp_path / name
        wait(name, path.is_file)
        with Image.open(path) as picture:
            assert picture.format == key.upper()
            assert getattr(picture, "n_frames", 1) == {"png": 1, "gif": 6}[key]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_bad_file_is_said_and_the_page_goes_on(browser: Any, address: str, tmp_path: Path) -> None:
    page = Page(browser, address)
    page.enter("#steps input[type=number]", "4")
    page.tab("Edit")
    page.click("#source input[value=upload]")
    page.click("#denoise-go")
    note = page.note()
    assert "there is no picture yet: upload one" in note
    for button in browser.find_elements("css selector", ".toast-close"):
        button.click()
    wait("no note", lambda: not browser.find_elements("css selector", ".toast-body"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    page.find("#upload input[type=file]").send_keys(str(bad))
    wait("the upload", lambda: page.driver.find_elements("css selector", "#upload img"))
    page.click("#denoise-go")
    note = page.note()
    assert "no image" in note or "identify" in note
    assert "Traceback" not in note
    good = tmp_path / "good.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(good)
    page = Page(browser, address)
    page.enter("#steps input[type=number]", "4")
    page.tab("Edit")
    page.click("#source input[value=upload]")
    page.find("#upload input[type=file]").send_keys(str(good))
    wait("the upload", lambda: page.driver.find_elements("css selector", "#upload img"))
    page.click("#denoise-go")
    page.said("denoise", "t = 0: the picture")


def test_a_drawing_and_a_mixture(browser: Any, address: str, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    page = Page(browser, address)
    page.enter("#steps input[type=number]", "4")
    page.tab("Edit")
    page.click("#drawing button[aria-label=Brush]")
    canvas = page.find("#drawing canvas")
    time.sleep(1)  # the brush needs a moment, and nothing tells when
    stroke = ActionChains(browser).move_to_element_with_offset(canvas, 0, -100).click_and_hold()
    stroke.move_by_offset(10, 80).move_by_offset(-10, 80).release().perform()
    page.enter("#when input[type=number]", "0")  # as it is: the drawing, light on dark
    page.click("#denoise-go")
    page.said("denoise", "t = 0: the picture")
    sheet = page.image("#denoise-x")
    h, w = (side // 4 for side in sheet.shape)
    assert sheet[h, w] > 128 > sheet[h, w // 3]
    for key, level in (("first", 30), ("second", 230)):
        path = tmp_path / f"{key}.png"
        Image.new("L", (8, 8), level).save(path)
        page.tab("Mix")
        page.find(f"#{key} input[type=file]").send_keys(str(path))
        wait("the upload", lambda key=key: page.driver.find_elements("css selector", f"#{key} img"))
    page.enter("#mixed input[type=number]", "0")
    page.click("#interpolate-go")
    page.said("interpolate", "t = 0: the picture")
    row = page.image("#interpolate-x")
    middle = row[row.shape[0] // 2]
    assert abs(int(middle[30]) - 30) <= 2
    assert abs(int(middle[-30]) - 230) <= 2


def test_two_visitors_at_once(browser: Any, address: str, model: Path) -> None:
    """Each gets the pictures of their own seed, and scrubs through their own chain."""
    pages = [Page(browser, address)]
    browser.switch_to.new_window("tab")
    pages.append(Page(browser, address))
    for seed, page in enumerate(pages, 1):
        browser.switch_to.window(page.window)
        page.enter("#steps input[type=number]", "8")
        page.enter("#seed input", str(seed))
    for page in pages:
        browser.switch_to.window(page.window)
        page.click("#draw-go")
    drawn = []
    for seed, page in enumerate(pages, 1):
        browser.switch_to.window(page.window)
        page.said("draw", "t = 0: the picture")
        drawn.append(page.image("#draw-x"))
        assert close(drawn[-1], expected(model, steps=8, seed=seed))
    assert not np.array_equal(*drawn)
    browser.close()
    browser.switch_to.window(pages[0].window)


def test_compare_and_a_narrow_window(browser: Any, address: str) -> None:
    browser.set_window_size(420, 1000)
    page = Page(browser, address)
    for tab in ("Draw", "Compare", "Edit", "Mix"):
        page.tab(tab)
        wide, shown = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= shown, f"{tab}: {wide} pixels wide in {shown}"
    page.enter("#steps input[type=number]", "4")
    page.tab("Compare")
    page.click("#compare-go")
    page.said("compare", "Mean difference")
    assert page.image("#compare-one").shape == page.image("#compare-two").shape
    browser.set_window_size(1280, 1400)


def test_only_this_machine_can_see_it(address: str) -> None:
    port = int(address.rpartition(":")[2])
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for host in own - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as other:
            other.settimeout(5)
            assert other.connect_ex((str(host), port)) != 0, host
    assert os.environ.get("GRADIO_SERVER_NAME") in (None, "127.0.0.1")
