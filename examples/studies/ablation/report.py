"""The report: tables, pictures and all numbers, in a folder or in a page of the documentation."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from ablation.forest import draw
from ablation.jobs import LENGTHS, SIZES
from ablation.outcomes import Result, final, lowest, outcomes, read_results
from ablation.published import publish
from ablation.tables import group_tables
from ablation.timing import read_times

START, END = "<!-- results -->", "<!-- end of results -->"
RAW = "ablation.json"
# Long trainings may overfit: there a model is also worth what it was at its best.
SCORES = {"": final, ", each run where it was best": lowest}


def write_report(folder: Path) -> str:
    """Write report.md, a picture for each data set and length, and the numbers of all runs.

    Returns:
        The text of report.md.
    """
    text = _write(folder, folder)
    (folder / "report.md").write_text(text)
    return text


def write_page(folder: Path, page: Path) -> None:
    """Put the report between the marks in a page, and its files into a folder of the same name."""
    before, _, rest = page.read_text().partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: expected {START} and {END}")
    text = _write(folder, page.with_suffix(""), f"{page.stem}/")
    page.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


def _write(folder: Path, out: Path, link: str = "") -> str:
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(folder)
    times = {data: read_times(folder, data) for data in SIZES}
    parts = []
    for length, data, (where, score) in product(LENGTHS, SIZES, SCORES.items()):
        chosen = [result for result in results if _is_from(result, data, length)]
        if chosen and (score is final or length == "long"):
            title = f"{data.capitalize()}, {length}: {LENGTHS[length][data]} steps{where}"
            picture = f"{data}-{length}{'' if score is final else '-best'}.png"
            found = outcomes(chosen, times[data], score)
            draw(found, title, out / picture)
            parts += [f"## {title}", f"![{title}]({link}{picture})", group_tables(found)]
    parts.append(f"{_made_with(results)} The numbers of all runs: [{RAW}]({link}{RAW}).")
    publish(results, times, out / RAW)
    return "\n\n".join(parts) + "\n"


def _is_from(result: Result, data: str, length: str) -> bool:
    config = result["config"]
    return (config["data"], config["length"]) == (data, length)


def _made_with(results: Iterable[Result]) -> str:
    kinds = Counter(
        json.dumps([result["versions"], result["hardware"]], sort_keys=True) for result in results
    )
    machines = (_machine(number, *json.loads(kind)) for kind, number in sorted(kinds.items()))
    return f"Made with {'; '.join(machines)}."


def _machine(runs: int, versions: dict[str, str], hardware: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{packages}, {runs} runs, each on one of {hardware['cores']} cores "
        f"({hardware['processor']}, {hardware['machine']}, {hardware['instructions']})"
    )
