"JupyterLab as `make lab` starts it: parameters appear on opening and leave no trace on saving."
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from conftest import Project

HOME = Path(__file__).parents[1]
INGEST = "nbs/pipeline/1_ingest.ipynb"
NOTEBOOKS = sorted(str(o.relative_to(HOME)) for o in (HOME/"nbs").glob("*/[0-9]*.ipynb"))


class Lab:
    "A copy of the repository, and its notebooks through JupyterLab's REST interface."
    def __init__(self, folder, port): self.folder, self.url = folder, f"http://127.0.0.1:{port}/api"

    def call(self, method, path, **kwargs):
        answer = requests.request(method, f"{self.url}/contents/{path}", headers={"Authorization": "token x"}, timeout=120, **kwargs)
        assert answer.ok, answer.text
        return answer.json()

    def open(self, path): return self.call("GET", path, params={"content": 1})["content"]
    def save(self, path, nb): return self.call("PUT", path, json={"type": "notebook", "format": "json", "content": nb})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    home = tmp_path_factory.mktemp("lab")/"repo"
    project = Project(home)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k,v in project.environment.items() if not k.startswith("JUPYTER")}|{"HOME": str(home.parent)}
    command = [sys.executable, "-m", "jupyter", "lab", "--config=.jupyter/jupyter_server_config.py", "--no-browser", "--allow-root",
        "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=x"]
    log = home.parent/"lab.log"
    with log.open("w") as f: server = subprocess.Popen(command, cwd=home, env=env, stdout=f, stderr=f)
    made = Lab(home, port)
    try:
        for _ in range(120):
            assert server.poll() is None, log.read_text()[-3000:]
            try: requests.get(made.url, timeout=5); break
            except requests.ConnectionError: time.sleep(.5)
        yield made
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def injected(nb): return [c["source"] for c in nb["cells"] if "injected-parameters" in c["metadata"].get("tags", [])]

def ran(nb):
    "The notebook as JupyterLab sends it when its cells have run."
    for n,c in enumerate(nb["cells"]):
        if c["cell_type"]=="code":
            c |= {"execution_count": n, "outputs": [{"output_type": "stream", "name": "stdout", "text": "42"}]}
            c["metadata"] |= {"execution": {"iopub.status.busy": "2030-01-01"}, "collapsed": False}
    nb["metadata"]["language_info"] = {"name": "python", "version": "3.11"}
    nb["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    return nb


def test_nobody_is_asked_about_news(lab):
    settings = f"{lab.url.removesuffix('/api')}/lab/api/settings/@jupyterlab/apputils-extension:notification"
    properties = requests.get(settings, headers={"Authorization": "token x"}, timeout=60).json()["schema"]["properties"]
    assert (properties["fetchNews"]["default"], properties["checkForUpdates"]["default"]) == ("false", False)

def test_pipeline_notebooks_open_with_their_parameters(lab):
    [cell] = injected(lab.open(INGEST))
    given = dict(o.split(" = ", 1) for o in cell.splitlines() if " = " in o)
    assert given["batch"]=="0" and "settings" in json.loads(given["stage"])
    assert json.loads(given["product"])["encounters"]==str(lab.folder/"storage/runs/0/encounters.parquet")
    [cell] = injected(lab.open("nbs/pipeline/2_features.ipynb"))
    assert 'upstream = {"ingest": {' in cell

@pytest.mark.parametrize("path", NOTEBOOKS)
def test_saving_an_unchanged_notebook_changes_no_byte(lab, path):
    before = (lab.folder/path).read_bytes()
    lab.save(path, lab.open(path))
    assert (lab.folder/path).read_bytes()==before

@pytest.mark.parametrize("path", [INGEST, "nbs/library/10_features.ipynb"])
def test_a_run_leaves_no_trace_and_an_edit_only_itself(lab, path):
    before = (lab.folder/path).read_text()
    nb = ran(lab.open(path))
    lab.save(path, nb)
    assert (lab.folder/path).read_text()==before
    nb["cells"][0]["source"] += "\nEdited."
    lab.save(path, nb)
    meant = json.loads(before)
    meant["cells"][0]["source"][-1] += "\n"
    meant["cells"][0]["source"].append("Edited.")
    assert json.loads((lab.folder/path).read_text())==meant
    (lab.folder/path).write_text(before)

def test_a_copy_has_no_injected_cell(lab):
    made = lab.call("POST", "nbs/pipeline", json={"copy_from": INGEST})["path"]
    assert (lab.folder/made).read_bytes()==(lab.folder/INGEST).read_bytes()

def test_a_library_notebook_is_saved_as_nbdev_cleans_it(lab):
    path = lab.folder/NOTEBOOKS[0]
    lab.save(NOTEBOOKS[0], ran(lab.open(NOTEBOOKS[0])))
    saved = path.read_bytes()
    assert not [o for o in (b'"execution"', b"language_info", b"ipykernel", b'"execution_count": 1') if o in saved]
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"], cwd=lab.folder, check=True)
    assert path.read_bytes()==saved

def test_the_injected_cell_is_not_saved_while_the_pipeline_is_broken(lab):
    before, nb, spec = (lab.folder/INGEST).read_bytes(), lab.open(INGEST), lab.folder/"pipeline.yaml"
    text = spec.read_text()
    spec.write_text("tasks: [")
    assert not injected(lab.open("nbs/pipeline/2_features.ipynb"))
    lab.save(INGEST, nb)
    assert (lab.folder/INGEST).read_bytes()==before
    spec.write_text(text)
    assert injected(lab.open(INGEST))
