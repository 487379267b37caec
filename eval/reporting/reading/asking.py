"""What the models answer for a report: to held-out questions, and the base model behind a made-up dialogue.

Answers are kept in `results/report/` of the run, so that a report that is written again asks no model a second time. They
are used as long as the model's files, the question and the length are the same.
"""

import itertools
import math
from pathlib import Path

from data_prep.common.files import read_json, write_json
from eval.reporting.drawing.example import example_question

KEPT = "report"  # the folder, below results/
ASKED_FIRST = 32  # questions, among which the one is looked for that shows what the stages brought
SHOTS, READ = 3, 400  # turns of the made-up dialogue, and the rows of the training data that they are taken from
LONGEST_SHOT = 200  # characters of a question and its answer
ANSWERED_BY = ("*.safetensors", "*.json", "chat_template.jinja")  # files of a model that decide what it answers


def stamp(folder: Path) -> list[list]:
    """Names, sizes and times of the files that decide what a model answers."""
    files = sorted({path for pattern in ANSWERED_BY for path in folder.glob(pattern)})
    no_part = ("settings.json", "curve.json")
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.name not in no_part]


def kept(path: Path, key: dict) -> dict:
    """What an earlier report kept under the same key; otherwise an empty dictionary."""
    found = read_json(path) if path.exists() else {}
    return found["kept"] if isinstance(found, dict) and found.get("key") == key else {}


def keep(path: Path, key: dict, values: dict) -> None:
    write_json(path, {"key": key, "kept": values}, indent=None)


def ask(run: Path, names: list[str], questions: list[dict], max_new_tokens: int) -> dict[str, list[str]]:
    """{model: its greedy answers}; a model without a folder is left out."""
    answers = {}
    for name in names:
        if not questions or not (run / name / "config.json").exists():
            continue
        path = run / "results" / KEPT / f"answers_{name.replace('/', '_')}.json"
        key = {"model": stamp(run / name), "max_new_tokens": max_new_tokens}
        known = kept(path, key)
        asked = [" ".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"]) for row in questions]
        new = [row for text, row in zip(asked, questions, strict=True) if text not in known]
        if new:
            from data_prep.models.generation import generate_answers  # slow to import
            from data_prep.models.loading import check_chat, load_checkpoint

            model, tokenizer = load_checkpoint(str(run / name))
            check_chat(str(run / name), model, tokenizer, max_new_tokens)
            given = generate_answers(model, tokenizer, [row["prompt"] for row in new], max_new_tokens, desc=name)
            unknown = [text for text in asked if text not in known]
            known |= {text: answer["text"] for text, (answer,) in zip(unknown, given, strict=True)}
            keep(path, key, known)
        answers[name] = [known[text] for text in asked]
    return answers


def find_example(run: Path, names: list[str], questions: list[dict], max_new_tokens: int) -> tuple | None:
    """What `example_question` finds among the questions, in their order, a few at a time."""
    start, size = 0, ASKED_FIRST
    while part := questions[start : start + size]:
        if found := example_question(part, ask(run, names, part, max_new_tokens)):
            question, answers = found
            return {**question, "number": start + question["number"]}, answers
        start, size = start + size, 2 * size  # most often the first few do; each time, the models are loaded
    return None


def fake_dialogue(turns: list[tuple[str, str]], question: str) -> str:
    """Questions with their answers, then a question: a text that goes on, most likely, with an answer."""
    return "".join(f"Q: {asked}\nA: {answer}\n\n" for asked, answer in turns) + f"Q: {question}\nA:"


def first_turns(conversations: Path, question: dict) -> list[tuple[str, str]]:
    """[(question, answer)] for the made-up dialogue: `SHOTS` short exchanges of the training data, spread over its first
    rows, none with the words of the question or its answer."""
    from data_prep.readers.prompts import prompt_rows  # slow to import
    from data_prep.rows.bad_rows import BadRows
    from data_prep.rows.read import data_files

    rows = itertools.islice(prompt_rows(data_files(str(conversations)), BadRows("error", None)), READ)
    turns = [
        (row["prompt"][0]["content"], row["reference"])
        for row in rows
        if len(row["prompt"]) == 1 and row["reference"] != question["reference"]
    ]
    asked = question["prompt"][-1]["content"]
    turns = [(text, answer) for text, answer in turns if len(text + answer) <= LONGEST_SHOT and text != asked]
    return [turns[index * len(turns) // SHOTS] for index in range(SHOTS)] if len(turns) >= SHOTS else turns


def ask_prompted(run: Path, question: dict, conversations: Path, max_new_tokens: int) -> dict | None:
    """{"text": what the base model says to a question behind a made-up dialogue, "turns": their number}.

    The prompt of Ouyang 2022 (arXiv:2203.02155, fig. 3, "GPT prompted"): a base model goes on with any text, so a few
    questions with answers in front make the likeliest text an answer. What it adds below its answer, such as a further
    question, is cut off. None without the base model, without data, or where they do not fit into its context.
    """
    folder = run / "base"
    if not (folder / "config.json").exists() or not conversations.exists():
        return None
    path = run / "results" / KEPT / "prompted_base.json"
    asked = question["prompt"][-1]["content"]
    key = {"model": stamp(folder), "max_new_tokens": max_new_tokens, "question": asked}
    key["conversations"] = [conversations.name, conversations.stat().st_size]
    if found := kept(path, key):
        return found
    turns = first_turns(conversations, question)
    import torch
    from transformers import GenerationConfig

    from data_prep.models.batched_generate import decode
    from data_prep.models.loading import context_of, load_checkpoint
    from data_prep.tokens.chat_encoder import encode_text

    model, tokenizer = load_checkpoint(str(folder))
    room = (context_of(model.config) or math.inf) - max_new_tokens
    while len(ids := encode_text(tokenizer, fake_dialogue(turns, asked))) > room:
        if not turns:
            return None
        turns = turns[1:]
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=[end],
        pad_token_id=end if padding is None else padding,
    )
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    reply = decode(model, {name: each.to(model.device) for name, each in batch.items()}, settings)[0].tolist()
    reply = reply[: reply.index(end)] if end in reply else reply
    text = tokenizer.decode(reply, skip_special_tokens=True)
    answer = {"text": text.split("\n\n")[0].split("\nQ:")[0].strip(), "turns": len(turns)}
    keep(path, key, answer)
    return answer
