r"""Is a reward fit for PPO with this policy? Told without training.

    python -m data_prep.sample_completions --model runs/quickstart/sft --num_return_sequences 8 --limit 300 \
        --conversations runs/quickstart/data/conversations_heldout.json --output runs/quickstart/data/gate.jsonl
    python -m data_prep.rank_completions --by function --function data_prep.rewards.rubric \
        --completions runs/quickstart/data/gate.jsonl --output runs/quickstart/data/gate_ranked.jsonl
    python -m eval.reward_gate --reward runs/quickstart/reward --policy runs/quickstart/sft \
        --rankings runs/quickstart/data/gate_ranked.jsonl --name heldout --results_dir runs/quickstart/results

On ranked answers of the policy itself to prompts that the reward model was not trained on: how many pairs of unequal rank
the reward puts right, beside chance, length alone, the same reward behind another prompt, an n-gram model of the answers
(fitted on the other prompts) and the policy's own log-likelihood of the answer (summed over its tokens); the reward's
variance within prompts, its correlation with length, its calibration; and what best of n by it brings, by the rater's
scores if the rankings have them (data_prep.rank_completions leaves out prompts whose answers all tie: it is over the
others). Ends on a verdict (fit, not fit, not shown) with its reason and the next step. Writes
`reward_gate_<name>.json` and a picture, `reward_gate_<name>.png`. recipes/ppo.py, rloo.py and grpo.py do the same before
they train (`--reward_gate`).
"""

import argparse
import math
import os
import random
import time
from pathlib import Path

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted
from data_prep.gate.answers import leave_out_long, other_rows, read_answers
from data_prep.gate.trained_on import trained_prompts
from data_prep.judging.judges import as_function, is_reward_model, short_name
from data_prep.readers.preferences import prompt_key
from eval.common.options import add_result_options, add_row_options, quarantine_file


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one folder, or are one Hub id."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def whose_answers(rows: list[dict], policy: str) -> str | None:
    """A warning where the rankings do not say that their answers are the policy's own; None where they do."""
    drawn = [row["columns"].get("drawn") for row in rows]
    models = {str(each["model"]) for each in drawn if isinstance(each, dict) and each.get("model")}
    if foreign := sorted(model for model in models if not same_model(model, policy)):
        return f"warning: the answers are those of {', '.join(foreign)}, not of {policy}: the verdict holds for them"
    if not models or not all(drawn):
        return (
            f"warning: the rankings do not say whose answers they are; the verdict holds for {policy} if they are its own "
            "(data_prep.sample_completions)"
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reward",
        required=True,
        metavar="NAME",
        help="what gives each answer a number: a reward model (folder or Hub id), a function (path/to/file.py:name or "
        "package.module.name, see data_prep/rewards.py), or reference, agreement with the reference",
    )
    parser.add_argument("--policy", required=True, help="folder or Hub id of the model that is to be improved")
    parser.add_argument(
        "--rankings",
        nargs="+",
        required=True,
        help="files, folders or globs of ranked answers of the policy, as data_prep.rank_completions writes them",
    )
    add_row_options(parser)
    add_result_options(parser, "the reward's")
    parser.add_argument("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    parser.add_argument("--batch_size", type=int, default=128, help="answers scored at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for --limit and the other prompts (default: 42)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "batch_size", "limit")
    which = arguments.reward
    name = arguments.name or short_name(which)
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    is_model = is_reward_model(which)
    function = None if is_model else as_function(which, "--reward")
    rows = read_answers(arguments.rankings, arguments.on_bad, quarantine, arguments.columns)
    if is_model:
        trained, unknown = trained_prompts(which)
        check_disjoint(trained, [prompt_key(row["prompt"]) for row in rows], arguments.rankings)
        if unknown:
            print(f"whether {which} was trained on these prompts is not known: {unknown}")
    if arguments.limit and arguments.limit < len(rows):
        print(f"{arguments.limit:,} of {len(rows):,} prompts are used (--limit)")
        rows = random.Random(arguments.seed).sample(rows, arguments.limit)
    if warning := whose_answers(rows, arguments.policy):
        print(warning)

    # Slow to import: after the input has been checked.
    from data_prep.gate.gate import behind_other_prompts, check_reward, table
    from data_prep.gate.picture import gate_picture
    from data_prep.gate.scorers import by_reward_function, by_reward_model, lengths_in_tokens, policy_logprobs
    from data_prep.models.loading import check_chat, context_of, load_checkpoint

    start = time.perf_counter()
    policy, tokenizer = load_checkpoint(arguments.policy)
    readers = [(arguments.policy, policy, tokenizer)]
    if is_model:
        readers.append((which, *load_checkpoint(which, reward_model=True)))
        score = by_reward_model(*readers[-1][1:], arguments.batch_size)
    else:
        score = by_reward_function(function)
    given = len(rows)
    for whose, model, its_tokenizer in readers:
        check_chat(whose, model, its_tokenizer, 1)
        limit = context_of(model.config) or math.inf
        rows = leave_out_long(rows, lengths_in_tokens(its_tokenizer, rows)[1], limit, whose)
    if not rows:
        raise InputError(f"{', '.join(arguments.rankings)}: no ranking fits into the context of the models")
    starts, lengths = lengths_in_tokens(readers[-1][2], rows)
    longest = [max(own) - first for first, own in zip(starts, lengths, strict=True)]
    limit = (context_of(readers[-1][1].config) if is_model else None) or math.inf
    others = other_rows(rows, starts, longest, limit, arguments.seed)
    logprobs = policy_logprobs(policy, tokenizer, rows, batch_size=arguments.batch_size)
    found = check_reward(rows, score(rows), behind_other_prompts(rows, others, score), logprobs)
    verdict, metrics = found["verdict"], found["metrics"]
    if metrics:
        print("\n".join(table(metrics)))
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "reward": which, "policy": arguments.policy}
        about |= {"data": arguments.rankings, "rankings": given}
        write_results(arguments.results_dir, f"reward_gate_{name}", about | found)
        if metrics:
            with atomic_write(Path(arguments.results_dir, f"reward_gate_{name}.png"), "wb") as file:
                file.write(gate_picture(metrics))
    print(f"{name}, on {counted(len(rows), 'prompt')}: {verdict['line']}")


if __name__ == "__main__":
    run_main(main)
