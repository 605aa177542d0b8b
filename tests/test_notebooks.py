"""Each library notebook runs top to bottom, and the library is what the notebooks say."""
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbdev.test import test_nb as run_notebook

from health_predict.settings import Settings

ROOT = Path(__file__).parents[1]
LIBRARY, PIPELINE, EXPLORE = (sorted((ROOT / "nbs" / o).glob("*.ipynb")) for o in ("library", "pipeline", "explore"))
NAME = dict(ids=lambda o: o.stem)


@pytest.mark.parametrize("notebook", LIBRARY, **NAME)
def test_library_notebook_runs(notebook, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    passed, _ = run_notebook(notebook, skip_flags=["notest", "slow"], basepath=ROOT)
    assert passed


@pytest.mark.parametrize("notebook", PIPELINE, **NAME)
def test_pipeline_notebook_is_a_report(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    tags = [t for c in cells for t in c.metadata.get("tags", [])]
    assert tags == ["parameters"]
    assert len(code) <= 18
    assert not any(re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)


@pytest.mark.parametrize("notebook", LIBRARY + PIPELINE + EXPLORE, **NAME)
def test_notebook_is_clean(notebook):
    nb = nbformat.read(notebook, as_version=4)
    nbformat.validate(nb)
    assert not any(c.get("outputs") or c.get("execution_count") for c in nb.cells)
    assert cells_are_short(nb) and len({c.id for c in nb.cells}) == len(nb.cells)


@pytest.mark.parametrize("notebook", LIBRARY, **NAME)
def test_notebook_builds_only_on_those_before_it(notebook):
    """The numbers are an order to read in: what a notebook imports, for its examples too, stands before it."""
    place = {o.stem[3:]: o.stem for o in LIBRARY}
    text = "\n".join(c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    named = re.findall(r"^\s*(?:from|import) health_predict\.(\w+)", text, re.M)
    named += [o.split()[0] for line in re.findall(r"^\s*from health_predict import (.+)", text, re.M) for o in line.split(",")]
    assert not [place[o] for o in named if o in place and place[o] >= notebook.stem]


def test_links_lead_somewhere():
    """Notebooks, README and how-to pages link to files that are there."""
    found = {p: "\n".join(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "markdown") for p in LIBRARY + PIPELINE + EXPLORE}
    found |= {p: p.read_text() for p in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "terraform").rglob("*.md"))}
    links = [(p, o) for p, text in found.items() for o in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)]
    assert not [(p.name, o) for p, o in links if not (p.parent / o).exists()]


def cells_are_short(nb):
    return all(len(c.source.splitlines()) <= 45 for c in nb.cells if c.cell_type == "code" and c.source.startswith("#| export"))


def test_library_equals_notebooks(tmp_path):
    """Exported in a copy: in place, another test could import a module that is half written."""
    for o in ("nbs", "health_predict"): shutil.copytree(ROOT / o, tmp_path / o, ignore=shutil.ignore_patterns("__pycache__"))
    for o in ("pyproject.toml", "README.md"): shutil.copy(ROOT / o, tmp_path)
    made = tmp_path / "health_predict"
    for o in made.glob("*.py"):
        if o.name != "__init__.py": o.unlink()    # whatever the notebooks don't make is missed
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=tmp_path, check=True)
    assert {p.name: p.read_text() for p in made.glob("*.py")} == {p.name: p.read_text() for p in (ROOT / "health_predict").glob("*.py")}


def test_settings_file_documents_every_setting():
    """The comments of settings.ini are the descriptions and defaults of the code."""
    text = (ROOT / "settings.ini").read_text()
    parser = configparser.ConfigParser()
    parser.read_string(text)
    assert {s: set(parser[s]) for s in parser.sections()} == {s: set(f.annotation.model_fields) for s, f in Settings.model_fields.items()}
    for section in Settings.model_fields.values():
        for key, field in section.annotation.model_fields.items():
            default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
            default = "empty" if default == "" else default
            assert f"# {field.description}. Default: {default}.\n{key} =" in text


@pytest.mark.parametrize("module", sorted(p.stem for p in (ROOT / "health_predict").glob("*.py") if p.stem != "_modidx"))
def test_import_has_no_side_effects(module, tmp_path):
    """Importing a module makes no file and prints nothing."""
    statement = f"import health_predict.{module}" if module != "__init__" else "import health_predict"
    done = subprocess.run([sys.executable, "-c", statement], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr, list(tmp_path.iterdir())) == (0, "", "", [])
