"""data_prep.start through its command: what it makes of files, the values it writes, the script, and that all of it runs."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset
from helpers.recipes import arguments_of
from trl import pack_dataset

from data_prep import start
from data_prep.common.disjoint import split_position
from data_prep.common.files import read_jsonl, write_json, write_jsonl
from data_prep.planning import sizes
from data_prep.planning.configs import Machine, Model, yaml_value
from data_prep.planning.files import is_corpus, pieces
from data_prep.planning.measure import Turns, measure_text
from data_prep.planning.preference_configs import label_weights, ppo
from data_prep.planning.road import LAUNCH
from data_prep.readers.preferences import prompt_key

ROOT = Path(__file__).parents[1]
LETTERS = "abcdefghij"
STAGES = ("pretrain", "sft", "reward", "ppo", "dpo")


def words(number: int) -> str:
    """So many tokens: the tokenizer merges a blank and a letter to one."""
    return " ".join(["a", *["x"] * (number - 1)])


def play() -> str:
    """300 lines of running text, no two alike."""
    drawn = random.Random(0)
    return "".join(f"{' '.join(drawn.choices(LETTERS, k=20))}.\n" for _ in range(300))


def conversations(answers: list[int]) -> list[dict]:
    """Conversations about up to 100 questions of two tokens, with answers of so many."""
    questions = (f"{a} {b}" for a in LETTERS for b in LETTERS)
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": words(number)}]}
        for question, number in zip(questions, answers, strict=False)
    ]


def preferences(lengths: list[tuple[int, int]]) -> list[dict]:
    """Pairs about up to 100 questions of two tokens, the chosen and the rejected answer of so many."""
    questions = (f"{a} {b}" for a in LETTERS for b in LETTERS)
    return [
        {"prompt": question, "chosen": words(good), "rejected": words(bad)}
        for question, (good, bad) in zip(questions, lengths, strict=False)
    ]


def labelled(labels: list[bool]) -> list[dict]:
    """Answers to up to 100 questions of two tokens, one to each: of 8 tokens if it is good, of 20 if it is bad."""
    questions = (f"{a} {b}" for a in LETTERS for b in LETTERS)
    return [
        {"prompt": question, "completion": words(8 if good else 20), "label": good}
        for question, good in zip(questions, labels, strict=False)
    ]


@pytest.fixture
def command(monkeypatch, capsys):
    """command("a.json", "--output_dir", …) runs the command on a machine of 10 GFLOP/s and 16 GB; returns what it prints."""

    def run(*line: object) -> str:
        monkeypatch.setattr(sys, "argv", ["start", *map(str, line)])
        monkeypatch.setattr(start, "machine_of", lambda: Machine(flops=1e10, memory=16e9, gpu=False))
        start.main()
        return capsys.readouterr().out

    return run


def config(folder: Path, name: str) -> dict:
    return yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))


def rows(path: str | Path) -> list[dict]:
    return list(read_jsonl(path))


def test_the_text_of_a_control_token_is_counted_as_the_corpus_has_it(tiny_tokenizer, tmp_path):
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "a<|endoftext|>b"}])  # 15 bytes, a token each
    measured = measure_text([str(tmp_path / "documents.jsonl")], tiny_tokenizer)
    assert (measured.tokens, measured.lengths.tolist()) == (16, [16])  # and the end of text


def test_values_from_a_known_histogram(command, tmp_path):
    """100 conversations of 4 control tokens, 2 of the question, 122 or 123 of the answer: of 128 tokens, or of 129."""
    write_jsonl(tmp_path / "mine.jsonl", conversations([122] * 100))
    out = command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run")
    run = tmp_path / "run"
    sft, pretrain, mix = config(run, "sft"), config(run, "pretrain"), config(run, "mix")
    train = rows(run / "data" / "conversations_train.jsonl")
    heldout = rows(run / "data" / "conversations_heldout.jsonl")
    assert len(train) + len(heldout) == 100 and 5 <= len(heldout) <= 20
    assert sft["conversations"] == [str(run / "data" / "conversations_train.jsonl")]
    assert sft["heldout"] == pretrain["heldout"] == [str(run / "data" / "conversations_heldout.jsonl")]
    assert mix["sources"] == {"conversations": {"files": sft["conversations"]}}
    assert "no documents: the text of the conversations is the corpus" in out

    # All are 128 long: 128 is enough. The answers have 122 tokens and an end of turn: 123, in 16s 128, but at most half of it.
    assert sft["max_length"] == pretrain["n_positions"] == 128
    assert sft["max_new_tokens"] == 64
    # Three passes over 128 tokens each make 128 steps of one row; 2,048 tokens would leave fewer than 64 steps.
    tokens = len(train) * 128
    assert f"{len(train)} conversations, {tokens:,} tokens" in (run / "sft.yaml").read_text()
    step = 512 if 3 * tokens >= 64 * 512 else 256
    assert sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"] * 128 == step
    assert sft["num_train_epochs"] == 3
    assert sft["warmup_steps"] == 0.05 and sft["eval_steps"] == sft["save_steps"] == 0.34  # of the steps
    # Width 128: 0.67 × 0.015 × 192 / 128, and half of 0.004 × √(192 / 128).
    assert (sft["muon_lr"], sft["learning_rate"]) == (0.015, 0.0024)
    assert (pretrain["muon_lr"], pretrain["learning_rate"]) == (0.022, 0.0049)
    assert (pretrain["n_layer"], pretrain["n_head"], pretrain["n_embd"]) == (2, 2, 128)
    # A document is a question of 2 tokens, a blank line of 2, an answer of 122, an end of text.
    seen = 4 * len(train) * 127
    step = pretrain["per_device_train_batch_size"] * pretrain["gradient_accumulation_steps"] * 128
    assert pretrain["max_steps"] == round(seen / step)
    assert pretrain["lr_scheduler_kwargs"]["num_decay_steps"] == round(0.4 * pretrain["max_steps"])


def test_one_row_in_twenty_may_be_longer_than_the_context():
    assert sizes.context(np.array([128] * 95 + [900] * 5), most=1024) == 128
    assert sizes.context(np.array([128] * 94 + [129] * 6), most=1024) == 256
    assert sizes.context(np.array([5000] * 100), most=1024) == 1024


def test_the_vocabulary_grows_with_the_root_of_the_text():
    assert [sizes.vocabulary(size) for size in (1, 2_560_000, 100_000_000, 10**12)] == [512, 4096, 32_768, 32_768]


def test_the_shape_grows_with_corpus_and_machine():
    """At 4 passes over 144 k tokens 4 × 192 sees 0.22 tokens a parameter, 6 × 384 would see 0.05."""
    assert sizes.best_shape(4096, 256, 144_000, 1e15) == (4, 192)
    assert sizes.best_shape(4096, 256, 144_000, 1e11) == (2, 128)
    assert sizes.best_shape(32_768, 1024, 10**10, 1e20) == (36, 1280)


@pytest.mark.parametrize("number, written", [(0.00002, "0.00002"), (1.0, "1.0"), (0.015, "0.015"), (13.0, "13.0")])
def test_numbers_are_written_so_that_yaml_reads_numbers(number, written):
    assert yaml_value(number) == written and yaml.safe_load(written) == number


@pytest.mark.parametrize("text", ["no", "a: b", "1e3", "你好, [x]", '"', "# c", "a\nb", "", "runs/mine/sft"])
def test_text_is_written_so_that_yaml_reads_the_same_text(text):
    assert yaml.safe_load(f"key: {yaml_value([text])}") == {"key": [text]}


@pytest.mark.parametrize(("updates_in_time", "updates"), [(0, 30), (39, 70), (125, 120), (900, 200)])
def test_the_updates_of_ppo_fit_into_the_time_beside_its_evaluations(updates_in_time, updates, tmp_path):
    """Prompts of 20 tokens, answers of 8, room for 16: by 6N = 6 MFLOP a token, 10N of 36 tokens and 12N of 28 an episode."""
    prompts = Turns(100, 100, 2800, *(np.full(100, number) for number in (28, 20, 8, 28)))
    model, machine = Model(None, 2, 128, 10**6, 6e6, 512, 64), Machine(flops=1e9, memory=16e9, gpu=False)
    episode, evaluations = (36 * 10 + 28 * 12) * 1e6, 7 * 64 * 36 * 10 * 1e6
    seconds = (evaluations + updates_in_time * 64 * episode) / 1e9 if updates_in_time else 1.0
    stage = ppo(tmp_path, "sft", prompts, ("a", "b"), 16, model, machine, seconds)
    batch = 64 if updates_in_time >= 60 else 32
    values = {key: value for key, value, *_ in stage.lines}
    assert (stage.steps, values["total_episodes"], values["max_prompts"]) == (updates, updates * batch, 64)
    assert stage.flops == pytest.approx(evaluations + updates * batch * episode)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on documents, conversations and preferences together, in 300 lines of text and 100 rows of each other kind."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "plays.txt").write_text(play())
    write_json(folder / "chat.json", conversations([10] * 100))
    write_jsonl(folder / "pairs.jsonl", preferences([(8, 20)] * 100))
    line = [sys.executable, "-m", "data_prep.start", *map(str, folder.iterdir())]
    line += ["--output_dir", str(folder / "run"), "--minutes", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_all_kinds_together_make_the_whole_road(whole):
    run, out = whole
    assert [line.split()[0] for line in out.splitlines() if re.match(r"(pretrain|sft|reward|ppo) ", line)] == [
        *STAGES[:4]
    ]
    assert f"bash {run}/run.sh" in out
    assert {path.name for path in run.iterdir()} == {
        "data",
        "run.sh",
        "mix.yaml",
        *(f"{name}.yaml" for name in STAGES),
    }
    mix, ppo = config(run, "mix"), config(run, "ppo")
    assert set(mix["sources"]) == {"documents", "conversations"}
    # Prompts: 4 control tokens less the answer's end, 2 words; answers of 8 and 20 words and an end of turn, in 16s: 32.
    assert ppo["response_length"] == 32 and ppo["long_prompts"] == "drop"
    assert "beyond 128 − 32 of the answer = 96 tokens: 0.0 % of them" in (run / "ppo.yaml").read_text()
    assert ppo["missing_eos_penalty"] == 1.0
    assert ppo["kl_budget"] == 3.2 and ppo["normalize_rewards"] is True  # 0.1 nats × 32 tokens
    updates = ppo["total_episodes"] // (ppo["per_device_train_batch_size"] * ppo["gradient_accumulation_steps"])
    assert updates % 10 == 0 and ppo["num_value_warmup_updates"] == 0.1 and ppo["eval_steps"] == updates / 5
    assert ppo["metric_for_best_model"] == "score" and ppo["load_best_model_at_end"] is True
    assert ppo["prompts"] == config(run, "reward")["rankings"] == config(run, "dpo")["rankings"]


def test_no_prompt_is_on_both_sides(whole):
    run, _ = whole
    for kind, prompt in (
        ("conversations", lambda row: row["messages"][0]),
        ("preferences", lambda row: row["prompt"]),
    ):
        train, heldout = (
            {json.dumps(prompt(row)) for row in rows(run / "data" / f"{kind}_{part}.jsonl")}
            for part in ("train", "heldout")
        )
        assert train and heldout and not train & heldout


def prompts(path: Path) -> list[set[str]]:
    """What each row of conversations or of preferences answers: what precedes each answer."""
    said = []
    for row in rows(path):
        turns = row.get("messages", [])
        asked = [turns[:place] for place, turn in enumerate(turns) if turn["role"] == "assistant"] or [row["prompt"]]
        said.append({json.dumps([(turn["role"], turn["content"]) for turn in prompt]) for prompt in asked})
    return said


def assert_apart(run: Path, trained: str, heldout: str) -> None:
    """No row of data/TRAINED_train.jsonl answers a prompt of data/HELDOUT_heldout.jsonl."""
    train = set().union(*prompts(run / "data" / f"{trained}_train.jsonl"))
    held = set().union(*prompts(run / "data" / f"{heldout}_heldout.jsonl"))
    assert train and held and not train & held


def left_out(run: Path, kind: str, out: str) -> int:
    """Rows of a kind that are in neither part, as the screen says."""
    parts = [len(rows(run / "data" / f"{kind}{part}.jsonl")) for part in ("", "_train", "_heldout")]
    number = parts[0] - parts[1] - parts[2]
    said = re.findall(
        rf"^([\d,]+) {kind[:-1]}s? left out of training, with a prompt that is held out", out, flags=re.M
    )
    assert said == ([f"{number:,}"] if number else [])
    return number


def test_no_prompt_held_out_of_one_kind_is_trained_on_in_the_other(whole):
    """A seed for both: what is held out of the conversations is held out of the preferences too, and twice as much."""
    run, out = whole
    assert_apart(run, "conversations", "preferences")
    assert_apart(run, "preferences", "conversations")
    held = [set().union(*prompts(run / "data" / f"{kind}_heldout.jsonl")) for kind in ("conversations", "preferences")]
    assert held[0] < held[1] and left_out(run, "conversations", out) == len(held[1] - held[0])
    assert left_out(run, "preferences", out) == 0


def test_the_script_holds_out_the_same_again(whole, tmp_path):
    run, _ = whole
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "run.sh").read_text().replace(str(run), str(copy))
    commands = re.findall(r"^    (python -m data_prep.hold_out .*)$", text, flags=re.M)
    parts = sorted((copy / "data").glob("*_*.jsonl"))
    before = [path.read_bytes() for path in parts]
    for path in parts:
        path.unlink()
    for line in commands:
        subprocess.run([sys.executable, *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
    assert len(commands) == len(parts) == 6 and [path.read_bytes() for path in parts] == before


def after(first: str, question: str) -> list[dict]:
    """A first question and its answer, and a question after it."""
    said = [("user", first), ("assistant", words(5)), ("user", question)]
    return [{"role": role, "content": text} for role, text in said]


def test_a_later_turn_of_a_conversation_may_be_a_held_out_prompt(command, tmp_path, tiny_model_dir):
    """The prompt of such a preference is not that by which its conversation is held out: each leaves rows out."""
    asked = [after(a, f"{a} {b}") for a in "abcdefghijklmnopqrst" for b in LETTERS[:5]]
    answer = {"role": "assistant", "content": words(8)}
    write_jsonl(tmp_path / "chat.jsonl", ({"messages": [*turns, answer]} for turns in asked))
    write_jsonl(tmp_path / "pairs.jsonl", ({"prompt": each, "chosen": "x", "rejected": words(9)} for each in asked))
    files = [tmp_path / "chat.jsonl", tmp_path / "pairs.jsonl"]
    run = tmp_path / "run"
    out = command(*files, "--model", tiny_model_dir, "--output_dir", run)
    assert_apart(run, "conversations", "preferences")
    assert_apart(run, "preferences", "conversations")
    assert left_out(run, "conversations", out) and left_out(run, "preferences", out)

    # Each leaves out what is held out of the other: the script makes lost parts again, whichever they are.
    until = (run / "run.sh").read_text().split("# Fine-tune it")[0]
    (run / "parts.sh").write_text(until)
    parts = sorted((run / "data").glob("*_*.jsonl"))
    before = [path.read_bytes() for path in parts]
    heldout = [path for path in parts if "heldout" in path.name]
    for lost in (heldout, heldout[:1], parts[1:2], parts):
        for path in lost:
            path.unlink()
        done = subprocess.run(["bash", run / "parts.sh"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is there: skipped") == 4 - len(lost)
        assert [path.read_bytes() for path in parts] == before


def test_a_prompt_that_most_conversations_begin_with_is_not_held_out(command, tmp_path, tiny_model_dir):
    """The first seed would hold it out of the preferences, and leave less than half of the conversations to train on."""
    often = next(
        row["prompt"]
        for row in preferences([(5, 9)] * 100)
        if 0.1 < split_position(prompt_key([{"role": "user", "content": row["prompt"]}]), 0) < 0.2
    )
    greeted = [
        {"messages": [*after(often, str(number)), {"role": "assistant", "content": "x"}]} for number in range(100)
    ]
    write_jsonl(tmp_path / "chat.jsonl", [*greeted, *conversations([200] * 100)])
    write_jsonl(tmp_path / "pairs.jsonl", preferences([(5, 9)] * 100))
    run = tmp_path / "run"
    out = command(tmp_path / "chat.jsonl", tmp_path / "pairs.jsonl", "--model", tiny_model_dir, "--output_dir", run)
    assert_apart(run, "conversations", "preferences")
    assert_apart(run, "preferences", "conversations")
    assert left_out(run, "conversations", out) < 50


@pytest.fixture
def accepted(monkeypatch):
    """accepted(run, "sft") asserts that the recipe's own parser, which refuses what it would not read, takes the YAML."""
    from recipes.trainers import arguments

    monkeypatch.setattr(arguments, "check_folders", lambda values: None)  # nothing is trained yet

    def check(run: Path, name: str) -> None:
        recipe, path = import_module(f"recipes.{name}"), run / f"{name}.yaml"
        assert path.read_text().splitlines()[0] == f"# {LAUNCH} recipes/{name}.py --config {path}"
        monkeypatch.setattr(sys, "argv", [f"recipes/{name}.py", "--config", str(path)])
        _, args, *_ = arguments.parse_arguments(*arguments_of(name), refused=recipe.REFUSED)
        assert args.output_dir == str(run / {"pretrain": "base"}.get(name, name))

    return check


@pytest.mark.parametrize("name", STAGES)
def test_every_yaml_is_accepted_by_its_recipe(whole, accepted, name):
    accepted(whole[0], name)


def test_the_lines_fit_a_screen(whole):
    run, _ = whole
    for name in (*STAGES, "mix"):
        _command, *lines = (run / f"{name}.yaml").read_text().splitlines()
        long = [line for line in lines if len(line) > 120]
        assert not [line for line in long if "#" in line]


def test_the_script_skips_what_is_done(whole, tmp_path):
    run, _ = whole
    text = (run / "run.sh").read_text()
    outputs = re.findall(r"^step (\S+) \\$", text, flags=re.M)
    assert [Path(output).name for output in outputs[-4:]] == [f"{name}.json" for name in STAGES[:4]]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "run.sh").write_text(text.replace(str(run), str(copy)))
    for output in outputs:
        path = Path(output.replace(str(run), str(copy)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done = subprocess.run(["bash", copy / "run.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there: skipped") == len(outputs) == 12
    assert f"python -m eval.chat --model {copy}/ppo" in done.stdout


def test_preferences_alone_teach_by_their_best_answers(command, tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", preferences([(8, 20)] * 60))
    out = command(tmp_path / "pairs.jsonl", "--output_dir", tmp_path / "run")
    assert "no conversations: the best answers of the preferences are the demonstrations" in out
    for part in ("train", "heldout"):
        pairs = rows(tmp_path / "run" / "data" / f"preferences_{part}.jsonl")
        taught = rows(tmp_path / "run" / "data" / f"demonstrations_{part}.jsonl")
        assert [row["messages"][-1] for row in taught] == [{"role": "assistant", "content": words(8)}] * len(pairs)
        assert [row["messages"][0] for row in taught] == [row["prompt"][0] for row in pairs]
    sft = config(tmp_path / "run", "sft")
    assert sft["conversations"] == [str(tmp_path / "run" / "data" / "demonstrations_train.jsonl")]


def test_demonstrations_do_not_answer_a_held_out_prompt_in_an_earlier_turn(command, tmp_path, tiny_model_dir):
    """Every question is asked alone, and begins a longer prompt: the two may be in different parts."""
    alone = [turns[:1] for turns in (after(f"{a} {b}", "x") for a in LETTERS for b in LETTERS[:4])]
    longer = [after(f"{a} {b}", "x") for a in LETTERS for b in LETTERS[:4]]
    pairs = [{"prompt": prompt, "chosen": "x", "rejected": words(9)} for prompt in (*alone, *longer)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    run = tmp_path / "run"
    out = command(tmp_path / "pairs.jsonl", "--model", tiny_model_dir, "--output_dir", run)
    assert_apart(run, "demonstrations", "preferences")
    left = len(rows(run / "data" / "preferences_train.jsonl")) - len(rows(run / "data" / "demonstrations_train.jsonl"))
    assert (
        left and f"{left} demonstration" in out and "left out of training, with a held-out prompt in an earlier" in out
    )


def test_labels_alone_make_the_road_to_kto(command, accepted, tmp_path):
    """A row has 4 control tokens, 2 of the question, and 8 of a good answer or 20 of a bad one: 14 or 26."""
    write_jsonl(tmp_path / "labels.jsonl", labelled([(number + number // 10) % 10 < 3 for number in range(100)]))
    out = command(tmp_path / "labels.jsonl", "--output_dir", tmp_path / "run")
    run, kto = tmp_path / "run", config(tmp_path / "run", "kto")
    names = ["pretrain", "sft", "kto"]
    assert {path.name for path in run.iterdir()} == {"data", "run.sh", "mix.yaml", *(f"{name}.yaml" for name in names)}
    outputs = re.findall(r"^step (\S+) \\$", (run / "run.sh").read_text(), flags=re.M)
    assert [Path(output).name for output in outputs[-3:]] == [f"{name}.json" for name in names]
    assert "eval.chat --model " + str(run / "kto") in (run / "run.sh").read_text()

    train, heldout = (rows(run / "data" / f"preferences_{part}.jsonl") for part in ("train", "heldout"))
    good, bad = (sum(row["label"] is label for row in train) for label in (True, False))
    assert len(train) + len(heldout) == 100
    taught = rows(run / "data" / "demonstrations_train.jsonl")
    assert [row["messages"][-1]["content"] for row in taught] == [words(8)] * good
    assert config(run, "sft")["conversations"] == [str(run / "data" / "demonstrations_train.jsonl")]
    assert "no conversations: the answers labelled good are the demonstrations" in out
    assert f"one label a prompt makes no ranking, and the {good + bad} labelled answers, {good} of them good" in out

    assert kto["rankings"] == [str(run / "data" / "preferences_train.jsonl")]
    assert f"{good + bad} labelled answers, {good} good and {bad} bad" in (run / "kto.yaml").read_text()
    # A 32nd of some 80 is 2: the least is 8. Three passes, of which each has a last step with what is left.
    assert kto["per_device_train_batch_size"] * kto["gradient_accumulation_steps"] == 8
    assert kto["per_device_train_batch_size"] > 1 and kto["num_train_epochs"] == 3
    steps, tokens = 3 * -(-(good + bad) // 8), 3 * (14 * good + 26 * bad)
    assert re.search(rf"^kto +{good + bad} +{tokens:,} +{steps} ", out, flags=re.M)
    assert kto["max_length"] == 128 and kto["learning_rate"] == 0.00005
    # Good answers weigh 1 to 4/3 times as much in all as the bad ones, which are more than twice as many.
    assert kto["desirable_weight"] == float(f"{1.15 * bad / good:.2g}") and kto["undesirable_weight"] == 1.0
    for name in names:
        accepted(run, name)


@pytest.mark.parametrize(
    ("good", "bad", "weights"),
    [(40, 40, (1.0, 1.0)), (40, 30, (1.0, 1.0)), (69, 30, (1.0, 2.0)), (20, 40, (2.3, 1.0)), (41, 40, (1.0, 1.0))],
)
def test_rare_labels_weigh_more(good, bad, weights):
    """69 / 30 = 2.3, by 2.0 is 1.15; 2.3 × 20 / 40 = 1.15."""
    (_, above, why), (_, below) = label_weights(good, bad)
    assert (above, below) == weights and 1 <= above * good / (below * bad) <= 4 / 3
    assert f"{above:g} × {good} / ({below:g} × {bad})" in why


def test_a_model_that_is_there_goes_from_labels_to_kto(command, tmp_path, tiny_model_dir):
    write_jsonl(tmp_path / "labels.jsonl", labelled([True, False] * 50))
    command(tmp_path / "labels.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "run.sh", "sft.yaml", "kto.yaml"}
    assert config(tmp_path / "run", "kto")["learning_rate"] == 0.00016  # 0.000005 × 1,024 / 32


def test_conversations_beside_labels_are_the_demonstrations(command, tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", labelled([True, False] * 50))
    write_jsonl(tmp_path / "chat.jsonl", conversations([5] * 40))
    out = command(tmp_path / "labels.jsonl", tmp_path / "chat.jsonl", "--output_dir", tmp_path / "run")
    assert "no conversations" not in out and (tmp_path / "run" / "kto.yaml").exists()
    assert_apart(tmp_path / "run", "conversations", "preferences")
    assert_apart(tmp_path / "run", "preferences", "conversations")
    left_out(tmp_path / "run", "conversations", out)
    left_out(tmp_path / "run", "preferences", out)
    sft = config(tmp_path / "run", "sft")
    assert sft["conversations"] == [str(tmp_path / "run" / "data" / "conversations_train.jsonl")]


def test_labels_of_both_kinds_at_a_prompt_are_rankings_and_the_others_are_counted(command, tmp_path):
    several = [{**row, "label": not row["label"], "completion": "b"} for row in labelled([True] * 60)]
    write_jsonl(tmp_path / "labels.jsonl", [*labelled([True] * 70), *several])
    out = command(tmp_path / "labels.jsonl", "--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "ppo.yaml").exists() and not (tmp_path / "run" / "kto.yaml").exists()
    assert "10 labelled answers left out of the rankings, with one label alone at a prompt" in out


def test_a_rare_label_is_in_both_parts(command, tmp_path, tiny_model_dir):
    """The first seed would hold out one bad answer of the 6, which a batch may leave out."""
    write_jsonl(tmp_path / "labels.jsonl", labelled([number not in (0, 1, 3, 4, 5, 6) for number in range(40)]))
    command(tmp_path / "labels.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    for part in ("train", "heldout"):
        found = [row["label"] for row in rows(tmp_path / "run" / "data" / f"preferences_{part}.jsonl")]
        assert found.count(True) >= 2 and found.count(False) >= 2
    assert "--seed 0" not in (tmp_path / "run" / "run.sh").read_text()


def test_documents_alone_make_a_base_model(command, tmp_path):
    (tmp_path / "plays.txt").write_text(play())
    out = command(tmp_path / "plays.txt", "--output_dir", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "run.sh", "mix.yaml", "pretrain.yaml"}
    assert "1 document in 1 file, cut after lines or sentences into" in out
    texts = [row["text"] for row in rows(tmp_path / "run" / "data" / "documents.jsonl")]
    assert "".join(texts) == (tmp_path / "plays.txt").read_text()
    parts = [rows(tmp_path / "run" / "data" / f"documents_{part}.jsonl") for part in ("train", "heldout")]
    assert sum(map(len, parts)) == len(texts) and all(parts)


def test_control_tokens_in_documents_are_counted(command, tmp_path):
    """And a line of <|endoftext|> in plain text is none: it ends a document."""
    lines = play().splitlines()[:60]
    texts = [f"<s>[INST] {line} [/INST] So. </s>" if number < 25 else line for number, line in enumerate(lines)]
    write_jsonl(tmp_path / "mine.jsonl", [{"text": text} for text in texts])
    (tmp_path / "more.txt").write_text("<|user|> and <|user|>\nwith\n<|endoftext|>\nplain text\n")
    out = command(tmp_path / "mine.jsonl", tmp_path / "more.txt", "--output_dir", tmp_path / "run")
    said = "in the text: it is encoded as its letters, not as the control token"
    assert out.splitlines()[:4] == [
        "a line of <|endoftext|> alone ends a document: 1 document",
        f"25 documents with '[INST]' {said}",
        f"25 documents with '[/INST]' {said}",
        f"1 document with '<|user|>' {said}",
    ]
    assert "62 documents in 2 files" in out
    plain, documents = (
        ["<|user|> and <|user|>\nwith", "plain text"],
        rows(tmp_path / "run" / "data" / "documents.jsonl"),
    )
    assert "".join(row["text"] for row in documents) == "".join([*texts, *plain])


@pytest.mark.parametrize("first", ["documents", "conversations"])
def test_documents_among_conversations_are_documents(command, tmp_path, first):
    texts, asked = [{"text": line} for line in play().splitlines()[:40]], conversations([5] * 40)
    write_jsonl(tmp_path / "mine.jsonl", [*texts, *asked] if first == "documents" else [*asked, *texts])
    out = command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run")
    assert rows(tmp_path / "run" / "data" / "documents.jsonl") == texts
    assert set(config(tmp_path / "run", "mix")["sources"]) == {"documents", "conversations"}
    parts = [rows(tmp_path / "run" / "data" / f"conversations_{part}.jsonl") for part in ("train", "heldout")]
    assert sum(map(len, parts)) == 40 and "80 rows in 1 file: 80 kept, 0 of them repaired, 0 quarantined" in out


@pytest.mark.parametrize(
    ("many", "few"),
    [
        ("documents", "conversations"),
        ("conversations", "documents"),
        pytest.param("conversations", "preferences", marks=pytest.mark.slow),
        pytest.param("preferences", "conversations", marks=pytest.mark.slow),
    ],
)
def test_a_few_rows_of_another_kind_are_counted_and_not_used(command, tmp_path, many, few):
    made = {
        "documents": [{"text": line} for line in play().splitlines()],
        "conversations": conversations([5] * 60),
        "preferences": preferences([(5, 9)] * 60),
    }
    write_jsonl(tmp_path / "mine.jsonl", [*made[many][:30], *made[few][:5], *made[many][30:60]])
    out = command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run")
    assert "65 rows in 1 file: 65 kept, 0 of them repaired, 0 quarantined" in out
    assert f"\n5 {few} not used, among more rows of another kind: 20 are needed to train and to measure on\n" in out
    data = tmp_path / "run" / "data"
    assert not list(data.glob(f"{few}*.jsonl")) and len(rows(data / f"{many}.jsonl")) == 60
    parts = [rows(data / f"{many}_{part}.jsonl") for part in ("train", "heldout")]
    assert sum(map(len, parts)) == 60 and all(parts)


def test_few_rows_in_a_file_of_their_own_are_an_error(command, tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [*conversations([5] * 5), *({"text": line} for line in play().splitlines())])
    write_jsonl(tmp_path / "own.jsonl", conversations([5])[:1])
    with pytest.raises(start.InputError, match="found 6 conversations; expected at least 20"):
        command(tmp_path / "mine.jsonl", tmp_path / "own.jsonl", "--output_dir", tmp_path / "run")


def test_few_conversations_are_an_error_where_nothing_else_is_used(command, tmp_path, tiny_model_dir):
    write_jsonl(tmp_path / "mine.jsonl", [*conversations([5] * 5), *({"text": line} for line in play().splitlines())])
    with pytest.raises(start.InputError, match="found 5 conversations; expected at least 20"):
        command(tmp_path / "mine.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")


def test_few_but_long_documents_among_conversations_are_the_corpus(command, tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [*conversations([5] * 40), {"text": play()}])
    out = command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run")
    assert "not used" not in out and set(config(tmp_path / "run", "mix")["sources"]) == {"documents", "conversations"}


def test_documents_of_a_column_of_another_name_among_conversations(command, tmp_path):
    """Beside them a file of documents alone, and plain text, which the name is not for."""
    lines = play().splitlines()
    write_jsonl(tmp_path / "mine.jsonl", [*({"content": line} for line in lines[:100]), *conversations([5] * 40)])
    write_jsonl(tmp_path / "more.jsonl", ({"content": line} for line in lines[100:250]))
    (tmp_path / "plain.txt").write_text(lines[250])
    files = [tmp_path / name for name in ("mine.jsonl", "more.jsonl", "plain.txt")]
    out = command(*files, "--text_column", "content", "--output_dir", tmp_path / "run")
    assert (
        "140 rows in 1 file: 140 kept, 0 of them repaired, 0 quarantined" in out and "251 documents in 3 files" in out
    )
    assert rows(tmp_path / "run" / "data" / "documents.jsonl") == [{"text": line} for line in lines[:251]]
    assert len(rows(tmp_path / "run" / "data" / "conversations.jsonl")) == 40


@pytest.mark.parametrize(
    ("lines", "corpus"),
    [
        (['{"text": "a"}', '{"text": "b"}'], True),
        (['{"text": "a"}', "{", '{"text": "b"}'], True),
        (['{"text": "a"}', '{"instruction": "a", "output": "b"}'], False),
        (['{"text": "a"}', '{"other": "a"}'], False),
        (['{"text": "a", "role": "prompter", "message_tree_id": "t"}'], False),
        (["{"], False),
    ],
    ids=[
        "documents",
        "a row that cannot be read",
        "a conversation",
        "an unknown row",
        "a message",
        "nothing that can be read",
    ],
)
def test_a_corpus_is_documents_alone(tmp_path, lines, corpus):
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    assert is_corpus(str(tmp_path / "mine.jsonl"), "text") is corpus


def test_pieces_end_on_lines_and_sentences():
    assert list(pieces(["aaaa\nbbbb\ncccc", "short"], 4)) == ["aaaa\n", "bbbb\n", "cccc", "short"]
    assert list(pieces(["一二三四。五六七八。九"], 4)) == ["一二三四。", "五六七八。九"]
    assert list(pieces(["no end at all in here"], 4)) == ["no end at all in here"]


def test_a_model_that_is_there_is_not_pretrained(command, tmp_path, tiny_model_dir):
    write_jsonl(tmp_path / "mine.jsonl", conversations([5] * 60))
    command(tmp_path / "mine.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "run.sh", "sft.yaml"}
    sft = config(tmp_path / "run", "sft")
    assert sft["model_name_or_path"] == str(tiny_model_dir) and sft["max_length"] == 64  # all the positions it has
    assert "muon_lr" not in sft and sft["learning_rate"] == 0.00064 and "use_peft" not in sft  # 0.00002 × 1,024 / 32
    assert "train_tokenizer" not in (tmp_path / "run" / "run.sh").read_text()


def test_conversations_are_not_packed_for_a_model_that_would_not_keep_them_apart(command, tmp_path, tiny_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "max_position_embeddings": 64}
    model = AutoModelForCausalLM.from_config(Lfm2Config(vocab_size=len(tokenizer), **shape, **layers))
    model.save_pretrained(tmp_path / "lfm2")
    tokenizer.save_pretrained(tmp_path / "lfm2")
    write_jsonl(tmp_path / "mine.jsonl", conversations([5] * 100))
    lines = {}
    for name, origin in (("whole", tmp_path / "lfm2"), ("packed", tiny_model_dir)):
        command(tmp_path / "mine.jsonl", "--model", origin, "--output_dir", tmp_path / name)
        lines[name] = (tmp_path / name / "sft.yaml").read_text().splitlines()
    assert "packing: true" in lines["packed"] and "packing_strategy: bfd" in lines["packed"]
    assert "packing: false  # this kind of model would not keep the conversations of a row apart" in lines["whole"]
    assert not any(line.startswith("packing_strategy") for line in lines["whole"])
    # A conversation is 4 control tokens, 3 of the question, 9 of the answer: 16. Of up to 100 a step is one row of the context,
    # 64 tokens, in which 4 have room.
    sft, train = config(tmp_path / "whole", "sft"), rows(tmp_path / "whole" / "data" / "conversations_train.jsonl")
    assert sft["per_device_train_batch_size"] * sft["gradient_accumulation_steps"] == 4
    (said,) = (line for line in lines["whole"] if line.startswith("gradient_accumulation_steps"))
    assert said.endswith("= 4 conversations a step, about 64 tokens")
    steps = 3 * -(-len(train) // 4)
    assert any(f"× {len(train)} / 4 = about {steps} steps" in line for line in lines["whole"])
    filled = -(-len(train) // 4)
    assert any(f"× {filled} rows that they fill / 1 = about {3 * filled} steps" in line for line in lines["packed"])


def test_rows_are_counted_as_trl_packs_them():
    assert sizes.packed_rows(np.array([5, 3, 2, 6]), 8) == 2  # 6 + 2 and 5 + 3
    assert (
        sizes.packed_rows(np.array([5, 5, 5]), 8) == 3 and sizes.packed_rows(np.array([20, 1]), 8) == 2
    )  # the longest is cut
    for seed in range(5):
        lengths, context = np.random.default_rng(seed).integers(1, 60, 200), 64
        texts = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
        assert sizes.packed_rows(lengths, context) == len(pack_dataset(texts, context, "bfd"))


def test_without_a_padding_token_dpo_takes_the_place_of_ppo(command, tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer

    shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "pairs.jsonl", preferences([(8, 20)] * 60))
    out = command(tmp_path / "pairs.jsonl", "--model", tmp_path / "model", "--output_dir", tmp_path / "run")
    assert "DPO instead of PPO" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "run.sh", "sft.yaml", "dpo.yaml"}
    assert "recipes/dpo.py --config" in (tmp_path / "run" / "run.sh").read_text()


def test_a_large_model_gets_lora(command, tmp_path, tiny_model_dir, monkeypatch):
    from data_prep.planning import origin

    monkeypatch.setattr(origin, "BYTES", 1e12)
    write_jsonl(tmp_path / "mine.jsonl", conversations([5] * 60))
    command(tmp_path / "mine.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    sft = config(tmp_path / "run", "sft")
    assert sft["use_peft"] is True and sft["lora_target_modules"] == ["all-linear"] and sft["learning_rate"] == 0.0002


def test_a_base_model_without_a_chat_template_is_given_one(command, tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "chat_template.jinja").unlink()
    write_jsonl(tmp_path / "mine.jsonl", conversations([5] * 60))
    out = command(tmp_path / "mine.jsonl", "--model", model, "--output_dir", tmp_path / "run")
    assert f"{model} has no chat template" in out
    sft = config(tmp_path / "run", "sft")
    assert sft["chat_template_path"] == str(tmp_path / "run" / "chat_template.jinja")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = Path(sft["chat_template_path"]).read_text()
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "### User:\nHi\n\n### Assistant:\nYo<|end|>"
    assert (
        tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        == text[: -len("Yo<|end|>")]
    )


@pytest.mark.parametrize(
    "rows_of, options, found",
    [
        (conversations([5] * 19), [], "found 19 conversations; expected at least 20"),
        ([{"a": 1}] * 30, [], "no row can be used"),
        ([{"error: a": 1}] * 30, [], "no known format: found keys ['error: a']; expected 'conversations', "),
        ([{"error: a": 1}], ["--on_bad", "error"], "1 × no known format\n  row 1, line 1: found keys ['error: a']; "),
        (
            [{"a": 1}],
            [],
            "columns of other names: --columns prompt=COLUMN,completion=COLUMN; documents under another name than text: "
            "--text_column COLUMN",
        ),
        (
            [{"text": "a b", "role": "prompter", "message_tree_id": "t", "parent_id": None}] * 30,
            [],
            "no known format: found a message of a tree (keys ['message_tree_id', 'parent_id', 'role', 'text']); expected a row "
            "for each conversation, with all its turns",
        ),
        (conversations([5])[:1] * 30, [], "no part of the 30 conversations can be held out, which is done by prompt"),
        (
            [{**row, "chosen": "same", "rejected": "same"} for row in preferences([(5, 5)] * 60)],
            [],
            "no row can be used",
        ),
        (labelled([True] * 60), [], "found 60 answers labelled good and 0 labelled bad"),
        (labelled([True] * 57 + [False] * 3), [], "found 57 answers labelled good and 3 labelled bad"),
        (conversations([5] * 30), ["--minutes", "0"], "--minutes 0: expected more than 0"),
        (conversations([5] * 30), ["--model", "runs/nowhere"], "runs/nowhere: no such file or folder"),
        ([*conversations([5] * 30), {"a": 1}], ["--on_bad", "error"], "mine.jsonl"),
    ],
)
def test_what_cannot_be_used_is_one_error_and_leaves_nothing(command, tmp_path, rows_of, options, found):
    write_jsonl(tmp_path / "mine.jsonl", rows_of)
    with pytest.raises(start.InputError, match=re.escape(found)):
        command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.jsonl"}


def test_what_is_not_read_is_said(command, tmp_path, tiny_model_dir):
    mine = tmp_path / "mine"
    mine.mkdir()
    write_jsonl(mine / "chat.jsonl", [{**row, "weight": 3} for row in conversations([5] * 30)])
    (mine / "notes.md").write_text("# Notes")
    out = command(mine, "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    assert f"{mine}: 1 file not read: .md (1)\n" in out and "\n  fields not read: weight (30 rows)\n" in out


def called(number: int) -> list[dict]:
    """Conversations about up to 100 questions: a call of a tool, its result and an answer."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "4"}]
    return [
        {"messages": [asked["messages"][0], *turns, asked["messages"][1]]} for asked in conversations([2] * number)
    ]


def test_conversations_with_tools_are_counted_as_fine_tuning_reads_them(command, tmp_path, tiny_model_dir):
    """Half of the rows call a tool; the quickstart's template has a place for calls and results."""
    write_jsonl(tmp_path / "mine.jsonl", [*conversations([2] * 100)[50:], *called(50)])
    command(tmp_path / "mine.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    train = rows(tmp_path / "run" / "data" / "conversations_train.jsonl")
    assert any(len(row["messages"]) == 4 for row in train)
    assert f"{len(train)} conversations, " in (tmp_path / "run" / "sft.yaml").read_text()


def test_a_template_without_tools_and_data_of_nothing_else_are_one_error(command, tmp_path, tiny_model_dir):
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    template = (
        "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}<|end|>{% endgeneration %}{% endfor %}"
    )
    (model / "chat_template.jinja").write_text(template)
    write_jsonl(tmp_path / "mine.jsonl", called(60))
    with pytest.raises(start.InputError, match=r"(?s)no conversation is left of .*turns of function_call"):
        command(tmp_path / "mine.jsonl", "--model", model, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_that_are_too_long_are_counted(command, tmp_path, tiny_model_dir):
    """Of the 262 tokens of this tokenizer a letter is one: "a b", 4 more, and answers of 9 or 79 letters and blanks."""
    write_jsonl(tmp_path / "pairs.jsonl", preferences([(5, 40)] * 60))
    out = command(tmp_path / "pairs.jsonl", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")
    assert "100.0 % of the rankings are longer than 64 tokens" in out and "of the conversations are" not in out


def test_documents_alone_are_nothing_for_a_model_that_is_there(command, tmp_path, tiny_model_dir):
    (tmp_path / "plays.txt").write_text(play())
    with pytest.raises(start.InputError, match="found documents alone"):
        command(tmp_path / "plays.txt", "--model", tiny_model_dir, "--output_dir", tmp_path / "run")


def test_an_output_folder_that_is_there_is_refused(command, tmp_path):
    (tmp_path / "run").mkdir()
    write_jsonl(tmp_path / "mine.jsonl", conversations([5] * 30))
    with pytest.raises(start.InputError, match="is there already"):
        command(tmp_path / "mine.jsonl", "--output_dir", tmp_path / "run")


@pytest.mark.slow
def test_a_whole_road_runs_to_its_end_and_learns(whole):
    run, _ = whole
    # Models so small gain nothing by a second thread, and lose much by it where tests run side by side.
    alone = ". recipes/steps.sh; LAUNCH=python; export OMP_NUM_THREADS=1"
    (run / "alone.sh").write_text((run / "run.sh").read_text().replace(". recipes/steps.sh", alone))
    done = subprocess.run(["bash", run / "alone.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {name: json.loads((run / "results" / f"{name}.json").read_text()) for name in STAGES[:4]}
    bits = [value for _, value in results["pretrain"]["curves"]["held-out bits per byte"]]
    assert bits[-1] < bits[0]
    assert results["reward"]["metrics"]["accuracy"]["value"] == 1.0  # the shorter answer is the better one
    ppo = results["ppo"]["metrics"]
    assert ppo["eval_score_last"] >= ppo["eval_score_first"] and ppo["eval_kl_last"] <= config(run, "ppo")["kl_budget"]
