"""eval.report --publish: the tables that it writes into RESULTS.md, and those in the repository."""

import json
from pathlib import Path

import pytest
from helpers.evaluations import assert_small_picture, evaluated_run

from eval import report
from eval.reporting.publishing import BEGIN, END, tables_in
from eval.reporting.tables import markdown


@pytest.fixture
def run(tmp_path, yes, no, zero_model_dir, write_conversations):
    return evaluated_run(tmp_path, {"base": zero_model_dir, "sft": no, "ppo": yes}, write_conversations)


def published(folder: Path) -> tuple[str, str]:
    """(the tables in a folder's RESULTS.md, those that its results.json renders to)."""
    _, tables, _ = tables_in((folder / "RESULTS.md").read_text(), folder)
    return tables, f"\n{markdown(json.loads((folder / 'results.json').read_text()))}"


def test_publish(command, run, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "RESULTS.md").write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--limit", 1, "--publish", folder)
    assert code == 0 and f"{folder}: results.json, RESULTS.md, answers.png\n" in out, err
    text = (folder / "RESULTS.md").read_text()
    assert (
        text.startswith(f"Before.\n\n{BEGIN}\n| | |\n")
        and text.endswith(f".\n{END}\n\nAfter.\n")
        and "old" not in text
    )
    tables, rendered = published(folder)
    assert tables == rendered and "| bits per byte on held-out documents | 2.5 |" in tables
    stages = json.loads((folder / "results.json").read_text())["stages"]
    assert stages["pretrain"]["metrics"] == {"bits_per_byte": 2.5} and "curves" not in stages["pretrain"]
    assert_small_picture(folder / "answers.png")
    assert not (folder / "stages.png").exists()  # nothing in this run to draw it from

    (folder / "RESULTS.md").write_text(text.replace("| 2.5 |", "| 2.4 |"))  # by hand
    tables, rendered = published(folder)
    assert tables != rendered


def test_publish_into_a_new_folder_and_without_an_example(command, run, yes, tmp_path):
    (run / "sft").unlink()
    (run / "sft").symlink_to(yes)  # as right as PPO, so that no question tells them apart
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "answers.png").touch()
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--limit", 1, "--publish", folder)
    assert code == 0 and "no answers.png: there is no question" in out, err
    assert sorted(path.name for path in folder.iterdir()) == ["RESULTS.md", "results.json"]
    assert (folder / "RESULTS.md").read_text().startswith(f"# Results\n\n{BEGIN}\n")


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"], ids=range(6)
)
def test_a_page_without_its_markers_is_refused_and_kept(command, run, tmp_path, text):
    (tmp_path / "RESULTS.md").write_text(text)
    code, _, err = command(report, "--run", run, "--publish", tmp_path)
    assert code == 1 and "RESULTS.md: expected the lines <!-- tables" in err
    assert (tmp_path / "RESULTS.md").read_text() == text and not (tmp_path / "results.json").exists()


CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
PUBLISHED = sorted(
    path for path in CONFIGS.glob("*/RESULTS.md") if path.parent.name != "adapt"
)  # see test_adaptation.py


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_tables_in_the_repository_are_those_of_its_results(path):
    folder = path.parent
    if not (folder / "results.json").exists():
        pytest.skip("no run has been published yet")
    tables, rendered = published(folder)
    assert tables == rendered
    assert (folder / "results.json").stat().st_size < 100_000
    assert_small_picture(folder / "answers.png")
