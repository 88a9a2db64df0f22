"""The page of `main.py --mode=demo` in a real browser without a window.

It needs Gradio, Playwright and Chromium, which `.ci/run` installs: `pip install ".[demo]"
playwright` and `apt-get install chromium`.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from command import ROOT, start
from fuzz_readers import write_video
from PIL import Image

from smoothsa_jax.demo.server import served
from smoothsa_jax.inputs.sprites import Sprites

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[demo]'")
driver = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is here: apt-get install chromium", allow_module_level=True)

QUIET = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
PHONE, DESKTOP = (390, 844), (1280, 900)
PATIENCE = 120_000  # milliseconds, on a busy machine


def address_of(process: subprocess.Popen) -> str:
    """Return what the program prints of its page, once it is up."""
    line = process.stdout.readline()
    assert line.startswith("page "), line + process.stderr.read()
    return line.split()[1]


@pytest.fixture(scope="module")
def page_of_demo(tmp_path_factory):
    """The address of the page of a bundled model."""
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    process = start("--mode=demo", "--port=0", cache=cache)
    try:
        yield address_of(process)
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 143 and out.endswith("the page is closed\n"), err
        assert "Traceback" not in err
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    with driver.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": [f"--{flag}" for flag in QUIET.split()]}
        with playwright.chromium.launch(**options) as found:
            yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A picture, a video and what is neither, of a clip of sprites."""
    folder = tmp_path_factory.mktemp("files")
    video = Sprites(60, num_frames=4, split="test")[0]["video"]
    Image.fromarray(video[0]).resize((150, 100)).save(folder / "still.png")
    write_video(folder / "clip.mp4", video)
    for name in ("broken.png", "song.mp3"):
        (folder / name).write_bytes(b"this is no picture")
    return folder


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, page_of_demo):
    """The page, newly opened; afterwards: it has asked no other host, and shown no error."""
    width, height = request.param
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, has_touch=request.param is PHONE)
    page, hosts, errors = context.new_page(), set(), []
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).netloc))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(PATIENCE)
    page.goto(page_of_demo)
    page.wait_for_selector("#again")
    yield page
    context.close()
    assert hosts - {""} == {urlsplit(page_of_demo).netloc}
    assert not errors


def shown(page, before: str = "") -> str:
    """Wait for another picture of slots, and return its address."""
    source = "document.querySelector('#overlay img')?.src"
    page.wait_for_function(f"{source} && {source} !== {before!r}")
    return page.locator("#overlay img").get_attribute("src")


def slots(page) -> list[str]:
    return page.locator("#legend li").all_inner_texts()


def download(page, tmp_path: Path) -> zipfile.ZipFile:
    with page.expect_download() as told:
        page.locator("#download").click()
    told.value.save_as(tmp_path / "masks.zip")
    return zipfile.ZipFile(tmp_path / "masks.zip")


def test_upload_slider_click_and_download(page, files, tmp_path):
    page.set_input_files("#file input[type=file]", files / "still.png")
    before = shown(page)
    assert 2 <= len(slots(page)) <= 5
    number = page.locator("#num_slots input[type=range]")
    number.fill("2")
    number.dispatch_event("pointerup")
    shown(page, before)
    page.wait_for_function("document.querySelectorAll('#legend li').length <= 2")
    with download(page, tmp_path) as archive:
        assert {"labels.png", "overlay.png", "slots.npz", "boxes.json"} <= set(archive.namelist())
        labels = np.asarray(Image.open(archive.open("labels.png")))
        with np.load(archive.open("slots.npz")) as stored:
            assert stored["slots"].shape[:2] == (1, 2)
    assert labels.shape == (100, 150) and labels.max() <= 1

    picture = page.locator("#overlay img")
    box = picture.bounding_box()
    for row, column in ((5, 5), (50, 75), (95, 145)):
        place = {"x": (column + 0.5) / 150 * box["width"], "y": (row + 0.5) / 100 * box["height"]}
        picture.click(position=place)
        wanted = f"slot {labels[row, column]}"
        page.wait_for_function(
            f"document.querySelector('#title').innerText.trim() === 'Attention of {wanted}'"
        )
        assert page.locator("#legend .chosen").inner_text().startswith(wanted)


def test_a_video_plays_and_has_frames(page, files, tmp_path):
    page.set_input_files("#file input[type=file]", files / "clip.mp4")
    before = shown(page)
    page.wait_for_function("document.querySelector('#film video')?.readyState >= 2")
    frame = page.locator("#frame input[type=range]")
    assert frame.get_attribute("max") == "3"
    frame.fill("3")
    shown(page, before)
    with download(page, tmp_path) as archive:
        assert {"overlay.mp4", "labels/000003.png"} <= set(archive.namelist())


def test_what_cannot_be_read_is_one_line_and_the_page_goes_on(page, files):
    page.locator("#again").click()
    mistake = page.locator("#notes .mistake")
    mistake.wait_for()
    assert mistake.inner_text().startswith("nothing is chosen yet")
    page.wait_for_function(  # in sight, also where the button is far below
        "document.querySelector('#notes .mistake').getBoundingClientRect().top >= 0"
    )
    for name, says in (("broken.png", "cannot be read as an image: "), ("song.mp3", "has an ")):
        page.set_input_files("#file input[type=file]", files / name)
        page.wait_for_function(f"document.querySelector('#notes').innerText.includes('{name}')")
        assert mistake.inner_text().startswith(f"{name} {says}")
        if name == "broken.png":
            page.locator("#file button[aria-label]").first.click()
    page.locator("#example").click()  # needs no file
    shown(page)
    assert mistake.count() == 0
    assert "song.mp3" not in page.locator("#file").inner_text()


def test_nothing_is_wider_than_the_page(page):
    page.locator("#example").click()
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    order = [page.locator(f"#{name}").bounding_box()["y"] for name in ("example", "overlay")]
    if page.viewport_size["width"] == PHONE[0]:  # results come before settings
        settings = page.locator("#settings").bounding_box()["y"]
        assert order[0] < order[1] < settings


def test_the_server_asks_no_other_host(monkeypatch):
    asked, connect = [], socket.socket.connect

    def note(self, address):
        asked.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    with served(port=0) as address, urllib.request.urlopen(address) as page:
        text = page.read().decode()
    hosts = {address[0] for address in asked if isinstance(address, tuple)}
    assert hosts <= {"127.0.0.1", "::1", "localhost"}
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=", text)
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=.https?:", text)


@pytest.mark.slow
def test_the_space_runs_from_its_own_folder(tmp_path):
    """As in docs/space/README.md: the files of the Space beside the package."""
    shutil.copytree(ROOT / "docs" / "space", tmp_path / "space")
    shutil.copytree(ROOT / "smoothsa_jax", tmp_path / "space" / "smoothsa_jax")
    names = {"JAX_PLATFORMS": "cpu", "GRADIO_SERVER_PORT": "0", "GRADIO_SERVER_NAME": "127.0.0.1"}
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=tmp_path / "space",
        env={**os.environ, **names},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert address_of(process).startswith("http://127.0.0.1:")
        process.terminate()
        assert process.communicate(timeout=30)[0].endswith("the page is closed\n")
    finally:
        process.kill()
