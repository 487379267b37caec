"""How often are a model's answers better than another's? Both are sampled on the same prompts and compared.

    python -m eval.win_rate --model runs/quickstart/ppo --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 300 --temperature 1.0 \
        --num_return_sequences 4 --name ppo_vs_sft --results_dir runs/quickstart/results
    python -m eval.win_rate --model runs/quickstart/ppo --opponent runs/quickstart/sft \
        --conversations runs/quickstart/data/conversations_heldout.json --limit 300 --temperature 0 \
        --judge data_prep.rewards.rubric --eval_funcs data_prep.rewards.asked_fact data_prep.rewards.all_facts \
        --name ppo_vs_sft_greedy --results_dir runs/quickstart/results

The judge is a proxy for a human judge: agreement with the reference answer. An exact match beats any other answer;
otherwise the higher sentence chrF wins; two matches, or scores less than 5 points apart, tie. With `--judge` it is a
function in the form of data_prep/rewards.py: the higher value wins, equal ones tie. Every answer of the model is compared
with every answer of its opponent (win 1, tie 0.5, loss 0) and averaged per prompt; the 95 % bootstrap interval is over
prompts. Also measured: the KL divergence from the opponent on the model's sampled answers (if both share a tokenizer),
the share of answers that end, and their length; with `--eval_funcs` the mean of each function on both sides, and the
paired difference between them. Writes `win_rate_<name>.json`: name greedy answers (`--temperature 0`) otherwise than
sampled ones, and both are kept.
"""

import argparse
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import bootstrap_interval, show_interval, show_nats
from data_prep.common.numbers import check_at_least
from data_prep.common.text import printable
from data_prep.models.reward_functions import load_function
from eval.common.functions import (
    add_eval_funcs,
    check_functions,
    in_words,
    load_functions,
    measure,
    show_difference,
    show_measure,
)
from eval.common.options import CONVERSATIONS, add_result_options, add_row_options, quarantine_file

TIE_WIDTH = 5.0  # chrF points
JUDGE = (
    "a proxy for a human judge: agreement with the reference answer (an exact match beats any other answer, "
    "then the higher sentence chrF; two matches, or scores less than {:g} points apart, tie)"
)

JUDGE_FUNCTION = "a stand-in for a human judge: the function {} (the higher value wins, equal ones tie)"


def outcome(matches: bool, score: float, other_matches: bool, other_score: float) -> float:
    """1 if the first answer wins, 0.5 for a tie, 0 if it loses. Scores are chrF, 0 to 100."""
    if matches or other_matches:
        return 0.5 + (matches - other_matches) / 2
    if abs(score - other_score) < TIE_WIDTH:
        return 0.5
    return float(score > other_score)


def outcome_by_value(value: float, other_value: float) -> float:
    """1 if the first answer wins, 0.5 for a tie, 0 if it loses, by the values that a function gives them."""
    return 0.5 + ((value > other_value) - (value < other_value)) / 2


def means(values: list[list[float]]) -> list[float]:
    """One mean per prompt of the values of its answers."""
    return [sum(group) / len(group) for group in values]


def measure_both(functions: dict, rows: list[dict], texts: list[list[list[str]]]) -> dict[str, dict]:
    """{function: {"model", "opponent", "difference"}}, an interval over prompts each; the difference is paired.

    `texts` are the answers of the model and those of its opponent, one list per prompt each.
    """
    found = {}
    for name, function in functions.items():
        own, other = (means(measure(function, rows, side)) for side in texts)
        differences = [mine - its for mine, its in zip(own, other, strict=True)]
        found[name] = {
            "model": bootstrap_interval(own),
            "opponent": bootstrap_interval(other),
            "difference": bootstrap_interval(differences),
        }
    return found


def same_ids(tokenizer, other) -> bool:
    """Whether both tokenizers give a conversation the same ids, so that token probabilities can be compared."""
    return tokenizer.get_vocab() == other.get_vocab() and tokenizer.chat_template == other.chat_template


def kl_divergence(
    model,
    opponent,
    tokenizer,
    prompts: list[list[dict]],
    answers: list[list[dict]],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> dict | None:
    """The KL divergence of `model` from `opponent` in nats per answer, with its interval over prompts.

    Estimated on answers sampled from `model`: the mean of log p_model - log p_opponent, summed over an answer's
    tokens, the end of turn included (k1 of http://joschu.net/blog/kl-approx.html: unbiased, and so
    sometimes below 0 if the two are close). `answers` are those of `generate_answers` to each prompt, sampled with
    `max_new_tokens` and at `temperature`. Prompts too long for one of the models were truncated: they are left out, and
    their number is printed. None if no prompt is left.
    """
    from data_prep.models.scoring import sequence_logprobs
    from data_prep.tokens.chat_encoder import encode_prompts

    longest = min(player.config.max_position_embeddings for player in (model, opponent)) - max_new_tokens
    whole = [index for index, ids in enumerate(encode_prompts(tokenizer, prompts)) if len(ids) <= longest]
    if len(whole) < len(prompts):
        left_out = len(prompts) - len(whole)
        print(f"KL: {left_out:,} of {len(prompts):,} prompts are longer than {longest} tokens and are left out")
    if not whole:
        return None
    asked = [prompts[index] for index in whole for _ in answers[index]]
    sampled = [answer["ids"] for index in whole for answer in answers[index]]
    own, other = (
        sequence_logprobs(player, tokenizer, asked, sampled, temperature, batch_size) for player in (model, opponent)
    )
    differences = iter([mine - its for mine, its in zip(own, other, strict=True)])
    return bootstrap_interval(
        [sum(next(differences) for _ in answers[index]) / len(answers[index]) for index in whole]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model in question")
    parser.add_argument("--opponent", required=True, help="folder or Hub id of the model it is compared with")
    parser.add_argument("--conversations", nargs="+", required=True, help=CONVERSATIONS)
    add_row_options(parser)
    add_result_options(parser, "<model>_vs_<opponent>")
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="the function that judges, path/to/file.py:name or package.module.name, such as data_prep.rewards.rubric: "
        "a stand-in for a human judge (default: agreement with the reference, see above)",
    )
    add_eval_funcs(parser)
    parser.add_argument("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="sampling temperature (default: 1.0; 0: greedy)"
    )
    parser.add_argument("--num_return_sequences", type=int, default=4, help="answers sampled per prompt (default: 4)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for sampling and --limit (default: 42)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "max_new_tokens", "batch_size", "limit")
    if arguments.temperature < 0 or arguments.num_return_sequences < 1:
        raise InputError("--temperature and --num_return_sequences: expected at least 0 and at least 1")
    judge_function = load_function(arguments.judge) if arguments.judge else None
    functions = load_functions(arguments.eval_funcs)

    from data_prep.models.generation import generate_answers  # slow to import
    from data_prep.models.loading import check_chat, load_checkpoint
    from data_prep.readers.prompts import read_prompts
    from eval.metrics import load_metric

    label = arguments.name or f"{Path(arguments.model).name}_vs_{Path(arguments.opponent).name}"
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, label)
    rows = read_prompts(
        arguments.conversations, arguments.limit, arguments.seed, arguments.on_bad, quarantine, arguments.columns
    )
    check_functions([*functions.values(), *([judge_function] if judge_function else [])], rows)
    per_prompt = arguments.num_return_sequences if arguments.temperature > 0 else 1
    start = time.perf_counter()
    players = [(name, *load_checkpoint(name)) for name in (arguments.model, arguments.opponent)]
    for player in players:  # before the first generates, which takes long
        check_chat(*player, arguments.max_new_tokens)
    sides, sampled_answers, texts = [], [], []
    prompts = [row["prompt"] for row in rows]
    # Different seeds: with one seed both would use the same random numbers, and the answers would not be independent.
    for seed, (name, model, tokenizer) in enumerate(players, start=arguments.seed):
        answers = generate_answers(
            model,
            tokenizer,
            prompts,
            arguments.max_new_tokens,
            arguments.temperature,
            per_prompt,
            arguments.batch_size,
            seed,
            desc=name,
        )
        sampled_answers.append(answers)
        texts.append([[answer["text"] for answer in group] for group in answers])
        pairs = {
            "predictions": [text for group in texts[-1] for text in group],
            "references": [row["reference"] for row in rows for _ in range(per_prompt)],
        }
        matches = load_metric("exact_match").compute(**pairs)["matches"]
        scores = load_metric("chrf").compute(**pairs)["sentence_chrf"]
        judged = list(zip(matches, scores, strict=True))
        sides.append([judged[i : i + per_prompt] for i in range(0, len(judged), per_prompt)])
    if judge_function:
        values = [measure(judge_function, rows, side) for side in texts]
        outcomes = [
            [outcome_by_value(mine, other) for mine in own for other in others]
            for own, others in zip(*values, strict=True)
        ]
    else:
        outcomes = [
            [outcome(*mine, *other) for mine in own for other in others] for own, others in zip(*sides, strict=True)
        ]
    flat = [value for group in outcomes for value in group]
    rate = load_metric("win_rate").compute(wins=[sum(group) / len(group) for group in outcomes])["win_rate"]
    exact, opponent_exact = (
        bootstrap_interval([sum(match for match, _ in group) / per_prompt for group in side]) for side in sides
    )
    metrics = {"win_rate": rate, "wins": flat.count(1.0), "ties": flat.count(0.5), "losses": flat.count(0.0)}
    metrics |= {"exact_match": exact, "opponent_exact_match": opponent_exact}
    for whose, answers in zip(("", "opponent_"), sampled_answers, strict=True):
        every = [answer for group in answers for answer in group]
        metrics[f"{whose}eos_rate"] = sum(answer["stopped"] for answer in every) / len(every)
        metrics[f"{whose}length"] = sum(answer["tokens"] for answer in every) / len(every)
    (_, model, tokenizer), (_, opponent, other_tokenizer) = players
    if arguments.temperature > 0 and same_ids(tokenizer, other_tokenizer):
        kl = kl_divergence(
            model,
            opponent,
            tokenizer,
            prompts,
            sampled_answers[0],
            arguments.max_new_tokens,
            arguments.temperature,
            arguments.batch_size,
        )
        metrics |= {"kl": kl} if kl else {}
    metrics |= {"eval_funcs": measure_both(functions, rows, texts)} if functions else {}
    seconds = time.perf_counter() - start
    judge = JUDGE_FUNCTION.format(arguments.judge) if arguments.judge else JUDGE.format(TIE_WIDTH)
    if arguments.results_dir:
        settings = {key: getattr(arguments, key) for key in ("temperature", "max_new_tokens", "seed")}
        about = {
            "model": arguments.model,
            "opponent": arguments.opponent,
            "data": arguments.conversations,
            "judge": judge,
        }
        examples = [
            {**row, "answer": own[0], "opponent_answer": other[0], "outcome": group[0]}
            for row, own, other, group in zip(rows, *texts, outcomes, strict=True)
        ][:8]
        counts = {"prompts": len(rows), "num_return_sequences": per_prompt}
        results = {"seconds": seconds, **about, **counts, **settings, "metrics": metrics, "examples": examples}
        write_results(arguments.results_dir, f"win_rate_{label}", results)
    distance = f"; KL from the opponent {show_nats(metrics['kl'])} nats per answer" if "kl" in metrics else ""
    print(
        f"{label}: wins {show_interval(rate)} on {len(rows):,} prompts ({metrics['wins']:,} wins, {metrics['ties']:,} ties, "
        f"{metrics['losses']:,} losses); exact match of its answers {show_interval(exact)} against "
        f"{show_interval(opponent_exact)}{distance}. The judge is {judge}"
    )
    for name, found in metrics.get("eval_funcs", {}).items():
        own, other = (show_measure(name, found[side]) for side in ("model", "opponent"))
        difference = show_difference(name, found["difference"])
        print(f"{label}: {printable(in_words(name))} {own} against {other}: {difference}")


if __name__ == "__main__":
    run_main(main)
