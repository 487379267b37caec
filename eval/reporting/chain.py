"""The chain of a run as a picture: what went into each stage and what came out, in rows, tokens, seconds and bytes."""

from pathlib import Path

from data_prep.common.files import read_json
from eval.reporting.reading.run_folder import RANKINGS, TRAINED_ON, data_file
from eval.reporting.tables import number
from eval.reporting.words import say


def size_of(path: Path) -> str | None:
    """The size of a file, or of a folder's own files (no checkpoint below it), in MB; None where there is none."""
    if not path.exists():
        return None
    files = [each for each in path.iterdir() if each.is_file()] if path.is_dir() else [path]
    return f"{sum(each.stat().st_size for each in files) / 1e6:,.1f} MB"


def listed(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)


def chain(run: Path, results: dict, seconds: dict[str, float], mask: dict | None) -> list[dict]:
    """[{"title", "into": [(what, how much)], "out": [(what, how much)], "seconds" or None}] of the stages that were run.

    Args:
        seconds: {step: seconds} of `times`.
        mask: `mask_example`, for the mean length of a conversation; token counts from it are estimates, and say so.
    """
    boxes = []

    def rows(count: int | None, what: str) -> str | None:
        return None if count is None else say(what, n=number(count))

    def box(title: str, into: list, out: list, took: float | None) -> None:
        kept = [[(name, much) for name, much in side if much] for side in (into, out)]
        boxes.append({"title": say(title), "into": kept[0], "out": kept[1], "seconds": took})

    index = run / "data" / "tokens" / "index.json"
    mixture = read_json(index) if index.exists() else {}
    if (run / "tokenizer" / "tokenizer.json").exists():
        corpus = [*(run / "data").glob("corpus/*.jsonl*"), *(run / "data").glob("corpus.jsonl*")]
        big = f"{sum(path.stat().st_size for path in corpus) / 1e6:,.1f} MB" if corpus else None
        vocabulary = rows(mixture.get("vocab_size"), "{n} entries")
        into, out = [("data/corpus", big)], [("tokenizer/", listed(vocabulary, size_of(run / "tokenizer")))]
        box("Tokenizer", into, out, seconds.get("tokenizer"))
    if pretrain := results.get("pretrain"):
        into = listed(rows(mixture.get("documents"), "{n} documents"), rows(pretrain.get("tokens"), "{n} tokens"))
        out = listed(rows(pretrain.get("parameters"), "{n} parameters"), size_of(run / "base"))
        box("Pretraining", [(say("documents"), into)], [("base/", out)], pretrain.get("seconds"))
    if sft := results.get("sft"):
        count = sft.get("conversations")
        tokens = mask and count and say("about {n} tokens", n=number(round(mask["mean"] * count, -3)))
        into = listed(rows(count, "{n} conversations"), tokens, size_of(data_file(run, *TRAINED_ON)))
        box("Supervised fine-tuning", [("base/", size_of(run / "base")), (say("conversations"), into)],
            [("sft/", size_of(run / "sft"))], sft.get("seconds"))  # fmt: skip
    if reward := results.get("reward"):
        into = listed(rows(reward.get("rankings"), "{n} rankings"), size_of(data_file(run, *RANKINGS)))
        box("Reward model", [("sft/", size_of(run / "sft")), (say("rankings"), into)],
            [("reward/", size_of(run / "reward"))], reward.get("seconds"))  # fmt: skip
    if ppo := results.get("ppo"):
        metrics, lengths = ppo.get("metrics", {}), ppo.get("curves", {}).get("length")
        episodes = metrics.get("episodes")
        tokens = None
        if episodes and lengths:
            mean = sum(value for _, value in lengths) / len(lengths)
            tokens = say("about {n} tokens", n=number(round(mean * episodes, -3)))
        into = [("sft/", size_of(run / "sft")), ("reward/", size_of(run / "reward"))]
        into += [(say("prompts"), rows(ppo.get("prompts"), "{n} prompts"))]
        into += [(say("its own answers"), listed(rows(episodes, "{n} answers"), tokens))]
        box("PPO", into, [("ppo/", size_of(run / "ppo"))], ppo.get("seconds"))
    return boxes


def disk(run: Path) -> str:
    """The size of all files of a run: data, models, results; not of what links lead to."""
    return f"{sum(path.stat().st_size for path in run.rglob('*') if path.is_file()) / 1e6:,.0f} MB"
