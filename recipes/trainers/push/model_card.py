"""The model card of a folder: written from the records of its runs and the results beside it, and from nothing else."""

import math
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from data_prep.common.errors import InputError
from data_prep.models.loading import config_in, context_of
from recipes.trainers.push.figures import (
    Change,
    Figure,
    adaptation_of,
    changes_of,
    eval_results,
    figures_of,
    number,
)
from recipes.trainers.push.lineage import DATA, Stage, base_of, lineage, names_in, object_in, results_in
from recipes.trainers.push.names import names_of

MARK = "<!-- written by the recipes; take this line out to keep changes of your own -->"
COUNTED = ("documents", "tokens", "conversations", "rankings", "pairs", "answers", "prompts")
NOT_GIVEN = "not given"


def model_card(
    folder: Path,
    name: str,
    *,
    private: bool = True,
    base: str | None = None,
    license: str | None = None,
    licenses: dict[str, str] | None = None,
    results_dir: str | None = None,
) -> ModelCard:
    """The card of the model or adapter in `folder` for the repository `name`.

    Args:
        base: the id of its base model; default: what the records say.
        license: of the model, as the Hub names licences.
        licenses: of the data, {file, by its path or as the card names it, or hf:// name: licence}.
        results_dir: where evaluations wrote; default: where the recipe did, or `results` beside the folder.

    Raises InputError for a licence of data that the model did not learn from.
    """
    stages = lineage(folder)
    record = stages[-1].record if stages else {}
    results = results_in(folder, record, results_dir)
    adaptation, names = adaptation_of(folder, stages, results_dir), names_in(stages, results)
    changes, figures = changes_of(adaptation), figures_of(folder, stages, results, names)
    if stages and not changes:
        changes = changes_of(stages[-1].results, stages[-1].recipe)
    learned = [each for stage in stages for each in data_names(stage)]
    if idle := [
        each for each in licenses or () if each not in {*learned, *(names_of(name, names) for name in learned)}
    ]:
        expected = (
            ", ".join(dict.fromkeys(names_of(name, names) for name in learned)) or "none: there is no record of it"
        )
        raise InputError(f"--data_license {idle[0]}: not a name of data that it learned from; expected {expected}")
    earlier = [
        (
            each.recipe,
            figures_of(each.folder, stages[: number + 1], results, names)
            + [change.after for change in changes_of(each.results, each.recipe)],
        )
        for number, each in enumerate(stages[:-1])
    ]
    adapter = (folder / "adapter_config.json").exists()
    base, reward, licenses = base or base_of(folder), is_reward_model(folder), licenses or {}
    task = "text-classification" if reward else "text-generation"
    sets = sorted({each for stage in stages for each in data_names(stage) if each.startswith("hf://")})
    index = eval_results([*figures, *(each.after for each in changes)], task)
    data = ModelCardData(
        model_name=name.split("/")[-1],
        base_model=base,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        license=license,
        datasets=[each.removeprefix("hf://").split(":")[0] for each in sets] or None,
        tags=["generated_from_trainer", *dict.fromkeys(stage.recipe for stage in stages)],
        eval_results=index or None,
    )
    parts = [
        f"# {name.split('/')[-1]}",
        opening(folder, stages, base, adapter, reward),
        "## How to use it\n\n" + usage(folder, name, base, adapter, reward, private),
        "## Training\n\n" + training(stages, licenses, names),
        "## Figures\n\n" + tables(figures, earlier, changes, adaptation),
        "## Limits\n\n" + "\n".join(f"- {each}" for each in limits(folder, stages, figures, changes, licenses, names)),
        "## To make it again\n\n" + commands(stages, names),
        MARK,
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def is_reward_model(folder: Path) -> bool:
    config = object_in(folder / "config.json") | object_in(folder / "adapter_config.json")
    return "ForSequenceClassification" in str(config.get("architectures")) or config.get("task_type") == "SEQ_CLS"


def data_names(stage: Stage) -> list[str]:
    """The data that a stage learned from, as it was given."""
    given = [stage.record.get("settings", {}).get(key) for key in DATA]
    return [str(name) for each in given if each for name in (each if isinstance(each, list) else [each])]


def opening(folder: Path, stages: list[Stage], base: str | None, adapter: bool, reward: bool) -> str:
    what = "reward model" if reward else "language model"
    what = f"LoRA adapter of a {what}" if adapter else what
    made = f", made by {' → '.join(stage.recipe for stage in stages)}" if stages else ""
    said = f"A {what}{made}."
    if base:
        return f"{said} It comes from [{base}](https://huggingface.co/{base})."
    if adapter:
        return (
            f"{said} The model that it belongs to is not on the Hub under a name known here: load that one yourself."
        )
    if stages and not stages[0].parent:
        return f"{said} It was trained from random weights."
    return f"{said} The model that it was made from is not on the Hub under a name known here."


def usage(folder: Path, name: str, base: str | None, adapter: bool, reward: bool, private: bool) -> str:
    login = "The repository is private: `hf auth login` first.\n\n" if private else ""
    chat = (folder / "chat_template.jinja").exists()
    kind = "SequenceClassification" if reward else "CausalLM"
    asked = '[{"role": "user", "content": "…"}]' if chat else '"…"'
    if adapter:
        loaded = f'"{base}"' if base else '"…"  # the model that it was trained on'
        extra = ", num_labels=1" if reward else ""
        argument = f"base{extra}"
        return login + code(
            "python",
            "from peft import PeftModel",
            f"from transformers import AutoModelFor{kind}, AutoTokenizer\n",
            f"base = {loaded}",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            f"model = AutoModelFor{kind}.from_pretrained({argument})",
            f'model = PeftModel.from_pretrained(model, "{name}")',
        )
    if reward:
        return login + code(
            "python",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            f'model = AutoModelForSequenceClassification.from_pretrained("{name}")',
            'messages = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)',
            "reward = model(**inputs).logits.item()",
        )
    used = login + code(
        "python",
        "from transformers import pipeline\n",
        f'generate = pipeline("text-generation", model="{name}")',
        f'print(generate({asked}, max_new_tokens=64, return_full_text=False)[0]["generated_text"])',
    )
    if not chat:
        return f"{used}\n\nIt goes on with a text and has no chat template: it is not an assistant."
    body = f'{{"model": "{name}", "messages": {asked}, "max_tokens": 64}}'
    served = code(
        "bash",
        "transformers serve --port 8000 &",
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
    )
    return f"{used}\n\nAs a server of OpenAI's protocol:\n\n{served}"


def code(language: str, *lines: str) -> str:
    return "\n".join((f"```{language}", *lines, "```"))


def training(stages: list[Stage], licenses: dict[str, str], names: dict[str, str]) -> str:
    if not stages:
        return "There is no record of how it was trained."
    rows = []
    for stage in stages:
        parent = stage.parent and (stage.hub_id(stage.parent) or names_of(stage.parent, names))
        data = data_names(stage)
        count = next((f"{stage.results[key]:,} {key}" for key in COUNTED if key in stage.results), "–")
        told = "; ".join(dict.fromkeys(license_of(each, licenses, names) for each in data)) or "–"
        seconds = stage.results.get("seconds")
        took = "–" if seconds is None else f"{seconds:,.0f}"
        rows.append(
            (stage.recipe, parent or "random weights", names_of(data, names) + sources(stage), count, told, took)
        )
    return table(("stage", "from", "data", "learned from", "licence of the data", "seconds"), rows)


def sources(stage: Stage) -> str:
    """What a mixture of tokens is made of, where the folder of its shards is still there."""
    tokens = stage.record.get("settings", {}).get("tokens")
    found = object_in(Path(str(tokens)) / "index.json").get("sources") if tokens else None
    if not isinstance(found, dict):
        return ""
    return ": " + ", ".join(f"{name} {each['tokens']:,}" for name, each in found.items() if "tokens" in each)


def license_of(name: str, licenses: dict[str, str], names: dict[str, str]) -> str:
    return licenses.get(name) or licenses.get(names_of(name, names)) or NOT_GIVEN


def cell(text) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def tables(
    figures: list[Figure], earlier: list[tuple[str, list[Figure]]], changes: list[Change], adaptation: dict
) -> str:
    """What was measured: of this model, of the stages before it, and before and after it."""

    def row(each: Figure) -> tuple:
        of = "–" if each.n is None else f"{each.n:,}"
        return (
            each.measure.replace("_", " "),
            number(each.value),
            each.interval or "–",
            of,
            each.data or "–",
            each.found_by,
        )

    head = ("measure", "value", "95 % interval", "n", "data", "found by")
    said = [table(head, [row(each) for each in figures])] if figures else []
    said += [] if figures or changes else ["Nothing was measured on held-out data."]
    if rows := [(stage, *row(each)) for stage, found in earlier for each in found]:
        said += ["Of the stages before it:", table(("stage", *head), rows)]
    if changes:
        said.append(
            "What was gained and what was forgotten (bits per byte: the fewer the better; exact match: the more the better):"
        )
        rows = [
            (
                each.measure.replace("_", " "),
                each.data,
                number(each.before),
                number(each.after.value),
                each.after.interval or "–",
                each.change,
            )
            for each in changes
        ]
        said.append(table(("measure", "data", "before", "after", "95 % interval of after", "change"), rows))
        if line := (adaptation.get("verdict") or {}).get("line"):
            said.append(f"Verdict: {line}")
    return "\n\n".join(said)


def limits(
    folder: Path,
    stages: list[Stage],
    figures: list[Figure],
    changes: list[Change],
    licenses: dict[str, str],
    names: dict[str, str],
) -> list[str]:
    """What the records and results say against the model, and what they say nothing about."""
    said = []
    if (config := config_in(folder)) and (context := context_of(config)):
        said.append(f"It reads {context:,} tokens at most, prompt and answer together.")
    for each in figures:
        if each.measure == "eos_rate" and each.value < 1:
            share = 100 - math.floor(1000 * each.value) / 10
            said.append(
                f"{share:.1f} % of the answers that were measured by {each.found_by} did not end by themselves."
            )
    for each in changes:
        if each.is_worse:
            measure, after = each.measure.replace("_", " "), number(each.after.value)
            said.append(f"It is worse than before on {each.data}: {measure} {number(each.before)} → {after}.")
    for stage in stages:
        for alarm in stage.results.get("alarms") or []:
            said.append(f"An alarm was raised while it was trained ({stage.recipe}): {alarm['alarm']}.")
    if not figures and not changes:
        said.append("It was not evaluated on held-out data.")
    data = (each for stage in stages for each in data_names(stage))
    without = {names_of(each, names) for each in data if license_of(each, licenses, names) == NOT_GIVEN}
    if without:
        said.append(f"Nobody stated the licence of its data: {', '.join(sorted(without))}.")
    said.append("No figure above is about safety, bias or facts outside of the data that was measured on.")
    return said


def commands(stages: list[Stage], names: dict[str, str]) -> str:
    """The settings of each stage as a YAML, and the command that reads it."""
    said = []
    for stage in stages:
        if given := stage.given(names):
            settings = yaml.safe_dump(given, allow_unicode=True, sort_keys=False).strip()
            command = f"# python recipes/{stage.recipe}.py --config {stage.recipe}.yaml --output_dir {stage.recipe}"
            said.append(code("yaml", command, settings))
    if not said:
        return "There is no record of its settings."
    versions = stages[-1].record.get("versions", {})
    return "\n\n".join([*said, "With " + ", ".join(f"{name} {each}" for name, each in versions.items()) + "."])
