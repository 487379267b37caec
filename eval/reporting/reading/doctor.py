"""What the data doctor (data_prep.check) found in a run's data, and the rows that commands have put into quarantine."""

from pathlib import Path

from data_prep.common.files import read_json
from eval.reporting.reading.run_folder import RANKINGS, TRAINED_ON, data_file
from eval.reporting.tables import number

PLACES = (
    "check.json",
    "report/check.json",
    "*/report/check.json",
    "data/*/report/check.json",
    "data/*/*/report/check.json",
)


def tallies(run: Path) -> list[dict]:
    """[{"name", "in", "out", "quarantined", "repaired", "findings": [(kind, rows, treatment)]}] of each check.json found."""
    found = []
    for path in sorted({path for place in PLACES for path in run.glob(place)}):
        report = read_json(path)
        if not isinstance(report, dict) or not {"rows", "findings", "files"} <= report.keys():
            continue
        rows = {key: number(report["rows"].get(key)) for key in ("in", "out", "quarantined", "repaired")}
        findings = [(each["kind"], number(each["rows"]), each["treatment"]) for each in report["findings"]]
        files = [Path(each["file"]).name for each in report["files"]]
        found.append({"name": path.relative_to(run), "files": files, **rows, "findings": findings})
    return found


def quarantines(run: Path) -> list[tuple[Path, str]]:
    """[(file, rows)] of what recipes and commands have left out as unusable."""
    files = sorted(run.glob("**/quarantine*.jsonl"))
    found = []
    for path in files:
        with path.open("rb") as file:
            found.append((path.relative_to(run), number(sum(1 for _ in file))))
    return found


def command(run: Path) -> str | None:
    """The command that lets the doctor look at what the run was trained on; None without such data."""
    files = [data_file(run, *TRAINED_ON), data_file(run, *RANKINGS)]
    found = " ".join(str(path) for path in files if path.exists())
    tokenizer = f" --tokenizer {run / 'sft'}" if (run / "sft" / "tokenizer.json").exists() else ""
    return f"python -m data_prep.check {found}{tokenizer} --output {run / 'doctor'}" if found else None
