"""Time the page of `--mode=demo`, and follow its memory over many uploads, in a real browser.

    python benchmarks/demo_page.py                      the bundled model, 100 uploads
    python benchmarks/demo_page.py --workdir=runs/own   another model
    python benchmarks/demo_page.py --config=configs/coco.py --uploads=10
                                                        a model of that config, with random weights

The pictures have up to 512 pixels and are all of different sizes, so that each is a program of its
own, and every fifth is found with another number of slots, if the model takes any. Times are those
that a visitor waits: from the upload to the masks on the page. Needs the extra `demo`, Playwright
and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.parameters import split

LONGEST, EVERY = 512, 10
MINUTES = 120_000  # milliseconds
SOURCE = "document.querySelector('#overlay img')?.src"


def memory_of(process: int) -> float:
    """Return the memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def picture(number: int, folder: Path) -> Path:
    """Write a picture whose size no other one has; the first has 512x512 pixels."""
    height, width = LONGEST - number // 2, LONGEST - (number + 1) // 2
    clips = Sprites((height, width), num_frames=1, split="test", num_samples=1000)
    path = folder / f"{number}.png"
    Image.fromarray(clips[number]["video"][0]).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="sprites_gaussian", help="model of the page")
    parser.add_argument("--config", help="random weights of this config, instead of a workdir")
    parser.add_argument("--uploads", type=int, default=100, help="number of pictures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.config is not None:
            given.workdir = Path(folder) / "random"
            save_random(given.config, given.workdir)
        measure(given.workdir, given.uploads)


def save_random(name: str, folder: Path) -> None:
    """Save a slot model with random weights."""
    config, rng = load_config(name), np.random.default_rng(0)
    _, params, frozen = split(slot_model_shapes(config.model, image_size_of(config)))
    arrays = {
        name: 0.02 * rng.standard_normal(x.shape, np.float32)
        for name, x in {**params, **frozen}.items()
    }
    Segmenter(config, arrays).save(folder)


def measure(workdir: str | Path, uploads: int) -> None:
    """Start the page, and upload pictures."""
    begun = time.perf_counter()
    command = [sys.executable, "main.py", "--mode=demo", "--port=0", f"--workdir={workdir}"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        with urllib.request.urlopen(address) as page:
            page.read()
        ticks = Path(f"/proc/{server.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
        print(
            f"page up after {time.perf_counter() - begun:.1f} s, "
            f"{sum(map(int, ticks)) / 100:.1f} s of processor time"
        )
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            follow(browser.new_page(), address, server.pid, uploads, Path(folder))
    finally:
        server.terminate()
        server.wait()


def follow(page, address: str, server: int, uploads: int, folder: Path) -> None:
    """Upload pictures one after the other."""
    page.set_default_timeout(MINUTES)
    page.goto(address)
    page.wait_for_selector("#again")
    slots = page.locator("#num_slots input[type=range]")
    seconds = []
    for number in range(uploads):
        if number % 5 == 4 and slots.count():
            slots.fill(str(2 + number % 11))
        path, before = picture(number, folder), shown(page)
        begun = time.perf_counter()
        page.set_input_files("#file input[type=file]", path)
        page.wait_for_function(f"{SOURCE} && {SOURCE} !== {before!r}")
        seconds.append(time.perf_counter() - begun)
        page.locator("#file button[aria-label]").first.click()  # the next file takes its place
        page.wait_for_selector("#file input[type=file]", state="attached")
        if number == 0 or number % EVERY == EVERY - 1:
            recent = seconds[-EVERY:]
            print(
                f"after {number + 1} uploads: {memory_of(server):.0f} MB, "
                f"median {statistics.median(recent):.2f} s, longest {max(recent):.2f} s",
                flush=True,
            )
    later = np.array(seconds[1:] or seconds)
    print(
        f"first {seconds[0]:.2f} s, later median {np.median(later):.2f} s, longest "
        f"{later.max():.2f} s"
    )


def shown(page) -> str:
    """Return the address of the picture on the page, or ""."""
    image = page.locator("#overlay img")
    return image.get_attribute("src") if image.count() else ""


if __name__ == "__main__":
    main()
