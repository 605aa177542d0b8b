"""The pictures of README and how-tos, docs/*.png, taken in a headless browser from the real thing.

Needs chromium and chromedriver (apt-get install chromium chromium-driver), and the data set where `make run` finds it, say by HEALTH_PREDICT_DATA.

    .venv/bin/python docs/screenshots.py                  # all; the first time batches 0 to 5 are run before, which takes some ten minutes
    .venv/bin/python docs/screenshots.py gallery lab      # some

Batches that have run aren't run again; HEALTH_PREDICT_STORAGE names another storage than storage/. A server and JupyterLab are started and stopped; what is to
fail, fails in a copy. Look at what came out (`git diff --stat docs`), then commit it.
"""
import os, shutil, socket, subprocess, sys, tempfile, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import requests
from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from health_predict.settings import load_settings
from health_predict.storage import Tree

HOME, BIN = Path(__file__).parents[1], Path(sys.executable).parent
WIDE, SHARP, LARGEST = 1000, 1.5, 150_000    # CSS pixels; pixels of the picture for each; bytes of a file
BATCHES = 6


def run(*command: str, storage: Path, check: bool = True) -> None:
    "Run a program of the environment on a storage."
    done = subprocess.run([str(BIN/command[0]), *command[1:]], cwd=HOME, env=os.environ|{"HEALTH_PREDICT_STORAGE": str(storage)}, check=False)
    if check and done.returncode: sys.exit(f"screenshots: {' '.join(command)} ended with {done.returncode}")


@contextmanager
def started(*command: str, at: str, storage: Path) -> Iterator[str]: # Where it answers
    "A program of the environment that listens on the port {port}; stopped at the end."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = [str(BIN/command[0]), *(o.format(port=port) for o in command[1:])]
    process = subprocess.Popen(program, cwd=HOME, env=os.environ|{"HEALTH_PREDICT_STORAGE": str(storage)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            if process.poll() is not None: sys.exit(f"screenshots: {' '.join(program)} ended with {process.returncode}")
            try: requests.get(url+at, timeout=5).raise_for_status(); break
            except requests.RequestException: time.sleep(.5)
        else: sys.exit(f"screenshots: {' '.join(program)} doesn't answer")
        yield url
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    "A browser without a window."
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found: sys.exit("screenshots: chromium and chromedriver are not here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for o in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"): options.add_argument(o)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))
    try: yield browser
    finally: browser.quit()


def frame(browser, high: int, wide: int = WIDE) -> None:
    "Be a window of this size."
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": wide, "height": high, "deviceScaleFactor": SHARP, "mobile": False})


def keep(browser, name: str) -> None:
    "Write what the window shows to docs/<name>.png, with as many colours as its size allows."
    shown = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        made = BytesIO()
        shown.quantize(colours, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
        if made.tell()<=LARGEST: break
    else: sys.exit(f"screenshots: {name} has {made.tell():,} bytes; show less of it")
    (HOME/"docs"/f"{name}.png").write_bytes(made.getvalue())
    print(f"docs/{name}.png: {made.tell():,} bytes, {colours} colours")


def page(path: str, high: int, to: str = "") -> Callable: # Takes the picture
    "The upper part of a page, or the part of it that begins at the element `to` (CSS)."
    def taken(browser, url: str) -> None:
        frame(browser, high)
        browser.get(url+path)
        if to: browser.execute_script("scrollTo(0, document.querySelector(arguments[0]).getBoundingClientRect().top-12)", to)
    return taken


def explained(browser, url: str) -> None:
    "The form's answer for a patient who is often in hospital."
    frame(browser, 841)
    browser.get(f"{url}/?example=frequent")
    browser.find_element("css selector", "button[type=submit]").click()
    result = WebDriverWait(browser, 20).until(lambda b: b.find_element("css selector", "#result"))
    browser.execute_script("scrollTo(0, arguments[0].getBoundingClientRect().top-12)", result)


def feature(browser, url: str) -> None:
    "JupyterLab on the notebook where features are defined."
    frame(browser, 760, 1200)
    browser.get(f"{url}/lab/tree/nbs/library/10_features.ipynb?token=x&reset")
    WebDriverWait(browser, 90).until(lambda b: len(b.find_elements("css selector", ".jp-Notebook .jp-Cell"))>8)
    heading = "//*[contains(@class, 'jp-RenderedHTMLCommon')]//h2[starts-with(., 'The definition')]"
    browser.execute_script("arguments[0].scrollIntoView()", WebDriverWait(browser, 60).until(lambda b: b.find_element("xpath", heading)))
    time.sleep(3)    # cells around it are drawn as they come into sight


SERVED = {
    "gallery": page("/reports/", 870),
    "evaluate": page("/reports/0/evaluate.html", 785),
    "compare": page("/reports/4/compare.html", 881),
    "drift": page("/reports/4/drift.html", 878),
    "explain": explained}
FAILED = {"failed": page(f"/reports/{BATCHES}/ingest.html", 355)}
LAB = {"lab": feature}
LAB_COMMAND = ("jupyter", "lab", "--config=.jupyter/jupyter_server_config.py", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port={port}",
    "--ServerApp.port_retries=0", "--IdentityProvider.token=x")


def with_poison(storage: Path, copy: Path) -> Path:
    "A copy of a storage, in which the next batch is a file that isn't one."
    for o in ("models", "reports", "state", "audit", "labels", "reference"): shutil.copytree(storage/o, copy/o)
    (copy/"incoming").mkdir()
    lines = (storage/"incoming"/"4.csv").read_text().splitlines()
    (copy/"incoming"/f"{BATCHES}.csv").write_text("\n".join(o.replace(",", ";") for o in lines[:1000])+"\n")
    run("health-predict", "run", "--batch", str(BATCHES), storage=copy, check=False)
    return copy


def take(wanted: dict[str, Callable], url: str) -> None:
    "Take pictures."
    for name,show in wanted.items():
        with chromium() as browser:
            show(browser, url)
            keep(browser, name)


def main(names: list[str]) -> None:
    "Take the pictures that are named, or all."
    known = [*SERVED, *FAILED, *LAB]
    if unknown := set(names)-set(known): sys.exit(f"screenshots: no picture {', '.join(unknown)}; there are {', '.join(known)}")
    served, failed, lab = ({k: v for k,v in o.items() if not names or k in names} for o in (SERVED, FAILED, LAB))
    storage = Tree(load_settings()).root
    serve = ("health-predict", "serve", "--port", "{port}")
    if served or failed:
        for b in range(BATCHES):
            if not (storage/"reports"/str(b)/"summary.json").is_file(): run("health-predict", "run", "--batch", str(b), storage=storage)
    if served:
        with started(*serve, at="/health/ready", storage=storage) as url: take(served, url)
    with tempfile.TemporaryDirectory() as d:
        if failed:
            with started(*serve, at="/health/ready", storage=with_poison(storage, Path(d)/"storage")) as url: take(failed, url)
        if lab:
            with started(*LAB_COMMAND, at="/api", storage=Path(d)/"play") as url: take(lab, url)


if __name__=="__main__": main(sys.argv[1:])
