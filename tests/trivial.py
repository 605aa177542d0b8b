"""A pipeline of three small notebooks that do as they are told: what `run` does around a build can be seen in seconds."""
import json

PIPELINE = """
meta: {extract_upstream: False}
on_finish: health_predict.pipeline.batch_finished
on_failure: health_predict.pipeline.batch_failed
tasks:
"""
TASK = """
  - name: {name}
    source: nbs/pipeline/{n}_{name}.ipynb
    upstream: [{before}]
    params: {{batch: "{{{{batch}}}}", storage: "{{{{storage}}}}"}}
    product: {{ipynb: "{{{{runs}}}}/{{{{batch}}}}/{n}_{name}.ipynb", html: "{{{{runs}}}}/{{{{batch}}}}/{n}_{name}.html"}}
    nb_product_key: [ipynb, html]
    nbconvert_exporter_name: {{html: health_predict.page.ReportExporter}}
    executor_params: {{progress_bar: False, extra_arguments: ["--IPKernelApp.log_level=50"]}}
    on_failure: health_predict.pipeline.stage_failed
"""
CELL = '''
import json, os, time
from pathlib import Path
here, before = Path(storage), upstream
told = json.loads((here / "orders.json").read_text()).get(f"{batch} {name}", [])
with open(here / "diary.txt", "a") as f: f.write(f"{batch} {name} {os.environ.get('HEALTH_PREDICT_RESPOND__DRY_RUN', '')}\\n")
n = (here / "diary.txt").read_text().count(f"{batch} {name} ")
order = told[min(n, len(told)) - 1] if told else ""
if order == "sleep": time.sleep(600)
elif order == "die": os._exit(1)
elif order == "locked":
    import sqlite3
    raise sqlite3.OperationalError("database is locked")
elif order == "full": raise OSError(28, "No space left on device")
elif order: raise ValueError(order)
'''
SUMMARY = '(here / f"runs/{batch}/publish.json").write_text(json.dumps({"finding": "done", "severity": "none", "action": "record", "promoted": False}))'
TOLD = """
for noun, content in {"decision": {"tell": "warning", "severity": "major", "action": "watch", "act": "watch", "news": {"share": 0}},
                      "promotion": {"promoted": False}, "ingest": {"synthetic": True}}.items():
    (here / f"runs/{batch}/{noun}.json").write_text(json.dumps(content))
"""


def notebook(*cells: tuple[str, str]) -> str:
    made = [{"cell_type": "code", "id": f"c{i}", "execution_count": None, "metadata": {"tags": [tag] if tag else []}, "outputs": [], "source": source}
            for i, (tag, source) in enumerate(cells)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


class Trivial:
    """A project whose pipeline is trivial; `order(batch, stage, ...)` says what a stage does each time that it runs."""
    def __init__(self, project, stages=("ingest", "publish")):
        self.project, self.storage, self.stages, self.orders = project, project.storage, stages, {}
        folder = project.folder / "nbs" / "pipeline"
        for old in folder.glob("*.ipynb"): old.unlink()
        text, before = PIPELINE, ""
        for n, name in enumerate(stages, 1):
            text += TASK.format(n=n, name=name, before=before)
            before = name
            cells = [("parameters", "upstream = None\nproduct = None\nbatch = None\nstorage = None"), ("", f"name = {name!r}" + CELL)]
            if name == stages[-1]: cells += [("", SUMMARY), ("", TOLD)]
            (folder / f"{n}_{name}.ipynb").write_text(notebook(*cells))
        (project.folder / "pipeline.yaml").write_text(text)
        (self.storage / "incoming").mkdir(parents=True)
        self.order()

    def order(self, batch: int = 0, stage: str = "ingest", *what: str) -> None:
        """Have a stage do one thing after another: sleep, die, locked, full, or fail with a text; then nothing."""
        self.orders[f"{batch} {stage}"] = [*what, ""] if what else []
        (self.storage / "orders.json").write_text(json.dumps(self.orders))

    def arrive(self, *batches: int) -> None:
        for b in batches: (self.storage / "incoming" / f"{b}.csv").write_text(f"batch {b}")

    def run(self, *words: str, **environment: str):
        return self.project.run("health-predict", "run", *words, **{"HEALTH_PREDICT_RUN__PAUSE": "0"} | environment)

    @property
    def diary(self) -> list[str]:
        file = self.storage / "diary.txt"
        return [o.strip() for o in file.read_text().splitlines()] if file.is_file() else []

    @property
    def kept(self) -> dict: return json.loads((self.storage / "state" / "run.json").read_text())["batches"]

    @property
    def events(self) -> list[dict]: return [json.loads(o) for o in (self.storage / "logs" / "run.jsonl").read_text().splitlines()]
