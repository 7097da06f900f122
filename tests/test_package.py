"""Imports, missing hosts, version."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import attnflow_plugin
from tests.support import run_without

ROOT = Path(__file__).parents[1]


# What an interpreter finds that has nothing but torch and einops, and then one host at a time.
IMPORTS = """
import importlib
import json

import torch
from attnflow_plugin import IMap, ITrans
from attnflow_plugin.errors import MissingHostError
from attnflow_plugin.masks import make_mask
from attnflow_plugin.metrics import bits_per_dim, dequantize
from attnflow_plugin.testing import check_layer
import attnflow_plugin.insertion

check_layer(ITrans(2), (2, 4, 4))
found = {"shape": IMap(3).to_latent(torch.randn(2, 3, 4, 4))[0].shape}
for host in ("normflows", "nflows"):
    try:
        importlib.import_module(f"attnflow_plugin.{host}")
    except MissingHostError as error:
        found[f"without {host}"] = str(error)
for host, other in (("normflows", "nflows"), ("nflows", "normflows")):
    blocked = {other}
    module = importlib.import_module(f"attnflow_plugin.{host}")
    found[f"{host} alone"] = callable(module.IMap) and callable(module.insert_attention)
    for name in list(sys.modules):
        if name.partition(".")[0] == host:
            del sys.modules[name]
print(json.dumps(found))
"""


EXTRAS = ["normflows", "nflows", "matplotlib", "sklearn", "scipy", "tqdm", "pytest", "hypothesis"]


@pytest.fixture(scope="module")
def imports():
    return json.loads(run_without(EXTRAS, IMPORTS))


def test_core_needs_no_host_and_nothing_of_the_extras(imports):
    assert imports["shape"] == [2, 3, 4, 4]


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_a_missing_host_is_named_with_the_line_that_installs_it(imports, host):
    message = imports[f"without {host}"]
    assert message.startswith(f"attnflow_plugin.{host} needs {host}")
    assert f'pip install "attnflow-plugin[{host}]"' in message


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_one_host_does_not_import_the_other(imports, host):
    assert imports[f"{host} alone"]


def test_no_arrow_from_the_core_to_a_host():
    for path in (ROOT / "attnflow_plugin").rglob("*.py"):
        if path.parent.name in ("normflows", "nflows"):
            continue
        imports = re.findall(r"^\s*(?:import|from)\s.*", path.read_text(), re.MULTILINE)
        assert imports or path.name in ("errors.py", "report.py"), path
        assert not [line for line in imports if "nflows" in line or "normflows" in line], path


def test_version_has_a_single_source():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert "version" in project["project"]["dynamic"]
    assert f"## {attnflow_plugin.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {attnflow_plugin.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("tag", "head", "refusal"),
    [
        ("v1.2.3", "## 1.2.3 (2027-01-31)", ""),
        ("v1.2.4", "## 1.2.3 (2027-01-31)", "expected v1.2.3"),
        ("1.2.3", "## 1.2.3 (2027-01-31)", "expected v1.2.3"),
        ("v1.2.3", "## 1.2.3 (unreleased)", "CHANGELOG.md has no section"),
        ("v1.2.3", "## 1x2.3 (2027-01-31)", "CHANGELOG.md has no section"),
    ],
)
def test_a_release_is_refused_whose_tag_is_not_the_version(tmp_path, tag, head, refusal):
    for folder in (".ci", "attnflow_plugin"):
        (tmp_path / folder).mkdir()
    script = shutil.copy(ROOT / ".ci" / "check-tag", tmp_path / ".ci")
    (tmp_path / "attnflow_plugin" / "__init__.py").write_text('"""A."""\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{head}\n")
    found = subprocess.run([script, tag], capture_output=True, text=True, check=False)
    assert bool(found.returncode) == bool(refusal)
    assert refusal in found.stderr


def test_runtime_dependencies_are_torch_and_einops_only():
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    names = [dependency.partition(">")[0] for dependency in dependencies]
    assert sorted(names) == ["einops", "torch"]


def test_docstrings_are_written_in_markdown():
    # The site shows them as they are: `name` and $formula$, not roles of reStructuredText.
    written = re.compile(r":\w+:`|\.\. math::")
    sources = Path(attnflow_plugin.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if written.search(path.read_text("utf-8"))] == []
