"""What was measured of speed, published beside configs: `speed.json`, and its table in `RESULTS.md`."""

import statistics
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import read_json, write_json
from eval.common.markdown import write_between

BEGIN = "<!-- speed: written by python -m eval.speed publish -->"
END = "<!-- end of speed -->"
PPO = {  # names in speed_ppo.json
    "episodes_per_second": "PPO, episodes/s over TRL's trainer",
    "peak_memory_mib": "PPO, peak memory over TRL's trainer",
    "peak_gpu_memory_mib": "PPO, peak memory of the GPU over TRL's trainer",
}


def publish(results_dir: Path, folder: Path) -> list[str]:
    """Write what the speed_*.json of `results_dir` hold into `folder`, and its table into its RESULTS.md, whose other text is
    kept. Returns the names of what was written.

    Raises InputError if there is no such file, or if the page's lines around the table are not in order.
    """
    paths = sorted(results_dir.glob("speed_*.json"))
    if not paths:
        raise InputError(
            f"{results_dir}: found no speed_*.json; they are written by: eval.speed … --results_dir {results_dir}"
        )
    published = {path.stem.removeprefix("speed_"): shortened(read_json(path)) for path in paths}
    folder.mkdir(parents=True, exist_ok=True)
    write_between(folder / "RESULTS.md", BEGIN, table(published), END)  # first: it may refuse
    write_json(folder / "speed.json", published)
    return ["speed.json", "RESULTS.md"]


def shortened(result: dict) -> dict:
    """{"runs": {name: values}, "units", "cores_of_others" at most, "machine", "commit"}, numbers with four digits."""
    runs, units = result.get("runs", {}), result.get("units", {})
    if "over_stock" in result:
        runs = {PPO[key]: values for key, values in result["over_stock"].items()}
        units = dict.fromkeys(runs, "times")
    elif not runs:  # a matrix product is measured once
        runs = {f"matrix product, {name}": [value] for name, value in result["metrics"].items()}
        units = dict.fromkeys(runs, "GFLOP/s")
    others = [cores for each in result.get("cores_of_others", {}).values() for cores in each]
    return {
        "runs": {name: [float(f"{value:.4g}") for value in values] for name, values in runs.items()},
        "units": units,
        "cores_of_others": round(max(others), 2) if others else None,
        **{key: result.get(key) for key in ("machine", "commit")},
    }


def table(published: dict) -> str:
    """The table in Markdown, and where and how quietly each command measured."""
    rows = ["| `eval.speed` | | median | least to most |", "|---|---|---|---|"]
    told = []
    for command, found in published.items():
        for name, values in found["runs"].items():
            median = f"{statistics.median(values):.4g} {found['units'][name]}".rstrip()
            spread = f"{min(values):.4g} to {max(values):.4g} of {len(values)}"
            rows.append(f"| `{command}` | {name} | {median} | {spread} |")
        busy = found["cores_of_others"]
        beside = "" if busy is None else f", other processes kept at most {busy} cores busy"
        told.append(f"`{command}`: commit {str(found['commit'])[:12]}, {place(found['machine'])}{beside}.")
    return "\n".join([*rows, "", *told, ""])


def place(machine: dict | None) -> str:
    if not machine:
        return "machine unknown"
    return machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"
