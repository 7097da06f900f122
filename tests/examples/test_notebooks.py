"""What every notebook tells its readers, and that it needs nothing beside the package."""

import json
import re
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# What the extra `examples` installs, by the names of the modules.
INSTALLED = {"attnflow_plugin", "matplotlib", "nflows", "normflows", "skimage", "sklearn", "torch"}
IMPORT = re.compile(r"^\s*(?:import|from) (\w+)", re.MULTILINE)


def cells(notebook, kind):
    return [
        "".join(cell["source"])
        for cell in json.loads(notebook.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


def test_there_is_one_for_each_task():
    tasks = {"normflows_glow", "posterior_estimation", "super_resolution", "trained_model"}
    assert tasks == {notebook.stem for notebook in NOTEBOOKS}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
class TestNotebook:
    def test_it_says_at_its_top_what_it_needs(self, notebook):
        top = cells(notebook, "markdown")[0]
        assert "**Time:**" in top
        assert '`pip install -e ".[examples]" jupyterlab`' in " ".join(top.split())

    def test_it_needs_nothing_but_what_it_says(self, notebook):
        imported = set(IMPORT.findall("\n".join(cells(notebook, "code"))))
        assert imported <= INSTALLED | sys.stdlib_module_names

    def test_it_shows_the_loop_of_training(self, notebook):
        assert ".backward()" in "\n".join(cells(notebook, "code"))

    def test_it_ends_with_what_to_change(self, notebook):
        assert "\n## Your data: change these lines\n" in "\n" + cells(notebook, "markdown")[-1]
        assert json.loads(notebook.read_text())["cells"][-1]["cell_type"] == "markdown"
