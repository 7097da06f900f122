"""All results in one file, small enough to be published, and back into a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation.jobs import job_of, write_json
from ablation.outcomes import Result
from ablation.timing import read_times, write_times

Times = Mapping[str, Mapping[str, float]]
PARTS = {"arms", "environments", "runs", "times"}
ENVIRONMENT = ("versions", "hardware")


def publish(results: Sequence[Result], times: Times, path: Path) -> None:
    """Write all runs, and once only what is the same in those of an arm or of a machine."""
    environments: list[dict[str, Any]] = []
    runs = []
    for result in results:
        environment = {name: result[name] for name in ENVIRONMENT}
        if environment not in environments:
            environments.append(environment)
        config = {k: v for k, v in result["config"].items() if k != "definition"}
        outcome = {k: v for k, v in result.items() if k not in ("config", *ENVIRONMENT)}
        runs.append(config | outcome | {"environment": environments.index(environment)})
    arms = {result["config"]["arm"]: result["config"]["definition"] for result in results}
    write_json({"arms": arms, "environments": environments, "runs": runs, "times": times}, path)


def unpack(path: Path, folder: Path) -> None:
    """Put published results into a folder, where they are done; what was done there stays."""
    found = json.loads(path.read_text())
    if missing := sorted(PARTS - found.keys()):
        raise ValueError(f"{path}: expected a file that a report wrote, found none of {missing}")
    for run in found["runs"]:
        job = job_of(run)
        config = {name: run.pop(name) for name in ("arm", "seed", "data", "length", "steps")}
        config["definition"] = found["arms"][job.arm]
        environment = found["environments"][run.pop("environment")]
        if not job.is_done(folder):
            write_json({"config": config, **run, **environment}, job.path(folder))
    for data, times in found["times"].items():
        write_times(times | read_times(folder, data), folder, data)
