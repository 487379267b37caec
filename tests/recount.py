"""Count what is in public files, by nothing but the standard library: no line here is shared with data_prep.

    python tests/recount.py ../shared/data/*.json*

Knows only the shapes of the files that shared/data holds: JSON lists and JSON Lines of conversations ("conversations" of
"from" and "value", or "instruction", "input" and "output") and of pairs ("chosen" and "rejected"), and text. Prints one
JSON object per file. tests/test_recount.py compares it with what data_prep.check and the reader of documents count.
"""

import hashlib
import json
import sys

SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
# Control characters other than tab and line break, the byte order mark, the replacement character and two non-characters.
STRANGE = {*range(32), *range(127, 160), 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF} - {9, 10, 13}


def rows_of(path: str) -> list:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line != ""]
    return json.loads(text)


def said(turn) -> str:
    return turn if isinstance(turn, str) else turn["value"]


def turns_of(row: dict) -> list[tuple[str, str]]:
    """[(speaker, text)] before the answers that are compared, or the whole conversation."""
    if "instruction" in row:
        asked = row["instruction"] if row.get("input", "") == "" else row["instruction"] + "\n" + row["input"]
        return [("user", asked), ("assistant", row["output"])]
    return [(SPEAKERS[turn["from"]], turn["value"]) for turn in row["conversations"]]


def types_a_token(text: str) -> bool:
    """Whether <|word|>, <start_of_turn>, <end_of_turn>, [INST] or [/INST] stands in the text."""
    if any(mark in text for mark in ("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]")):
        return True
    for piece in text.split("<|")[1:]:
        word, end, _ = piece.partition("|>")
        if end and 1 <= len(word) <= 40 and all(letter.isalnum() or letter == "_" for letter in word):
            return True
    return False


def recount(path: str) -> dict:
    """What is in a file of conversations or of pairs; turns and lengths are those of rows without two turns of a role."""
    counts = {"rows": 0, "pairs": 0, "same speaker twice": 0, "ending on human": 0, "duplicates": 0, "control": 0}
    counts |= {"special": 0, "echo": 0, "equal answers": 0, "empty": 0, "turns": {}, "all turns": 0, "longest": 0}
    counts |= {"shortest": None, "most turns": 0, "fewest turns": None, "characters": 0, "most turns of all": 0}
    seen = set()
    for row in rows_of(path):
        counts["rows"] += 1
        turns = turns_of(row)
        answers = [said(row[side]) for side in ("chosen", "rejected")] if "chosen" in row else []
        counts["pairs"] += bool(answers)
        counts["all turns"] += len(turns) + len(answers)
        counts["most turns of all"] = max(counts["most turns of all"], len(turns))
        speakers = [speaker for speaker, _ in turns]
        twice = any(first == second for first, second in zip(speakers, speakers[1:], strict=False))
        counts["same speaker twice"] += twice
        counts["ending on human"] += not answers and speakers[-1] == "user"
        counts["equal answers"] += len(answers) == 2 and answers[0] == answers[1]
        texts = [text for _, text in turns] + answers
        counts["empty"] += any(text.strip() == "" for text in texts)
        if twice:
            continue
        compared = "\n".join([text for speaker, text in turns if speaker != "system"] + answers)
        digest = hashlib.sha256(compared.encode()).digest()
        counts["duplicates"] += digest in seen
        seen.add(digest)
        counts["control"] += any(ord(letter) in STRANGE for text in texts for letter in text)
        counts["special"] += any(types_a_token(text) for text in texts)
        pairs = [(turns[-1][1], answer) for answer in answers] if answers else []
        pairs += [(turns[at - 1][1], text) for at, (who, text) in enumerate(turns) if who == "assistant" and at]
        counts["echo"] += any(asked.strip() == answer.strip() for asked, answer in pairs)
        for speaker in speakers + ["assistant"] * len(answers):
            counts["turns"][speaker] = counts["turns"].get(speaker, 0) + 1
        length = sum(len(text) for _, text in turns) + max([len(text) for text in answers], default=0)
        counts["characters"] += length
        counts["longest"] = max(counts["longest"], length)
        counts["shortest"] = length if counts["shortest"] is None else min(counts["shortest"], length)
        if not answers:
            counts["most turns"] = max(counts["most turns"], len(turns))
            counts["fewest turns"] = min(counts["fewest turns"] or len(turns), len(turns))
    return counts


def recount_documents(path: str) -> dict:
    """Documents and bytes of text: rows with "text"; or the lines of a text, if they have more than 500 characters on
    average; or its pieces of 131,072 characters and the rest of their last line."""
    if path.endswith((".json", ".jsonl")):
        texts = [row["text"] for row in rows_of(path)]
    else:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read().replace("\r\n", "\n")
        lines = len(text) > 500 * (text.count("\n") + 1)
        texts = text.split("\n") if lines else []
        while text and not lines:
            end = text.find("\n", 131_072) + 1 or len(text)
            texts.append(text[:end])
            text = text[end:]
    full = [text for text in texts if text.strip()]
    return {"documents": len(full), "bytes": sum(len(text.encode()) for text in full), "empty": len(texts) - len(full)}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        first = rows_of(name)[0] if not name.endswith(".txt") else {"text": ""}
        documents = "text" in first
        print(name, json.dumps(recount_documents(name) if documents else recount(name), ensure_ascii=False))
