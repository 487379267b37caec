"""Is it my SFT, my reward model or PPO? One command on the folder of a run, and a line that names the weakest part.

    python -m eval.diagnose --run runs/quickstart
    python -m eval.diagnose --run runs/quickstart --judge data_prep.rewards.rubric --with_judge_as_reward

Takes the models in sft/, reward/ and ppo/ of a run as recipes/quickstart.sh or the run.sh of data_prep.start leaves it, and
the data that their settings name. Samples answers and measures, in order: does the SFT model end its answers, in the form
of the references, and would the best of several gain anything by the judge; does the reward know what the policy does not
(the gate of `eval.reward_gate`, on the SFT model's own answers as the judge ranks them); did PPO move, was it let by
kl_coef, did it raise the reward on its own prompts and on held-out ones, within its KL budget, and does the judge's verdict
follow. What is not there yet is said and skipped. `--with_judge_as_reward` also trains PPO by the run's own settings with
the judge as its reward, in a temporary folder: what it reaches is what a perfect reward model would give. The last line
names the weakest part, with figures and what to change. Writes `diagnosis.json`.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import check_writable, write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted
from data_prep.gate.trained_on import trained_prompts
from data_prep.judging.judges import MATCH_OR_CHRF, as_function, is_function
from data_prep.models.reward_functions import load_function
from data_prep.readers.preferences import prompt_key
from data_prep.readers.prompts import read_prompts
from eval.common.functions import check_functions
from eval.diagnosis.run_settings import STAGES, heldout_of, logged_by_ppo, models_of, settings_of
from eval.diagnosis.verdict import PARTS, check, check_gate, check_perfect, check_ppo, check_sft, table, weakest

HOW = {"reward": "recipes/reward.py trains one", "ppo": "recipes/ppo.py trains one"}


def read_heldout(models: dict, settings: dict, arguments: argparse.Namespace, quarantine: Path) -> list[dict]:
    """The held-out prompts, `--limit` of them, none of which reward model or PPO was trained on."""
    files, its = heldout_of(settings, arguments.heldout)
    rows = read_prompts(files, None, 0, its.get("on_bad", "error"), quarantine, its.get("columns"), can_choose=False)
    if models["reward"]:
        trained, unknown = trained_prompts(models["reward"])
        if unknown:
            print(f"whether {models['reward']} was trained on these prompts is not known: {unknown}")
        keys = set(trained)
        kept = [row for row in rows if prompt_key(row["prompt"]) not in keys]
        if len(kept) < len(rows):
            print(f"left out: {counted(len(rows) - len(kept), 'prompt')} that the reward model was trained on")
        if not kept:
            raise InputError(f"{', '.join(files)}: the reward model was trained on every prompt; give --heldout")
        rows = kept
    return at_most(rows, arguments)


def reward_by(judge_name: str) -> dict:
    """The settings of recipes/ppo.py that make the judge its reward."""
    if judge_name == "reference":
        return {"reward_funcs": [MATCH_OR_CHRF]}
    return {"reward_funcs": [judge_name]} if is_function(judge_name) else {"reward_model_path": judge_name}


def at_most(rows: list[dict], arguments: argparse.Namespace) -> list[dict]:
    """`--limit` of the rows, at random."""
    if len(rows) <= arguments.limit:
        return rows
    print(f"{arguments.limit:,} of {len(rows):,} prompts are used (--limit)")
    return random.Random(arguments.seed).sample(rows, arguments.limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, with sft/, reward/ and ppo/")
    for name in STAGES:
        parser.add_argument(f"--{name}", help=f"folder or Hub id of {PARTS[name]} (default: the run's)")
    parser.add_argument(
        "--heldout", nargs="+", help="conversations or preferences that no training saw (default: PPO's heldout)"
    )
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="who judges, by a number for each answer: a function of the form of data_prep/rewards.py, a reward model (folder "
        "or Hub id), or reference (exact match, then chrF) (default: the first of PPO's eval_funcs, else reference)",
    )
    parser.add_argument("--limit", type=int, default=128, help="prompts, sampled at random (default: 128)")
    parser.add_argument("--num_return_sequences", type=int, default=8, help="answers sampled per prompt (default: 8)")
    parser.add_argument(
        "--max_new_tokens", type=int, help="longest answer in tokens (default: PPO's response_length, else 64)"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    parser.add_argument("--seed", type=int, default=42, help="seed for sampling and --limit (default: 42)")
    parser.add_argument(
        "--with_judge_as_reward",
        action="store_true",
        help="also train PPO with the judge as its reward, by the run's settings: takes as long as the run's PPO did",
    )
    parser.add_argument("--results_dir", type=Path, help="folder for diagnosis.json (default: <run>/results)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit", "num_return_sequences", "max_new_tokens", "batch_size")
    start = time.perf_counter()
    models = models_of(arguments.run, {name: getattr(arguments, name) for name in STAGES})
    settings = {name: settings_of(folder) for name, folder in models.items()}
    its = settings["ppo"]
    if models["ppo"] and "kl_coef" not in its:
        raise InputError(f"{models['ppo']}: found no settings.json of PPO; expected what recipes/ppo.py leaves")
    if arguments.with_judge_as_reward and not models["ppo"]:
        raise InputError("--with_judge_as_reward: there is no PPO run whose settings could be used")
    results_dir = arguments.results_dir or arguments.run / "results"
    check_writable("--results_dir", results_dir)
    judge_name = arguments.judge or (its.get("eval_funcs") or ["reference"])[0]
    judge = as_function(judge_name, "--judge")
    functions = [load_function(name) for name in its.get("reward_funcs") or ()]
    heldout = read_heldout(models, settings, arguments, results_dir / "quarantine_diagnosis_heldout.jsonl")
    check_functions([judge], heldout)
    training = []
    if models["ppo"]:
        quarantine = results_dir / "quarantine_diagnosis.jsonl"
        policy = its.get("on_bad", "error")
        training = read_prompts(its["prompts"], None, 0, policy, quarantine, its.get("columns"), can_choose=False)
        own, other = (map(prompt_key, (row["prompt"] for row in rows)) for rows in (training, heldout))
        check_disjoint(own, other, arguments.heldout or its.get("heldout") or ["the held-out data"])
        training = at_most(training, arguments)

    # Slow to import: after the input has been checked.
    from data_prep.models.loading import check_chat, load_checkpoint
    from eval.diagnosis import stages
    from eval.diagnosis.perfect import train_on

    sampling = {
        "max_new_tokens": arguments.max_new_tokens or its.get("response_length") or 64,
        "temperature": its.get("temperature") or 1.0,
        "num_return_sequences": arguments.num_return_sequences,
        "batch_size": arguments.batch_size,
    }
    sft = load_checkpoint(models["sft"])
    reader = load_checkpoint(models["reward"], reward_model=True) if models["reward"] else None
    ppo = load_checkpoint(models["ppo"]) if models["ppo"] else None
    for name, loaded in (("sft", sft), ("ppo", ppo)):
        if loaded:
            check_chat(models[name], *loaded, sampling["max_new_tokens"])
    if ppo and ppo[1].get_vocab() != sft[1].get_vocab():
        raise InputError(f"{models['ppo']}: its tokenizer is not that of {models['sft']}; it was not trained from it")
    readers = [each for each in (sft, reader, ppo) if each]
    heldout = stages.prompts_that_fit(heldout, readers, sampling["max_new_tokens"])
    training = stages.prompts_that_fit(training, readers, sampling["max_new_tokens"]) if ppo else []
    if not heldout or (ppo and not training):
        raise InputError("no prompt leaves room for an answer; give a smaller --max_new_tokens")
    shown = "agreement with the reference (exact match, then chrF)" if judge_name == "reference" else judge_name
    print(
        f"{arguments.run}: {counted(len(heldout), 'held-out prompt')}, {counted(arguments.num_return_sequences, 'answer')} "
        f"each at temperature {sampling['temperature']:g}, at most {sampling['max_new_tokens']} tokens; the judge is {shown}"
    )

    # The SFT model
    found, seed = {"models": models, "judge": shown, **sampling}, arguments.seed
    rows = stages.sample(*sft, heldout, judge, sampling, "SFT, held-out prompts", seed)
    found["sft"] = stages.measure_sft(rows, sft[1], sampling["max_new_tokens"])
    checks = check_sft(found["sft"])

    # The reward
    score = None
    if reader or functions:
        names = [*([models["reward"]] if reader else []), *(its.get("reward_funcs") or ())]
        found["reward_in_words"] = f"the reward ({' + '.join(names)})" if functions else "the reward model"
        weights = its.get("reward_weights")
        score = stages.reward_of(*(reader or (None, None)), functions, weights, arguments.batch_size)
        found["reward"] = stages.gate(rows, score, *sft, reader, sampling)
        checks += check_gate(found["reward"])
    else:
        says = "there is none yet; " + HOW["reward"]
        checks.append(check("reward", "gate", "skipped", says))

    # PPO
    if ppo and score:
        logged = logged_by_ppo(arguments.run, models["ppo"])
        # By the same random numbers as the SFT model's: what differs is what PPO changed.
        own = [stages.sample(*ppo, heldout, judge, sampling, "PPO, held-out prompts", seed)]
        theirs = [rows]
        for whose, which, name in ((theirs, sft, "SFT"), (own, ppo, "PPO")):
            whose.append(stages.sample(*which, training, judge, sampling, f"{name}, training prompts", seed))
        found["ppo"] = stages.measure_ppo(own, theirs, score, its, logged) | {
            "kl": stages.kl(own[0], ppo[0], sft[0], sft[1], sampling),
            "weights_moved": stages.weights_moved(ppo[0], sft[0]),
        }
        checks += check_ppo(found["ppo"], found["reward"]["verdict"]["word"] == "fit")
    else:
        says = "there is none yet; " + HOW["ppo"] if not ppo else "there is no reward to measure it by"
        checks.append(check("ppo", "reward", "skipped", says))

    # PPO with the judge as its reward
    if ppo and score and arguments.with_judge_as_reward:
        spreads = [stages.spread(rows, values)["within"] for values in (score(rows), [row["scores"] for row in rows])]
        if not all(spreads):
            raise InputError("--with_judge_as_reward: reward or judge has no spread within a prompt to train on")
        same_ids = reader and reader[1].get_vocab() == sft[1].get_vocab()
        value_model = its.get("value_model_path") or (models["reward"] if same_ids else None)
        with tempfile.TemporaryDirectory() as folder:
            told = {**its, "sft_model_path": models["sft"]}
            rewarded = reward_by(judge_name)
            trained = train_on(rewarded, told, (spreads[0] / spreads[1]) ** 0.5, value_model, folder)
            perfect = load_checkpoint(trained)
            answers = stages.sample(*perfect, heldout, judge, sampling, "PPO by the judge", seed)
        gain = stages.paired(answers, [row["scores"] for row in answers], rows, [row["scores"] for row in rows])
        found["perfect"] = {"judge": gain, "weight": (spreads[0] / spreads[1]) ** 0.5}
        checks += check_perfect(found["perfect"], found["ppo"]["heldout"]["judge"])
    elif ppo and score:
        says = "not asked for: --with_judge_as_reward trains one by the run's settings, and says what a perfect reward gives"
        checks.append(check("perfect", "judge", "skipped", says))

    verdict = weakest(checks, found)
    seconds = time.perf_counter() - start
    write_results(results_dir, "diagnosis", {"seconds": seconds, **found, "checks": checks, "verdict": verdict})
    print("\n".join([*table(checks), verdict["line"]]))


if __name__ == "__main__":
    run_main(main)
