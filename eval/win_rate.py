r"""How often are a model's answers better than another's? Both are sampled on the same prompts and compared.

    python -m eval.win_rate --model runs/quickstart/ppo --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 300 --temperature 1.0 \
        --num_return_sequences 4 --name ppo_vs_sft --results_dir runs/quickstart/results
    python -m eval.win_rate --model runs/quickstart/ppo --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 300 --temperature 0 \
        --judge data_prep.rewards.rubric --eval_funcs data_prep.rewards.asked_fact data_prep.rewards.all_facts \
        --name ppo_vs_sft_greedy --results_dir runs/quickstart/results

The judge is a proxy for a human judge: agreement with the reference answer. An exact match beats any other answer;
otherwise the higher sentence chrF wins; two matches, or scores less than 5 points apart, tie. With `--judge` it is a
function in the form of data_prep/rewards.py or a reward model (the higher value wins, equal ones tie), or a language
model by a rubric (see eval/judge.py), asked about each pair in both orders: a reply without a verdict is counted and
not guessed. How far the judge agrees with people is measured on their rankings (`--agreement_with`), or said not to
be. Every answer of the model is compared with every answer of its opponent (win 1, tie 0.5, loss 0) and averaged per
prompt; the 95 % bootstrap interval is over prompts. Also measured: the KL divergence from the opponent on the model's
sampled answers (if both share a tokenizer), the share of answers that end, and their length; with `--eval_funcs` the
mean of each function on both sides, and the paired difference between them. Writes `win_rate_<name>.json`: name greedy
answers (`--temperature 0`) otherwise than sampled ones, and both are kept.

    python -m eval.win_rate --model runs/quickstart/sft --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 300 --best_of 8 \
        --reward_model runs/quickstart/reward --name best_of_8_vs_sft --results_dir runs/quickstart/results

With `--best_of` every answer of the model is the one of so many samples that the reward model scores highest (best-of-n
sampling; Stiennon 2020, arXiv:2009.01325): what a reward is worth without training. Its KL is not estimated: best of n is
at most log n − (n−1)/n nats away from the model that is sampled (Beirami 2024, arXiv:2401.01879).
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.numbers import check_at_least
from data_prep.common.text import printable
from data_prep.models.sampling_options import add_sampling_options, check_sampling_options
from eval.common.functions import (
    add_eval_funcs,
    check_functions,
    in_words,
    load_functions,
    show_detectable,
    show_difference,
    show_measure,
)
from eval.common.options import (
    CONVERSATIONS,
    add_judge,
    add_result_options,
    add_row_options,
    load_judges,
    quarantine_file,
)
from eval.common.stamps import stamps


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model in question")
    parser.add_argument("--opponent", required=True, help="folder or Hub id of the model it is compared with")
    parser.add_argument("--conversations", nargs="+", required=True, help=CONVERSATIONS)
    add_row_options(parser)
    add_result_options(parser, "<model>_vs_<opponent>")
    add_judge(parser)
    add_eval_funcs(parser)
    parser.add_argument(
        "--best_of",
        type=int,
        metavar="N",
        help="let every answer of --model be the best of N samples by --reward_model (default: a sample)",
    )
    parser.add_argument("--reward_model", help="folder or Hub id of the reward model that picks with --best_of")
    add_sampling_options(parser, max_new_tokens=64, seed_for="sampling and --limit")
    arguments = parser.parse_args()
    check_sampling_options(arguments)
    check_at_least(2, arguments, "best_of")
    if (arguments.best_of is None) != (arguments.reward_model is None):
        raise InputError("--best_of and --reward_model: expected both or neither")
    if arguments.best_of and arguments.temperature == 0:
        raise InputError("--best_of: expected --temperature above 0; greedy answers to a prompt are all alike")
    return arguments


def main() -> None:
    arguments = read_arguments()
    functions = load_functions(arguments.eval_funcs)
    label = arguments.name or f"{Path(arguments.model).name}_vs_{Path(arguments.opponent).name}"
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, label)
    kept = Path(arguments.results_dir, f".win_rate_{label}") if arguments.results_dir else None
    judge, other = load_judges(arguments, kept)

    # Slow to import
    from data_prep.models.loading import check_chat, load_checkpoint
    from data_prep.readers.prompts import read_prompts
    from eval.judging.kl import kl_divergence, same_ids
    from eval.judging.outcomes import figures, row_to_judge, say
    from eval.judging.sampling import check_room, sample_both

    rows = read_prompts(
        arguments.conversations, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns
    )
    check_functions([*functions.values()], rows)
    judge.check(row_to_judge(rows[0]))
    prompts = [row["prompt"] for row in rows]
    start = time.perf_counter()
    players = [(name, *load_checkpoint(name)) for name in (arguments.model, arguments.opponent)]
    reward = load_checkpoint(arguments.reward_model, reward_model=True) if arguments.reward_model else None
    # Before the first generates, which takes long
    for player in [*players, *([(arguments.reward_model, *reward)] if reward else [])]:
        check_chat(*player, arguments.max_new_tokens)
    if reward:
        check_room(arguments.reward_model, *reward, prompts, arguments.max_new_tokens)

    # The answers, and who wins
    sampling = {key: getattr(arguments, key) for key in ("max_new_tokens", "temperature", "batch_size")}
    per_prompt = arguments.num_return_sequences if arguments.temperature > 0 else 1
    both = sample_both(
        players,
        prompts,
        {**sampling, "num_return_sequences": per_prompt},
        arguments.seed,
        reward,
        arguments.best_of or 1,
    )
    metrics, texts, outcomes, agreed = figures(judge, functions, rows, both, other)
    rate, exact, opponent_exact = (metrics[key] for key in ("win_rate", "exact_match", "opponent_exact_match"))
    (_, model, tokenizer), (_, opponent, other_tokenizer) = players
    if arguments.temperature > 0 and not reward and same_ids(tokenizer, other_tokenizer):
        kl = kl_divergence(model, opponent, tokenizer, prompts, both[0], **sampling)
        metrics |= {"kl": kl} if kl else {}
    seconds = time.perf_counter() - start

    # Save
    if arguments.results_dir:
        settings = {key: getattr(arguments, key) for key in ("temperature", "max_new_tokens", "seed")}
        if reward:
            settings |= {"best_of": arguments.best_of, "reward_model": arguments.reward_model}
        about = {
            "model": arguments.model,
            "opponent": arguments.opponent,
            "data": arguments.conversations,
            "judge": judge.words,
            "agreement": agreed or "not measured",
            **({"judge_told": judge.told()} if judge.language_model else {}),
            **stamps(arguments.model, arguments.opponent),
        }
        examples = [
            {**row, "answer": own[0], "opponent_answer": other[0], "outcome": group[0]}
            for row, own, other, group in zip(rows, *texts, outcomes, strict=True)
        ][:8]
        counts = {"prompts": len(rows), "num_return_sequences": per_prompt}
        results = {"seconds": seconds, **about, **counts, **settings, "metrics": metrics, "examples": examples}
        write_results(arguments.results_dir, f"win_rate_{label}", results)
    distance = f"; KL from the opponent {show_nats(metrics['kl'])} nats per answer" if "kl" in metrics else ""
    picked = f"; its answers are the best of {arguments.best_of} by {arguments.reward_model}" if reward else ""
    print(
        f"{label}: wins {show_interval(rate)} on {len(rows):,} prompts ({metrics['wins']:,} wins, {metrics['ties']:,} ties, "
        f"{metrics['losses']:,} losses"
        + (f", {metrics['without_verdict']:,} without a verdict" if "without_verdict" in metrics else "")
        + f"); {show_detectable('win_rate', metrics['detectable'])}; exact match of its answers "
        f"{show_interval(exact)} against {show_interval(opponent_exact)}{distance}{picked}. The judge is {judge.words}"
    )
    say(f"{label}: the judge", judge, agreed)
    judge.close()
    for name, found in metrics.get("eval_funcs", {}).items():
        own, other = (show_measure(name, found[side]) for side in ("model", "opponent"))
        difference = f"{show_difference(name, found['difference'])}; {show_detectable(name, found['detectable'])}"
        print(f"{label}: {printable(in_words(name))} {own} against {other}: {difference}")


if __name__ == "__main__":
    run_main(main)
