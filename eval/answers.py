r"""How often is a model's answer the reference answer? Greedy answers to the last turn of conversations.

    python -m eval.answers --model runs/quickstart/sft --name sft_heldout --limit 300 \
        --conversations runs/quickstart/data/conversations_heldout.json --group_by '/([a-z]+)/' \
        --eval_funcs data_prep.rewards.asked_fact data_prep.rewards.all_facts --results_dir runs/quickstart/results

Measures exact match (whitespace aside) with its 95 % bootstrap interval over prompts, chrF, the share of answers that
end with the end-of-turn token (`eos_rate`), their mean length in tokens, the shares that do not end within the limit,
that loop (a phrase of two words or more three times in a row) and that have the form of the references (as many lines
and characters as some reference, an end of a kind that references have, no list, heading or speaker that they do not
have); with `--eval_funcs` also the mean of each function, with its interval. `--group_by` splits the metrics by what a
regular expression finds in a conversation's id (its first group, or the whole match). Writes `answers_<name>.json`,
with a few examples.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import show_interval
from data_prep.common.numbers import check_at_least
from data_prep.common.text import printable
from eval.common.functions import add_eval_funcs, check_functions, in_words, load_functions, measure, show_measure
from eval.common.grouped import pattern_of
from eval.common.options import CONVERSATIONS, add_result_options, add_row_options, quarantine_file
from eval.common.stamps import stamps

EXAMPLES = 12


def shown_functions(metrics: dict) -> str:
    """What each function of --eval_funcs measured: "; asked fact right 72.1% [69.8%, 74.3%]"."""
    return "".join(
        f"; {printable(in_words(name))} {show_measure(name, interval)}"
        for name, interval in metrics.get("eval_funcs", {}).items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model that answers")
    parser.add_argument("--conversations", nargs="+", required=True, help=CONVERSATIONS)
    add_row_options(parser)
    add_result_options(parser, "the model's folder")
    parser.add_argument("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    parser.add_argument("--group_by", help="regular expression on the id, such as '/([a-z]+)/'")
    add_eval_funcs(parser)
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit (default: 42)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "max_new_tokens", "batch_size", "limit")
    pattern = pattern_of(arguments.group_by)
    functions = load_functions(arguments.eval_funcs)

    from data_prep.models.generation import generate_answers  # slow to import
    from data_prep.models.loading import check_chat, load_checkpoint
    from data_prep.readers.prompts import read_prompts
    from eval.harness.assistants import measure_answers

    name = arguments.name or Path(arguments.model).name
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    rows = read_prompts(
        arguments.conversations, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns
    )
    check_functions([*functions.values()], rows)
    model, tokenizer = load_checkpoint(arguments.model)
    check_chat(arguments.model, model, tokenizer, arguments.max_new_tokens)
    start = time.perf_counter()
    prompts = [row["prompt"] for row in rows]
    settings = {"max_new_tokens": arguments.max_new_tokens, "batch_size": arguments.batch_size}
    answers = [answer for (answer,) in generate_answers(model, tokenizer, prompts, **settings)]
    texts = [[answer["text"]] for answer in answers]
    measured = {name: [value for (value,) in measure(function, rows, texts)] for name, function in functions.items()}
    total, groups = measure_answers(rows, answers, measured, pattern)
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "data": arguments.conversations}
        examples = [{**row, "answer": answer["text"]} for row, answer in zip(rows, answers, strict=True)][:EXAMPLES]
        results = {
            **about,
            **stamps(arguments.model),
            "prompts": len(rows),
            **settings,
            "metrics": total,
            "groups": groups,
            "examples": examples,
        }
        write_results(arguments.results_dir, f"answers_{name}", results)
    shown = ", ".join(
        f"{printable(group)} {show_interval(value['exact_match'])}{shown_functions(value)}"
        for group, value in groups.items()
    )
    print(
        f"{name}: exact match {show_interval(total['exact_match'])} on {len(rows):,} prompts"
        f"{f' ({shown})' if shown else ''}, chrF {total['chrf']:.1f}, loops {total['loops']['value']:.1%}, "
        f"in the references' form {total['in_form']['value']:.1%}, EOS rate {total['eos_rate']:.0%}{shown_functions(total)}"
    )


if __name__ == "__main__":
    run_main(main)
