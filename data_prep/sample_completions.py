r"""Sample several completions per prompt from a model, to be ranked.

    python -m data_prep.sample_completions --model runs/quickstart/sft \
        --conversations runs/quickstart/data/prompts_rankings.json --include_reference --include_others 1 \
        --output runs/quickstart/data/completions.jsonl

The prompt is everything before the last answer of a conversation, and that answer is the reference. Any format that
recipes/sft.py reads will do, from files, folders, globs or the Hub.

`--include_reference` adds the reference to the sampled answers (Stiennon 2020, arXiv:2009.01325, section 3.3). Without
it, a model that is often wrong never shows the reward model a right answer. `--include_others` adds references of
neighbouring questions in the file. They are good answers to another question, which a model that is mostly right
samples too rarely for the reward model to learn from. A prompt with nothing but answers labelled bad has no reference:
"" is written for it, and adds no answer.

One JSONL row per prompt: `{"id", "prompt": messages, "completions": [distinct texts], "counts": [how often each was
sampled], "reference", "drawn": the model and the sampling settings}`.
"""

import argparse
import random
from pathlib import Path

from data_prep.common.agreement import exact_match
from data_prep.common.errors import run_main
from data_prep.common.files import vacant, write_jsonl
from data_prep.common.text import counted
from data_prep.models.sampling_options import (
    add_conversations_options,
    add_sampling_options,
    check_model,
    check_sampling_options,
)
from data_prep.readers.prompts import read_prompts

SETTINGS = (
    "model",
    "temperature",
    "max_new_tokens",
    "num_return_sequences",
    "include_reference",
    "include_others",
    "seed",
)


def near_references(references: list[str], position: int, number: int, rng: random.Random) -> list[str]:
    """`number` of the references nearest to `position` that differ from the one there, sampled from twice as many.

    Empty ones, of prompts that have no reference, are left out.
    """
    found: dict[str, None] = {}
    for distance in range(1, len(references)):
        for other in (position - distance, position + distance):
            if 0 <= other < len(references) and references[other] not in ("", references[position]):
                found.setdefault(references[other])
        if len(found) >= 2 * number:
            break
    return rng.sample(list(found), min(number, len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model that answers")
    parser.add_argument("--output", type=Path, required=True, help="the JSON Lines file to write")
    add_conversations_options(parser, required=True)
    add_sampling_options(parser, max_new_tokens=48, seed_for="sampling, --limit and --include_others")
    parser.add_argument("--include_reference", action="store_true", help="add the reference to the answers")
    parser.add_argument(
        "--include_others",
        type=int,
        default=0,
        help="number of references of neighbouring questions to add (default: 0)",
    )
    arguments = parser.parse_args()
    check_sampling_options(arguments)
    check_model(arguments.model)
    vacant(arguments.output)
    aside = f"{arguments.output}.quarantine.jsonl"
    rows = read_prompts(
        arguments.conversations, arguments.limit, arguments.seed, arguments.on_bad, aside, arguments.columns
    )

    # Slow to import: after the input has been checked.
    from data_prep.models.generation import generate_answers
    from data_prep.models.loading import check_chat, load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    check_chat(arguments.model, model, tokenizer, arguments.max_new_tokens)
    prompts, references = ([row[key] for row in rows] for key in ("prompt", "reference"))
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.num_return_sequences,
        arguments.batch_size,
        arguments.seed,
        desc="sampling completions",
    )
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    output, rng = [], random.Random(arguments.seed)
    for position, (row, sampled) in enumerate(zip(rows, answers, strict=True)):
        texts = [answer["text"] for answer in sampled]
        distinct = dict.fromkeys(text for text in texts if text.strip())
        if arguments.include_reference and references[position]:
            distinct.setdefault(references[position])
        for other in near_references(references, position, arguments.include_others, rng):
            distinct.setdefault(other)
        output.append(
            {
                "id": row["id"],
                "prompt": prompts[position],
                "completions": list(distinct),
                "counts": [texts.count(text) for text in distinct],
                "reference": references[position],
                "drawn": settings,
            }
        )
    write_jsonl(arguments.output, output)

    every = [answer for group in answers for answer in group]
    matches = [
        exact_match(answer["text"], reference)
        for group, reference in zip(answers, references, strict=True)
        for answer in group
        if reference
    ]
    said = [f"exact match {sum(matches) / len(matches):.0%}"] if matches else []
    if without := references.count(""):
        print(f"{counted(without, 'prompt')} without a reference: nothing but answers labelled bad")
        said = [f"{each} of the {len(matches):,} to prompts with a reference" for each in said]
    said.append(f"EOS rate {sum(answer['stopped'] for answer in every) / len(every):.0%}")
    said.append(f"{sum(not answer['text'].strip() for answer in every):,} empty ones left out")
    print(
        f"sampled {len(every):,} answers to {counted(len(rows), 'prompt')} ({', '.join(said)}); "
        f"they are in {arguments.output}"
    )


if __name__ == "__main__":
    run_main(main)
