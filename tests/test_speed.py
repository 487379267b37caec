"""Benchmarks of training through their command: what they measure and write down, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.ppo import quickstart_like_run

from data_prep.common.errors import run_main
from data_prep.common.files import write_json
from data_prep.common.machine import bf16_is_fast
from eval import speed as eval_speed
from eval.benchmarks import data, shakespeare
from eval.benchmarks.publishing import BEGIN, END, table
from recipes.trainers.ppo import benchmark

ROOT = Path(__file__).parents[1]
QUESTIONS = ["a?", "b b?", "c c c?", "d?", "e e?", "f f f?", "g?", "a?", "i i?", "j?"]  # one of them twice
OPTIONS = ["--batch_size", 8, "--response_length", 12, "--num_ppo_epochs", 2, "--updates", 2, "--threads", 1]
OPTIONS += ["--repeats", 2]


@pytest.fixture
def run(tmp_path, tiny_chat_tokenizer) -> Path:
    return quickstart_like_run(tmp_path / "run", tiny_chat_tokenizer, QUESTIONS)


def speed(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.speed", "ppo", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_both_trainers_are_timed(run, tmp_path):
    done = speed("--run", run, *OPTIONS, "--results_dir", tmp_path / "results")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results" / "speed_ppo.json").read_text())

    workers = ["stock", "ours_fp32"] + ["ours_bf16"] * bf16_is_fast()
    assert [list(run) for run in results["runs"]] == [workers, workers]
    for run in results["runs"]:
        for worker, figures in run.items():
            assert figures["precision"] == ("bf16" if worker.endswith("bf16") else "fp32")
            assert figures["episodes"] == 8, "the first of the two updates is not timed"
            assert figures["episodes_per_second"] == pytest.approx(8 / figures["seconds"])
            assert figures["peak_memory_mib"] >= figures["loaded_memory_mib"] > 100
            assert figures["length"] == figures["answer_tokens"] / 16
            assert 1 < figures["length"] < 12
            assert figures["cores_of_others"] >= 0
    for key in ("episodes_per_second", "peak_memory_mib"):
        ratios = [run[workers[-1]][key] / run["stock"][key] for run in results["runs"]]
        assert results["metrics"][f"{key}_over_stock"] == pytest.approx(sum(ratios) / 2)
        both = [run["stock"][key] for run in results["runs"]]
        assert results["metrics"][f"stock_{key}"] == pytest.approx(sum(both) / 2)

    assert results["settings"]["threads"] == 1 and results["settings"]["response_length"] == 12
    assert results["matrix_gflops"]["fp32"] > 0
    same = r"1\.00 \(1\.00 to 1\.00\)"
    assert re.search(rf"^stock +[\d.]+ +{same} +\d+ +{same} ", done.stdout, flags=re.M)


def test_what_cannot_be_compared_is_said_before_anything_is_trained(run, tmp_path, monkeypatch, capsys):
    def error_of(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            run_main(benchmark.main)
        return capsys.readouterr().err

    prompts, sft = run / "data/prompts_ppo.json", tmp_path / "none/sft/config.json"
    assert (
        error_of("--run", run, "--batch_size", 64)
        == f"error: --batch_size 64: expected 1 to 10, the prompts in {prompts}\n"
    )
    assert error_of("--run", tmp_path / "none") == (
        f"error: {sft}: no such file or folder; it is made by: recipes/sft.py\n"
    )
    assert error_of("--run", run, "--repeats", 0) == "error: --repeats 0: expected at least 1\n"
    assert error_of("--run", run, "--updates", 1) == (
        "error: --updates 1: expected at least 2, because the first is not timed\n"
    )


def test_an_error_of_the_process_is_the_commands(tmp_path):
    done = speed("--run", tmp_path, "--updates", 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --updates 1: expected at least 2, because the first is not timed\n"


def test_an_absent_text_is_one_error_with_the_command_that_fetches_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, file, url in (
        ("shakespeare", "data/tinyshakespeare.txt", shakespeare.URL),
        ("data", "data/belle_chat_ramdon_10k.json", data.URL),
    ):
        monkeypatch.setattr(sys, "argv", ["speed", command])
        with pytest.raises(SystemExit, match="1"):
            run_main(eval_speed.main)
        fetch = f"curl -fL --create-dirs -o {file} {url}"
        assert capsys.readouterr().err == f"error: {file}: no such file; fetch it by: {fetch}\n"


def test_an_unknown_option_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", "matrix", "--run", "runs"])
    with pytest.raises(SystemExit, match="2"):
        eval_speed.main()
    assert "unrecognized arguments: --run runs" in capsys.readouterr().err


def test_the_dev_split_of_shakespeare_never_touches_nanogpts_validation_text():
    text = bytes(range(256)) * 5000
    train, heldout = shakespeare.split(text, dev=False)
    assert train + heldout == text and len(train) == 1_003_854  # nanoGPT's split
    smaller, dev = shakespeare.split(text, dev=True)
    assert smaller + dev == train and len(smaller) == 903_468


def test_what_was_measured_is_published_beside_other_text(tmp_path, monkeypatch, capsys):
    def measured(name: str, **result) -> None:
        machine = {"cpu": "Some Processor", "cores": 2}
        write_json(tmp_path / f"speed_{name}.json", {"machine": machine, "commit": "abcdef" * 6, **result})

    quiet, busy = {"sft": [0.0, 0.04]}, {"ppo": [0.0, 1.25]}
    measured("training", runs={"SFT": [3.0, 1.0, 2.00004]}, units={"SFT": "times"}, cores_of_others=quiet)
    measured("ppo", runs=[{}], over_stock={"episodes_per_second": [4.0, 6.0]}, cores_of_others=busy)
    measured("matrix", metrics={"fp32": 123.0})
    (tmp_path / "to").mkdir()
    (tmp_path / "to/RESULTS.md").write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nAnd more.\n")
    monkeypatch.setattr(
        sys, "argv", ["speed", "publish", "--results_dir", str(tmp_path), "--folder", str(tmp_path / "to")]
    )
    eval_speed.main()
    assert capsys.readouterr().out == f"speed.json and RESULTS.md are written into {tmp_path / 'to'}\n"
    assert (tmp_path / "to/RESULTS.md").read_text() == (
        f"# Mine\n\n{BEGIN}\n"
        "| `eval.speed` | | median | least to most |\n"
        "|---|---|---|---|\n"
        "| `matrix` | matrix product, fp32 | 123 GFLOP/s | 123 to 123 of 1 |\n"
        "| `ppo` | PPO, episodes/s over TRL's trainer | 5 times | 4 to 6 of 2 |\n"
        "| `training` | SFT | 2 times | 1 to 3 of 3 |\n"
        "\n"
        "`matrix`: commit abcdefabcdef, 2 cores of Some Processor.\n"
        "`ppo`: commit abcdefabcdef, 2 cores of Some Processor, other processes kept at most 1.25 cores busy.\n"
        "`training`: commit abcdefabcdef, 2 cores of Some Processor, other processes kept at most 0.04 cores busy.\n"
        f"{END}\n\nAnd more.\n"
    )
    assert json.loads((tmp_path / "to/speed.json").read_text())["training"]["runs"] == {"SFT": [3.0, 1.0, 2.0]}


def test_nothing_to_publish_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["speed", "publish", "--results_dir", str(tmp_path), "--folder", str(tmp_path / "to")]
    )
    with pytest.raises(SystemExit, match="1"):
        run_main(eval_speed.main)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: found no speed_*.json; ")
    assert not (tmp_path / "to").exists()


def test_the_table_of_speed_in_the_repository_is_that_of_its_measurements():
    folder = ROOT / "recipes/configs/quickstart"
    text = (folder / "RESULTS.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.split(BEGIN)[1].split(END)[0] == f"\n{table(json.loads((folder / 'speed.json').read_text()))}"


def test_a_page_whose_table_has_no_end_is_an_error_and_stays(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "speed_matrix.json", {"metrics": {"fp32": 1.0}, "machine": None, "commit": None})
    (tmp_path / "RESULTS.md").write_text(f"# Mine\n\n{BEGIN}\nold\n")
    monkeypatch.setattr(sys, "argv", ["speed", "publish", "--results_dir", str(tmp_path), "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        run_main(eval_speed.main)
    assert "RESULTS.md: expected the lines <!-- speed: " in capsys.readouterr().err
    assert (tmp_path / "RESULTS.md").read_text() == f"# Mine\n\n{BEGIN}\nold\n"
    assert not (tmp_path / "speed.json").exists()
