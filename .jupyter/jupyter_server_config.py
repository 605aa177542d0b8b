# JupyterLab as `make lab` starts it: a pipeline notebook opens with Ploomber's parameters; what is saved is what git should see.
from pathlib import Path

from jupyter_server.services.contents.largefilemanager import LargeFileManager
from nbdev.clean import clean_nb
from nbdev.config import get_config as nbdev_config
from ploomber.jupyter.manager import derive_class
from ploomber.sources.notebooksource import _cleanup_rendered_nb


class Notebooks(derive_class(LargeFileManager)):   # Ploomber needs a synchronous base, Jupyter's default is asynchronous: every open fails
    "Saves notebooks as nbdev cleans them, those of the repository without outputs, those of the pipeline without injected cell."
    def save(self, model, path=""):
        nb = model.get("content")
        if model["type"]=="notebook" and nb and nb["nbformat"]==4:
            _cleanup_rendered_nb(nb, print_=False)   # here too: Ploomber itself doesn't while pipeline.yaml is broken
            clean_nb(nb, allowed_cell_metadata_keys=nbdev_config().allowed_cell_metadata_keys)
            if path.strip("/").startswith("nbs/"):
                for cell in nb["cells"]:
                    if cell["cell_type"]=="code": cell["outputs"] = []
        return super().save(model, path)


c = get_config()  # noqa: F821
c.ServerApp.contents_manager_class = Notebooks
c.ServerApp.allow_root = True    # in a container one is; it listens on this machine only
# ploomber_extension uploads notebooks to Ploomber's cloud; the others call jupyter.org and PyPI.
c.ServerApp.jpserver_extensions = {"jupyterlab_jupytext": False, "ploomber_extension": False}
c.LabApp.news_url = None
c.LabApp.app_settings_dir = str(Path(__file__).parent/"settings")    # nor does it ask whether it may
c.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
