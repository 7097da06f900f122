"""The Python blocks of the README and of the documentation run, and print what is shown."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
# They depend on the processor.
DECIMAL = re.compile(r"\d+\.\d+(?:e[-+]\d+)?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_a_page_run_and_print_what_follows(page, tmp_path, monkeypatch):
    blocks = BLOCK.findall(page.read_text())
    torch.compiler.reset()  # Sizes of other tests would become symbols, which takes minutes.
    monkeypatch.chdir(tmp_path)  # Blocks may write files.
    monkeypatch.syspath_prepend(ROOT / "examples" / "studies")
    namespace = {"__name__": "__main__"}
    for block, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, page.name, "exec"), namespace)
        if shown:
            assert DECIMAL.sub("#", printed.getvalue()) == DECIMAL.sub("#", shown)


def test_the_readme_shows_both_hosts_and_what_they_print():
    blocks = BLOCK.findall(README.read_text())
    for host in ("normflows", "nflows"):
        assert any(
            f"from attnflow_plugin.{host} import" in code and shown for code, shown in blocks
        )


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"\d\.\d", text)) <= 10


@pytest.mark.parametrize("block", BLOCK.findall(README.read_text()), ids=["normflows", "nflows"])
def test_an_example_of_the_readme_is_short_and_needs_its_host_only(block):
    lines = [line for line in block[0].splitlines() if line]
    assert len(lines) <= 12
    packages = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import", "from"))
    }
    assert packages <= {"attnflow_plugin", "torch", "normflows", "nflows"}


LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in LINK.findall(README.read_text()) if not link.startswith("http")]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_links_of_the_readme_are_addresses_on_a_package_index():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = README.read_text()
    count = len(LINK.findall(text))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    links = LINK.findall(text)
    assert len(links) == count
    assert all(link.startswith("https://") for link in links)
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    base = project["project"]["urls"]["Homepage"].replace("github.com", "raw.githubusercontent.com")
    folder = f"{base}/main/docs/figures"
    assert pictures == [f"{folder}/expectations.png", f"{folder}/digits_28.png"]
