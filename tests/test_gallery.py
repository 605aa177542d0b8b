"""The gallery in a real browser, from a disk and from the API; its size and its repair; and what a pruning leaves."""
import json
import re
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from conftest import Project
from health_predict.gallery import write_gallery
from health_predict.publish import publish_batch
from health_predict.settings import load_settings
from health_predict.stage import READS
from health_predict.storage import Tree, write_json
from test_pages import CHROMIUM, DRIVER, axe, find, look

needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium chromium-driver")
ACTIONS = {"none": "record", "minor": "watch", "moderate": "retrain", "major": "search", "concept": "search"}


def summary(batch: int) -> dict:
    """What a made-up batch came to; every seventh failed."""
    severity = list(ACTIONS)[batch % 5]
    failed = batch % 7 == 5
    measured = {"auroc": {"value": .68, "low": .67, "high": .69}, "ece": {"value": .03, "low": .02, "high": .04}}
    true = {t: {**measured, "rate": .4, "predicted": .45, "verdict": "holds"} for t in ("any", "30d")}
    stages = ["ingest"] if failed else ["ingest", "features", "drift", "decide", "train", "evaluate", "promote", "publish"]
    how = {"state": "failed", "failed": "ingest", "error": "FileRefused: a bad header"} if failed else {"state": "published", "failed": None, "error": None}
    finished = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(days=batch)
    out = {"batch": batch, **how, "finished": finished.isoformat(), "seconds": 60. + batch, "compared": batch - 1 if batch else None,
        "stages": {o: {"seconds": 9.5, "page": f"{o}.html"} for o in stages}, "rows_in": 16_000, "rows_out": 15_990, "quarantined": 10}
    if failed: return out
    return out | {"severity": severity, "action": ACTIONS[severity], "share": (batch % 10) / 20, "champion": 1 + batch // 10, "promoted": batch % 10 == 0,
        "version": 1 + batch // 10, "digest": f"{batch // 10:064x}", "reason": "it ranks no worse", "predicted": {"any": .46, "30d": .11},
        "outcomes": {"batch": batch - 1, "targets": true} if batch else {}, "finding": f"Batch {batch}: 15,990 encounters were taken in, 10 set aside. " * 2,
        "tiles": {"encounters": "15,990", "in quarantine": "10", "champion": f"version {1 + batch // 10}"}, "synthetic": False}


def filled(root: Path, n: int):
    """Settings of a storage with the summaries of n batches and a champion."""
    settings = load_settings(storage={"root": str(root)}, serving={"log": False})
    tree = Tree(settings)
    for b in range(n):
        (tree.reports / str(b)).mkdir(parents=True)
        (tree.reports / str(b) / "summary.json").write_text(json.dumps(summary(b)))
    line = [{"version": 1 + b // 10, "batch": b, "digest": f"{b // 10:064x}", "since": "2026-02-01T08:00:00+00:00", "path": "x"} for b in range(0, n, 10)][::-1]
    write_json(tree.models / "champion.json", line[0] | {"former": line[1:]})
    write_gallery(settings)
    return settings


@pytest.fixture(scope="module")
def thirty(tmp_path_factory): return filled(tmp_path_factory.mktemp("gallery"), 30)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for o in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"): options.add_argument(o)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@contextmanager
def served(settings):
    """The API with its security headers, on a port of its own."""
    from werkzeug.serving import make_server
    from health_predict.api import create_app
    app = create_app(settings)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try: yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        app.extensions["health_predict"].stop()


@pytest.fixture(scope="module", params=["file", "api"])
def address(request, thirty):
    """Where the gallery is read."""
    if request.param == "file": yield (Tree(thirty).reports / "index.html").as_uri()
    else:
        with served(thirty) as url: yield f"{url}/reports/"


def visible(browser) -> list[int]:
    """The batches that the table shows, in order."""
    return [int(o.get_attribute("id").removeprefix("batch-")) for o in browser.find_elements("css selector", "#batches tbody tr") if o.is_displayed()]


def choose(browser, name: str, value: str):
    from selenium.webdriver.support.select import Select
    Select(find(browser, f"select[name={name}]")).select_by_value(value)


@needs_browser
def test_search_filter_and_sort(browser, address):
    from selenium.webdriver.common.keys import Keys
    browser.get_log("browser")
    browser.get(address)
    assert visible(browser) == list(range(29, -1, -1)) and find(browser, "#count").text == "30 batches"
    box = find(browser, "[name=q]")
    for typed, left in (("12", [12]), ("10-12", [12, 11, 10]), ("batch 3", [3]), ("version 3", [29, 28, 27, 25, 24, 23, 22, 21, 20, 10]),
                        ("failed", [26, 19, 12, 5]), ("answers now", [20]), ("nothing", [])):
        box.send_keys(Keys.CONTROL, "a"), box.send_keys(typed)
        assert visible(browser) == left, typed
        assert find(browser, "#count").text == f"{len(left)} of 30 batches"
    box.send_keys(Keys.ENTER)    # does nothing, and so loses nothing
    box.send_keys(Keys.CONTROL, "a"), box.send_keys(Keys.DELETE)
    choose(browser, "severity", "major"), choose(browser, "state", "published")
    assert visible(browser) == [28, 23, 18, 13, 8, 3]
    choose(browser, "action", "watch")
    assert visible(browser) == []
    for o in ("severity", "action", "state"): choose(browser, o, "")
    took = browser.find_elements("css selector", "#batches thead th")[-1]
    took.find_element("css selector", "button").send_keys(Keys.ENTER)
    assert took.get_attribute("aria-sort") == "descending" and visible(browser)[0] == 29
    took.find_element("css selector", "button").send_keys(Keys.SPACE)
    assert took.get_attribute("aria-sort") == "ascending" and visible(browser) == list(range(30))
    assert [o["message"] for o in browser.get_log("browser") if o["level"] == "SEVERE" and "favicon" not in o["message"]] == []


@needs_browser
@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)], ids=["desktop", "phone in the dark"])
def test_accessible_and_fits(browser, thirty, width, dark):
    look(browser, width, dark)
    browser.get((Tree(thirty).reports / "index.html").as_uri())
    assert axe(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    box = find(browser, ".scroll")
    if browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", box) > 48:    # a shade says that the table goes on
        shade = []
        for at in (0, 1e6):
            browser.execute_script("arguments[0].scrollIntoView(); arguments[0].scrollLeft = arguments[1]", box, at)
            seen = Image.open(BytesIO(box.screenshot_as_png)).convert("L")
            shade.append(seen.getpixel((seen.width - 2, 4)))
        assert shade[0] != shade[1]
    else: assert width > 390
    status = find(browser, "#count")
    assert status.get_attribute("aria-live") == "polite" and not find(browser, "time").text.endswith("UTC")    # the reader's own time
    look(browser)


def executed(run: Path, name: str, *outputs: str):
    """An executed notebook whose cells showed this, and its page."""
    run.mkdir(parents=True, exist_ok=True)
    shown = [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": "look(found)",
              "outputs": [{"output_type": "execute_result", "data": {"text/html": o}}]}
             for i, o in enumerate(outputs)]
    cells = [{"cell_type": "markdown", "metadata": {}, "source": f"## What {name} found"}, *shown]
    (run / f"{name}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"papermill": {"duration": 3.2, "end_time": "2026-11-23T08:53:49+00:00"}}}))
    (run / f"{name}.html").write_text("<!-- stages --><!-- /stages --><td>2026-11-23T08:55:56+00:00</td>")


@needs_browser
@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)], ids=["desktop", "phone in the dark"])
def test_comparison_is_readable_accessible_and_bounded(browser, tmp_path, width, dark):
    settings, huge = load_settings(storage={"root": str(tmp_path)}), "<rect/>" * 60_000
    runs = Tree(settings).runs
    for b in (4, 5):
        drawn = f"<figure><svg role='img' aria-label='rows'><!-- {b} -->"
        executed(runs / str(b), "1_ingest", f"<p>Of {b}00 rows &lt;all&gt; are good.</p>", f"{drawn}</svg></figure>")
        executed(runs / str(b), "3_drift", "<p>The same.</p>", f"{drawn}{huge}</svg></figure>")
        write_json(runs / str(b) / "ingest.json", {"rows_in": b * 100, "rows_out": b * 100, "quarantined": 0, "synthetic": False})
        publish_batch(settings, b)
    page = Tree(settings).reports / "5" / "compare.html"
    look(browser, width, dark)
    browser.get(page.as_uri())
    body = find(browser, "main")
    assert "Batch 5 against batch 4" in body.text and "500 encounters were taken in, 400 before" in body.text and page.stat().st_size < 1e6
    summary_line = find(browser, "details summary")
    assert summary_line.text == "ingest: 2 differences"
    summary_line.click()
    assert "<all> are good" in find(browser, "details .diff").text and len(browser.find_elements("css selector", "details[open] .pair svg")) == 2
    for o in browser.find_elements("css selector", "details:not([open]) summary"): o.click()
    assert "too large to be repeated" in body.text and axe(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert 'datetime="2026-11-23T08:55:56+00:00">23 Nov 2026, 08:55 UTC</time>' in (page.parent / "ingest.html").read_text()
    look(browser)


@needs_browser
def test_whole_without_script(browser, thirty):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((Tree(thirty).reports / "index.html").as_uri())
        assert len(visible(browser)) == 30 and not find(browser, ".filter").is_displayed() and find(browser, "time").text.endswith("UTC")
    finally: browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_answers_from_the_api_and_nothing_else_does(thirty):
    import requests
    reports = Tree(thirty).reports
    (reports / "dashboard.html").write_text("<main>dashboard</main>")
    (reports / "3" / "drift.evidently.html").write_text("evidently")
    with served(thirty) as url:
        for path, text in (("dashboard.html", "dashboard"), ("3/drift.evidently.html", "evidently"), ("index.json", '"format"')):
            answer = requests.get(f"{url}/reports/{path}", timeout=10)
            assert answer.status_code == 200 and text in answer.text and "sandbox" in answer.headers["Content-Security-Policy"]
        for path in ("older-9.html", "..%2fmodels%2fchampion.json", "3/.summary", "3/compare.html"):
            assert requests.get(f"{url}/reports/{path}", timeout=10).status_code == 404, path
    assert 'href="dashboard.html"' in write_gallery(thirty).read_text()
    (reports / "dashboard.html").unlink()


def test_thousands_of_batches_stay_small_and_older_pages_rest(tmp_path):
    settings = filled(tmp_path, 1600)
    reports = Tree(settings).reports
    pages = {o.name: o for o in reports.glob("*.html")}
    assert set(pages) == {"index.html", "older-0.html", "older-1.html"}
    assert all(o.stat().st_size < 1e6 for o in pages.values()), {k: o.stat().st_size for k, o in pages.items()}
    for o in pages.values(): assert not re.search(r'(?:href|src)="(?:/|[a-z]+:)', o.read_text())    # relative links only
    assert 'id="batch-999"' in pages["older-1.html"].read_text() and 'id="batch-1000"' in pages["index.html"].read_text()
    before = {k: o.stat().st_ino for k, o in pages.items()}
    write_json(reports / "700" / "summary.json", summary(700) | {"action": "watch"})
    write_gallery(settings)
    assert {k for k, o in pages.items() if o.stat().st_ino != before[k]} == {"index.html", "older-1.html"}


def test_a_damaged_index_or_summary_hides_nothing(tmp_path):
    settings = filled(tmp_path, 5)
    reports = Tree(settings).reports
    whole = json.loads((reports / "index.json").read_text())["batches"]
    (reports / "4" / "summary.json").write_text("{")
    for damage in ("", "[]", '{"format": 1}', None):
        if damage is None: (reports / "index.json").unlink()
        else: (reports / "index.json").write_text(damage)
        text = write_gallery(settings).read_text()
        assert all(f'id="batch-{b}"' in text for b in range(5)) and "damaged" in text and "health-predict run --batch 4" in text
    write_json(reports / "4" / "summary.json", summary(4))
    write_gallery(settings)
    again = json.loads((reports / "index.json").read_text())["batches"]
    assert {k: o["summary"] for k, o in again.items()} == {k: o["summary"] for k, o in whole.items()}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_after_pruning_everything_goes_on_as_before(project):
    """Four real batches, the second one pruned before the fourth: all that the fourth depends on is still the same."""
    from health_predict.storage import digest
    quick = {"HEALTH_PREDICT_DATA__SYNTHETIC_ROWS": "12000", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100", "HEALTH_PREDICT_GATE__RESAMPLES": "100",
        "HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_GATE__MIN_ROWS": "100"}
    project.environment |= quick
    force = {"HEALTH_PREDICT_RESPOND__FORCE_RETRAIN": "true"}
    for b in (0, 1): project.build(b)
    project.build(2, **force)
    check_pruning(project, lambda: project.build(3, **force), lambda settings: {k: digest(read(settings, 3)) for k, read in READS.items()})


def check_pruning(project: Project, build, inputs):
    """Prune a storage of three batches, build a fourth, roll back."""
    champion, gallery = project.storage / "models" / "champion.json", project.storage / "reports" / "index.html"
    command = lambda *words: project.run("health-predict", *words)
    if json.loads(champion.read_text())["version"] == 1: assert command("promote", "2").returncode == 0
    line = json.loads(champion.read_text())
    assert (line["batch"], [o["batch"] for o in line["former"]]) == (2, [0])
    assert "Version 2 of batch 2 answers now" in gallery.read_text()

    files = lambda: {o.relative_to(project.storage) for o in project.storage.rglob("*") if o.is_file()}
    settings = load_settings(storage={"root": str(project.storage)})
    before, depends = files(), inputs(settings)
    said = command("report", "prune", "--keep", "1", "--dry-run")
    assert said.returncode == 0 and "batch 1:" in said.stdout and "batch 0" not in said.stdout and files() == before
    done = command("report", "prune", "--keep", "1")
    assert done.returncode == 0, done.stderr
    gone = before - files()
    assert gone and all(o.parts[:2] in (("runs", "1"), ("reports", "1")) for o in gone)
    assert not list((project.storage / "runs" / "1").glob("*.ipynb")) and not (project.storage / "runs" / "1" / "draft").exists()
    assert inputs(settings) == depends
    text = gallery.read_text()
    assert 'id="batch-1"' in text and "its pages were removed" in text and 'href="1/' not in text
    assert command("audit", "verify").returncode == 0 and "prune batch 1" in command("audit", "show").stdout

    build()
    assert (project.storage / "reports" / "3" / "compare.html").is_file() and 'id="batch-3"' in gallery.read_text()
    for page in (project.storage / "reports").glob("**/*.html"):
        if "evidently" not in page.name:
            for to in re.findall(r'<a [^>]*href="([^"#:]+)[^"]*"', page.read_text()): assert (page.parent / to).is_file(), (page, to)
    while json.loads(champion.read_text())["former"]: assert command("rollback").returncode == 0
    assert "Version 1 of batch 0 answers now" in gallery.read_text()
    assert command("audit", "verify").returncode == 0 and command("doctor").returncode == 0
