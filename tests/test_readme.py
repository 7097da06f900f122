"""The Python blocks of the README and of the documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    blocks = BLOCK.findall(page.read_text())
    monkeypatch.chdir(tmp_path)  # Blocks may write files.
    monkeypatch.syspath_prepend(ROOT / "examples" / "studies")
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


def test_the_readme_shows_both_hosts():
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    for host in ("normflows", "nflows"):
        assert any(f"from attnflow_plugin.{host} import" in block for block in blocks)
