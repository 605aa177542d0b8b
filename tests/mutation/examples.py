"""The examples of a library notebook, run on the exported module: `make mutation` changes that, and they must notice."""
import importlib
from pathlib import Path

import nbformat
import pytest

LIBRARY = Path(__file__).parents[2] / "nbs" / "library"


@pytest.mark.parametrize("noun", ["schema", "gate", "drift", "audit", "breaker", "performance", "respond"])
def test_examples_hold(noun):
    notebook, = LIBRARY.glob(f"[0-9][0-9]_{noun}.ipynb")
    names = dict(vars(importlib.import_module(f"health_predict.{noun}")))
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith(("#| export", "#| default_exp")) and "nbdev_export" not in cell.source:
            exec(cell.source, names)    # noqa: S102
