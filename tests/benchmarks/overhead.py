"""What the pipeline costs beside its notebooks: `ploomber build` against papermill and nbconvert on the same notebooks, each in its own process; and what
`health-predict run` costs around a build: where nothing has changed, and of a pipeline of two notebooks that do nothing.

    python tests/benchmarks/overhead.py [--rows 5000] [--only-run]

All of it on the same synthetic batch, one after the other in one run.
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import nbformat

from health_predict.synthetic import write_cohort

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import Project
from trivial import Trivial

ROOT, BIN = Path(__file__).parents[2], Path(sys.executable).parent


def measured(*command, cwd=None, **environment) -> tuple[float, float]:
    """Wall and CPU seconds of a command and everything that it starts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run([str(BIN / command[0]), *map(str, command[1:])], cwd=cwd or ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stripped(executed: Path, target: Path) -> Path:
    """An executed notebook as it was before it ran, with its parameters."""
    nb = nbformat.read(executed, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, target)
    return target


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rows", type=int, default=5000)
parser.add_argument("--only-run", action="store_true", help="only what `health-predict run` costs around a trivial build")
given = parser.parse_args()
rows = given.rows


def around(name, where, **environment) -> None:
    """Print what `run` and a plain build cost, where all is to do and where nothing is."""
    for what, plain, run in (("all stages", ("ploomber", "build", "--force"), ("health-predict", "run", "--batch", "0", "--force")),
                             ("nothing to do", ("ploomber", "build"), ("health-predict", "run", "--batch", "0"))):
        one, two = measured(*plain, cwd=where, **environment), measured(*run, cwd=where, **environment)
        print(f"{name + ', ' + what:40}build {one[0]:6.1f} s {one[1]:6.1f} CPU s   run {two[0]:6.1f} s {two[1]:6.1f} CPU s   "
              f"more {two[0] - one[0]:6.1f} s {two[1] - one[1]:6.1f} CPU s")
    idle = measured("health-predict", "run", cwd=where, **environment)
    print(f"{name + ', nothing waits':40}{'':28}run {idle[0]:6.1f} s {idle[1]:6.1f} CPU s")


with tempfile.TemporaryDirectory() as folder:
    trivial = Trivial(Project(Path(folder)))
    trivial.arrive(0)
    os.environ["PYTHONPATH"] = folder
    measured("ploomber", "build", cwd=folder)     # fills caches for both
    around("two trivial stages", folder)
    os.environ["PYTHONPATH"] = str(ROOT)
if given.only_run: sys.exit()

with tempfile.TemporaryDirectory() as folder:
    storage, work = Path(folder) / "storage", Path(folder) / "work"
    work.mkdir()
    (storage / "incoming").mkdir(parents=True)
    write_cohort(storage / "incoming" / "0.csv", rows)
    settings = {"HEALTH_PREDICT_STORAGE": str(storage), "HEALTH_PREDICT_MODEL__FAMILIES": "logistic"}
    first = measured("ploomber", "build", **settings)      # fills caches for both
    built = measured("ploomber", "build", "--force", **settings)
    again = measured("ploomber", "build", **settings)
    around("the pipeline", ROOT, **settings)
    apart = {}
    for executed in sorted((storage / "runs" / "0").glob("*.ipynb")):
        notebook = stripped(executed, work / executed.name)
        for product in ("draft", "bundle"):
            if executed.stem.endswith({"draft": "train", "bundle": "evaluate"}[product]): shutil.rmtree(storage / "runs" / "0" / product, ignore_errors=True)
        run = measured("papermill", notebook, work / f"out_{executed.name}", **settings)
        page = measured("jupyter-nbconvert", "--to", "html", "--no-input", work / f"out_{executed.name}", **settings)
        apart[executed.stem] = (run[0] + page[0], run[1] + page[1])

print(f"{'':32}{'wall s':>8}{'CPU s':>8}")
print(f"{'ploomber build, first':32}{first[0]:8.1f}{first[1]:8.1f}")
print(f"{'ploomber build, all stages':32}{built[0]:8.1f}{built[1]:8.1f}")
print(f"{'ploomber build, nothing to do':32}{again[0]:8.1f}{again[1]:8.1f}")
for name, (wall, cpu) in apart.items(): print(f"{'papermill + nbconvert: ' + name:32}{wall:8.1f}{cpu:8.1f}")
wall, cpu = (sum(o[i] for o in apart.values()) for i in (0, 1))
print(f"{'papermill + nbconvert: together':32}{wall:8.1f}{cpu:8.1f}")
print(f"CPU of the build over papermill and nbconvert: {built[1] / cpu:.2f}")
