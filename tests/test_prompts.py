"""Prompts from conversations and preferences, and those that are too long: by the reader, and through the recipes."""

import json

import pytest
from datasets import Dataset
from helpers.models import POSITIONS, save, tiny_config
from helpers.recipes import EXACT, again, conversation, differing, ranking, refused, results, succeeded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2ForSequenceClassification

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from data_prep.readers.prompts import load_prompts, read_prompts
from data_prep.tokens.chat_encoder import encode_prompts
from data_prep.tokens.prompts import fit_prompts, truncated


def asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def labelled(prompt: str, completion: str, label: bool) -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_the_reference_of_a_preference_is_its_best_completion_and_a_prompt_comes_once(tmp_path, capsys):
    rows = [
        ranking("a", {"third": 2, "first": 0, "second": 1}),
        {"prompt": "b", "completions": ["low", "high"], "scores": [0.1, 0.9]},
        pair("c", "good", "bad"),
        pair("a", "another", "bad"),  # its prompt was read before
        ranking("d", {"one": 0, "other": 0}),  # tied: there is nothing to rank, but it is a prompt
        conversation("e", "e", "answer"),  # a file may mix kinds
        conversation("e", "e", "answer"),  # conversations stay as they are
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    dataset = load_prompts(str(tmp_path / "rows.jsonl"))
    assert dataset.column_names == ["prompt", "reference", "place"]
    assert dataset["place"][:5] == [f"{tmp_path / 'rows.jsonl'}, row {row}, line {row}" for row in (1, 2, 3, 5, 6)]
    assert dataset.remove_columns("place").to_list() == [
        {"prompt": asked(prompt), "reference": reference}
        for prompt, reference in [
            ("a", "first"), ("b", "high"), ("c", "good"), ("d", "one"), ("e", "answer"), ("e", "answer"),
        ]
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "left out: 1 preference on a prompt that was read before\n" in printed


def test_an_answer_labelled_bad_is_no_reference(tmp_path, capsys):
    rows = [
        labelled("a", "wrong", False),
        labelled("b", "wrong", False),
        labelled("a", "right", True),
        labelled("b", "as wrong", False),
        labelled("a", "as right", True),
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    rows = read_prompts(str(tmp_path / "rows.jsonl"), None, 0)
    # a: its first good answer; b has none, and comes last. Two of the five rows are prompts, three are left out.
    assert [(row["prompt"], row["reference"]) for row in rows] == [(asked("a"), "right"), (asked("b"), "")]
    assert "left out: 3 preferences on a prompt that was read before\n" in capsys.readouterr().out


def test_a_prompt_with_calls_of_tools_is_told_which_recipe_takes_them(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
    before = [*asked("2+2?"), call, {"role": "tool", "content": "4"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    for row in ({"messages": [*before, *answers["chosen"]]}, {"prompt": before, **answers}):
        write_jsonl(tmp_path / "tools.jsonl", [row])
        with pytest.raises(InputError) as told:
            load_prompts(tmp_path / "tools.jsonl")
        for role in ("function_call", "tool"):
            assert f"found turns of {role}; expected system, user, assistant only: recipes/sft.py alone takes" in str(
                told.value
            )


def test_columns_say_which_kind_of_row_it_is(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"q": "a", "good": "b", "bad": "c"}])
    rows = read_prompts(str(tmp_path / "rows.jsonl"), None, 0, columns="prompt=q,chosen=good,rejected=bad")
    assert [(row["prompt"], row["reference"]) for row in rows] == [(asked("a"), "b")]
    rows = read_prompts(str(tmp_path / "rows.jsonl"), None, 0, columns="prompt=q,completion=bad")
    assert [(row["prompt"], row["reference"]) for row in rows] == [(asked("a"), "c")]


def test_bad_rows_of_both_kinds_are_one_error_or_quarantined(tmp_path, capsys):
    rows = [pair("a", "b", "b"), pair("a", "b", "c"), conversation("x", "only a question")]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, conversation("y", "q", " ")])
    with pytest.raises(InputError, match="rows cannot be used"):
        load_prompts(str(tmp_path / "rows.jsonl"))
    dataset = load_prompts(str(tmp_path / "rows.jsonl"), "quarantine", tmp_path / "aside.jsonl")
    aside = [json.loads(line)["raw"] for line in (tmp_path / "aside.jsonl").read_text().splitlines()]
    assert len(dataset) + len(aside) == 4 and (dataset[0]["prompt"], dataset[0]["reference"]) == (asked("a"), "b")
    assert f"rows in 4 = rows out {len(dataset)} + quarantined {len(aside)}" in capsys.readouterr().out


def test_a_broken_row_under_columns_of_preferences_is_one_clear_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "good": "b", "bad": "c"}\n{"q": \n"text"\n')
    columns = "prompt=q,chosen=good,rejected=bad"
    with pytest.raises(InputError, match="2 rows cannot be used: 1 × broken JSON, 1 × not an object"):
        load_prompts(str(tmp_path / "rows.jsonl"), columns=columns)
    dataset = load_prompts(str(tmp_path / "rows.jsonl"), "quarantine", tmp_path / "aside.jsonl", columns)
    assert dataset.remove_columns("place").to_list() == [{"prompt": asked("a"), "reference": "b"}]


def long_and_short() -> Dataset:
    return Dataset.from_list(
        [{"prompt": asked("x" * length), "place": f"a.json, row {length}"} for length in (1, 6, 5, 7)]
    )


def test_prompts_that_are_too_long_are_dropped_and_counted(tiny_chat_tokenizer, capsys):
    # A letter is a token, and three marks stand around the question.
    kept, heldout = fit_prompts(long_and_short(), None, tiny_chat_tokenizer, 3 + 5, "drop")
    assert kept.to_list() == [{"prompt": asked("x")}, {"prompt": asked("xxxxx")}] and heldout is None
    assert "2 of 4 training prompts are longer than 8 tokens: dropped\n" in capsys.readouterr().out
    for policy in ("error", "drop", "truncate"):
        rows = long_and_short().to_list()
        assert fit_prompts(long_and_short(), None, tiny_chat_tokenizer, 10, policy)[0].to_list() == [
            {"prompt": row["prompt"]} for row in rows
        ]
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="all 4 training prompts are longer than 3 tokens: none is left"):
        fit_prompts(long_and_short(), None, tiny_chat_tokenizer, 3, "drop")
    with pytest.raises(InputError, match="long_prompts is 'split'; expected error, drop, truncate"):
        fit_prompts(long_and_short(), None, tiny_chat_tokenizer, 8, "split")


def test_prompts_that_are_too_long_are_named_all_at_once_with_file_and_row(tiny_chat_tokenizer):
    heldout = Dataset.from_list([{"prompt": asked("y" * 9), "place": "b.json, row 1"}] * 5)
    with pytest.raises(InputError) as error:
        fit_prompts(long_and_short(), heldout, tiny_chat_tokenizer, 8, "error")
    assert str(error.value).splitlines() == [
        "2 of 4 training prompts and 5 of 5 held-out prompts are longer than 8 tokens, which leaves room for an answer:",
        "  a.json, row 6 (training): 9 tokens",
        "  a.json, row 7 (training): 10 tokens",
        *["  b.json, row 1 (held-out): 12 tokens"] * 3,
        "  … and 2 more",
        "set long_prompts to drop, or to truncate (oldest turns first), or sample shorter answers",
    ]


def test_a_prompt_loses_its_oldest_turns_then_the_beginning_of_its_question(tiny_chat_tokenizer, capsys):
    system, first, answer, last = (
        {"role": role, "content": text}
        for role, text in (("system", "S"), ("user", "abc"), ("assistant", "de"), ("user", "fghi"))
    )
    whole = [system, first, answer, last]
    # Tokens: a turn is its text and two marks; the mark where the answer begins. 3 + 5 + 4 + 6 + 1 = 19
    by_limit = {
        19: whole,
        18: [system, last],
        10: [system, last],
        9: [system, {"role": "user", "content": "ghi"}],
        7: [system, {"role": "user", "content": "i"}],
        6: [{"role": "user", "content": "ghi"}],  # beside the system turn there would be no letter of the question
        4: [{"role": "user", "content": "i"}],
        3: None,
    }
    assert {limit: truncated(whole, tiny_chat_tokenizer, limit) for limit in by_limit} == by_limit
    rows = Dataset.from_list(
        [{"prompt": whole, "place": "a.json, row 1"}, {"prompt": [last], "place": "a.json, row 2"}]
    )
    kept, _ = fit_prompts(rows, None, tiny_chat_tokenizer, 9, "truncate")
    assert kept.to_list() == [{"prompt": by_limit[9]}, {"prompt": [last]}]
    said = "1 of 2 training prompts are longer than 9 tokens: truncated, oldest turns first\n"
    assert said in capsys.readouterr().out
    with pytest.raises(
        InputError, match="^a.json, row 1: cannot be truncated: the chat template alone takes more than 3"
    ):
        fit_prompts(rows, None, tiny_chat_tokenizer, 3, "truncate")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab é中😀<|end|>", min_size=1, max_size=30), limit=st.integers(4, 40))
@example(text="<|end|>", limit=4)  # what somebody typed is seven characters
def test_whatever_is_asked_a_truncated_prompt_fits_and_ends_as_it_did(tiny_chat_tokenizer, text, limit):
    """Characters of several tokens, and typed control tokens, among them."""
    kept = truncated(asked(text), tiny_chat_tokenizer, limit)
    if kept is None:  # one character may have four tokens
        assert len(text[-1].encode()) + 3 > limit
    else:
        assert text.endswith(kept[0]["content"]) and kept[0]["content"]
        assert len(encode_prompts(tiny_chat_tokenizer, [kept])[0]) <= limit
        longer = asked(text[-len(kept[0]["content"]) - 1 :])
        assert kept == asked(text) or len(encode_prompts(tiny_chat_tokenizer, [longer])[0]) > limit


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """Eight prompts whose best answer is yes, and one too long to answer; three held out, of which one is better off with no."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [ranking(letter, {"no": 1, "yes": 0}) for letter in "abcdefgh"]
    write_jsonl(folder / "train.jsonl", [*rows, ranking("x" * 70, {"no": 1, "yes": 0})])
    held_out = [pair("p", "yes", "no"), pair("q", "yes", "no"), pair("r", "no", "yes"), pair("y" * 70, "a", "b")]
    write_jsonl(folder / "heldout.jsonl", held_out)
    return folder


def settings_of(recipe: str, model, preferences) -> dict:
    data = {"prompts": preferences / "train.jsonl", "heldout": preferences / "heldout.jsonl", "long_prompts": "drop"}
    steps = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        **EXACT,
    }
    if recipe == "ppo":
        sampled = {"sft_model_path": model, "response_length": 8, "num_mini_batches": 1, "total_episodes": 8}
        sampled["eval_funcs"] = "data_prep.rewards.exact_match"
    else:
        sampled = {"model_name_or_path": model, "max_completion_length": 8, "num_generations": 2, "max_steps": 1}
        sampled |= {
            "per_device_eval_batch_size": 2,
            "missing_eos_penalty": 1.0,
            "beta": 0.1,
        }  # 2 and 1 held-out prompt
    return {**data, **steps, **sampled, "reward_funcs": "data_prep.rewards.exact_match"}


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_preferences_give_prompts_references_and_a_held_out_score(recipe, talker, preferences, tmp_path):
    """A model that says yes is right about all prompts but one of three held out. It does not train: both ends are alike."""
    given = settings_of(recipe, talker("yes"), preferences)
    done = succeeded(again(recipe, **given, output_dir=tmp_path / "out"))
    # A context of 64 less an answer of 8.
    assert "1 of 9 training prompts are longer than 56 tokens: dropped\n" in done.out
    assert "1 of 4 held-out prompts are longer than 56 tokens: dropped\n" in done.out
    found = results(tmp_path / "out", recipe)
    assert found["prompts"] == 8 and found["curves"]["score"] == [[1, 1.0]]
    for when in ("first", "last"):
        assert found["metrics"][f"eval_score_{when}"] == pytest.approx(2 / 3)
        assert found["metrics"][f"eval_length_{when}"] == 4 and found["metrics"][f"eval_eos_rate_{when}"] == 1
    assert "score        on held-out prompts:   0.667 →   0.667\n" in done.out


@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_a_held_out_answer_that_does_not_end_costs_the_score_nothing(recipe, tiny_model_dir, preferences, tmp_path):
    """As in training, the score is the reward without the penalty. A random model does not end within a token."""
    given = {**settings_of(recipe, tiny_model_dir, preferences), "max_completion_length": 1}
    succeeded(again(recipe, **given, output_dir=tmp_path / "out"))
    metrics = results(tmp_path / "out", recipe)["metrics"]
    assert metrics["eval_eos_rate_last"] < 0.5 and metrics["eval_score_last"] == 0


def test_of_held_out_prompts_as_many_are_used_as_asked(talker, preferences, tmp_path):
    given = {**settings_of("rloo", talker("yes"), preferences), "max_prompts": 2}
    succeeded(again("rloo", **given, output_dir=tmp_path / "out"))
    assert results(tmp_path / "out", "rloo")["metrics"]["eval_score_last"] in (0.5, 1.0)  # of two, one or both


@pytest.mark.parametrize("recipe", ["ppo", "rloo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_an_evaluation_changes_nothing_of_the_training(recipe, tiny_model_dir, tiny_reward_dir, preferences, tmp_path):
    """Sampled answers depend on every random number before them."""
    given = {**settings_of(recipe, tiny_model_dir, preferences), "learning_rate": 0.01}
    given |= {"reward_model_path": tiny_reward_dir}  # the function gives a random model nothing to learn from
    given |= {"total_episodes": 16} if recipe == "ppo" else {"max_steps": 2}
    succeeded(again(recipe, **given, output_dir=tmp_path / "with"))
    for name in ("heldout", "eval_funcs", "per_device_eval_batch_size"):
        given.pop(name, None)
    succeeded(again(recipe, **given, output_dir=tmp_path / "without"))
    assert differing(tmp_path / "with", tmp_path / "without") == set()
    assert differing(tmp_path / "with", tiny_model_dir)


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_prompts_that_are_too_long_are_one_error_or_truncated(recipe, talker, preferences, tmp_path):
    options = settings_of(recipe, talker("yes"), preferences)
    del options["long_prompts"]
    done = again(recipe, **options, output_dir=tmp_path / "out")
    # 70 letters between three marks, and an answer of 8 tokens in a context of 64.
    text = refused(
        done,
        "error: 1 of 9 training prompts and 1 of 4 held-out prompts are longer than 56 tokens, which leaves room for an answer:",
        f"\n  {preferences / 'train.jsonl'}, row 9, line 9 (training): 73 tokens\n",
        f"\n  {preferences / 'heldout.jsonl'}, row 4, line 4 (held-out): 73 tokens\n",
    )
    assert POSITIONS - 8 == 56 and "max_" not in text  # what it names, all three recipes have
    options |= {"long_prompts": "truncate", "max_prompt_length": 20}
    done = succeeded(again(recipe, **options, output_dir=tmp_path / "out"))
    assert "1 of 9 training prompts are longer than 20 tokens: truncated, oldest turns first\n" in done.out
    assert results(tmp_path / "out", recipe)["prompts"] == 9


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_a_reward_model_of_a_shorter_context_and_an_answer_without_room_count(recipe, talker, preferences, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(talker("yes"))
    save(
        GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1, n_positions=48)), tokenizer, tmp_path / "r"
    )
    options = {**settings_of(recipe, talker("yes"), preferences), "reward_model_path": tmp_path / "r"}
    options |= {"long_prompts": "error", "output_dir": tmp_path / "out"}
    refused(again(recipe, **options), "are longer than 40 tokens")  # 48 less 8
    options["response_length" if recipe == "ppo" else "max_completion_length"] = 48
    message = (
        f"error: {tmp_path / 'r'} has 48 positions, and an answer up to 48 tokens: no prompt has room before it; "
    )
    refused(again(recipe, **options), message)


def test_a_file_of_conversations_and_one_of_preferences(tmp_path):
    write_json(tmp_path / "a.json", [conversation("1", "a", "b", "c", "d")])
    write_jsonl(tmp_path / "b.jsonl", [pair("p", "yes", "no")])
    dataset = load_prompts([str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")])
    before = [*asked("a"), {"role": "assistant", "content": "b"}, *asked("c")]
    rows = dataset.remove_columns("place").to_list()
    assert rows == [{"prompt": before, "reference": "d"}, {"prompt": asked("p"), "reference": "yes"}]
