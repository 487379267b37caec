"""What is measured of each checkpoint of a run, every model being loaded once."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.disjoint import check_disjoint
from data_prep.common.files import atomic_write
from data_prep.common.numbers import rounded
from data_prep.gate.trained_on import trained_prompts
from data_prep.judging.judges import Judge
from data_prep.models.generation import generate_answers
from data_prep.models.loading import check_chat, load_checkpoint
from data_prep.models.scoring import score_rankings
from data_prep.readers.preferences import prompt_key
from eval.common.functions import measure
from eval.common.stamps import stamp, stamps
from eval.harness import matrix, rewards
from eval.harness.assistants import measure_answers
from eval.harness.checkpoints import Checkpoint, rankings_of, role
from eval.harness.documents import compare_documents, measure_documents
from eval.harness.store import Store
from eval.judging.kl import kl_divergence, same_ids
from eval.judging.outcomes import figures

DOCUMENT_ROWS = 16  # windows scored at once: their logits are those of every token


@dataclass
class Run:
    """What is measured, on what, and what is known by now.

    checkpoints: all of the run. measured: those that are measured; others are opponents at most.
    documents: (text, source) each. questions: {set: rows of `read_prompts`}. rankings: {set: rows of `read_rankings`}.
    files: {"documents" | "conversations" | "rankings": {set: its files}}. sampling: max_new_tokens and batch_size.
    """

    checkpoints: list[Checkpoint]
    measured: list[Checkpoint]
    parts: list[str]
    store: Store
    documents: list
    questions: dict[str, list[dict]]
    rankings: dict[str, list[dict]]
    files: dict[str, dict[str, list[str]]]
    judge: Judge
    functions: dict[str, Callable]
    sampling: dict
    temperature: float
    answers_per_prompt: int
    seed: int
    loaded: dict[str, tuple] = field(default_factory=dict)
    answered: dict[tuple, list] = field(default_factory=dict)

    def model(self, checkpoint: Checkpoint) -> tuple:
        """(model, tokenizer), loaded the first time that it is needed."""
        if checkpoint.name not in self.loaded:
            print(f"loading {checkpoint.folder}")
            found = load_checkpoint(checkpoint.folder, reward_model=checkpoint.kind == "reward")
            if checkpoint.asked:
                check_chat(
                    checkpoint.folder, *found, 1 if checkpoint.kind == "reward" else self.sampling["max_new_tokens"]
                )
            self.loaded[checkpoint.name] = found
        return self.loaded[checkpoint.name]

    def let_go(self, later: list[Checkpoint]) -> None:
        """Forget the models that no later checkpoint is compared with."""
        needed = {each.opponent for each in later}
        self.loaded = {name: model for name, model in self.loaded.items() if name in needed}
        self.answered = {
            key: answers for key, answers in self.answered.items() if key[1] == "greedy" or key[0] in needed
        }

    def sets_of(self, checkpoint: Checkpoint) -> list[str]:
        """The sets of questions that a model is asked: an assistant all, a base model with a chat template the first."""
        names = [*self.questions] if checkpoint.asked and checkpoint.kind != "reward" else []
        return names if checkpoint.kind == "assistant" else names[:1]

    def opponent_of(self, checkpoint: Checkpoint) -> Checkpoint | None:
        return next((each for each in self.checkpoints if each.name == checkpoint.opponent and each.asked), None)


def measure_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """Everything that applies to one checkpoint and is not there yet."""
    if checkpoint.kind == "reward":
        if "reward_accuracy" in run.parts:
            _rewards(run, checkpoint)
        return
    if "perplexity" in run.parts and run.documents:
        _documents(run, checkpoint)
    if "answers" in run.parts:
        for name in run.sets_of(checkpoint):
            _answers(run, checkpoint, name)
    if run.sets_of(checkpoint) and _wants_matrix(run):
        greedy(run, checkpoint, next(iter(run.questions)))  # while it is loaded
    opponent = run.opponent_of(checkpoint)
    if "win_rate" in run.parts and opponent and run.sets_of(checkpoint):
        _win_rates(run, checkpoint, opponent)


def _documents(run: Run, checkpoint: Checkpoint) -> None:
    name = f"perplexity_{checkpoint.name}"
    files, data = [file for files in run.files["documents"].values() for file in files], _digest(run.documents)
    made = {"data": files, "digest": data}
    if not run.store.wants(name, made, checkpoint.folder):
        return
    start = time.perf_counter()
    measured, bits = measure_documents(*run.model(checkpoint), run.documents, DOCUMENT_ROWS)
    rows = [{"bits": each} for each in bits]
    run.store.keep_rows(name, {"weights": stamp(checkpoint.folder)["weights"], "documents": data}, rows)
    other = next((each for each in run.checkpoints if each.name == checkpoint.opponent), None)
    if other:
        key = {"weights": stamp(other.folder)["weights"], "documents": data}
        if theirs := run.store.rows(f"perplexity_{other.name}", key):
            difference = compare_documents(run.documents, bits, [row["bits"] for row in theirs])
            measured["against"] = {"model": other.folder, "difference": difference}
    about = {"seconds": time.perf_counter() - start, "model": checkpoint.folder, **made}
    run.store.write(name, {**about, **stamps(checkpoint.folder), **measured})
    print(f"{name}: {measured['metrics']['bits_per_byte']:.3f} bits per byte")


def greedy(run: Run, checkpoint: Checkpoint, name: str) -> list[dict]:
    """The greedy answer to each question of a set, {"text", "stopped", "tokens"}: drawn once, and kept beside the results."""
    place = (checkpoint.name, "greedy", name)
    if place in run.answered:
        return run.answered[place]
    key = {"weights": stamp(checkpoint.folder)["weights"], "questions": _digest(run.questions[name])}
    key["max_new_tokens"] = run.sampling["max_new_tokens"]
    found = run.store.rows(f"answers_{checkpoint.name}_{name}", key)
    if found is None:
        prompts, desc = [row["prompt"] for row in run.questions[name]], f"{checkpoint.name}, {name}"
        answers = generate_answers(*run.model(checkpoint), prompts, **run.sampling, desc=desc)
        found = [{key: answer[key] for key in ("text", "stopped", "tokens")} for (answer,) in answers]
        run.store.keep_rows(f"answers_{checkpoint.name}_{name}", key, found)
    run.answered[place] = found
    return found


def _about(run: Run, set_name: str) -> dict:
    """What a result says of the questions that it is of."""
    rows = run.questions[set_name]
    return {"data": run.files["conversations"][set_name], "prompts": len(rows), "digest": _digest(rows)}


def _answers(run: Run, checkpoint: Checkpoint, set_name: str) -> None:
    name, rows = f"answers_{checkpoint.name}_{set_name}", run.questions[set_name]
    made = _about(run, set_name)
    wanted = {**made, "eval_funcs": [*run.functions], "max_new_tokens": run.sampling["max_new_tokens"]}
    if not run.store.wants(name, wanted, checkpoint.folder):
        return
    start = time.perf_counter()
    answers = greedy(run, checkpoint, set_name)
    texts = [[answer["text"]] for answer in answers]
    measured = {
        each: [value for (value,) in measure(function, rows, texts)] for each, function in run.functions.items()
    }
    metrics, _ = measure_answers(rows, answers, measured, None)
    examples = [{**row, "answer": answer["text"]} for row, answer in zip(rows, answers, strict=True)][:12]
    about = {"seconds": time.perf_counter() - start, "model": checkpoint.folder, **made, **stamps(checkpoint.folder)}
    run.store.write(name, {**about, **run.sampling, "metrics": metrics, "groups": {}, "examples": examples})
    print(f"{name}: exact match {metrics['exact_match']['value']:.1%} on {len(rows):,} prompts")


def _sampled(run: Run, checkpoint: Checkpoint, name: str, seed: int) -> list[list[dict]]:
    place = (checkpoint.name, "sampled", name, seed)
    if place not in run.answered:
        prompts, desc = [row["prompt"] for row in run.questions[name]], f"{checkpoint.name}, sampled"
        several = {"num_return_sequences": run.answers_per_prompt, "temperature": run.temperature, "seed": seed}
        found = generate_answers(*run.model(checkpoint), prompts, **run.sampling, **several, desc=desc, exact=True)
        run.answered[place] = found
    return run.answered[place]


def _win_rates(run: Run, checkpoint: Checkpoint, opponent: Checkpoint) -> None:
    """Against the model that it was trained from, on the first set of questions: sampled, with the KL, and greedy."""
    set_name = run.sets_of(checkpoint)[0]
    rows, label = run.questions[set_name], f"win_rate_{checkpoint.name}_vs_{role(opponent.name)}"
    prompts, players = [row["prompt"] for row in rows], (checkpoint, opponent)
    for name, temperature in ((label, run.temperature), (f"{label}_greedy", 0.0)):
        made = {"judge": run.judge.words, **_about(run, set_name)}
        settings = {"num_return_sequences": run.answers_per_prompt if temperature else 1, "temperature": temperature}
        settings |= {"max_new_tokens": run.sampling["max_new_tokens"]}
        seed = {"seed": run.seed} if temperature else {}  # greedy answers have none
        wanted = {**made, "eval_funcs": [*run.functions], **settings, **seed}
        if not run.store.wants(name, wanted, checkpoint.folder, opponent.folder):
            continue
        start = time.perf_counter()
        if temperature:
            # By different random numbers: with the same the two would not be independent.
            both = [_sampled(run, each, set_name, run.seed + place) for place, each in enumerate(players)]
        else:
            both = [[[answer] for answer in greedy(run, each, set_name)] for each in players]
        metrics, texts, outcomes, _ = figures(run.judge, run.functions, rows, both)
        (model, tokenizer), (other, its) = (run.model(each) for each in players) if temperature else [(None, None)] * 2
        if temperature and same_ids(tokenizer, its):
            kl = kl_divergence(model, other, tokenizer, prompts, both[0], **run.sampling, temperature=temperature)
            metrics |= {"kl": rounded(kl, 5)} if kl else {}
        examples = [
            {**row, "answer": own[0], "opponent_answer": theirs[0], "outcome": group[0]}
            for row, own, theirs, group in zip(rows, *texts, outcomes, strict=True)
        ][:8]
        about = {"seconds": time.perf_counter() - start, "model": checkpoint.folder, "opponent": opponent.folder}
        about |= {**made, **stamps(checkpoint.folder, opponent.folder), **settings, "seed": run.seed}
        run.store.write(name, {**about, "metrics": metrics, "examples": examples})
        print(f"{name}: {metrics['win_rate']['value']:.1%} on {len(rows):,} prompts")


def _players(run: Run) -> list[Checkpoint]:
    return [each for each in run.measured if run.sets_of(each)]


def _wants_matrix(run: Run) -> bool:
    players = _players(run)
    if "matrix" not in run.parts or len(players) < 2:
        return False
    set_name = next(iter(run.questions))
    return run.store.wants(f"win_matrix_{set_name}", _of_matrix(run, set_name), *(each.folder for each in players))


def _of_matrix(run: Run, set_name: str) -> dict:
    """What the matrix of a set says of what it was measured with."""
    return {"judge": run.judge.words, **_about(run, set_name), "max_new_tokens": run.sampling["max_new_tokens"]}


def measure_matrix(run: Run) -> None:
    """Every model that was asked the first set of questions against every other, by their greedy answers."""
    if not _wants_matrix(run):
        return
    set_name, players = next(iter(run.questions)), _players(run)
    name, rows = f"win_matrix_{set_name}", run.questions[set_name]
    start = time.perf_counter()
    answers = {each.name: [answer["text"] for answer in greedy(run, each, set_name)] for each in players}
    rates = matrix.win_matrix(rows, answers, run.judge)
    about = {"seconds": time.perf_counter() - start, "models": [*answers], **_of_matrix(run, set_name)}
    about |= stamps(*(each.folder for each in players))
    run.store.write(name, {**about, "win_rates": rates, "metrics": {}})
    _save(run.store.folder / f"{name}.png", matrix.picture(rates))
    print(f"{name}: {', '.join(answers)}, every one against every other")


def _rewards(run: Run, checkpoint: Checkpoint) -> None:
    whose = "" if checkpoint.name == "reward" else f"{checkpoint.name}_"
    for set_name, files in rankings_of(checkpoint, run.checkpoints, run.files["rankings"]).items():
        name, rows = f"reward_accuracy_{whose}{set_name}", run.rankings[set_name]
        made = {"data": files, "rankings": len(rows), "digest": _digest(rows)}
        if not run.store.wants(name, made, checkpoint.folder):
            continue
        trained, unknown = trained_prompts(checkpoint.folder)
        check_disjoint(trained, [prompt_key(row["prompt"]) for row in rows], files)
        if unknown:
            print(f"whether {checkpoint.folder} was trained on these prompts is not known: {unknown}")
        start = time.perf_counter()
        scored = score_rankings(*run.model(checkpoint), rows, batch_size=run.sampling["batch_size"])
        metrics = rewards.measure_rankings(*scored)
        about = {"seconds": time.perf_counter() - start, "model": checkpoint.folder, **made}
        run.store.write(name, {**about, **stamps(checkpoint.folder), "metrics": metrics})
        _save(run.store.folder / f"{name}.png", rewards.picture(metrics))
        print("\n".join(rewards.lines(name, metrics)))


def _save(path: Path, png: bytes) -> None:
    with atomic_write(path, "wb") as file:
        file.write(png)


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]
