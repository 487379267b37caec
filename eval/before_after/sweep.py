"""The whole adaptation once for each value of one setting, and what each brought: gain against forgetting."""

import os
import re
import shlex
import subprocess
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, check_writable, read_json, write_json
from data_prep.common.page import render
from data_prep.common.plots import uri_of
from data_prep.common.provenance import commit, machine
from eval.before_after.pictures import sweep_picture
from eval.before_after.verdict import BITS, DOMAIN, MATCH, beyond_budget, in_words, verdict

GENERAL = "general"


def read_sweep(text: str) -> tuple[str, list[str]]:
    """("replay", ["0", "0.1"]) of "replay=0,0.1". Raises `InputError` for anything else, and for a value that is there twice."""
    match = re.fullmatch(r"([A-Za-z]\w*)=([\w.+-]+(?:,[\w.+-]+)+)", text)
    values = match[2].split(",") if match else []
    if not match or len(set(values)) < len(values):
        raise InputError(
            f"--sweep {text}: expected name=value,value,… with different values, such as replay=0,0.1,0.3"
        )
    return match[1], values


def run_road(command: str, key: str, value: str, folder: Path) -> None:
    """Run the command with KEY=value and RUN=folder in its environment, unless its figures are there already."""
    if has_figures(folder):
        print(f"· {folder / 'results.json'} is there: skipped")
        return
    words = shlex.split(command)
    settings = {key.upper(): value, "RUN": str(folder.absolute())}
    print(f"$ {' '.join(f'{name}={shlex.quote(each)}' for name, each in settings.items())} {command}", flush=True)
    try:
        code = subprocess.run(words, env={**os.environ, **settings}).returncode
    except OSError as error:
        raise InputError(f"--command {command}: cannot be started ({error.strerror})") from None
    again = "mend it and run the same command again: what is done is skipped"
    if code:
        raise InputError(f"{key}={value}: {command} ended with exit code {code}; {again}")
    if not has_figures(folder):
        raise InputError(
            f"{key}={value}: {command} left no {folder / 'results.json'} with 'adaptation'; expected the command to work in "
            f"the folder $RUN, and to end with python -m eval.adaptation … --output_dir $RUN; {again}"
        )


def has_figures(folder: Path) -> bool:
    path = folder / "results.json"
    found = read_json(path) if path.exists() else {}
    return isinstance(found, dict) and "adaptation" in found


def sweep_row(value: str, folder: Path, budgets: dict[str, float]) -> dict:
    """What one value brought: {"value", "run", "gain", "forgetting", "exact_match", "verdict", "beyond"}.

    The verdict is by the sweep's `budgets`, whatever those of the run were; "beyond" has a sentence for each loss that is
    larger than its budget.
    """
    found = read_json(folder / "results.json")["adaptation"]
    try:
        domain, general = (found["documents"][source]["models"]["after"]["relative"] for source in (DOMAIN, GENERAL))
        gain = {"value": -domain["value"], "low": -domain["high"], "high": -domain["low"]}
        beyond = [in_words(row, budgets[row["measure"]]) for row in beyond_budget(found["measures"], budgets)]
        judged = verdict(found["measures"], budgets[BITS], budgets[MATCH])
        about = {"exact_match": found["exact_match"], "verdict": judged, "beyond": beyond}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'results.json'}: found no {error}; expected what eval.adaptation writes"
        ) from None
    return {"value": value, "run": str(folder), "gain": gain, "forgetting": general, **about}


def best_of(rows: list[dict], key: str, budget: float) -> dict:
    """{"value", "line"}: of those that keep to the budgets the one that gained most; None where none does.

    Args:
        budget: of the general bits per byte; what is larger than this or another budget is in a row's "beyond" too.
    """
    within = [row for row in rows if row["forgetting"]["value"] <= budget]
    kept = [row for row in within if not row["beyond"]]
    shown = f"the budget of {100 * budget:g}%"
    if not kept:
        least = min(rows, key=lambda row: row["forgetting"]["value"])
        line = (
            f"no {key} of {', '.join(row['value'] for row in rows)} keeps to {'every budget' if within else shown}; "
        )
        line += f"the least forgetting is {100 * least['forgetting']['value']:+z.1f}%, at {key}={least['value']}"
        line += f", which is {' and '.join(least['beyond'])}" if within else ""
        return {"value": None, "line": f"{line}: try a higher one"}
    best = max(kept, key=lambda row: row["gain"]["value"])
    line = (
        f"{key}={best['value']}: the domain's bits per byte fall by {100 * best['gain']['value']:z.1f}%, the general ones "
        f"change by {100 * best['forgetting']['value']:+z.1f}%, the largest gain within {shown}"
    )
    rivals = [row["value"] for row in kept if row is not best and row["gain"]["high"] >= best["gain"]["low"]]
    if rivals:
        line += f"; not told apart from {key}={', '.join(rivals)}: their intervals overlap"
    for row in within:
        if row not in kept and row["gain"]["value"] > best["gain"]["value"]:
            line += f"; {key}={row['value']} gains more, but is {' and '.join(row['beyond'])}"
    return {"value": best["value"], "line": line}


def run_sweep(text: str, command: str, output_dir: Path, budget: float, exact_match_budget: float) -> dict:
    """Run the command for each value, and write sweep.json and sweep.html into `output_dir`; each run is a folder in it.
    Returns what sweep.json has. The budgets are those of `verdict`."""
    budgets = {BITS: budget, MATCH: exact_match_budget}
    key, values = read_sweep(text)
    check_writable("--output_dir", output_dir)
    folders = {value: output_dir / f"{key}_{value}" for value in values}
    rows = []
    for value, folder in folders.items():
        run_road(command, key, value, folder)
        rows.append(sweep_row(value, folder, budgets))
    best = best_of(rows, key, budget)
    facts = {"key": key, "command": command, "forgetting_budget": budget, "exact_match_budget": exact_match_budget}
    facts |= {"rows": rows, "best": best}
    facts |= {"machine": machine(), "commit": commit()}
    write_json(output_dir / "sweep.json", facts)
    picture = uri_of(sweep_picture(rows, key, budget))
    html = render(Path(__file__).with_name("sweep.html"), {**facts, "picture": picture})
    with atomic_write(output_dir / "sweep.html") as file:
        file.write(html)
    for row in rows:
        print(
            f"{key}={row['value']}: domain {-100 * row['gain']['value']:+z.1f}%, "
            f"general {100 * row['forgetting']['value']:+z.1f}% bits per byte; {row['verdict']['word']}"
        )
    print(best["line"])
    return facts
