"""recipes/push_to_hub.py against a stand-in of the Hub, by the real client: what goes, the cards, and what can go wrong."""

import csv
import io
import json
import shutil
from pathlib import Path

import huggingface_hub
import pyarrow.parquet
import pytest
import torch
from helpers.hub import local_hub
from huggingface_hub import DatasetCard, ModelCard, constants
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import GRPOConfig

from data_prep import check, clean_corpus
from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from recipes import pretrain, push_to_hub
from recipes.trainers.push.dataset_files import data_in
from recipes.trainers.push.lineage import lineage
from recipes.trainers.push.model_card import model_card
from recipes.trainers.push.names import short_names
from recipes.trainers.push.record import record_of

TOKEN = "hf_secret_of_the_user"
DATA = "/home/somebody/secret_project/talk.json"


@pytest.fixture
def hub(monkeypatch):
    """The stand-in as this process's Hub, with the user logged in."""
    with local_hub() as server:
        for name, value in {"ENDPOINT": server.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()  # one made before would stay offline
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def run(tiny_model_dir, tmp_path) -> Path:
    """A run as its recipes and evaluations leave it: base/ and sft/ with all that lies beside a model, and results/."""
    folder = tmp_path / "run"
    versions = {"python": "3.11.7", "torch": "2.9.0"}
    shutil.copytree(tiny_model_dir, folder / "base")
    record = {"settings": {"tokens": "/home/somebody/tokens"}, "given": {"learning_rate": 0.004}, "versions": versions}
    write_json(folder / "base" / "settings.json", {"recipe": "pretrain.py", **record})
    sft = shutil.copytree(tiny_model_dir, folder / "sft")
    settings = {"model_name_or_path": str(folder / "base"), "conversations": [DATA], "heldout": ["data/heldout.json"]}
    record = {"settings": settings, "given": {**settings, "learning_rate": 0.01}, "local": [str(folder / "base")]}
    write_json(sft / "settings.json", {"recipe": "sft.py", **record, "versions": versions})
    (sft / "checkpoint-3").mkdir()
    for name in (
        "checkpoint-3/model.safetensors",
        "quarantine.jsonl",
        "training.log",
        "completions.jsonl",
        "optimizer.pt",
    ):
        (sft / name).write_text(f"{DATA} {TOKEN}")
    results = folder / "results"
    write_json(results / "pretrain.json", {"stage": "pretrain", "tokens": 1_000, "metrics": {"bits_per_byte": 1.5}})
    metrics = {"loss_first": 5.0, "eval_loss": 0.25, "eos_rate": 0.875}
    write_json(results / "sft.json", {"stage": "sft", "seconds": 61.2, "conversations": 719, "metrics": metrics})
    interval = {"value": 0.75, "low": 0.7, "high": 0.8, "n": 400}
    answers = {"model": str(sft), "data": ["data/heldout.json"], "metrics": {"exact_match": interval, "chrf": 50.0}}
    write_json(results / "answers_sft_heldout.json", {"stage": "answers_sft_heldout", **answers})
    write_json(results / "answers_ppo.json", {"stage": "answers_ppo", **answers, "model": "run/ppo"})
    bits = {"domain": {"before": 2.0, "after": 1.5}, "general": {"before": 1.6, "after": 1.608}}
    adaptation = {"bits_per_byte": bits, "exact_match": {"domain": {"before": 0.0, "after": 0.625}}}
    write_json(folder / "results.json", {"adaptation": adaptation})
    return folder


@pytest.fixture
def push(command):
    """push(model, …) is what the command leaves: (exit code, stdout, stderr)."""

    def call(model, *options, repo_id="me/x", kind="model"):
        code, out, err = command(push_to_hub, f"--{kind}", model, "--repo_id", repo_id, *options)
        assert TOKEN not in out + err and "Traceback" not in err
        return code, out, err

    return call


def one_line(done: tuple, *messages: str) -> None:
    code, _, err = done
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and err.endswith(f"{lines[0]}\n"), err
    assert all(message in lines[0] for message in messages), lines[0]


GOES = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja",
}  # fmt: skip


# What goes


def test_the_figures_of_a_model_are_its_own(tmp_path):
    """Beside it lie those of other seeds, renamed, and of a model that the same recipe left in the folder of results."""
    for name in ("sft", "sft_seed1", "mine"):
        write_json(tmp_path / name / "settings.json", {"recipe": "sft.py", "settings": {}})
    for name, seconds in (("sft", 1), ("sft_seed1", 2), ("sft_seed2", 3)):
        write_json(tmp_path / "results" / f"{name}.json", {"stage": "sft", "seconds": seconds})
    write_json(tmp_path / "mine" / "sft.json", {"stage": "sft", "seconds": 4})
    found = {name: lineage(tmp_path / name)[0].results["seconds"] for name in ("sft", "sft_seed1", "mine")}
    assert found == {"sft": 1, "sft_seed1": 2, "mine": 4}


def test_evaluations_of_two_runs_in_one_folder_are_told_apart_also_where_all_was_moved_or_copied(
    tiny_model_dir, tmp_path, push, monkeypatch
):
    """a/sft, b/sft and their evaluations in results/, as the commands leave them that are run in the folder above."""
    monkeypatch.chdir(tmp_path)
    for run, score in (("a", 0.25), ("b", 0.75)):
        folder = Path("runs", run, "sft")
        shutil.copytree(tiny_model_dir, folder)
        write_json(
            folder / "settings.json", {"recipe": "sft.py", "settings": {"run": run}, "results_dir": "runs/results"}
        )
        told = {"stage": f"answers_{run}", "model": str(folder), "data": ["heldout.json"], "metrics": {"chrf": score}}
        write_json(f"runs/results/answers_{run}.json", told)

    def scores(folder: Path, *options) -> list[str]:
        code, out, err = push(folder, "--dry_run", *options)
        assert code == 0, err
        return [line.split(" | ")[1] for line in out.splitlines() if line.startswith("| chrf | ")]

    assert (scores(Path("runs/a/sft")), scores(Path("runs/b/sft"))) == (["0.25"], ["0.75"])
    shutil.copytree("runs/a", "runs/c")
    assert scores(Path("runs/c/sft")) == ["0.25"], "a copy, whose record names the results of the first"
    shutil.rmtree("runs/c")
    Path("runs").rename("moved")
    assert (scores(Path("moved/a/sft"), "--results_dir", "moved/results")) == ["0.25"]
    assert (scores(Path("moved/b/sft"), "--results_dir", "moved/results")) == ["0.75"]
    # A run with its results in it may get any name.
    Path("moved/results").rename("moved/a/results")
    Path("moved/a").rename("mine")
    (Path("mine/results/answers_b.json")).unlink()
    assert scores(Path("mine/sft")) == ["0.25"]


@pytest.mark.parametrize("results_dir", ["runs/a/results", "runs/a", "runs/measured/a"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_copy_of_a_whole_run_has_its_own_results(results_dir, earlier, tiny_model_dir, tmp_path, push, monkeypatch):
    """runs/a is copied and trained again. Records of earlier versions do not tell where results lie from the model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, "runs/a/sft")
    script = pretrain.ScriptArguments(tokens="tokens", tokenizer="tokenizer", results_dir=results_dir)
    record = record_of((script, TrainingArguments("runs/a/sft", use_cpu=True, bf16=False)), ())
    assert record["results_dir"] == results_dir
    if earlier:
        del record["results_from_model"]
    write_json("runs/a/sft/settings.json", {"recipe": "sft.py", "settings": {}, **record})
    for folder in (Path(results_dir), Path("runs/a/results")):  # here evaluations may have been written
        told = {"stage": "answers_sft", "model": "runs/a/sft", "data": ["heldout.json"]}
        write_json(
            folder / "answers_sft.json", {**told, "metrics": {"chrf": 0.25 if folder == Path(results_dir) else 1}}
        )
    shutil.copytree("runs/a", "runs/c")
    answers = Path(results_dir, "answers_sft.json")
    answers.write_text(answers.read_text().replace("0.25", "0.75"))

    def score(run: str) -> str:
        code, out, err = push(Path("runs", run, "sft"), "--dry_run")
        assert code == 0, err
        (line,) = (line for line in out.splitlines() if line.startswith("| chrf | "))
        return line.split(" | ")[1]

    # What lies outside of the run is not copied with it; an earlier record of runs/a tells no way to that of the copy.
    outside = results_dir == "runs/measured/a" or (earlier and results_dir == "runs/a")
    assert (score("a"), score("c")) == ("0.75", "0.75" if outside else "0.25")


def test_what_was_gained_is_that_of_the_model_that_was_measured(tiny_model_dir, tmp_path, push, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in "ab":
        shutil.copytree(tiny_model_dir, Path("runs", run, "sft"))
        record = {"recipe": "sft.py", "settings": {"run": run}, "results_dir": "runs/results"}
        write_json(Path("runs", run, "sft", "settings.json"), record)
    found = {
        "bits_per_byte": {"domain": {"before": 2.0, "after": 1.5}},
        "models": {"before": "x", "after": "runs/a/sft"},
    }
    write_json("runs/results/results.json", {"adaptation": found})
    has = ["| bits per byte | domain | 2 | 1.5 |" in push(Path("runs", run, "sft"), "--dry_run")[1] for run in "ab"]
    assert has == [True, False]


def test_quarantined_rows_are_no_data_to_push(tmp_path):
    kept = tmp_path / "rows.jsonl"
    for name in ("rows", "quarantine", "rows.jsonl.quarantine", "documents_quarantine"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "a"}])
    assert data_in(tmp_path) == [kept]
    with pytest.raises(InputError, match="none of those quarantined"):
        data_in(tmp_path / "documents_quarantine.jsonl")


def test_a_dry_run_shows_card_and_files_and_sends_nothing(run, push, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, _ = push(run / "sft", "--dry_run")  # offline, without a token
    assert code == 0 and before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lines = dict(line.split(" bytes  ")[::-1] for line in out.splitlines() if " bytes  " in line)
    assert lines.keys() == GOES
    for name in GOES - {"README.md", "tokenizer_config.json"}:
        assert lines[name].strip() == f"{(run / 'sft' / name).stat().st_size:,}"
    assert (
        "not pushed: checkpoint-3, completions.jsonl, optimizer.pt, quarantine.jsonl, settings.json, training.log"
        in out
    )
    assert str(tmp_path) not in out and "secret_project" not in out and "None" not in out
    assert out.endswith("nothing was sent; it would go to me/x, private\n")


def test_what_the_card_says(run, push, hub):
    assert push(run / "sft", "--license", "mit", "--data_license", "talk.json=cc-by-4.0")[0] == 0
    card = ModelCard(hub.files["me/x"]["README.md"].decode())
    assert card.content == (run / "sft" / "README.md").read_text()
    assert card.data.license == "mit" and card.data.base_model is None and card.data.library_name == "transformers"
    found = {(each.metric_name, each.dataset_name): each.metric_value for each in card.data.eval_results}
    assert found == {
        ("loss, sft", "heldout.json"): 0.25,
        ("eos rate, sft", "heldout.json"): 0.875,
        ("exact match, answers_sft_heldout (95 % interval 0.7 to 0.8, n = 400)", "heldout.json"): 0.75,
        ("chrf, answers_sft_heldout", "heldout.json"): 50.0,
        ("bits per byte, adaptation", "domain"): 1.5,
        ("bits per byte, adaptation", "general"): 1.608,
        ("exact match, adaptation", "domain"): 0.625,
    }
    for line in (
        "| pretrain | random weights | tokens | 1,000 tokens | not given | – |",
        "| sft | base | talk.json | 719 conversations | cc-by-4.0 | 61 |",
        "| exact match | 0.75 | 0.7 to 0.8 | 400 | heldout.json | answers_sft_heldout |",
        "| pretrain | bits per byte | 1.5 | – | – | its training data | pretrain |",
        "| bits per byte | domain | 2 | 1.5 | – | -25.0% |",
        "| bits per byte | general | 1.6 | 1.608 | – | +0.5% |",
        "| exact match | domain | 0 | 0.625 | – | +62.5 points |",
        "- It is worse than before on general: bits per byte 1.6 → 1.608.",
        "- 12.5 % of the answers that were measured by sft did not end by themselves.",
        "- Nobody stated the licence of its data: tokens.",
        'generate = pipeline("text-generation", model="me/x")',
        "conversations:\n- talk.json\nheldout:\n- heldout.json\nlearning_rate: 0.01",
        "With python 3.11.7, torch 2.9.0.",
    ):
        assert f"{line}\n" in card.text, card.text
    assert "secret_project" not in card.content and str(run) not in card.content


def test_the_card_says_who_judged_and_what_a_recipe_found_before_and_after(run, push):
    share = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 40}
    told = {"model": str(run / "sft"), "opponent": str(run / "base"), "data": ["heldout.json"], "temperature": 1.0}
    judge = f"a stand-in for a human judge: the function {run}/mine.py:good (the higher value wins, equal ones tie)"
    metrics = {"win_rate": share, "wins": 25, "losses": 15, "length": 9.5, "opponent_length": 8.0, "kl": 1.5}
    sampled = {"stage": "win_rate_sft_vs_base", **told, "judge": judge, "metrics": metrics}
    write_json(run / "results" / "win_rate_sft_vs_base.json", sampled)
    asked = "the language model big at http://me:secret_word@gpu7:8000/v1 (each pair is judged in both orders)"
    greedy = {**sampled, "stage": "win_rate_greedy", "temperature": 0, "judge": asked}
    write_json(run / "results" / "win_rate_greedy.json", greedy)
    packed = {"bits_per_byte": 1.25, "gzip_bits_per_byte": 2.75}
    write_json(
        run / "results" / "perplexity_sft.json",
        {"stage": "perplexity_sft", **told, "opponent": None, "metrics": packed},
    )
    (run / "results.json").unlink()
    found = json.loads((run / "results" / "sft.json").read_text())
    bits = {"domain": {"before": 4.0, "after": 3.0}, "general": {"before": 3.0, "after": 3.5}}
    write_json(run / "results" / "sft.json", {**found, "bits_per_byte": bits})
    code, out, err = push(run / "sft", "--dry_run")
    assert code == 0, err
    figures = out.partition("## Figures")[2].partition("## Limits")[0].strip().splitlines()
    assert figures[2:6] == [
        "| win rate against base, greedy | 0.625 | 0.5 to 0.75 | 40 | heldout.json | win_rate_greedy; judge: the language "
        "model big at a server |",
        "| kl against base, greedy | 1.5 | – | – | heldout.json | win_rate_greedy; judge: the language model big at a server |",
        "| win rate against base, sampled | 0.625 | 0.5 to 0.75 | 40 | heldout.json | win_rate_sft_vs_base; judge: a stand-in "
        "for a human judge: the function mine.py:good |",
        "| kl against base, sampled | 1.5 | – | – | heldout.json | win_rate_sft_vs_base; judge: a stand-in for a human judge: "
        "the function mine.py:good |",
    ]  # fmt: skip
    assert "| bits per byte | 1.25 | – | – | heldout.json | perplexity_sft |" in figures
    assert "| bits per byte | general | 3 | 3.5 | – | +16.7% |" in figures
    assert "- It is worse than before on general: bits per byte 3 → 3.5.\n" in out
    assert "gzip" not in out and "opponent" not in "".join(figures) and "secret_word" not in out


def test_no_address_of_a_server_and_no_place_of_the_users_is_told(run, push):
    """Neither by runs of now, whose records are without them, nor by those that were recorded with them."""
    private = {
        "vllm_server_base_url": "http://user:word@gpu7.lab:8123",
        "vllm_server_host": "gpu8.lab",
        "vllm_server_port": 8124,
        "vllm_group_port": 51217,
        "log_completions_hub_repo": "lab/secret_completions",
        "trackio_space_id": "lab/secret_space",
        "trackio_static_space_id": "lab/secret_static",
        "trackio_bucket_id": "lab/secret_bucket",
    }
    args = GRPOConfig(output_dir="x", use_cpu=True, bf16=False, report_to="none", log_completions=True, **private)
    recorded = record_of((args,), ())["given"]
    assert recorded["log_completions"] is True and not private.keys() & recorded.keys()
    path = run / "sft" / "settings.json"
    record = json.loads(path.read_text())
    write_json(path, {**record, "given": {**record["given"], **private}})
    code, out, _ = push(run / "sft", "--dry_run")
    assert code == 0 and "learning_rate: 0.01" in out
    for key, value in private.items():
        assert key not in out and str(value) not in out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2", "n_positions": 96}, "It reads 96 tokens at most"),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 4321}}, "It reads 4,321 tokens at most"),
        ({"model_type": "mpt", "max_seq_len": 123}, "It reads 123 tokens at most"),
        ({"model_type": "bloom"}, None),
        ({"model_type": "unheard_of"}, None),
    ],
    ids=lambda each: each["model_type"] if isinstance(each, dict) else "",
)
def test_the_card_has_the_context_by_whatever_name_the_config_has_it(tmp_path, config, said):
    write_json(tmp_path / "config.json", config)
    card = model_card(tmp_path, "me/x").content
    assert (f"- {said}, prompt and answer together.\n" in card) if said else ("It reads" not in card)


def test_files_of_one_name_in_two_folders_are_told_apart(run, push):
    own, other = "/home/somebody/secret_project/data/talk.json", "/home/somebody/secret_project/data/terse/talk.json"
    for path, data in (("sft/settings.json", own), ("base/settings.json", "/home/somebody/old/talk.json")):
        record = json.loads((run / path).read_text())
        settings = {"conversations": [data, other] if data == own else [data], "heldout": ["data/heldout.json"]}
        write_json(run / path, {**record, "settings": {**record["settings"], **settings}, "given": settings})
    answers = json.loads((run / "results" / "answers_sft_heldout.json").read_text())
    answers |= {"data": ["data/terse/heldout.json"], "stage": "answers_terse"}
    write_json(run / "results" / "answers_terse.json", answers)
    given = ("--dry_run", "--data_license", "terse/talk.json=mit", f"{own}=cc0-1.0")
    code, out, err = push(run / "sft", *given)
    assert code == 0, err
    for line in (
        "| pretrain | random weights | tokens, old/talk.json | 1,000 tokens | not given | – |",
        "| sft | base | data/talk.json, terse/talk.json | 719 conversations | cc0-1.0; mit | 61 |",
        "| loss | 0.25 | – | – | data/heldout.json | sft |",
        "| exact match | 0.75 | 0.7 to 0.8 | 400 | terse/heldout.json | answers_terse |",
        "- Nobody stated the licence of its data: old/talk.json, tokens.",
        "conversations:\n- data/talk.json\n- terse/talk.json\nheldout:\n- data/heldout.json",
    ):
        assert f"{line}\n" in out, out
    assert "somebody" not in out and "secret_project" not in out
    one_line(
        push(run / "sft", "--dry_run", "--data_license", "talk.json=mit"),
        "--data_license talk.json: not a name of data that it learned from; expected tokens, old/talk.json, data/talk.json, "
        "terse/talk.json",
    )


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/home/me/a/x.json", "/home/me/a/y.json"], ["x.json", "y.json"]),
        (["/data/a/x.json", "b/x.json", "b/c/x.json"], ["a/x.json", "b/x.json", "c/x.json"]),
        (["x.json", "b/x.json", "./x.json"], ["x.json", "b/x.json", "x.json"]),  # one file, given twice
        (["/home/me/x.json", "/home/you/x.json", "/Users/me/x.json"], ["x.json", "x.json (2)", "x.json (3)"]),
        ([r"C:\Users\me\a\x.json", r"D:\b\x.json", "/root/c/x.json/"], ["a/x.json", "b/x.json", "c/x.json"]),
        (
            ["/home/me", "~/x.json", "../../x.json"],
            ["…", "x.json", "x.json"],
        ),  # one file: the test runs below its home
    ],
)
def test_a_path_is_named_by_its_shortest_end_without_what_leads_home(paths, names, monkeypatch, tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one" / "two")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(map(short_names(paths).get, paths)) == names
    assert short_names([f"{tmp_path}/x.json", "/mnt/x.json"]) == {
        f"{tmp_path}/x.json": "x.json",
        "/mnt/x.json": "mnt/x.json",
    }


def test_rows_of_two_files_of_one_name_are_told_apart(push, hub, tmp_path):
    files = ["/home/me/manual/intro.md", "/home/me/guide/intro.md", "/home/me/guide/end.md"]
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "a", "file": file} for file in files])
    write_jsonl(tmp_path / "more.jsonl", [{"text": "b", "source": {"file": files[0], "row": 1}}, {"text": "c"}])
    write_jsonl(tmp_path / "plain.jsonl", [{"text": "d", "source": "encyclopedia"}])
    assert push(tmp_path, repo_id="me/docs", kind="dataset")[0] == 0
    pushed = hub.files["me/docs"]
    rows = [json.loads(line) for line in pushed["documents.jsonl"].splitlines()]
    assert [row["file"] for row in rows] == ["manual/intro.md", "guide/intro.md", "end.md"]
    assert json.loads(pushed["more.jsonl"].splitlines()[0])["source"] == {"file": "manual/intro.md", "row": 1}
    assert pushed["plain.jsonl"] == (tmp_path / "plain.jsonl").read_bytes()


def test_columns_of_csv_and_parquet_name_no_place_on_this_machine(push, hub, tmp_path):
    texts = ['one, "two"\nthree', "", "é", "/home/me/stays"]
    files = ["/home/me/manual/intro.md", "/home/me/guide/intro.md", "/home/me/guide/end.md", None]
    short = ["manual/intro.md", "guide/intro.md", "end.md", None]
    lines = [
        ",".join((file or "", '"one, ""two""\nthree"' if text == texts[0] else text))
        for file, text in zip(files, texts, strict=True)
    ]
    (tmp_path / "a.csv").write_text("\ufeffsource,text\n" + "\n".join(lines) + "\n")
    (tmp_path / "ragged.csv").write_text(f"text,source\na,{files[0]},more\nb\n")
    (tmp_path / "plain.csv").write_text("text,source\r\na/b,wiki\r\n")
    place = pyarrow.struct([("file", pyarrow.string()), ("row", pyarrow.int32())])
    schema = pyarrow.schema(
        [
            ("text", pyarrow.large_string()),
            ("file", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
            ("source", place),
        ],
        metadata={"kept": "yes"},
    )
    rows = [
        {"text": text, "file": file, "source": {"file": file, "row": 7}}
        for text, file in zip(texts, files, strict=True)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), tmp_path / "b.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "c.parquet")
    code, _, err = push(tmp_path, repo_id="me/tables", kind="dataset")
    assert code == 0, err
    pushed = hub.files["me/tables"]
    assert all(b"/home/me/manual" not in content and b"/home/me/guide" not in content for content in pushed.values())
    expected = [["\ufeffsource", "text"], *([name or "", text] for name, text in zip(short, texts, strict=True))]
    assert [*csv.reader(io.StringIO(pushed["a.csv"].decode(), newline=""))] == expected
    assert pushed["ragged.csv"] == b"text,source\na,manual/intro.md,more\nb\n"
    assert (
        pushed["plain.csv"] == b"text,source\r\na/b,wiki\r\n"
        and pushed["c.parquet"] == (tmp_path / "c.parquet").read_bytes()
    )
    table = pyarrow.parquet.read_table(io.BytesIO(pushed["b.parquet"]))
    assert table.schema.equals(schema) and table.schema.metadata[b"kept"] == b"yes"
    assert table.to_pylist() == [
        {"text": text, "file": name, "source": {"file": name, "row": 7}}
        for text, name in zip(texts, short, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "source,text\nÄ/b,c\n".encode("latin-1"), "a.csv: cannot be read as CSV ('utf-8' codec can't decode byte 0xc4"),
        ("a.csv", b'source,text\n"/a/b,c\n', "a.csv: cannot be read as CSV (unexpected end of data); expected CSV in UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read as Parquet ("),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_one_line(name, content, says, push, tmp_path):
    (tmp_path / name).write_bytes(content)
    one_line(push(tmp_path / name, "--dry_run", kind="dataset"), says)


def test_what_is_pushed_is_private_tagged_and_where_it_was_told(run, push, hub):
    code, out, _ = push(run / "sft", "--revision", "dev", "--tag", "v1", "best")
    assert code == 0 and out == f"pushed to {hub.address}/me/x/commit/{'0' * 40}\n"
    (pushed,) = hub.commits
    assert pushed[0] == "me/x@dev" and hub.private == {"me/x": True} and pushed[1].keys() == GOES
    assert hub.tags == [("me/x", "v1", "0" * 40), ("me/x", "best", "0" * 40)]
    for name, content in pushed[1].items():
        assert str(run).encode() not in content and TOKEN.encode() not in content, name
    assert pushed[1]["model.safetensors"] == (run / "sft" / "model.safetensors").read_bytes()
    # the base goes too: the assistant then names it
    assert push(run / "base", "--public", repo_id="me/base")[0] == 0 and hub.private["me/base"] is False
    assert push(run / "sft", "--create_pr")[1] == f"pushed to {hub.address}/me/x/discussions/1\n"
    ((name, files),) = hub.pulls
    assert name == "me/x" and hub.files["me/x"] == {} and files.keys() == GOES
    assert ModelCard(files["README.md"].decode()).data.base_model == "me/base"
    # an adapter that an earlier push left would be applied to the merged model
    hub.files["me/x"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "notes.txt": b""}
    assert push(run / "sft")[0] == 0 and hub.files["me/x"].keys() == {*GOES, "notes.txt"}


def test_an_adapter_names_a_base_on_the_hub_or_none(run, push, hub, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(run / "base")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    folder = tmp_path / "run" / "adapter"
    model.save_pretrained(folder)
    assert str(run / "base") in (folder / "adapter_config.json").read_text()
    assert push(folder)[0] == 0
    files = hub.files["me/x"]
    card = ModelCard(files["README.md"].decode())
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] is None
    assert card.data.base_model is None and "is not on the Hub under a name known here: load that one" in card.text
    assert card.data.library_name == "peft" and str(run).encode() not in b"".join(files.values())
    # as the card says it is used
    there = tmp_path / "there"
    there.mkdir()
    for name, content in files.items():
        (there / name).write_bytes(content)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run / "base"), there)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    # its base was pushed, or the user says which it is, or it came from the Hub
    assert push(run / "base", repo_id="me/base")[0] == push(folder)[0] == 0
    assert json.loads(hub.files["me/x"]["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = ModelCard(hub.files["me/x"]["README.md"].decode())
    assert card.data.base_model == "me/base" and card.data.base_model_relation == "adapter"
    assert "base_model_name_or_path: " not in push(folder, "--dry_run", "--base_model", "Qwen/Qwen3-0.6B")[1]
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": "Qwen/Qwen3-0.6B"})
    assert push(folder)[0] == 0
    assert json.loads(hub.files["me/x"]["adapter_config.json"])["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"


def test_a_card_of_the_users_own_is_pushed_as_it_is(run, push, hub):
    own = "---\nlicense: mit\n---\nMine.\n"
    (run / "sft" / "README.md").write_text(own)
    code, out, _ = push(run / "sft")
    assert code == 0 and "README.md is your own: it is pushed as it is\n" in out
    assert hub.files["me/x"]["README.md"] == (run / "sft" / "README.md").read_bytes() == own.encode()


# What can go wrong


def test_a_push_that_cannot_be_is_one_line_and_sends_nothing(run, push, hub, monkeypatch):
    one_line(push(run / "none"), "no such file or folder")
    one_line(push(run / "sft", repo_id="a b"), "--repo_id a b: ")
    one_line(push(run / "sft", "--create_pr", "--tag", "v1"), "--tag: a pull request goes to main")
    one_line(push(run / "sft", "--data_license", "mit"), "--data_license mit: expected the data and its licence")
    (run / "sft" / "unfinished.json").write_text("{}")
    one_line(push(run / "sft"), "its training has not finished")
    (run / "sft" / "unfinished.json").unlink()
    assert hub.log == []
    hub.token = "another"
    one_line(push(run / "sft"), "me/x: 401, the Hub does not know the token: log in by `hf auth login`")
    hub.token, hub.refuse = TOKEN, "/auth-check/"
    one_line(push(run / "sft"), "me/x: 403, the token may not write there")
    hub.refuse, hub.private["me/x"] = None, False
    one_line(push(run / "sft"), "me/x: is there and public, and a push is private unless told otherwise: --public")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    one_line(push(run / "sft"), "me/x: no token found: log in by `hf auth login`, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:1")
    one_line(push(run / "sft"), "cannot be reached")
    assert not hub.commits and not hub.large and not (run / "sft" / "README.md").exists()


def test_a_push_that_breaks_off_says_what_arrived_and_is_repeated_by_the_same_command(run, push, hub, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for part in ("/large/", "/commit/"):  # the weights, all the rest
        hub.refuse = part
        one_line(
            push(run / "sft", "--tag", "v1"),
            "403, the token may not write there",
            "you may not",
            "no file arrived: they come in one commit",
        )
    hub.refuse = None
    send = huggingface_hub.create_commit

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "create_commit", killed)
    one_line(push(run / "sft"), "me/x: interrupted; no file arrived")
    monkeypatch.setattr(huggingface_hub, "create_commit", send)
    assert hub.files == {"me/x": {}} and not (run / "sft" / "pushed.json").exists()
    assert before.items() <= {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}.items()
    hub.refuse = "/tag/"
    one_line(push(run / "sft", "--tag", "v1"), "403", f"7 files arrived in {'0' * 40}, untagged")
    hub.refuse, hub.lose = None, "/commit/"
    one_line(push(run / "sft"), "cannot be reached", "but all files arrived")
    hub.lose = None
    assert push(run / "sft", "--tag", "v1")[0] == 0 and hub.tags == [("me/x", "v1", "0" * 40)]
    assert hub.files["me/x"].keys() == GOES


# Data


def test_checked_data_goes_with_what_was_counted_and_without_what_was_quarantined(push, hub, command, tmp_path):
    good = [
        {"messages": [{"role": "user", "content": f"{each}?"}, {"role": "assistant", "content": "yes"}]}
        for each in "ab"
    ]
    write_jsonl(tmp_path / "talk.jsonl", [*good, {"messages": "SECRET"}])
    assert command(check, tmp_path / "talk.jsonl", "--output", tmp_path / "checked")[0] == 0
    assert push(tmp_path / "checked", "--license", "cc-by-4.0", repo_id="me/talk", kind="dataset")[0] == 0
    assert (
        any(line.startswith("POST /api/datasets/me/talk/commit/main") for line in hub.log) and hub.private["me/talk"]
    )
    files = hub.files["me/talk"]
    assert files.keys() == {"README.md", "conversations.jsonl"}
    kept = (tmp_path / "checked" / "conversations.jsonl").read_text()
    assert files["conversations.jsonl"].decode() == kept.replace(f"{tmp_path}/", "") != kept
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == "n<1K"
    assert card.data.configs == [{"config_name": "conversations", "data_files": "conversations.jsonl"}]
    assert "3 rows in, 2 out, 1 quarantined (they are not here), 0 repaired." in card.text
    assert "| conversations.jsonl | 2 |" in card.text and "From talk.jsonl." in card.text
    for content in files.values():
        assert b"SECRET" not in content and str(tmp_path).encode() not in content


def test_a_cleaned_corpus_goes_without_the_paths_of_this_machine(push, hub, command, tmp_path):
    words = "many words about nothing that anybody would want to read twice in the same text of ours "
    write_jsonl(tmp_path / "web.jsonl", [{"text": words}, {"text": words}, {"text": "what was said of it then"}])
    done = command(
        clean_corpus, "--corpus", tmp_path / "web.jsonl", "--quality", "none", "--output_dir", tmp_path / "clean",
        "--num_workers", 1,
    )  # fmt: skip
    assert done[0] == 0 and str(tmp_path) in (tmp_path / "clean" / "documents.jsonl").read_text()
    code, out, _ = push(tmp_path / "clean", "--dry_run", repo_id="me/web", kind="dataset")
    assert code == 0 and "not pushed: report.json, report.txt\n" in out and hub.log == [] and str(tmp_path) not in out
    assert push(tmp_path / "clean", repo_id="me/web", kind="dataset")[0] == 0
    files = hub.files["me/web"]
    rows = [json.loads(line) for line in files["documents.jsonl"].splitlines()]
    assert [row["source"] for row in rows] == ["web.jsonl"] * 2 and rows[0]["text"] == words
    card = files["README.md"].decode()
    assert f"| exact duplicate | −1 | −{len(words)} |" in card and "| out | 2 |" in card and str(tmp_path) not in card
    (tmp_path / "clean" / "README.md").write_text("Mine.\n")
    assert push(tmp_path / "clean", repo_id="me/web", kind="dataset")[0] == 0
    assert hub.files["me/web"]["README.md"] == b"Mine.\n"
    # one file, and none
    assert push(tmp_path / "web.jsonl", repo_id="me/one", kind="dataset")[0] == 0
    assert hub.files["me/one"].keys() == {"README.md", "web.jsonl"}
    one_line(push(tmp_path / "clean" / "report.txt", repo_id="me/none", kind="dataset"), "found no data to push")
    assert "me/none" not in hub.files
