"""READMEs: every command in them runs or parses, every option and file they name exists, every figure has its source."""

import ast
import functools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.recipes import arguments_of

from data_prep.common.files import write_json, write_jsonl
from eval.common.functions import SHARES

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
FOLDERS = [ROOT / name / "README.md" for name in ("recipes", "data_prep", "eval")]
DOCUMENTS = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", *FOLDERS]
RESULTS = ROOT / "recipes" / "configs" / "quickstart" / "results.json"
STAGES = ("pretrain", "continue_pretraining", "sft", "reward", "ppo", "dpo", "kto", "rloo", "grpo")


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(document: Path, language: str = "bash") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S)


def inline(document: Path) -> list[str]:
    """What stands between backticks in sentences and tables, a line break in it being a blank."""
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands(document: Path) -> list[str]:
    """The commands of a document, those in sentences too; that of eval/README.md's block, which is run, aside."""
    found = [code for code in inline(document) if re.match(r"(make|python|accelerate|pip|bash|cp|ruff) ", code)]
    for block in [] if document.parent.name == "eval" else blocks(document):
        lines = block.replace("\\\n", " ").splitlines()
        found += [part for line in lines for part in line.split(" #")[0].strip().split(" && ")]
    return found


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, input=""
    )


@functools.cache
def options_of_module(name: str) -> set[str]:
    done = run(f"python -m {name} --help", ROOT)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--(\w+)", done.stdout.partition("options:")[2]))


@functools.cache
def options_of_recipe(name: str) -> set[str]:
    """The fields of every class of arguments that the recipe takes."""
    return {field.name for each in arguments_of(name) for field in each.__dataclass_fields__.values()} | {"config"}


def options(words: list[str]) -> set[str]:
    return {word[2:] for word in words if word.startswith("--")}


def values(words: list[str], option: str) -> list[str]:
    """What follows an option, up to the next."""
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    return rest[: next((number for number, word in enumerate(rest) if word.startswith("--")), len(rest))]


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", makefile, flags=re.M)[1].split())
    settings = set(re.findall(r"^(\w+) \?=", makefile, flags=re.M)) | {"FRESH"}
    assert all(word in targets or word.split("=")[0] in settings for word in words)


def check_python(words: list[str]) -> None:
    if words[0] == "recipes/push_to_hub.py":
        assert options(words) <= options_of_module("recipes.push_to_hub")
        return
    if words[0].startswith("tests/"):
        assert (ROOT / words[0]).is_file()
        return
    module, *rest = words[1:]
    assert words[0] == "-m"
    if module == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests"))
    else:
        assert options(rest) - {"help"} <= options_of_module(module)


SINGLE = "accelerate_configs/single_process.yaml"


def check_launch(words: list[str], copies: dict[str, str]) -> None:
    """`copies`: {a folder that the document has the reader make: what it is a copy of}."""
    assert words[0] == "launch"
    at = next(number for number, word in enumerate(words) if word.endswith(".py"))
    launcher, recipe, rest = words[1:at], Path(words[at]), words[at + 1 :]
    assert options(launcher) <= {"quiet", "config_file", "num_processes"}
    assert all((ROOT / path).is_file() for path in values(launcher, "--config_file"))
    assert (ROOT / recipe).is_file() and options(rest) <= options_of_recipe(recipe.stem)
    for config in values(rest, "--config"):
        for copy, original in copies.items():
            config = config.replace(copy, original)
        first = (ROOT / config).read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# accelerate launch --quiet --config_file {SINGLE} {recipe} --config {config}"


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:2] == ["install", "-e"] and re.fullmatch(r"\.\[(\w+)]", words[2])[1] in extras


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, talker, zero_model_dir, long_is_good_dir) -> Path:
    """A root with the code and a run of tiny models where the quickstart would have left its own."""
    root = tmp_path_factory.mktemp("root")
    for name in ("recipes", "data_prep", "eval", "accelerate_configs"):
        (root / name).symlink_to(ROOT / name)
    folder = root / "runs" / "quickstart"
    (folder / "data").mkdir(parents=True)
    yes, no = talker("yes"), talker("no")
    for name, model in (("base", zero_model_dir), ("sft", no), ("ppo", yes), ("reward", long_is_good_dir)):
        (folder / name).symlink_to(model)
    write_jsonl(folder / "data" / "corpus_heldout.jsonl", [{"text": "yes and no"}])
    turns = [{"from": "human", "value": "right?"}, {"from": "gpt", "value": "yes"}]
    write_json(folder / "data" / "conversations_heldout.json", [{"id": "a", "conversations": turns}])
    prompt = [{"role": "user", "content": "right?"}]
    write_jsonl(
        folder / "data" / "rankings_heldout.jsonl", [{"prompt": prompt, "completions": ["yes", "n"], "ranks": [0, 1]}]
    )
    return root


@pytest.mark.slow
def test_the_commands_of_the_evaluations_run_as_they_stand(quickstart):
    (block,) = blocks(ROOT / "eval" / "README.md")
    # The tiny models have 64 positions, fewer than the default room for an answer.
    block = re.sub(r"(eval\.(answers|win_rate|report) )", r"\1--max_new_tokens 8 ", block)
    done = run(block, quickstart)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((quickstart / "runs/try/results.json").read_text())["stages"]
    assert set(results) == {
        "perplexity_base", "answers_sft_heldout", "answers_ppo_heldout", "reward_accuracy_heldout", "reward_gate_heldout",
        "win_rate_ppo_vs_sft", "win_rate_ppo_vs_sft_greedy",
    }  # fmt: skip
    assert results["answers_ppo_heldout"]["metrics"]["exact_match"]["value"] == 1.0
    assert results["answers_sft_heldout"]["metrics"]["exact_match"]["value"] == 0.0
    assert results["win_rate_ppo_vs_sft"]["metrics"]["win_rate"]["value"] == 1.0
    differences = results["win_rate_ppo_vs_sft_greedy"]["metrics"]["eval_funcs"]
    assert {name: each["difference"]["value"] for name, each in differences.items()} == {
        "asked_fact": 1.0, "all_facts": 1.0, "rubric": 4.0,
    }  # fmt: skip
    assert '<figure class="chart">' in (quickstart / "runs/try/report.html").read_text()
    verdict = "not shown: 1 prompt with answers that differ in rank, expected at least 20; next: rank answers to more prompts"
    assert f"heldout, on 1 prompt: {verdict}\n" in done.stdout
    table = (quickstart / "runs/try/results.md").read_text()
    assert "| win rate, sampled answers: ppo vs sft | 100.0% [100.0%, 100.0%] |" in table


def test_the_result_can_be_talked_to(quickstart):
    (command,) = [command for command in commands(ENGLISH) if command.startswith("python -m eval.chat")]
    done = run(command, quickstart)
    assert done.returncode == 0, done.stderr


def test_the_result_can_be_loaded_as_the_readme_says(quickstart):
    (code,) = blocks(ENGLISH, "python")
    done = run(f"cat > load.py <<'END'\n{code}END\npython load.py", quickstart)
    assert (done.returncode, done.stdout) == (0, "yes\n"), done.stderr


def test_own_files_start_as_the_readme_says(quickstart):
    (command,) = [command for command in commands(ENGLISH) if command.startswith("python -m data_prep.start")]
    turns = [
        [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes"}] for number in range(60)
    ]
    (quickstart / "data").mkdir()
    write_json(quickstart / "data" / "mine.json", [{"messages": messages} for messages in turns])
    done = run(command, quickstart)
    assert done.returncode == 0, done.stderr
    (script,) = [words[1] for words in map(str.split, commands(ENGLISH)) if words[0] == "bash"]
    done = run(f"bash -n {script} && grep -c ^step {script}", quickstart)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr  # two parts, tokenizer, tokens, base, assistant


def test_own_documents_are_read_and_asked_about_as_the_readme_says(quickstart):
    (quickstart / "my_documents").mkdir()
    for thing in ("queue", "stack", "heap"):
        text = f"Q: What is a {thing}?\nA: It is the {thing} that stands in document {thing}.\n"
        (quickstart / "my_documents" / f"{thing}.md").write_text(text)
    own = ("python -m data_prep.read_documents my_documents", "python -m data_prep.ask_documents")
    read, ask = [command for command in commands(ENGLISH) if command.startswith(own)]
    done = run(f"{read}\n{ask}", quickstart)
    assert done.returncode == 0, done.stderr
    rows = json.loads((quickstart / "runs/domain/conversations.json").read_text())
    assert {row["conversations"][1]["value"] for row in rows} < {
        f"It is the {thing} that stands in document {thing}." for thing in ("queue", "stack", "heap")
    }  # one document is held out


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_every_command_names_what_exists(document):
    """Targets, modules, recipes, configs, files, extras and options are there; what they do is tested elsewhere."""
    found = commands(document)
    assert found, document
    # What a command above makes.
    made = [
        f"{folder}/run.sh" for each in found for folder in values(each.split(), "--output_dir") if ".start " in each
    ]
    copies = {words[3]: words[2] for words in map(shlex.split, found) if words[:2] == ["cp", "-r"]}
    for command in found:
        program, *words = shlex.split(command)
        try:
            if program == "make":
                check_make(words)
            elif program == "python":
                check_python(words)
            elif program == "accelerate":
                check_launch(words, copies)
            elif program == "pip":
                check_pip(words)
            elif program == "bash" and words[0] in made:
                pass
            elif program in ("cp", "bash"):
                assert (ROOT / words[-2 if program == "cp" else 0]).exists()
            elif program == ".":
                assert words == [".venv/bin/activate"] and "VENV ?= .venv\n" in (ROOT / "Makefile").read_text()
            else:
                assert program == "ruff" and words[0] in ("check", "format")
        except AssertionError as error:
            raise AssertionError(f"{short(document)}: {command}") from error


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=short)
def test_every_setting_named_in_a_readme_is_one_of_a_recipe(document):
    """`key: value` anywhere, and every word of the remedies that is written as code."""
    known = set.union(*map(options_of_recipe, STAGES))
    for module in (
        "data_prep.start",
        "data_prep.ask_documents",
        "eval.adaptation",
        "eval.chat_page",
        "recipes.push_to_hub",
    ):
        known |= options_of_module(module)
    named = {code.split(":")[0] for code in inline(document) if re.fullmatch(r"\w+: \S+", code)}
    rows = re.findall(r"^\|[^|]*\|[^|]*\|([^|]*)\|$", document.read_text(encoding="utf-8"), flags=re.M)
    named |= {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    named |= {code[2:] for code in inline(document) if re.fullmatch(r"--\w+", code)}
    assert len(named) >= 20 and named <= known, named - known


def test_every_alarm_named_in_a_readme_is_one():
    from recipes.trainers.ppo import alarms

    for document in (ENGLISH, CHINESE):
        named = {code for code in inline(document) if re.search(r"_loss$|optimization$|_drift$|^repetition$", code)}
        assert len(named) == 4 and named <= set(alarms.NAMES)


def test_both_readmes_have_the_same_code_figures_and_links():
    for language in ("bash", "json", "python"):
        assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []
    assert sorted(inline(ENGLISH)) == sorted(inline(CHINESE))
    texts = [document.read_text(encoding="utf-8") for document in (ENGLISH, CHINESE)]
    assert figures(texts[0]) == figures(texts[1])
    links = [sorted(re.findall(r"]\(([^#].*?)\)", text)) for text in texts]
    assert len(places(texts[0])) == len(places(texts[1])) > 0
    assert [link.replace(".zh-CN", "") for link in links[1]] == [link.replace(".zh-CN", "") for link in links[0]]
    for pattern in (r"^#+ ", r"^\|", r"^- "):
        assert len(re.findall(pattern, texts[0], flags=re.M)) == len(re.findall(pattern, texts[1], flags=re.M))


def places(text: str) -> list[str]:
    """The headings of its own that a document links to, as GitHub names them."""
    return re.findall(r"]\(#(.*?)\)", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_every_link_leads_to_a_file_or_a_heading(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"]\((?!https?:|#)(.*?)\)", text):
        path, _, place = link.partition("#")
        assert (document.parent / path).is_file(), link
        assert not place or place in anchors((document.parent / path).read_text(encoding="utf-8")), link
    assert set(places(text)) <= anchors(text)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=short)
def test_speeds_in_the_readmes_are_the_medians_that_were_measured(document):
    measured = json.loads(RESULTS.with_name("speed.json").read_text())
    runs = {name: values for command in measured.values() for name, values in command["runs"].items()}
    found = re.findall(r"([\d.]+)<!-- speed: (.+?) -->", document.read_text(encoding="utf-8"))
    assert len(found) == 4
    assert [figure for figure, _ in found] == [f"{statistics.median(runs[name]):.1f}" for _, name in found]
    assert round(statistics.median(runs["PPO, peak memory over TRL's trainer"]), 1) == 0.5  # "half"


def figures(text: str) -> list[tuple[str, str, str]]:
    """[(figure, results, metric)]: what stands as 77.5%<!-- answers_sft_heldout.exact_match --> in a document.

    A metric in another has its name behind a dot: 79.7%<!-- answers_ppo_heldout.eval_funcs.asked_fact -->, or
    0.62<!-- win_rate_ppo_vs_sft.win_rate.low -->.
    """
    return re.findall(r"([-+]?[\d.]+%?)<!-- (\w+)\.([\w.]+) -->", text)


def as_written(figure: str, metrics: dict, metric: str) -> str:
    """What `figure` has to be: the metric in percent if it is, with a sign if it has one, otherwise in two digits.

    The difference of two shares is in percentage points: 2.7<!-- win_rate_x.eval_funcs.asked_fact.difference -->.
    """
    *_, function, last = ["", *(part for part in metric.split(".") if part not in ("value", "low", "high"))]
    for part in metric.split("."):
        metrics = metrics[part]
    value = metrics["value"] if isinstance(metrics, dict) else metrics
    sign = "+" if figure[0] in "+-" else ""
    if figure.endswith("%"):
        return format(value, f"{sign}.1%")
    return (
        format(100 * value, f"{sign}.1f")
        if last == "difference" and function in SHARES
        else format(value, f"{sign}.2f")
    )


def test_figures_name_metrics_in_metrics():
    def interval(value, low, high):
        return {"value": value, "low": low, "high": high, "n": 9}

    text = (
        "81.0%<!-- x.win_rate -->, +1.95<!-- x.eval_funcs.rubric.model -->, 2.7<!-- x.eval_funcs.asked_fact.difference -->"
        " (-0.3<!-- x.eval_funcs.asked_fact.difference.low -->), 0.50<!-- x.eval_funcs.rubric.difference.high -->, "
        "79.7%<!-- x.eval_funcs.asked_fact.model -->"
    )
    functions = {
        "rubric": {"model": interval(1.951, 1, 2), "difference": interval(0.4, 0.3, 0.5)},
        "asked_fact": {"model": interval(0.797, 0, 1), "difference": interval(0.0271, -0.0034, 0.06)},
    }
    metrics = {"win_rate": interval(0.81, 0.7, 0.9), "eval_funcs": functions}
    found = figures(text)
    assert len(found) == 6 and all(figure == as_written(figure, metrics, metric) for figure, _, metric in found)
    assert as_written("81.1%", metrics, "win_rate.low") == "70.0%"


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=short)
def test_every_figure_is_that_of_the_published_run(document):
    text = document.read_text(encoding="utf-8")
    found = figures(text)
    # A rate with a decimal is a measurement, and says where it comes from.
    rates = [figure for figure, _, _ in found if figure.endswith("%")]
    assert len(rates) == len(re.findall(r"\d\.\d+ ?%", text)) > 0
    stages = json.loads(RESULTS.read_text(encoding="utf-8"))["stages"]
    for figure, results, metric in found:
        assert figure == as_written(figure, stages[results]["metrics"], metric), (results, metric)


@pytest.mark.parametrize("document", FOLDERS, ids=short)
def test_a_folder_readme_names_all_that_stands_in_the_folder(document):
    text = document.read_text(encoding="utf-8")
    names = {path.name for path in document.parent.iterdir() if path.suffix in (".py", ".sh", ".jinja")}
    folders = {path.name for path in document.parent.iterdir() if path.is_dir() and any(path.glob("[!_]*[!c]"))}
    for name in names - {"__init__.py"}:
        assert f"`{name}`" in text, name
    for name in folders:
        assert f"`{name}/`" in text, name
    # What a table calls a file of the folder is one.
    for name in re.findall(r"`([\w/]+\.(?:py|sh|jinja))`", text):
        assert any(document.parent.rglob(name)), name
    assert len(text.partition("\n## ")[0].splitlines()) <= 45


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=short)
def test_sentences_fit_a_screen(document):
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    assert [line for line in prose.splitlines() if len(line) > 119 and not line.startswith("|")] == []


@pytest.mark.parametrize("script", [path for each in FOLDERS for path in each.parent.glob("[!_]*.py")], ids=short)
def test_help_begins_with_the_text_as_it_stands(script):
    """Commands to copy, with their ends of lines: where a docstring is not raw, a backslash takes them away."""
    text = script.read_text(encoding="utf-8")
    written = text.partition('"""')[2].partition('"""')[0]
    assert ast.get_docstring(ast.parse(text), clean=False) == written
    assert [line for line in written.splitlines() if len(line) > 126 and not line.startswith(" ")] == []


@pytest.mark.parametrize("tutorial", ["quickstart", "adapt"])
def test_a_tutorial_is_what_the_makefile_runs_and_what_its_commands_name_exists(tutorial):
    """Files, modules, options; a config is the one that its own first line names."""
    script = (ROOT / "recipes" / f"{tutorial}.sh").read_text(encoding="utf-8")
    assert f"bash recipes/{tutorial}.sh" in (ROOT / "Makefile").read_text()
    script = script.replace("$CONFIGS/", f"recipes/configs/{tutorial}/").replace("\\\n", " ")
    for name in re.findall(r"(?:recipes|accelerate_configs)/[\w/.-]+\.(?:py|yaml|sh)", script):
        assert (ROOT / name).is_file(), name
    lines = [line.strip() for line in script.splitlines() if not line.startswith("#")]
    run = [line for line in lines if re.match(r"(python|\$LAUNCH) ", line) or line.startswith("step ")]
    assert len(run) >= 8
    for line in run:
        words = shlex.split(line.partition("$LAUNCH ")[2] or line.partition("python ")[2], comments=True)
        if words[0] == "-m" or words[0] == "recipes/push_to_hub.py":
            check_python(words)
        else:
            check_launch(["launch", *words], {})
