"""The commands in the READMEs, run as they stand; figures there come from files that commands write."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.files import write_json, write_jsonl

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("recipes", "data_prep", "eval"))]


def blocks(readme: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.S)


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, input=""
    )


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, talker, zero_model_dir, long_is_good_dir) -> Path:
    """A root with the code and a run of tiny models where the quickstart would have left its own."""
    root = tmp_path_factory.mktemp("root")
    for name in ("recipes", "data_prep", "eval", "accelerate_configs"):
        (root / name).symlink_to(ROOT / name)
    folder = root / "runs" / "quickstart"
    (folder / "data").mkdir(parents=True)
    yes, no = talker("yes"), talker("no")
    for name, model in (("base", zero_model_dir), ("sft", no), ("ppo", yes), ("reward", long_is_good_dir)):
        (folder / name).symlink_to(model)
    write_jsonl(folder / "data" / "corpus_heldout.jsonl", [{"text": "yes and no"}])
    turns = [{"from": "human", "value": "right?"}, {"from": "gpt", "value": "yes"}]
    write_json(folder / "data" / "conversations_heldout.json", [{"id": "a", "conversations": turns}])
    prompt = [{"role": "user", "content": "right?"}]
    write_jsonl(
        folder / "data" / "rankings_heldout.jsonl", [{"prompt": prompt, "completions": ["yes", "n"], "ranks": [0, 1]}]
    )
    return root


def test_the_commands_of_the_evaluations_run_as_they_stand(quickstart):
    (block,) = blocks(ROOT / "eval" / "README.md")
    # The tiny models have 64 positions, fewer than the default room for an answer.
    block = re.sub(r"(eval\.(answers|win_rate|report) )", r"\1--max_new_tokens 8 ", block)
    done = run(block, quickstart)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((quickstart / "runs/quickstart/results.json").read_text())["stages"]
    assert set(results) == {
        "perplexity_base", "answers_sft_heldout", "answers_ppo_heldout", "reward_accuracy_heldout", "win_rate_ppo_vs_sft",
    }  # fmt: skip
    assert results["answers_ppo_heldout"]["metrics"]["exact_match"]["value"] == 1.0
    assert results["answers_sft_heldout"]["metrics"]["exact_match"]["value"] == 0.0
    assert results["win_rate_ppo_vs_sft"]["metrics"]["win_rate"]["value"] == 1.0
    table = (quickstart / "runs/quickstart/results.md").read_text()
    assert "| win rate, sampled answers: ppo vs sft | 100.0% [100.0%, 100.0%] |" in table


def test_every_other_command_names_what_exists(quickstart):
    """make, chat, and the launches, whose runs are tested elsewhere: their targets, files and options are there."""
    commands = [
        line
        for readme in READMES
        if readme.parent.name != "eval"
        for block in blocks(readme)
        for line in block.splitlines()
    ]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert len(commands) >= 4
    for command in (line.split("#")[0].strip() for line in commands):
        if command.startswith("make "):
            assert command.split()[1] in targets, command
        elif command.startswith("python -m eval.chat"):
            assert run(command, quickstart).returncode == 0, command
        else:
            script, config = re.fullmatch(r"accelerate launch (recipes/\w+\.py) --config (\S+)", command).groups()
            first = (ROOT / config).read_text(encoding="utf-8").splitlines()[0]
            assert (ROOT / script).is_file() and first == f"# {command}"


def test_the_tutorial_is_what_the_makefile_runs_and_every_file_it_names_exists():
    script = (ROOT / "recipes" / "quickstart.sh").read_text(encoding="utf-8")
    assert "bash recipes/quickstart.sh" in (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?:recipes|accelerate_configs)/[\w/.-]+\.(?:py|yaml)", script):
        assert (ROOT / name).is_file(), name
    for module in re.findall(r"python -m ([\w.]+)", script):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
