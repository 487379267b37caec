"""eval.run and what it measures: every checkpoint of a run in one process, with figures worked out by hand."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from helpers.completions import serving

from data_prep import sample_completions
from data_prep.common.files import read_json, read_jsonl, write_json, write_jsonl
from data_prep.common.intervals import bootstrap_interval, detectable_difference
from data_prep.judging.judges import FUNCTION, REFERENCE
from data_prep.models.generation import generate_answers
from data_prep.models.loading import load_checkpoint
from data_prep.models.scoring import score_rankings
from data_prep.ranking.agreement import kendall_tau
from data_prep.readers.preferences import read_rankings
from eval import perplexity, reward_accuracy, win_rate
from eval import run as run_command
from eval.harness import measuring
from eval.harness.assistants import form_faults, loops
from eval.harness.checkpoints import find_checkpoints, role

QUESTIONS = [("1?", "yes"), ("22?", "no"), ("333?", "yes"), ("and what is right, 4?", "yes")]


def make_run(folder: Path, **models: Path) -> Path:
    """A run of these models, and the held-out files that the quickstart leaves."""
    for name, model in models.items():
        shutil.copytree(model, folder / name)
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in QUESTIONS]
    rows = [{"id": str(number), "conversations": each} for number, each in enumerate(turns)]
    write_json(folder / "data" / "conversations_heldout.json", rows)
    write_json(folder / "data" / "conversations_heldout_others.json", rows[:2])
    texts = [
        {"text": "yes and no", "source": "a"},
        {"text": "what is right", "source": "b"},
        {"text": "no", "source": "a"},
    ]
    write_jsonl(folder / "data" / "corpus_heldout.jsonl", texts)
    ranking = {"prompt": "?", "completions": ["longer", "long", "l"], "ranks": [0, 1, 2]}
    write_jsonl(folder / "data" / "rankings_heldout.jsonl", [ranking])
    return folder


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The names of the models that were loaded, in their order."""
    found, load = [], measuring.load_checkpoint
    monkeypatch.setattr(
        measuring, "load_checkpoint", lambda name, **more: found.append(Path(name).name) or load(name, **more)
    )
    return found


def test_every_model_is_loaded_once_and_what_is_there_is_kept(
    command, loads, talker, zero_model_dir, long_is_good_dir, tmp_path
):
    run = make_run(
        tmp_path / "mine", base=zero_model_dir, sft=talker("no"), ppo_seed1=talker("yes"), reward=long_is_good_dir
    )
    arguments = ("--run", run, "--max_new_tokens", 8)
    code, out, err = command(run_command, *arguments)
    assert code == 0 and "Loading weights" not in err, err
    assert loads == ["base", "sft", "ppo_seed1", "reward"]
    found = {path.stem: read_json(path) for path in (run / "results").glob("*.json")}
    assert set(found) == {
        "perplexity_base", "perplexity_sft", "perplexity_ppo_seed1", "answers_base_heldout", "answers_sft_heldout",
        "answers_sft_heldout_others", "answers_ppo_seed1_heldout", "answers_ppo_seed1_heldout_others",
        "win_rate_sft_vs_base", "win_rate_sft_vs_base_greedy", "win_rate_ppo_seed1_vs_sft",
        "win_rate_ppo_seed1_vs_sft_greedy", "win_matrix_heldout", "reward_accuracy_heldout",
    }  # fmt: skip
    # 262 entries, all as likely, and a token per byte; the same for each source.
    base = found["perplexity_base"]
    assert base["metrics"]["bits_per_byte"] == 8.03342  # log2(262)
    assert {name: (each["documents"], each["bytes"]) for name, each in base["sources"].items()} == {
        "b": (1, 13),
        "a": (2, 12),
    }
    assert base["sources"]["a"]["bits_per_byte"] == {**dict.fromkeys(("value", "low", "high"), 8.03342), "n": 2}
    assert set(found["perplexity_sft"]["against"]["difference"]) == {"all", "a", "b"}
    # "yes" is right three times, "no" once, and the base model says nothing: where neither is right both have no letter of
    # the reference, and tie.
    rates = found["win_matrix_heldout"]["win_rates"]
    expected = {("ppo_seed1", "sft"): 0.75, ("sft", "base"): 0.625, ("ppo_seed1", "base"): 0.875}
    for (one, other), value in expected.items():
        assert rates[one][other]["value"] == value and rates[other][one]["value"] == 1 - value
        name = f"win_rate_{one}_vs_{other}_greedy"
        assert name not in found or found[name]["metrics"]["win_rate"]["value"] == value
    won = found["win_rate_ppo_seed1_vs_sft_greedy"]["metrics"]
    assert won["detectable"] == pytest.approx(
        2.80158 * 0.5 / 2, rel=1e-5
    )  # of 1, 0, 1, 1 the standard deviation is one half
    assert (run / "results" / "win_matrix_heldout.png").read_bytes()[:4] == b"\x89PNG"
    table = (run / "results" / "table.md").read_text()
    row = "| ppo_seed1_vs_sft_greedy | ppo_seed1 against sft | greedy | 4 | 75.0% [25.0%, 100.0%] (would show 70.0 "
    assert f"{row}percentage points) |" in table
    assert "Stale" not in table

    # Again: nothing is loaded. With one result gone its model alone is; without its answers it would be two.
    loads.clear()
    assert command(run_command, *arguments)[0] == 0 and loads == []
    (run / "results" / "reward_accuracy_heldout.json").unlink()
    (run / "results" / "win_matrix_heldout.json").unlink()
    assert command(run_command, *arguments)[0] == 0 and loads == ["reward"]

    # Other weights under the same name: what was measured of the old ones is kept and named.
    shutil.rmtree(run / "ppo_seed1")
    shutil.copytree(talker("no"), run / "ppo_seed1")
    loads.clear()
    code, out, err = command(run_command, *arguments, "--only", "answers")
    assert code == 0 and loads == [], err
    was, now = (read_json(run / "results" / f"answers_{name}_heldout.json") for name in ("ppo_seed1", "sft"))
    was, now = (next(iter(each["checkpoints"].values()))["weights"] for each in (was, now))
    assert f"answers_ppo_seed1_heldout.json: kept, but stale: it is of weights {was}" in out and f"has {now}" in out
    assert "- `answers_ppo_seed1_heldout`: it is of weights" in (run / "results" / "table.md").read_text()
    assert command(run_command, *arguments, "--only", "answers", "--models", "ppo_seed1", "--overwrite")[0] == 0
    assert loads == ["ppo_seed1"]
    assert read_json(run / "results" / "answers_ppo_seed1_heldout.json")["metrics"]["exact_match"]["value"] == 0.25


KEPT = re.compile(r"(\S+)\.json: kept, but stale: (.*); --overwrite measures it anew")


def kept(out: str) -> dict[str, str]:
    """{result: why it is stale} of what was printed."""
    return {Path(path).name: reason for path, reason in KEPT.findall(out)}


def test_a_kept_result_made_otherwise_is_named(command, loads, talker, long_is_good_dir, tmp_path):
    run = make_run(tmp_path / "mine", sft=talker("no"), ppo=talker("yes"), reward=long_is_good_dir)
    exact = "data_prep.rewards.exact_match"
    others, results = run / "data" / "conversations_heldout_others.json", run / "results"
    arguments = ("--run", run, "--max_new_tokens", 8)
    assert command(run_command, *arguments)[0] == 0
    before = {path: path.read_bytes() for path in results.glob("*.json")}
    loads.clear()
    sampled, greedy, matrix = "win_rate_ppo_vs_sft", "win_rate_ppo_vs_sft_greedy", "win_matrix_heldout"
    rates = (sampled, greedy, matrix)
    answers = [f"answers_{name}_heldout" for name in ("sft", "ppo")]
    heldout, own = run / "data" / "conversations_heldout.json", [f"{each}_others" for each in answers]
    judge = f"its judge is {REFERENCE}, not {FUNCTION.format(exact)}"
    for options, expected in [
        ((), {}),
        (("--batch_size", 3), {}),  # no figure depends on it
        (("--judge", exact), dict.fromkeys(rates, judge)),
        (("--limit", 2), dict.fromkeys([*rates, *answers], "its number of prompts is 4, not 2")),
        (
            ("--eval_funcs", exact),
            dict.fromkeys([sampled, greedy, *answers, *own], "it was measured without exact_match"),
        ),
        (("--temperature", 0.5), {sampled: "its temperature is 1.0, not 0.5"}),
        (("--num_return_sequences", 2), {sampled: "its num_return_sequences is 4, not 2"}),
        (("--seed", 1), {sampled: "its seed is 42, not 1"}),
        (("--max_new_tokens", 9), dict.fromkeys([*rates, *answers, *own], "its max_new_tokens is 8, not 9")),
        (
            ("--conversations", f"heldout={others}"),
            dict.fromkeys([*rates, *answers], f"its data is {heldout}, not {others}"),
        ),
    ]:
        code, out, err = command(run_command, *arguments, *options)
        assert code == 0 and kept(out) == expected, (options, out, err)
        table = (results / "table.md").read_text()
        assert all(f"- `{name}`: " in table for name in expected) and ("Stale" in table) == bool(expected)
        assert ("stale)" in out) == bool(expected)
        assert "the judge: agreement" not in out  # it was not asked
    # Nothing was measured anew, or read differently.
    assert loads == [] and before == {path: path.read_bytes() for path in results.glob("*.json")}

    # A run that was moved, or files under other names, hold the same; other rows under the same name do not.
    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    arguments = ("--run", run, "--max_new_tokens", 8)
    assert kept(command(run_command, *arguments)[1]) == {}
    shutil.copy(run / "data" / heldout.name, tmp_path / "copy.json")
    given = ("--conversations", f"heldout={tmp_path / 'copy.json'}")
    assert kept(command(run_command, *arguments, *given)[1]) == {}
    rows = read_json(run / "data" / heldout.name)
    rows[0]["conversations"][1]["value"] = "no"
    write_json(run / "data" / heldout.name, rows)
    reason = f"it is of other rows of {run / 'data' / heldout.name}: the files or --seed have changed"
    assert kept(command(run_command, *arguments)[1]) == dict.fromkeys([*rates, *answers], reason)
    for name, more in (("corpus", {"text": "a"}), ("rankings", {"prompt": "2?", "chosen": "aa", "rejected": "a"})):
        with (run / "data" / f"{name}_heldout.jsonl").open("a") as file:
            file.write(json.dumps(more) + "\n")
    found = kept(command(run_command, *arguments, "--only", "perplexity", "reward_accuracy")[1])
    reason = f"it is of other rows of {run / 'data' / 'corpus_heldout.jsonl'}: the files or --seed have changed"
    assert found == {
        **dict.fromkeys(["perplexity_sft", "perplexity_ppo"], reason),
        "reward_accuracy_heldout": "its number of rankings is 1, not 2",
    }

    # With --overwrite they are measured anew, and then are what is asked for.
    options = (*arguments, "--only", "answers", "win_rate", "--judge", exact, "--limit", 2, "--eval_funcs", exact)
    code, out, err = command(run_command, *options, "--overwrite")
    assert code == 0 and kept(out) == {} and "the judge: agreement with people: not measured\n" in out, err
    assert command(run_command, *options)[1].count("stale") == 0
    # Fewer functions than it has are no other result.
    assert kept(command(run_command, *options[:-2])[1]) == {}


def test_results_of_other_commands_and_of_before_are_kept(command, loads, talker, tmp_path):
    run = make_run(tmp_path, sft=talker("no"), ppo=talker("yes"))
    results, heldout = run / "results", run / "data" / "conversations_heldout.json"
    arguments = ("--run", run, "--only", "answers", "win_rate", "matrix", "--max_new_tokens", 8)
    assert command(run_command, *arguments)[0] == 0
    for path in results.glob("*.json"):  # as they were written before
        unknown = ("digest", "max_new_tokens") if path.stem == "win_matrix_heldout" else ("digest",)
        write_json(path, {key: value for key, value in read_json(path).items() if key not in unknown})
    models = ("--model", run / "ppo", "--opponent", run / "sft", "--conversations", heldout, "--results_dir", results)
    for name, *options in (
        ("ppo_vs_sft_sealed", "--limit", 2, "--judge", "data_prep.rewards.exact_match"),
        ("ppo_vs_sft_greedy", "--temperature", 0),
    ):
        code, _, err = command(win_rate, *models, "--max_new_tokens", 8, "--name", name, *options)
        assert code == 0, err
    loads.clear()
    code, out, err = command(run_command, *arguments)
    assert code == 0 and kept(out) == {} and "stale" not in out and loads == [], out + err


def test_the_rows_of_the_table_identify_themselves(command, talker, long_is_good_dir, tmp_path):
    run = make_run(tmp_path, sft=talker("no"), ppo=talker("yes"), reward=long_is_good_dir)
    results, heldout = run / "results", run / "data" / "conversations_heldout.json"
    arguments = ("--run", run, "--only", "win_rate", "--max_new_tokens", 8)
    assert command(run_command, *arguments)[0] == 0

    def rows() -> list[str]:
        part = (results / "table.md").read_text().split("## One against another\n\n")[1]
        return [line for line in part.splitlines() if line]

    assert rows()[-1] == f"The judge is {REFERENCE}." and rows()[0].startswith("| result | models | answers | n | win")
    rate = ("--conversations", heldout, "--opponent", run / "sft", "--max_new_tokens", 8, "--results_dir", results)
    best = ("--model", run / "sft", "--best_of", 2, "--reward_model", run / "reward", "--name", "best_of_2_vs_sft")
    assert command(win_rate, *rate, *best)[0] == 0
    exact = ("--judge", "data_prep.rewards.exact_match")
    assert command(win_rate, *rate, "--model", run / "ppo", *exact, "--name", "ppo_vs_sft_exact")[0] == 0
    assert command(run_command, *arguments)[0] == 0
    header, _, *shown = rows()
    assert header.startswith("| result | models | answers | judge | n | win rate |")
    judge = FUNCTION.format(exact[1])
    assert [tuple(row.strip("| ").split(" | ")[:5]) for row in shown] == [
        ("ppo_vs_sft", "ppo against sft", "sampled", REFERENCE, "4"),
        ("ppo_vs_sft_greedy", "ppo against sft", "greedy", REFERENCE, "4"),
        ("best_of_2_vs_sft", "sft against sft", "sampled, best of 2", REFERENCE, "4"),
        ("ppo_vs_sft_exact", "ppo against sft", "sampled", judge, "4"),
    ]


def test_what_a_language_model_that_judges_tells_of_itself_is_printed(command, talker, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = make_run(tmp_path, sft=talker("no"), ppo=talker("yes"))
    with serving({"": "Verdict: A"}) as server:
        lines = ("model: m", f"url: {server.url}", "retries: 0", "concurrency: 1")
        (tmp_path / "judge.yaml").write_text("\n".join(lines) + "\n")
        arguments = ("--run", run, "--only", "win_rate", "--max_new_tokens", 8, "--judge", tmp_path / "judge.yaml")
        code, out, err = command(run_command, *arguments)
        assert code == 0, err
        asked = len(server.asked)
        again = command(run_command, *arguments)[1]
    # It always says that the first is better: each of four pairs, sampled and greedy, in both orders.
    told = (
        "the judge: 8 pairs in both orders: 8 with a verdict, 8 of them ties; position bias +100.0% [+100.0%, +100.0%]"
    )
    assert told in out and "tokens" in out.split(told)[1].splitlines()[0]
    assert "the judge: agreement with people: not measured\n" in out
    assert asked == 8 and "the judge: " not in again


def test_no_figure_depends_on_the_batch(command, tiny_model_dir, ready_to_end_dir, tiny_reward_dir, tmp_path):
    run = make_run(tmp_path, sft=tiny_model_dir, ppo=ready_to_end_dir)
    found = []
    for size in (1, 7):
        options = ("--batch_size", size, "--num_return_sequences", 3, "--results_dir", tmp_path / str(size))
        code, _, err = command(
            run_command, "--run", run, "--max_new_tokens", 8, "--only", "answers", "win_rate", *options
        )
        assert code == 0, err
        options = ("--documents", run / "data" / "corpus_heldout.jsonl", "--batch_size", size, "--name", "x")
        assert command(perplexity, "--model", tiny_model_dir, *options, "--results_dir", tmp_path / str(size))[0] == 0
        found.append({path.stem: read_json(path) for path in (tmp_path / str(size)).glob("*.json")})
    assert len(found[0]) == 2 * 2 + 2 + 1
    for each in (each for results in found for each in results.values()):
        each.pop("seconds")
        each.pop("batch_size", None)
    assert found[0] == found[1]
    sampled = [row["opponent_answer"] for row in found[0]["win_rate_ppo_vs_sft"]["examples"]]
    assert len(set(sampled)) == len(sampled)  # each prompt has random numbers of its own
    model, tokenizer = load_checkpoint(str(tiny_reward_dir), reward_model=True)
    rows, _ = read_rankings(run / "data" / "rankings_heldout.jsonl")
    assert score_rankings(model, tokenizer, rows, None, 1) == score_rankings(model, tokenizer, rows, None, 7)


def test_own_draws_have_the_model_s_probabilities(ready_to_end_dir):
    # The end of turn has probability 0.297 at every place: of 4,000 first tokens 1,188 ± 29.
    model, tokenizer = load_checkpoint(str(ready_to_end_dir))
    prompts = [[{"role": "user", "content": "a"}]]
    (drawn,) = generate_answers(model, tokenizer, prompts, 1, 1.0, 4000, 4000, exact=True)
    assert abs(sum(answer["stopped"] for answer in drawn) - 1188) < 4 * 29
    assert len({answer["ids"][0] for answer in drawn}) > 200


def test_the_opponent_is_what_a_model_was_trained_from(talker, zero_model_dir, capsys, tmp_path):
    models = {"base": zero_model_dir, "sft": talker("no"), "sft_seed1": talker("no"), "ppo_seed1": talker("yes")}
    run = make_run(tmp_path, **models, dpo=talker("yes"), kto=talker("yes"))
    # The run lay elsewhere when they were trained.
    write_json(run / "ppo_seed1" / "settings.json", {"settings": {"sft_model_path": "runs/old/sft_seed1"}})
    write_json(run / "kto" / "settings.json", {"settings": {"model_name_or_path": "somebody/model-of-the-hub"}})
    write_json(run / "dpo" / "unfinished.json", {})
    found = {each.name: (each.kind, each.opponent) for each in find_checkpoints(run)}
    assert found == {
        "base": ("base", None),
        "sft": ("assistant", "base"),
        "sft_seed1": ("assistant", "base"),
        "ppo_seed1": ("assistant", "sft_seed1"),
        "kto": ("assistant", None),
    }
    assert list(found) == ["base", "sft", "sft_seed1", "ppo_seed1", "kto"]
    assert "dpo: its training has not finished; it is left out" in capsys.readouterr().out
    assert role("sft_seed1") == "sft" and role("ppo_rater") == "ppo_rater"


def test_rankings_that_a_reward_model_was_trained_on_are_refused(command, yes, long_is_good_dir, tmp_path):
    run = make_run(tmp_path, sft=yes, reward=long_is_good_dir)
    rankings = run / "data" / "rankings_heldout.jsonl"
    write_json(run / "reward" / "settings.json", {"settings": {"rankings": [str(rankings)]}})
    code, _, err = command(run_command, "--run", run, "--only", "reward_accuracy")
    assert code == 1 and f"{rankings}: 1 of 1 held-out prompts is trained on too" in err, err
    assert not (run / "results" / "reward_accuracy_heldout.json").exists()


def test_a_reward_model_by_hand(command, long_is_good_dir, tmp_path):
    # The longer answer is preferred. Pairs by how much longer the better one is: -4 (wrong), 3, 4 and 7 (right).
    rows = [
        {"prompt": "1?", "completions": ["12345678", "12345", "1"], "ranks": [0, 1, 2]},
        {"prompt": "2?", "chosen": "1", "rejected": "12345"},
    ]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl", "--name", "x")
    code, out, err = command(reward_accuracy, *arguments, "--results_dir", tmp_path)
    assert code == 0, err
    metrics = read_json(tmp_path / "reward_accuracy_x.json")["metrics"]
    assert metrics["accuracy"]["value"] == 0.5
    assert metrics["kendall_tau"] == bootstrap_interval([1.0, -1.0])
    bins = [
        (each["from"], each["to"], each["pairs"], each["accuracy"]["value"])
        for each in metrics["by_length_difference"]
    ]
    assert [each for each in bins if each[0] < 0] == [(-4.0, 3.0, 1, 0.0)]
    assert all(value == 1.0 for _, _, _, value in bins[1:]) and sum(each[2] for each in bins) == 4
    # Weighted by its share of the prompts, the bins give the accuracy again.
    assert sum(each["share"] for each in metrics["calibration"]["bins"]) == pytest.approx(1)
    assert (tmp_path / "reward_accuracy_x.png").read_bytes()[:4] == b"\x89PNG"
    assert "x: Kendall's tau +0.00 [-1.00, +1.00]; calibration error" in out


def test_files_of_reward_bench_are_split_by_subset(command, long_is_good_dir, tmp_path):
    rows = [("chat", "long", "l"), ("chat", "l", "long"), ("code", "long", "l"), ("code", "long", "l")]
    keys = ("subset", "chosen", "rejected")
    rows = [{"id": n, "prompt": f"{n}?", **dict(zip(keys, row, strict=True))} for n, row in enumerate(rows)]
    rows.append({"id": 9, "prompt": "9?", "chosen": "l", "rejected": "long", "subset": "code"})
    write_jsonl(tmp_path / "bench.jsonl", rows)
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "bench.jsonl", "--results_dir", tmp_path)
    code, out, err = command(reward_accuracy, *arguments, "--name", "x")
    assert code == 0 and "subset" not in out.splitlines()[0], out + err
    metrics = read_json(tmp_path / "reward_accuracy_x.json")["metrics"]
    assert {name: each["value"] for name, each in metrics["subsets"].items()} == {"chat": 0.5, "code": round(2 / 3, 6)}
    assert metrics["accuracy"]["value"] == 0.6 and metrics["subsets_mean"] == round((0.5 + 2 / 3) / 2, 6)
    assert "by subset: chat 50.0%" in out and "mean of the subsets 58.3%" in out


@pytest.mark.parametrize(
    ("ranks", "others", "tau"),
    [
        ([0, 1, 2], [0, 1, 2], 1.0),
        ([0, 1, 2], [2, 1, 0], -1.0),
        ([0, 1, 2, 3], [0, 1, 3, 2], 4 / 6),
        ([0, 0, 1], [0, 1, 2], 2 / math.sqrt(2 * 3)),  # one pair is tied on the one side
        ([0, 0], [0, 1], None),
    ],
)
def test_kendall_s_tau_by_hand(ranks, others, tau):
    assert kendall_tau(ranks, others) == (tau if tau is None else pytest.approx(tau))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is so and it is so and it is so and", True),
        ("well: it is it is it is.", False),  # "is." is another word
        ("well: it is it is it is", True),
        ("no no no no no", False),
        ("no no no no no no", True),
        ("是的是的是的", True),
        ("a b c d a b c e a b c", False),
        ("", False),
    ],
)
def test_loops_by_hand(text, expected):
    assert loops(text) is expected


def test_the_form_of_the_references():
    references = ["It is in builtins.\nIt needs no import.", "Base class (of all).", ""]
    texts = [
        "It is in the module.\nYes.", "", "It is in builtins", "- It is in builtins.", "a.\nb.\nc. And so is the rest",
        "No.", "It is in the module builtins, and is not in another one.",
    ]  # fmt: skip
    assert form_faults(texts, references) == [
        [], ["empty"], ["length", "end"], ["marks"], ["lines", "end"], ["length"], ["length"],
    ]  # fmt: skip


def test_what_so_many_prompts_would_show():
    # 100 differences of 1 and -1: a standard error of 0.1005, times 1.960 + 0.842.
    assert detectable_difference([1, -1] * 50) == pytest.approx(2.80158 * math.sqrt(100 / 99) / 10, rel=1e-5)
    assert detectable_difference([0.5] * 9) is None and detectable_difference([1]) is None


def test_bad_input(command, talker, tmp_path):
    code, _, err = command(run_command, "--run", tmp_path)
    assert code == 1 and "found no checkpoint in its folders" in err
    run = make_run(tmp_path, sft=talker("no"))
    code, _, err = command(run_command, "--run", run, "--models", "ppo")
    assert code == 1 and "--models ppo: no finished checkpoint; there are: sft\n" in err
    code, _, err = command(run_command, "--run", run, "--conversations", "nowhere.json")
    assert code == 1 and "found no name" in err
    code, _, err = command(run_command, "--run", run, "--temperature", 0)
    assert code == 1 and "expected more than 0" in err
    (run / "data" / "conversations_heldout.json").write_text("{")
    code, _, err = command(run_command, "--run", run)
    assert code == 1 and "conversations_heldout.json" in err and not list((run / "results").glob("*.json"))


def test_bad_rows_of_each_kind_are_kept_in_a_file_of_their_own(command, talker, tmp_path):
    """The held-out files of a run are all called heldout: the rows of one kind do not replace those of another."""
    run = make_run(tmp_path, sft=talker("no"))
    data, results = run / "data", run / "results"
    write_json(data / "conversations_heldout.json", [*read_json(data / "conversations_heldout.json"), {"id": "bad"}])
    for name, bad in (("corpus", {"text": 5}), ("rankings", {"prompt": "2?"})):
        with (data / f"{name}_heldout.jsonl").open("a") as file:
            file.write(json.dumps(bad) + "\n")
    options = ("--on_bad", "quarantine", "--only", "perplexity", "answers", "reward_accuracy", "--max_new_tokens", 8)
    code, out, err = command(run_command, "--run", run, *options)
    assert code == 0, err
    found = {path.name: [json.loads(row) for row in path.open()] for path in results.glob("quarantine*")}
    assert {name: [(Path(row["file"]).name, row["row"]) for row in rows] for name, rows in found.items()} == {
        "quarantine_documents_heldout.jsonl": [("corpus_heldout.jsonl", 4)],
        "quarantine_conversations_heldout.jsonl": [("conversations_heldout.json", 5)],
        "quarantine_rankings_heldout.jsonl": [("rankings_heldout.jsonl", 2)],
    }


def test_conversations_with_calls_of_tools_are_left_out_and_counted(command, talker, tmp_path):
    """The data is what the model was trained on, calls and all: its other questions are asked."""
    run = make_run(tmp_path / "mine", sft=talker("no"))
    path = run / "data" / "conversations_heldout.json"
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'}
    turns = [{"from": "human", "value": "2+2?"}, call, {"from": "observation", "value": "4"}]
    calling = [{"id": f"t{i}", "conversations": [*turns, {"from": "gpt", "value": "4"}]} for i in range(3)]
    calling += [{"id": "t3", "conversations": turns[:2]}]
    plain = read_json(path)
    write_json(path, [*calling[:2], *plain, *calling[2:]])
    told = "conversations_heldout.json: 8 conversations\nleft out: 4 conversations with calls of tools: recipes/sft.py"
    code, out, err = command(run_command, "--run", run, "--only", "answers", "--max_new_tokens", 8)
    assert code == 0 and told in out, err
    found = read_json(run / "results" / "answers_sft_heldout.json")
    # "no" is the answer to the second of the four questions that are left.
    assert (found["prompts"], found["metrics"]["exact_match"]["value"]) == (4, 0.25)
    code, out, err = command(
        sample_completions, "--model", run / "sft", "--conversations", path, "--output", tmp_path / "sampled.jsonl"
    )
    assert code == 0 and told in out, err
    sampled = [row["prompt"] for row in read_jsonl(tmp_path / "sampled.jsonl")]
    assert sampled == [[{"role": "user", "content": question}] for question, _ in QUESTIONS]
    write_json(path, calling)
    code, out, err = command(run_command, "--run", run, "--only", "answers")
    assert code == 1 and err.endswith(": found calls of tools in every row; expected one without\n")


def test_a_run_without_held_out_files_says_so(command, talker, tmp_path):
    shutil.copytree(talker("no"), tmp_path / "sft")
    code, out, err = command(run_command, "--run", tmp_path)
    assert code == 0 and "no held-out documents in" in out and "no held-out conversations in" in out, err
    assert json.loads(json.dumps(list((tmp_path / "results").glob("*.json")))) == []
