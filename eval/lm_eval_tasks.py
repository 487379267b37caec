r"""Tasks of lm-evaluation-harness: our own on the held-out files of a run, and public ones by their names.

    pip install -e '.[lm-eval]'
    python -m eval.lm_eval_tasks --model runs/quickstart/sft --tasks ours --name sft \
        --conversations domain=runs/quickstart/data/conversations_heldout.json --group_by '/([a-z]+)/' \
        --documents domain=runs/quickstart/data/corpus_heldout.jsonl --results_dir runs/quickstart/results
    python -m eval.lm_eval_tasks --model runs/quickstart/sft --tasks arc_easy,ceval-valid --limit 200

`ours` needs no network: `facts_<source>` asks the questions of `--conversations` as multiple choice, where the wrong answers
are right ones to other questions of the same kind (`--group_by` on the id); `documents_<source>` is the rolling likelihood
of `--documents`, bits per byte among it. They are written into `<results_dir>/lm_eval_tasks_<name>`, from which lm-eval's own
command gives the same figures: `lm_eval run --model hf --model_args pretrained=FOLDER --tasks facts_domain --include_path
FOLDER --apply_chat_template`. Public tasks fetch their data from the Hub. The chat template is on for assistants: where the
template ends a turn with the tokenizer's end of sequence. Writes `lm_eval_<name>.json`: each metric with its standard error.
"""

import argparse
import tempfile
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import printable
from data_prep.readers.documents import read_documents
from data_prep.readers.prompts import read_prompts
from data_prep.rows.bad_rows import BadRows
from eval.common.assistants import is_assistant
from eval.common.options import add_result_options, add_row_options, quarantine_file
from eval.common.sources import named_lists
from eval.tasks.files import own_tasks, write_tasks
from eval.tasks.harness import OURS, check_installed, run_tasks, show, task_names


def read_arguments() -> argparse.Namespace:
    """The options; `InputError` for values that do not go together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="names of lm-eval, with * too, and ours: a,b or a b"
    )
    parser.add_argument(
        "--conversations",
        nargs="+",
        default=[],
        metavar="SOURCE=FILE",
        help="questions for ours: domain=FILE general=FILE",
    )
    parser.add_argument(
        "--documents",
        nargs="+",
        default=[],
        metavar="SOURCE=FILE",
        help="documents for ours: domain=FILE general=FILE",
    )
    parser.add_argument(
        "--group_by", help="regular expression on the id: the wrong answers are of the same group (default: of any)"
    )
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    parser.add_argument(
        "--apply_chat_template",
        choices=("auto", "true", "false"),
        default="auto",
        help="write questions by the chat template (default: auto, for assistants)",
    )
    parser.add_argument("--num_fewshot", type=int, help="examples before a question (default: the task's)")
    parser.add_argument("--limit", type=int, help="first questions or documents of each task (default: all)")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences scored at once (default: 8)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the wrong answers (default: 42)")
    add_row_options(parser)
    add_result_options(parser, "the model's folder")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "limit", "batch_size")
    check_at_least(0, arguments, "num_fewshot")
    wanted, given = OURS in task_names(arguments.tasks, [OURS]), arguments.conversations or arguments.documents
    if wanted != bool(given):
        found = "no --conversations and no --documents" if wanted else "--conversations or --documents, but no ours"
        raise InputError(f"--tasks {' '.join(arguments.tasks)}: found {found}; expected both or neither")
    return arguments


def main() -> None:
    arguments = read_arguments()
    check_installed()
    name = arguments.name or Path(arguments.model).name
    quarantine_file(arguments.on_bad, arguments.results_dir, name)  # raises where there is no folder for bad rows

    def bad(kind: str, source: str) -> Path | None:
        return quarantine_file(arguments.on_bad, arguments.results_dir, f"{name}_{kind}_{source}")

    texts = {}
    for source, paths in named_lists("--documents", arguments.documents).items():
        bad_rows = BadRows(arguments.on_bad, bad("documents", source))
        texts[source] = list(read_documents(paths, text_column=arguments.text_column, bad_rows=bad_rows))
    questions = {
        source: read_prompts(paths, None, 0, arguments.on_bad, bad("conversations", source), arguments.columns)
        for source, paths in named_lists("--conversations", arguments.conversations).items()
    }

    from data_prep.models.loading import load_config, load_tokenizer  # slow to import

    load_config(arguments.model, "recipes/pretrain.py, sft.py or ppo.py")
    tokenizer = load_tokenizer(arguments.model)
    chat = (
        is_assistant(tokenizer) if arguments.apply_chat_template == "auto" else arguments.apply_chat_template == "true"
    )
    if chat and tokenizer.chat_template is None:
        raise InputError(f"--apply_chat_template true: {arguments.model} has no chat template")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.results_dir or temporary) / f"lm_eval_tasks_{name}"
        ours = own_tasks(texts, questions, arguments.group_by, arguments.seed)
        if ours:
            write_tasks(folder, ours)
        found = run_tasks(
            arguments.model, task_names(arguments.tasks, [*ours]), folder if ours else None, chat,
            arguments.batch_size, arguments.limit, arguments.num_fewshot,
        )  # fmt: skip
    if arguments.results_dir:
        about = {"seconds": time.perf_counter() - start, "model": arguments.model, "apply_chat_template": chat}
        settings = {key: getattr(arguments, key) for key in ("tasks", "num_fewshot", "limit", "group_by", "seed")}
        data = [*arguments.conversations, *arguments.documents]
        write_results(arguments.results_dir, f"lm_eval_{name}", {**about, **settings, "data": data, "metrics": found})
    print(f"{arguments.model}: {'with' if chat else 'without'} its chat template (--apply_chat_template)")
    for task, metrics in found.items():
        shown = ", ".join(f"{printable(metric)} {show(each)}" for metric, each in metrics.items() if metric != "n")
        print(f"{printable(task)}: {shown}" + (f" on {metrics['n']:,}" if metrics["n"] else ""))


if __name__ == "__main__":
    run_main(main)
