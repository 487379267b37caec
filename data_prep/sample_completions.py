"""Draw several answers per prompt from a model, to be ranked.

    python -m data_prep.sample_completions --model runs/quickstart/sft \
        --conversations runs/quickstart/data/prompts_rankings.json --include_reference --include_others 1 \
        --output runs/quickstart/data/completions.jsonl

Reads conversations; the prompt is everything before the last answer, and that answer is the reference. The reference
may stand among the drawn answers, as the reference summaries did in Stiennon 2020 (arXiv:2009.01325, section 3.3): a
model that is often wrong otherwise never shows its reward model what right looks like. With `--include_others` the
references of other questions that stand near in the file do too: good answers, but not to this question, which a model
that is mostly right shows too rarely for its reward model to learn. One JSONL row per prompt:
`{"id", "prompt": messages, "completions": [distinct texts], "counts": [draws of each], "reference", "drawn"}`.
"""

import argparse
import random
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import existing, vacant, write_jsonl
from data_prep.readers.conversation_formats import TRAILING_HUMAN
from data_prep.readers.conversations import read_conversations


def near_references(references: list[str], position: int, number: int, rng: random.Random) -> list[str]:
    """`number` of the references nearest to `position` that differ from the one there, drawn from twice as many."""
    found: dict[str, None] = {}
    for distance in range(1, len(references)):
        for other in (position - distance, position + distance):
            if 0 <= other < len(references) and references[other] != references[position]:
                found.setdefault(references[other])
        if len(found) >= 2 * number:
            break
    return rng.sample(list(found), min(number, len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model that answers")
    parser.add_argument("--conversations", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="prompts, drawn at random; all of them without")
    parser.add_argument("--num_return_sequences", type=int, default=4, help="answers drawn per prompt")
    parser.add_argument("--include_reference", action="store_true")
    parser.add_argument("--include_others", type=int, default=0, help="references of questions near in the file")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    if Path(arguments.model).is_absolute() or arguments.model.startswith((".", "runs")):
        existing(arguments.model, "recipes/sft.py")
    vacant(arguments.output)
    rows, repaired = read_conversations(arguments.conversations)
    if trimmed := repaired[TRAILING_HUMAN]:
        print(f"{trimmed:,} trailing human turns trimmed")
    if arguments.limit and arguments.limit < len(rows):
        print(f"{arguments.limit:,} of {len(rows):,} prompts are used (--limit)")
        rows = random.Random(arguments.seed).sample(rows, arguments.limit)

    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import: after the input has been checked

    from data_prep.models.generation import generate_answers
    from data_prep.readers.prompts import split_last_answer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, use_safetensors=True)
    split = [split_last_answer(row["messages"]) for row in rows]
    drawn = generate_answers(
        model,
        tokenizer,
        [prompt for prompt, _ in split],
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.num_return_sequences,
        arguments.batch_size,
        arguments.seed,
        desc="drawing answers",
    )
    names = (
        "model",
        "temperature",
        "max_new_tokens",
        "num_return_sequences",
        "include_reference",
        "include_others",
        "seed",
    )
    settings = {name: getattr(arguments, name) for name in names}
    output, references, rng = [], [reference for _, reference in split], random.Random(arguments.seed)
    for position, (row, (prompt, reference), answers) in enumerate(zip(rows, split, drawn, strict=True)):
        texts = [answer["text"] for answer in answers]
        distinct = dict.fromkeys(text for text in texts if text.strip())
        if arguments.include_reference:
            distinct.setdefault(reference)
        for other in near_references(references, position, arguments.include_others, rng):
            distinct.setdefault(other)
        output.append(
            {
                "id": row["id"],
                "prompt": prompt,
                "completions": list(distinct),
                "counts": [texts.count(text) for text in distinct],
                "reference": reference,
                "drawn": settings,
            }
        )
    write_jsonl(arguments.output, output)
    total, stopped = len(rows) * arguments.num_return_sequences, sum(a["stopped"] for group in drawn for a in group)
    right = sum(count for row in output for text, count in zip(row["completions"], row["counts"], strict=True)
                if text == row["reference"])  # fmt: skip
    empty = sum(not answer["text"].strip() for group in drawn for answer in group)
    print(
        f"drew {total:,} answers to {len(rows):,} prompts ({right / total:.0%} word for word the reference, "
        f"{stopped / total:.0%} ended by themselves, {empty} empty ones left out); they are in {arguments.output}"
    )


if __name__ == "__main__":
    run_main(main)
