"""The guide: every page is there, every link leads somewhere, nothing comes from elsewhere, and the API shows it."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from health_predict.guide import read, sources, write_guide

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage") / "guide"
    write_guide(ROOT, folder, run=False)
    return folder


def test_every_page_is_there_and_every_link_leads_to_one(guide):
    pages = {p.name: p.read_text(encoding="utf-8") for p in guide.iterdir()}
    assert set(pages) == {f"{name}.html" for name in sources(ROOT)}
    assert len(pages) == 2 + sum(len(list((ROOT / o).glob(kind))) for o, kind in (("docs", "*.md"), ("nbs/library", "*.ipynb"), ("nbs/pipeline", "*.ipynb")))
    for name, page in pages.items():
        leads = re.findall(r'<a[^>]* href="([^"]+)"', page)
        assert leads and not [o for o in leads if ":" not in o and not o.startswith("#") and o.partition("#")[0] not in pages], name
        for other, part in re.findall(r'href="(\w*(?:\.html)?)#([^"]+)"', page): assert f'id="{part}"' in pages[other or name], (name, other, part)
        assert not re.search(r'<(script|link|iframe)|<img[^>]* src="(?!data:)', page), name


def test_every_page_can_be_reached_from_the_first(guide):
    seen, new = set(), {"index.html"}
    while new:
        seen |= new
        new = {o for n in new for o in re.findall(r'<a[^>]* href="(\w+\.html)', (guide / n).read_text(encoding="utf-8"))} - seen
    assert seen == {p.name for p in guide.iterdir()}


def test_a_notebook_is_run_without_the_cell_that_writes_the_library(tmp_path):
    """A batch may run meanwhile, and read it."""
    nb = new_notebook(cells=[new_code_cell("6*7"), new_code_cell("raise SystemError  # nbdev_export()")])
    (tmp_path / "library").mkdir()
    nbformat.write(nb, tmp_path / "library" / "00_x.ipynb")
    cell, = read(tmp_path / "library" / "00_x.ipynb", run=True).cells
    assert cell.outputs[0].data["text/plain"] == "42"


def test_the_keyboard_ends_it_and_nothing_is_left(tmp_path):
    """Ctrl-C reaches the kernel, too; the former guide stays."""
    for o in ("explore", "library"): (tmp_path / "nbs" / o).mkdir(parents=True)
    for o in ("README.md", "settings.ini", "pipeline.yaml"): (tmp_path / o).write_text("")
    (tmp_path / "storage" / "guide").mkdir(parents=True)
    nb = new_notebook(cells=[new_code_cell("import time\nopen('begun', 'w')\ntime.sleep(60)")])
    nbformat.write(nb, tmp_path / "nbs" / "library" / "00_x.ipynb")
    nbformat.write(new_notebook(), tmp_path / "nbs" / "explore" / "data_set.ipynb")
    command = [Path(sys.executable).parent / "health-predict", "docs"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "nbs" / "library" / "begun").exists():
            assert run.poll() is None
            time.sleep(.1)
        os.killpg(run.pid, signal.SIGINT)
        said = run.communicate(timeout=30)[1]
    assert run.returncode == 130 and "AssertionError" not in said, said
    assert [o.name for o in (tmp_path / "storage").iterdir()] == ["guide"]


def test_the_api_shows_it(serve, models, guide):
    storage = models("guided")
    server = serve(storage)
    server.wait()
    missing = server.get("/docs/guide/")
    assert missing.status_code == 404 and "make docs" in missing.text and "/docs/guide/" not in server.get("/docs").text
    shutil.copytree(guide, storage / "guide")
    for page in ("/docs", "/", "/nowhere"): assert 'href="/docs/guide/"' in server.get(page, headers={"Accept": "text/html"}).text, page
    assert "<h1" in server.get("/docs/guide/").text
    assert "May the challenger take over?" in server.get("/docs/guide/23_gate.html").text
    for name in ("..%2fmodels%2fchampion.json", "nothing", "%2e%2e"): assert server.get(f"/docs/guide/{name}").status_code == 404, name


def test_pictures_are_small_and_made_by_the_script():
    script = (ROOT / "docs" / "screenshots.py").read_text(encoding="utf-8")
    made = set(re.findall(r'"(\w+)": (?:page\(|explained|feature)', script))
    there = {p.stem: p.stat().st_size for p in (ROOT / "docs").glob("*.png")}
    pages = [p.read_text(encoding="utf-8") for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    shown = {o for text in pages for o in re.findall(r"!\[[^\]]+\]\((?:docs/)?(\w+)\.png\)", text)}
    assert set(there) == made and shown <= made and max(there.values()) <= 150_000
