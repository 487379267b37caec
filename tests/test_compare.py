"""recipes/compare.sh: the commands that make what is compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

STAND_IN = """#!{python}
# For `accelerate` and `python`: notes the command, and leaves the files that the real one would leave.
import os, sys
from pathlib import Path
words = sys.argv[1:]
if words[0] == "-c":  # the time that PPO took
    print(12.5)
    sys.exit()
option = lambda name, default=None: words[words.index(name) + 1] if name in words else default
with open("commands.txt", "a") as file:
    file.write(" ".join(words) + "\\n")
if "--config_file" in words:
    stage = Path(option("--config")).stem
    output = Path(option("--output_dir", f"runs/quickstart/{{stage}}"))
    output.mkdir()  # fails where an interrupted training has left its folder
    if stage == os.environ.get("INTERRUPTED"):
        sys.exit(1)
    (Path(option("--results_dir", "runs/quickstart/results")) / f"{{stage}}.json").write_text(option("--seed", "42"))
elif words[1].startswith("data_prep."):
    Path(option("--output")).touch()
elif words[1] == "eval.run":
    results = Path(option("--run")) / "results"
    given = words[words.index("--models") + 1 :]
    for name in given[: next(place for place, word in enumerate(given) if word.startswith("--"))]:
        for made in (f"answers_{{name}}_heldout", f"win_rate_{{name}}_vs_sft", f"win_rate_{{name}}_vs_sft_greedy"):
            (results / f"{{made}}.json").touch()
elif words[1] != "eval.report":
    name = words[1].removeprefix("eval.") + "_" + option("--name")
    (Path(option("--results_dir")) / f"{{name}}.json").touch()
"""


def test_compare_makes_what_the_report_reads_and_goes_on_where_it_was(tmp_path):
    root = Path(__file__).parents[1]
    (tmp_path / "recipes").symlink_to(root / "recipes")
    (tmp_path / "bin").mkdir()
    for name in ("accelerate", "python"):
        (tmp_path / "bin" / name).write_text(STAND_IN.format(python=sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)

    def compare(**environment) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", **environment}
        return subprocess.run(
            ["bash", tmp_path / "recipes" / "compare.sh"], env=environment, capture_output=True, text=True
        )

    done = compare()
    assert done.returncode == 1 and done.stderr.endswith(
        "ppo.json: no such file or folder; it is made by: recipes/quickstart.sh\n"
    )
    run = tmp_path / "runs" / "quickstart"
    (run / "results").mkdir(parents=True)
    (run / "data").mkdir()
    (run / "results" / "ppo.json").write_text("first")
    assert compare(INTERRUPTED="grpo").returncode == 1
    done = compare()
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "commands.txt").read_text().splitlines()
    trained = [re.search(r"recipes/(\w+)\.py", line)[1] for line in commands if "--config_file" in line]
    chain = ["sft", "reward", "ppo"]
    assert trained == ["dpo", "rloo", "grpo", "grpo", "ppo", "reward", "ppo", "ppo", *chain, *chain]
    assert commands[-1] == "-m eval.report --run runs/quickstart"
    timed = [line for line in commands if "--max_seconds 12.5" in line]
    assert [re.search(r"recipes/(\w+)\.py", line)[1] for line in timed] == ["dpo", "rloo", "grpo", "grpo"]
    seeds = [f"{stage}_seed{seed}" for stage in chain for seed in (1, 2)]
    methods = ["dpo", "rloo", "grpo", "ppo_rater", "ppo_right_or_wrong", "ppo_over_budget"]
    compared = [*methods, "ppo_seed1", "ppo_seed2"]
    made = [*seeds, *methods, "reward_right_or_wrong", *(f"answers_{name}_heldout" for name in compared)]
    made += [f"win_rate_{name}_vs_sft{kind}" for name in compared for kind in ("", "_greedy")]
    sealed = ["ppo", "ppo_seed1", "ppo_seed2"]
    made += [f"win_rate_{name}_vs_sft_sealed{kind}" for name in sealed for kind in ("", "_greedy")]
    made += [f"win_rate_{name}_vs_sft_all_greedy" for name in sealed]
    made += ["win_rate_best_of_8_vs_sft"]
    assert {path.stem for path in (run / "results").glob("*.json")} == {"ppo", *made}
    assert (run / "results" / "ppo.json").read_text() == "first"
    for stage in chain:
        assert [(run / "results" / f"{stage}_seed{seed}.json").read_text() for seed in (1, 2)] == ["1", "2"]
    # Each seed's stages stand on those of the same seed, and are compared with its own SFT model.
    for seed in (1, 2):
        (reward,) = [line for line in commands if f"--output_dir runs/quickstart/reward_seed{seed} " in line]
        assert (
            f"--model_name_or_path runs/quickstart/sft_seed{seed} --rankings runs/quickstart/data/rankings_seed{seed}"
            in reward
        )
        (ppo,) = [line for line in commands if f"--output_dir runs/quickstart/ppo_seed{seed} " in line]
        assert (
            f"--sft_model_path runs/quickstart/sft_seed{seed} --reward_model_path runs/quickstart/reward_seed{seed}"
            in ppo
        )
        rates = [line for line in commands if f"--model runs/quickstart/ppo_seed{seed} --opponent " in line]
        assert len(rates) == 3 and all(f"--opponent runs/quickstart/sft_seed{seed} " in line for line in rates)
    noted = [line.split("\t")[0] for line in (run / "results" / "times.tsv").read_text().splitlines()]
    kinds = [*(f"_seed{seed}" for seed in (1, 2)), *(f"_heldout_seed{seed}" for seed in (1, 2))]
    data = [f"{what}{kind}.jsonl" for what in ("completions", "rankings") for kind in kinds]
    data += ["rankings_right_or_wrong.jsonl", "rankings_heldout_right_or_wrong.jsonl"]
    (once,) = [line for line in commands if line.startswith("-m eval.run ")]
    assert set(re.search(r"--models (.*?) --", once)[1].split()) == set(compared)
    of_run = {f"answers_{name}_heldout" for name in compared} | {
        f"win_rate_{name}_vs_sft{kind}" for name in compared for kind in ("", "_greedy")
    }
    alone = [name for name in made if name not in of_run]
    assert sorted(noted) == sorted([*data, *(f"{name}.json" for name in alone)])
    again = len(commands)
    assert compare().returncode == 0
    left = (tmp_path / "commands.txt").read_text().splitlines()[again:]
    assert left == [once, "-m eval.report --run runs/quickstart"]  # eval.run knows itself what is measured
