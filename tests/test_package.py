"""Imports, missing hosts, version."""

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import attnflow_plugin

ROOT = Path(__file__).parents[1]


def run_without(blocked, code):
    """Run code in a new interpreter in which some packages cannot be imported."""
    prelude = f"""
        import sys

        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {set(blocked)!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Block())
    """
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_core_needs_no_host_and_nothing_of_the_extras():
    result = run_without(
        ["normflows", "nflows", "matplotlib", "sklearn", "scipy", "tqdm", "pytest", "hypothesis"],
        """
        import torch
        from attnflow_plugin import IMap, ITrans
        from attnflow_plugin.masks import make_mask
        from attnflow_plugin.metrics import bits_per_dim, dequantize
        from attnflow_plugin.testing import check_layer
        import attnflow_plugin.insertion

        check_layer(ITrans(2), (2, 4, 4))
        print(IMap(3).to_latent(torch.randn(2, 3, 4, 4))[0].shape)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert "torch.Size([2, 3, 4, 4])" in result.stdout


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_a_missing_host_is_named_with_the_line_that_installs_it(host):
    result = run_without([host], f"import attnflow_plugin.{host}")
    assert result.returncode == 1
    assert f"MissingHostError: attnflow_plugin.{host} needs {host}" in result.stderr
    assert f'pip install "attnflow-plugin[{host}]"' in result.stderr


def test_one_host_does_not_import_the_other():
    for host, other in (("normflows", "nflows"), ("nflows", "normflows")):
        result = run_without([other], f"from attnflow_plugin.{host} import IMap, insert_attention")
        assert result.returncode == 0, result.stderr


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
