"""eval.adaptation through its command: gain and forgetting of planted models, with figures worked out by hand."""

import json
import math
import shlex
import sys
from pathlib import Path

import pytest
from helpers.models import counting_model, save

from data_prep.common.files import write_json, write_jsonl
from eval import adaptation, report
from eval.before_after.publishing import BEGIN, END, SWEEP_BEGIN, SWEEP_END, sweep_table, table
from eval.before_after.seen import Prompts, Runs
from eval.before_after.verdict import measures_of, verdict

CERTAIN = math.exp(
    -6.18
)  # what a talker or counter thinks of a token that it expects elsewhere, beside 1 for any other


def figures(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["adaptation"]


@pytest.fixture
def documents(tmp_path):
    """documents(20, domain="aaaxxxxx", general="aaaa") writes so many of each, and returns the words of --documents."""

    def write(count: int, **texts: str) -> list[str]:
        words = []
        for source, text in texts.items():
            write_jsonl(tmp_path / f"{source}.jsonl", [{"text": text}] * count)
            words.append(f"{source}={tmp_path / source}.jsonl")
        return words

    return write


@pytest.fixture
def questions(write_conversations):
    """questions(domain="yes", general="no"): 20 questions of each source with this answer; the words of --conversations."""

    def write(**answers: str) -> list[str]:
        return [
            f"{source}={write_conversations([(f'{source}{n}', f'{source} {n}?', answer) for n in range(20)], f'{source}.json')}"
            for source, answer in answers.items()
        ]

    return write


@pytest.fixture(scope="module")
def counter(tiny_tokenizer, tmp_path_factory) -> Path:
    """A base model that is sure of x from the fourth place on."""
    return save(counting_model(tiny_tokenizer, 63), tiny_tokenizer, tmp_path_factory.mktemp("models") / "counter")


def test_a_model_against_itself(command, talker, documents, questions, tmp_path):
    yes, out_dir = talker("yes"), tmp_path / "out"
    (tmp_path / "copy").symlink_to(yes)  # measured twice
    write_json(out_dir / "results.json", {"stages": {"sft": {}}})
    code, out, err = command(
        adaptation, "--before", yes, "--after", tmp_path / "copy", "--documents", *documents(20, domain="ab ab", general="cd"),
        "--conversations", *questions(domain="yes", general="no"), "--max_new_tokens", 8, "--output_dir", out_dir,
    )  # fmt: skip
    assert code == 0, err
    found = figures(out_dir)
    for source, right in (("domain", 1.0), ("general", 0.0)):
        assert found["exact_match"][source] == {"before": right, "after": right}
        assert found["bits_per_byte"][source]["before"] == found["bits_per_byte"][source]["after"] > 8
        nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 20}
        assert found["documents"][source]["models"]["after"]["relative"] == nothing
        assert found["questions"][source]["models"]["after"]["difference"] == nothing
        assert found["questions"][source]["models"]["after"]["win_rate"]["value"] == 0.5
    assert found["verdict"]["word"] == "no difference shown"
    assert "no difference shown on domain: 0.0% bits per byte [0.0, 0.0]" in found["verdict"]["reasons"]
    assert json.loads((out_dir / "results.json").read_text())["stages"] == {"sft": {}}  # what others wrote is kept
    assert "whether training has seen these" in out and found["seen"] is None


def test_a_model_that_learned_and_forgot(command, talker, documents, questions, tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published/RESULTS.md").write_text("# Mine\n")
    code, out, err = command(
        adaptation, "--before", talker("no"), "--after", talker("yes"), "--stages", f"between={talker('no')}",
        "--documents", *documents(20, domain="ab", general="cd"), "--conversations",
        *questions(domain="yes", general="no"), "--eval_funcs", "data_prep.rewards.exact_match", "--max_new_tokens", 8,
        "--output_dir", tmp_path, "--publish", tmp_path / "published",
    )  # fmt: skip
    assert code == 0, err
    found = figures(tmp_path)
    assert found["exact_match"] == {"domain": {"before": 0.0, "after": 1.0}, "general": {"before": 1.0, "after": 0.0}}
    # Of 262 tokens it expects 3 (n, o, the end) or 4 (y, e, s, the end) elsewhere.
    for source in ("domain", "general"):
        rates = found["bits_per_byte"][source]
        assert rates["before"] == pytest.approx(math.log2(259 + 3 * CERTAIN), rel=1e-6)
        assert rates["after"] == pytest.approx(math.log2(258 + 4 * CERTAIN), rel=1e-6)
    asked = {name: found["questions"]["general"]["models"][name] for name in ("between", "after")}
    assert (asked["between"]["win_rate"]["value"], asked["after"]["win_rate"]["value"]) == (0.5, 0.0)
    assert asked["after"]["eval_funcs"]["exact_match"]["difference"]["value"] == -1.0
    assert found["verdict"]["word"] == "raise replay"
    loss = "worse on general by 100.0 points exact match [100.0, 100.0], beyond the budget of 5 points"
    assert loss in found["verdict"]["line"] and out.splitlines()[-1].endswith(found["verdict"]["line"])
    published = (tmp_path / "published/RESULTS.md").read_text()
    assert published.startswith("# Mine\n") and found["verdict"]["line"] in published
    assert "| exact match, domain | 0.0% | 100.0% | +100.0 points [+100.0, +100.0] | 20 questions |" in published
    assert "| exact match, general | 100.0% | 0.0% | -100.0 points [-100.0, -100.0] | 20 questions |" in published
    again = json.loads((tmp_path / "published/results.json").read_text())["adaptation"]
    assert again["measures"] == found["measures"] and "documents" not in again
    page = (tmp_path / "adaptation.html").read_text()
    assert page.count('<div class="question">') == 8 and "answered right before and wrong after" in page
    assert "src=" in page and 'src="http' not in page and page.count("data:image/png;base64,") == 1


def test_bits_per_byte_of_planted_models(command, zero_model_dir, counter, documents, tmp_path):
    code, out, err = command(
        adaptation, "--before", zero_model_dir, "--after", counter,
        "--documents", *documents(20, domain="aaaxxxxx", general="aaaaaaaa", other="aa"), "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    found = figures(tmp_path)
    # Three letters as good as any of 260 (not x, and hardly the end), then five for nothing.
    sure = 3 * math.log2(260 + CERTAIN) / 8
    assert found["bits_per_byte"]["domain"] == pytest.approx({"before": math.log2(262), "after": sure}, rel=1e-5)
    assert found["documents"]["domain"]["models"]["after"]["relative"]["value"] == pytest.approx(
        sure / math.log2(262) - 1, rel=1e-5
    )
    assert found["bits_per_byte"]["general"]["after"] > 100
    assert found["exact_match"] == {}
    assert (found["verdict"]["word"], found["documents"]["general"]["bytes"]) == ("raise replay", 160)
    assert "better on domain by 62.6% bits per byte [62.6, 62.6]" in found["verdict"]["line"]


def test_documents_are_read_by_base_models_and_questions_asked_of_assistants(
    command, zero_model_dir, counter, talker, documents, questions, tmp_path
):
    code, out, err = command(
        adaptation, "--before", talker("no"), "--before_base", zero_model_dir, "--after", talker("yes"),
        "--after_base", counter, "--stages", f"halfway={zero_model_dir}", "--documents",
        *documents(20, domain="aaaxxxxx", general="aaaxxxx"), "--conversations", *questions(domain="yes"),
        "--max_new_tokens", 8, "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    found = figures(tmp_path)
    sure = 3 * math.log2(260 + CERTAIN)
    for source, length in (("domain", 8), ("general", 7)):
        rates = found["bits_per_byte"][source]
        assert rates == pytest.approx({"before": math.log2(262), "after": sure / length}, rel=1e-5)
        read = found["documents"][source]["models"]
        assert [*read] == ["before", "halfway", "after", "assistant"]
        assert read["halfway"]["difference"]["value"] == 0.0
        assert read["assistant"]["bits_per_byte"]["value"] == pytest.approx(math.log2(258 + 4 * CERTAIN), rel=1e-5)
    # A base model between the two is not asked.
    assert [*found["questions"]["domain"]["models"]] == ["before", "after"]
    assert found["exact_match"] == {"domain": {"before": 0.0, "after": 1.0}}
    assert found["verdict"]["word"] == "use it"


def test_a_base_model_without_a_chat_template(command, zero_model_dir, talker, documents, questions, tmp_path):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(zero_model_dir)
    tokenizer.chat_template = None
    base = save(GPT2LMHeadModel.from_pretrained(zero_model_dir), tokenizer, tmp_path / "<b>base")
    code, out, err = command(
        adaptation, "--before", base, "--after", talker("yes"),
        "--documents", *documents(3, domain="<script>alert(1)</script>", general="ab"),
        "--conversations", *questions(domain="yes"), "--max_new_tokens", 8, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    found = figures(tmp_path / "out")
    assert found["bits_per_byte"]["general"]["before"] == pytest.approx(math.log2(262), rel=1e-6)
    assert found["exact_match"] == {"domain": {"before": 0.0, "after": 1.0}}
    assert found["without_template"] == ["before"]
    # Three documents are too few to say what was forgotten.
    assert found["verdict"]["word"] == "forgetting not shown"
    assert "general, bits per byte: 3 documents cannot show a difference; expected at least 20" in out
    page = (tmp_path / "out" / "adaptation.html").read_text()
    assert "has no chat template: it cannot be asked" in page and "&lt;script&gt;alert(1)" in page
    assert "<script" not in page and "<b>" not in page


def test_what_training_has_seen_is_refused(command, zero_model_dir, documents, questions, tmp_path):
    trained = [{"messages": [{"role": "user", "content": "Domain  7?"}, {"role": "assistant", "content": "no"}]}]
    write_jsonl(tmp_path / "trained.jsonl", trained)
    given = [
        "--before",
        zero_model_dir,
        "--after",
        zero_model_dir,
        "--documents",
        *documents(20, domain="a", general="b"),
    ]
    given += ["--conversations", *questions(domain="yes"), "--trained_on", tmp_path / "trained.jsonl"]
    given += ["--max_new_tokens", 2, "--output_dir", tmp_path / "out"]
    code, out, err = command(adaptation, *given)
    assert code == 1 and "domain: 1 of 20 held-out questions were seen in training; expected at most 1.0%" in err
    assert not (tmp_path / "out").exists()
    code, out, err = command(adaptation, *given, "--max_seen", 0.05)
    assert code == 0, err
    assert figures(tmp_path / "out")["seen"]["questions"] == {"domain": {"n": 20, "seen": 1, "touched": 1}}
    assert figures(tmp_path / "out")["seen"]["documents"]["domain"] == {"n": 20, "seen": 0, "touched": 0}


def test_the_share_of_a_document_that_training_has():
    words = [f"w{number}" for number in range(20)]
    chinese = "今天天气很好我们一起去公园散步看花吧然后在湖边的小店里喝茶聊天直到太阳下山才回家"
    runs = Runs([" ".join(words), "too short", chinese])
    runs.look_into("Before. " + ", ".join(words[:13]).upper())
    assert runs.shares() == [13 / 20, 0.0, 0.0]
    runs.look_into(" ".join(words[3:17]) + " and more")  # 17 of 20 words now, in runs that overlap
    runs.look_into("Too \n short")
    runs.look_into("前面" + chinese + "后面")
    assert runs.shares() == [17 / 20, 1.0, 1.0]


def test_a_prompt_is_seen_if_all_its_user_turns_are_in_one_row():
    turns = [{"role": "user", "content": text} for text in ("What?", "Go on")]
    prompts = Prompts([{"prompt": turns}, {"prompt": turns[:1]}])
    prompts.look_into(["go on", "human"])
    assert prompts.shares() == [0.0, 0.0]
    prompts.look_into(["What?", "human"])
    assert prompts.shares() == [0.0, 1.0]
    prompts.look_into(["id", "go  on", "WHAT?"])
    assert prompts.shares() == [1.0, 1.0]


def loss(low: float, high: float, n: int = 100) -> dict:
    return {"value": (low + high) / 2, "low": low, "high": high, "n": n}


@pytest.mark.parametrize(
    ("domain", "general", "word", "says"),
    [
        ((-0.4, -0.3), (-0.01, 0.01), "use it", "better on domain by 35.0% bits per byte [30.0, 40.0]"),
        ((-0.4, -0.3), (0.01, 0.02), "use it", "worse on general by 1.5% bits per byte [1.0, 2.0], within the budget of 3%"),
        ((-0.4, -0.3), (0.02, 0.06), "raise replay", "beyond the budget of 3% (its interval reaches to both sides)"),
        ((-0.1, 0.1), (0.01, 0.02), "do not use it", "worse on general"),
        ((0.1, 0.2), (-0.1, 0.1), "do not use it", "worse on domain by 15.0% bits per byte [10.0, 20.0]. "),
        ((-0.1, 0.1), (-0.2, -0.1), "no gain on the domain shown", "better on general by 15.0%"),
        ((-0.1, 0.1), (-0.1, 0.2), "no difference shown", "a loss beyond the budget of 3% is not excluded"),
    ],
)  # fmt: skip
def test_the_verdict(domain, general, word, says):
    sources = {
        name: {"documents": 100, "models": {"after": {"relative": loss(*ends)}}}
        for name, ends in (("domain", domain), ("general", general))
    }
    found = verdict(measures_of(sources, {}, "after"), 0.03, 0.05)
    assert found["word"] == word and says in found["line"]


def test_the_report_of_a_run_keeps_what_the_adaptation_brought(command, tmp_path):
    write_json(tmp_path / "results.json", {"adaptation": {"verdict": {"word": "use it"}}, "stages": {"old": {}}})
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    assert figures(tmp_path) == {"verdict": {"word": "use it"}}
    assert json.loads((tmp_path / "results.json").read_text())["stages"] == {}


def test_the_verdict_on_too_little():
    documents = {
        name: {"documents": 19, "models": {"after": {"relative": loss(-0.4, -0.3)}}} for name in ("domain", "general")
    }
    found = verdict(measures_of(documents, {}, "after"), 0.03, 0.05)
    assert found["word"] == "no difference shown"
    assert "domain, bits per byte: 19 documents cannot show a difference; expected at least 20" in found["line"]
    assert found["line"].endswith(" Verdict: not known; give more held-out documents or questions of the domain")


@pytest.mark.parametrize(("asked", "advice"), [(19, "not known"), (20, "no difference shown by what was measured")])
def test_the_verdict_on_too_little_of_the_domain_beside_enough_of_the_rest(asked, advice):
    """Three documents with lower bits, 19 questions answered better, or 20 no better: nobody is told to train longer."""
    documents = {
        "domain": {"documents": 3, "models": {"after": {"relative": loss(-0.4, -0.3)}}},
        "general": {"documents": 100, "models": {"after": {"relative": loss(-0.2, -0.1)}}},
    }
    questions = {"domain": {"prompts": asked, "models": {"after": {"difference": loss(-0.1, 0.2)}}}}
    found = verdict(measures_of(documents, questions, "after"), 0.03, 0.05)
    assert found["word"] == "no gain on the domain shown"
    assert found["line"].startswith(
        "domain, bits per byte: 3 documents cannot show a difference; expected at least 20; "
    )
    assert found["line"].endswith(f" Verdict: {advice}; give more held-out documents or questions of the domain")


def test_the_verdict_on_a_domain_that_is_better_and_worse():
    documents = {"domain": {"documents": 100, "models": {"after": {"relative": loss(-0.4, -0.3)}}}}
    answers = {"domain": {"prompts": 100, "models": {"after": {"difference": loss(-0.2, -0.1)}}}}
    found = verdict(measures_of(documents, answers, "after"), 0.03, 0.05)
    assert found["word"] == "mixed"
    assert "; worse on domain by 15.0 points exact match [10.0, 20.0]. Verdict: look closer" in found["line"]


ROAD = """
import json, os, pathlib
share = os.environ["REPLAY"]
run = pathlib.Path(os.environ["RUN"])
with (run.parent / "log").open("a") as log:
    log.write(share + " ")
if share == "9":
    raise SystemExit(3)
gain, forgetting, missed = {"0": (0.35, 0.08, 0), "0.1": (0.33, 0.01, 0), "0.2": (0.34, 0.02, 0.2), "0.3": (0.25, 0.0, 0)}[share]
def interval(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 20}
def measured(source, measure, value):
    loss = interval(value)
    change = "worse" if loss["low"] > 0 else "better" if loss["high"] < 0 else "no difference shown"
    return {"source": source, "measure": measure, "n": 20, "loss": loss, "change": change}
models = lambda value: {"models": {"after": {"relative": interval(value)}}}
run.mkdir()
found = {"documents": {"domain": models(-gain), "general": models(forgetting)}, "verdict": {"word": "the run's own"},
         "exact_match": {"domain": {"before": 0, "after": 0.8}}, "measures": [measured("domain", "bits per byte", -gain),
         measured("general", "bits per byte", forgetting), measured("general", "exact match", missed)]}
(run / "results.json").write_text(json.dumps({"adaptation": found}))
"""


def test_a_sweep_runs_the_road_for_each_value(command, tmp_path):
    (tmp_path / "road.py").write_text(ROAD)
    road = shlex.join([sys.executable, str(tmp_path / "road.py")])
    given = ["--sweep", "replay=0,0.1,0.3", "--command", road, "--output_dir", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    code, out, err = command(adaptation, *given)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [(row["value"], row["gain"]["value"], row["forgetting"]["value"]) for row in found["rows"]] == [
        ("0", 0.35, 0.08), ("0.1", 0.33, 0.01), ("0.3", 0.25, 0.0),
    ]  # fmt: skip
    assert found["best"]["value"] == "0.1"
    line = "replay=0.1: the domain's bits per byte fall by 33.0%, the general ones change by +1.0%, the largest gain within"
    assert out.splitlines()[-1] == line + " the budget of 3%"
    assert line in (tmp_path / "out" / "sweep.html").read_text().replace("&#39;", "'")
    (tmp_path / "published").mkdir()
    (tmp_path / "published/RESULTS.md").write_text("# Mine\n")
    code, out, err = command(adaptation, *given, "--publish", tmp_path / "published")
    assert code == 0 and out.endswith(f"sweep.json and RESULTS.md are written into {tmp_path / 'published'}\n")
    assert (tmp_path / "out" / "log").read_text() == "0 0.1 0.3 " and out.count("skipped") == 3  # not run again
    page = (tmp_path / "published/RESULTS.md").read_text()
    assert page.startswith("# Mine\n") and f"{line} the budget of 3%.\n" in page
    assert "| replay | bits per byte, domain | bits per byte, general | exact match, domain | verdict |\n" in page
    assert "| 0 | -35.0 % [-36.0, -34.0] | +8.0 % [+7.0, +9.0] | 0.0% → 80.0% | raise replay |\n" in page
    published = json.loads((tmp_path / "published/sweep.json").read_text())
    assert published["rows"] == [{key: row[key] for key in row if key != "run"} for row in found["rows"]]
    given[1] = "replay=0,9"
    code, out, err = command(adaptation, *given)
    assert (
        code == 1 and "replay=9: " in err and "ended with exit code 3; mend it and run the same command again" in err
    )


def test_a_sweep_judges_each_run_by_the_budgets_that_are_given(command, tmp_path):
    (tmp_path / "road.py").write_text(ROAD)
    (tmp_path / "out").mkdir()
    road = shlex.join([sys.executable, str(tmp_path / "road.py")])

    def swept(values: str, *budgets) -> tuple[dict, str]:
        given = ("--sweep", f"replay={values}", "--command", road, "--output_dir", tmp_path / "out")
        code, out, err = command(adaptation, *given, *budgets)
        assert code == 0, err
        found = json.loads((tmp_path / "out" / "sweep.json").read_text())
        assert out.splitlines()[-1] == found["best"]["line"]
        return {row["value"]: row["verdict"]["word"] for row in found["rows"]}, found["best"]["line"]

    fall = "the domain's bits per byte fall by"
    assert swept("0,0.3", "--forgetting_budget", 0.4) == (
        {"0": "use it", "0.3": "use it"},
        f"replay=0: {fall} 35.0%, the general ones change by +8.0%, the largest gain within the budget of 40%",
    )
    assert swept("0,0.1", "--forgetting_budget", 0.005) == (
        {"0": "raise replay", "0.1": "use it"},
        "no replay of 0, 0.1 keeps to the budget of 0.5%; the least forgetting is +1.0%, at replay=0.1: try a higher one",
    )
    lost = "worse on general by 20.0 points exact match [19.0, 21.0], beyond the budget of 5 points"
    assert swept("0.2,0.3") == (
        {"0.2": "raise replay", "0.3": "use it"},
        f"replay=0.3: {fall} 25.0%, the general ones change by +0.0%, the largest gain within the budget of 3%; "
        f"replay=0.2 gains more, but is {lost}",
    )
    assert swept("0,0.2") == (
        {"0": "raise replay", "0.2": "raise replay"},
        f"no replay of 0, 0.2 keeps to every budget; the least forgetting is +2.0%, at replay=0.2, which is {lost}: "
        "try a higher one",
    )
    assert swept("0.2,0.3", "--exact_match_budget", 0.25) == (
        {"0.2": "use it", "0.3": "use it"},
        f"replay=0.2: {fall} 34.0%, the general ones change by +2.0%, the largest gain within the budget of 3%",
    )


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A module of lm-eval's name, which lists arc_easy alone: with it or without, there is no network here."""
    (tmp_path / "stub" / "lm_eval").mkdir(parents=True)
    (tmp_path / "stub" / "lm_eval" / "__init__.py").touch()
    (tmp_path / "stub" / "lm_eval" / "tasks.py").write_text(
        "import fnmatch\n"
        "class TaskManager:\n"
        "    def match_tasks(self, names):\n"
        "        return [task for name in names for task in fnmatch.filter(['arc_easy'], name)]\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("turns", "given", "says"),
    [
        (1, ["arc_eazy"], "--tasks arc_eazy: found no such task; expected ours, or one that lm_eval ls tasks lists"),
        (1, ["arc_*,facts_*", "ours", "facts_other"],
         "--tasks facts_other: found no such task; expected ours, or one that lm_eval ls tasks lists"),
        (1, ["ours", "--group_by", "("],
         "--group_by '(': not a regular expression (missing ), unterminated subpattern at position 0)"),
        (1, ["ours", "--group_by", ".+"],
         "--conversations domain: no question with choices (left out: 20 whose kind has no other answer)"),
        (2, ["ours"],
         "--conversations domain: no question with choices (left out: 20 of several turns, or without a reference)"),
        (1, ["arc_easy", "ours"], "none: "),  # all is well but the model
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_run_are_said_before_a_model_is_read(
    command, harness, documents, tmp_path, monkeypatch, turns, given, says
):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": f"d{n}",
            "conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}"}] * turns,
        }
        for n in range(20)
    ]
    write_json(tmp_path / "questions.json", rows)
    code, out, err = command(
        adaptation, "--before", "./none", "--after", "./none", "--documents",
        *documents(20, domain="ab", general="cd"), "--conversations", "domain=questions.json", "--output_dir", "out",
        "--tasks", *given,
    )  # fmt: skip
    assert code == 1 and err.count("\n") == 1
    assert err == f"error: {says}\n" or (says == "none: " and err.startswith("error: ./none: "))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "expected --before, --after and --documents, or --sweep with --command"),
        (["domain=a", "general=b", "--after_base", "m"], "--before_base and --after_base: expected both or neither"),
        (["--sweep", "replay=0,0.1"], "--sweep and --command: expected both or neither"),
        (["--sweep", "replay=0.1", "--command", "x"], "--sweep replay=0.1: expected name=value,value,…"),
        (["--sweep", "replay=1,1", "--command", "x"], "with different values"),
        (["--sweep", "a=1,2", "--command", "x", "--before", "m"], "--sweep: found --before too"),
        (
            [
                "--sweep",
                "a=1,2",
                "--command",
                "x",
                "--limit",
                "5",
                "--tasks",
                "x",
                "--judge",
                "y",
                "--stages",
                "a=b",
                "--conversations",
                "domain=a",
                "--max_seen",
                "0.5",
                "--on_bad",
                "repair",
            ],
            "--sweep: found --stages, --conversations, --max_seen, --judge, --tasks, --on_bad, --limit too; the command that "
            "it runs names models, files and settings itself",
        ),
        (["domain=a", "general=b", "--group_by", "x"], "--group_by: found no --tasks; it is for the task ours alone"),
        (["--sweep", "a=1,2", "--command", "/no/such/road"], "--command /no/such/road: cannot be started"),
        (["domain=a"], "--documents: found domain; expected general=FILE too"),
        (["a.jsonl"], "--documents a.jsonl: found no name; expected name=value, such as domain=a.jsonl"),
        (["domain=a", "domain=b"], "--documents: found domain= twice"),
        (["domain=", "general=a"], "--documents domain=: found nothing after it"),
        (["domain=no.jsonl", "general=b"], "no.jsonl: no such file or folder"),
        (["domain=a", "general=b", "--stages", "after=x"], "--stages: found the name after"),
        (
            ["domain=a", "general=b", "--conversations", "general=x"],
            "--conversations: found general; expected domain=FILE too",
        ),
        (["domain=a", "general=b", "--max_seen", "-1"], "--max_seen -1.0: expected at least 0"),
    ],
)
def test_what_cannot_be_used_is_said_before_any_work(command, tmp_path, given, says):
    if given and "=" in given[0] or given == ["a.jsonl"]:
        given = ["--before", "m", "--after", "m", "--documents", *given]
    code, out, err = command(adaptation, *given, "--output_dir", tmp_path / "out")
    assert code == 1 and err.startswith("error: ") and says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_tables_in_the_repository_are_those_of_its_results():
    folder = Path(__file__).parents[1] / "recipes" / "configs" / "adapt"
    text = (folder / "RESULTS.md").read_text()
    assert text.split(BEGIN)[1].split(END)[0] == f"\n{table(figures(folder))}"
    sweep = json.loads((folder / "sweep.json").read_text())
    assert text.split(SWEEP_BEGIN)[1].split(SWEEP_END)[0] == f"\n{sweep_table(sweep)}"
