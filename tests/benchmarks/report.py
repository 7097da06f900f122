"""The report of `make bench`: tables, pictures and all numbers.

python -m tests.benchmarks.report outputs/benchmarks/run.json
python -m tests.benchmarks.report outputs/benchmarks/run.json --page docs/benchmarks.md
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.pictures import PICTURES
from tests.benchmarks.tables import Row, markdown

START, END = "<!-- results -->", "<!-- end of results -->"
NUMBERS = "benchmarks.json"
SECTIONS = {
    "bench_real_size": "At real size",
    "bench_glow": "Whole models",
    "bench_parts": "Where the time goes",
    "bench_compiled": "Compiled",
    "bench_layers": "Single layers",
    "bench_tokens": "Many tokens",
    "bench_depth": "Depth",
    "bench_estimate": "Exact log-det against estimate",
    "bench_marflow": "mARFlow",
}

Tables = dict[str, list[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--page", type=Path, help="page of the documentation to put it into")
    options = parser.parse_args()
    run = json.loads(options.run.read_text())
    folder = options.run.parent
    (folder / "report.md").write_text(write(run, folder))
    print(f"{folder / 'report.md'}")
    if options.page:
        write_page(run, options.page)


def write_page(run: Mapping[str, Any], page: Path) -> None:
    """Put the report between the marks in a page, and its files into a folder of the same name."""
    before, _, rest = page.read_text().partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: expected {START} and {END}")
    text = write(run, page.with_suffix(""), f"{page.stem}/")
    page.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


def write(run: Mapping[str, Any], folder: Path, link: str = "") -> str:
    """Write pictures and numbers into a folder, and return the text."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    found = sections(run)
    for name, title in SECTIONS.items():
        tables = found.get(name, {})
        if not tables:
            continue
        parts.append(f"## {title}")
        if name in PICTURES:
            picture = f"{name.removeprefix('bench_')}.png"
            PICTURES[name](tables, folder / picture)
            parts.append(f"![{title}]({link}{picture})")
        parts += [f"**{table}**\n\n{markdown(rows)}" for table, rows in tables.items()]
    machine = run["machine_info"]
    numbers = {"machine": machine, "tables": found}
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n")
    parts.append(f"{made_with(machine)} All numbers: [{NUMBERS}]({link}{NUMBERS}).")
    return "\n\n".join(parts) + "\n"


def sections(run: Mapping[str, Any]) -> dict[str, Tables]:
    """The tables of each file of benchmarks; tests may write into the same one."""
    found: dict[str, Tables] = {}
    for each in run["benchmarks"]:
        name = Path(each["fullname"].partition("::")[0]).stem
        table, rows = each["extra_info"]["table"], each["extra_info"]["rows"]
        found.setdefault(name, {}).setdefault(table, []).extend(rows)
    return found


def made_with(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f"{machine['threads']} thread{'s'[: machine['threads'] > 1]}"
    place = machine["gpu"] or (
        f"{threads} of {machine['cores']} cores of {machine['cpu']} with {machine['instructions']}"
    )
    return f"Made with Python {machine['python']}, {packages}, on {place}."


if __name__ == "__main__":
    main()
