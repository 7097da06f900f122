"""What CONTRIBUTING.md names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = set(re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|toml|txt|cff))`", PAGE))
# What commands write is not there before they ran.
PATHS = sorted(path for path in NAMED if not path.startswith("outputs/"))
COMMANDS = sorted(set(re.findall(r"`make (\w+)", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_file_or_folder_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_of_the_makefile(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_something_is_named():
    assert len(PATHS) > 20
    assert len(COMMANDS) > 5
