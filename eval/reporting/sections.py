"""What a report shows of each stage and every other training: curves with a sentence each, alarms, gates, commands."""

from pathlib import Path

from data_prep.common.files import read_json
from eval.common.functions import WORDS
from eval.reporting.drawing.pictures import picture, score_against_kl
from eval.reporting.reading.run_folder import completions, verdicts
from eval.reporting.stages import METHODS, STAGES, VARIANTS, method_of, trainings
from eval.reporting.tables import Known, number
from eval.reporting.words import say

FIRST = 4  # curves shown at once; the others are folded
# {curve: how it is read}: the second line under a picture.
READ_AS = {
    "loss": "Lower is better: how surprised the model is by the right answer.",
    "held-out bits per byte": "Lower is better; it is measured on text that training never saw. Random bytes cost 8.",
    "tokens per second": "How fast the training ran; a dip is another program on the same machine.",
    "accuracy of the next token": "Higher is better: how often the likeliest next token is the right one.",
    "accuracy": "Higher is better: how often the better answer of a pair scores more. Guessing gives 50%.",
    "margin": "How many points the better answer is ahead; a wider margin is a surer judgement.",
    "score": "Higher is what PPO is after. A score that rises alone can be a fooled reward model.",
    "kl": "How far the assistant has moved from SFT. It should rise slowly and level off.",
    "length": "Tokens of an answer. A jump is a warning: longer answers may score more without being better.",
    "eos_rate": "The share of answers that end by themselves. It should stay near 100%.",
    "entropy": "How open the choice of words still is. A fall to 0 means that all answers become the same.",
    "repetition": "How often the model says the same words again within an answer. It should stay near 0.",
    "rlhf_reward": "The score less what leaving SFT costs: the sum that PPO maximises.",
}
QUALITY = "How good the answers are by this measure, on questions that training does not see."


def reading(name: str) -> str:
    """How a curve is read, or "" where the report does not know it."""
    plain = name.removeprefix("held-out ")
    return say(READ_AS.get(name) or READ_AS.get(plain.lower()) or (QUALITY if plain in WORDS else ""))


def went(points: list, name: str) -> str:
    """"From 8.3 at step 1 to 3.9 at step 615." """  # fmt: skip
    (first, start), (last, end) = points[0], points[-1]
    values = (number(start, name), number(end, name))
    if len(points) == 1:
        return say("{start} at step {first}.", start=values[0], first=number(first))
    return say("From {start} at step {first} to {end} at step {last}.", start=values[0], end=values[1],
               first=number(first), last=number(last))  # fmt: skip


def stage_sections(run: Path, results: dict) -> list[dict]:
    """What the page shows of each stage of the chain, every other method, and every other training with a curve."""
    named = trainings(results)
    others = [name for name, result in results.items() if result.get("curves") and name not in {*STAGES, *named}]
    sections = []
    for name in dict.fromkeys([*STAGES, *named, *others]):
        method = method_of(name) if name in named else name
        title, command, did, figure = {**STAGES, **METHODS}.get(method, (name, "", "", ""))
        section = {"name": name, "method": method, "title": named.get(name) or say(title), "command": command}
        section["result"] = results.get(name)
        if result := section["result"]:
            metrics, curves = result.get("metrics", {}), result.get("curves", {})
            bits = curves.get("held-out bits per byte") or [(0, None)]
            values = {**result, **metrics, "bits_per_byte_first": bits[0][1]}
            known = Known({key: number(value, key) for key, value in values.items()})
            section |= {"did": say(did).format_map(known), "figure": say(figure).format_map(known)}
            section["seconds"] = f"{result['seconds']:,.0f} s" if "seconds" in result else "–"
            section["metrics"] = {key.replace("_", " "): number(value, key) for key, value in metrics.items()}
            if method in ("ppo", "ppo_over_budget"):
                section["against_kl"] = score_against_kl(curves, result.get("alarms", ()))
            if method == "ppo" or method in VARIANTS:
                section["completions"] = completions(run / name)
            together = (section.get("against_kl") or {}).get("curves", ())
            section["pictures"] = [
                {"name": key, "picture": picture(points, key), "went": went(points, key), "reading": reading(key)}
                for key, points in curves.items()
                if points and key not in together
            ]
        sections.append(section)
    return sections


def gates(run: Path, results: dict) -> list[dict]:
    """[{"where", "kind", "word", "line", "picture", "metrics"}] of every gate and diagnosis of a run (see `verdicts`)."""
    found, beside = [], {each["name"]: each for each in verdicts(run, results)}
    for name, result in results.items():
        own = result.get("verdict")
        if isinstance(own, dict) and own.get("line"):
            kind = "diagnosis" if name == "diagnosis" else "gate"
            found.append(
                {"where": name, "kind": kind, **own, **{key: beside[name][key] for key in ("picture", "metrics")}}
            )
        before = (result.get("reward_gate") or {}) if isinstance(result.get("reward_gate"), dict) else {}
        if isinstance(verdict := before.get("verdict"), dict) and verdict.get("line"):
            found.append({"where": name, "kind": "before", "about": before.get("about", ""), **verdict})
    return found


def alarms(results: dict) -> list[dict]:
    """[{"where", "alarms": [{"step", "alarm", "message"}]}] of every training that looks out for them."""
    return [{"where": name, "alarms": found["alarms"]} for name, found in results.items() if "alarms" in found]


def made_with(run: Path) -> list[dict]:
    """[{"name", "recipe", "settings", "given": those that were not left to their default, "versions"}] of every model of a run, from the settings that its recipe has left."""
    found = []
    for path in sorted(run.glob("*/settings.json"), key=lambda path: path.stat().st_mtime):
        settings = read_json(path)
        if isinstance(settings, dict) and settings.get("recipe"):
            given = settings.get("given") or {}
            versions = settings.get("versions") or {}
            about = {
                "name": path.parent.name,
                "recipe": settings["recipe"],
                "settings": settings.get("settings") or given,
            }
            found.append({**about, "given": given, "versions": versions})
    return found
