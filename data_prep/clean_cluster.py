r"""Filter, deduplicate, decontaminate and tokenize a corpus that is too large for one machine.

    python -m data_prep.clean_cluster --corpus runs/web/*.jsonl.gz --languages en --tasks 64 --workers 8 \
        --tokenizer runs/web/tokenizer --output_dir runs/web/clean
    python -m data_prep.clean_cluster --corpus 'data/web/*.parquet' --tasks 1000 --workers 100 --executor slurm \
        --slurm_partition cpu --slurm_time 12:00:00 --output_dir runs/web/clean

It keeps the documents that data_prep/clean_corpus.py keeps, with the same fields in the same order, and runs on datatrove
(`pip install -e '.[datatrove]'`), whose executors start the tasks: on this machine, under Slurm, or on a Ray cluster. A
task takes every so many-th file; duplicates are found by one task, with about 200 bytes of memory a document. All machines
need one file system.

The output folder holds `documents/` (JSONL, a file for each of the corpus, which data_prep/mix_corpus.py reads),
`report.json`, and with --tokenizer, if a document is left, `tokens/`, the ids in the order of the files, which
recipes/pretrain.py reads. Until it is complete there is `.NAME.unfinished` beside it, with datatrove's logs: the same
command resumes, and does not repeat the tasks that have ended.
"""

import argparse
import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, locked_work, read_json, vacant, write_json
from data_prep.common.numbers import check_at_least
from data_prep.corpus.languages import method
from data_prep.corpus.rules import Rules, add_options, files_and_rules
from data_prep.readers.documents import stamps
from data_prep.tokens.shards import SHARD_TOKENS


def executor_of(arguments: argparse.Namespace):
    """(pipeline, name, tasks, the executor before it) -> a datatrove executor of the kind asked for.

    Slurm alone is told what comes before: the others run one after the other, see `run_in_order`.
    """
    logs = arguments.work.absolute() / "logs"

    def local(pipeline, name, tasks, before):
        from datatrove.executor.local import LocalPipelineExecutor

        workers = min(tasks, arguments.workers)
        return LocalPipelineExecutor(pipeline, tasks, workers, logging_dir=str(logs / name))

    def slurm(pipeline, name, tasks, before):
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            pipeline,
            tasks,
            arguments.slurm_time,
            arguments.slurm_partition,
            workers=arguments.workers,
            job_name=f"clean-{name}",
            qos=None,  # datatrove's "normal" is not there on every cluster
            # A job finds datatrove's commands where this Python is, whichever environment the shell has activated.
            env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            mem_per_cpu_gb=arguments.memory_gb,
            logging_dir=str(logs / name),
            depends=before,
        )

    def ray(pipeline, name, tasks, before):
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(
            pipeline,
            tasks,
            arguments.workers,
            mem_per_cpu_gb=arguments.memory_gb,
            logging_dir=str(logs / name),
        )

    return {"local": local, "slurm": slurm, "ray": ray}[arguments.executor]


def run_in_order(executors: list) -> None:
    """Run each to its end; under Ray a task that failed ends in a warning, and what depends on it would wait for ever.

    Raises InputError that names the tasks that have not ended.
    """
    for executor in executors:
        executor.run()
        if missing := executor.get_incomplete_ranks():
            raise InputError(
                f"{executor.logging_dir.path}: tasks {', '.join(map(str, missing))} failed: look at the logs there; the same "
                "command runs them again"
            )


def steps_of(arguments: argparse.Namespace, files: list[str], rules: Rules, settings: dict, output: Path) -> list:
    """The executors, one after the other, that make `output` of the files."""
    from data_prep.corpus import datatrove_blocks as blocks  # slow to import

    work, number, threshold = arguments.work.absolute(), len(files), arguments.threshold
    tasks, executor = min(arguments.tasks, number), executor_of(arguments)
    filtered = executor(
        [
            blocks.Read(files, arguments.text_column, arguments.on_bad, work),
            blocks.Filter(rules, work),
            blocks.Sign(number, threshold, work),
        ],
        "filter",
        tasks,
        None,
    )
    compared = executor([blocks.FindDuplicates(number, threshold, work)], "compare", 1, filtered)
    written = executor(
        [blocks.Write(number, arguments.tokenizer, arguments.shard_tokens, work)], "write", tasks, compared
    )
    reported = executor(
        [blocks.Report(number, arguments.tokenizer, settings, work, output.absolute())], "report", 1, written
    )
    return [filtered, compared, written, reported]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tokenizer", help="folder of a tokenizer, to write token ids too (default: documents alone)")
    parser.add_argument(
        "--shard_tokens", type=int, default=SHARD_TOKENS, help=f"tokens per shard (default: {SHARD_TOKENS})"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local", help="default: local")
    parser.add_argument("--tasks", type=int, default=1, help="parts of the work (default: 1; at most one a file)")
    parser.add_argument("--workers", type=int, default=1, help="tasks at the same time (default: 1)")
    parser.add_argument("--memory_gb", type=int, default=4, help="of a task, for slurm and ray (default: 4)")
    parser.add_argument("--slurm_partition", help="partition, for slurm")
    parser.add_argument("--slurm_time", default="24:00:00", help="limit of a task, for slurm (default: 24:00:00)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "tasks", "workers", "shard_tokens", "memory_gb")
    output = vacant(arguments.output_dir)
    if importlib.util.find_spec("datatrove") is None:
        raise InputError("clean_cluster needs datatrove: pip install -e '.[datatrove]'; clean_corpus works without it")
    if arguments.executor == "slurm" and not (arguments.slurm_partition and shutil.which("sbatch")):
        raise InputError("--executor slurm: expected --slurm_partition, and Slurm's sbatch on this machine")
    if arguments.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--executor ray: Ray is not installed: pip install ray")
    if arguments.tokenizer:
        existing(arguments.tokenizer, "python -m data_prep.train_tokenizer")
    files, rules = files_and_rules(arguments)
    elsewhere = ("output_dir", "workers", "executor", "memory_gb", "slurm_partition", "slurm_time")
    settings = {key: value for key, value in vars(arguments).items() if key not in elsewhere}
    settings |= {"language_by": method()}
    inputs = {"settings": settings, "files": stamps(files), "evaluation": stamps(list(rules.evaluation))}
    with locked_work(output) as work:
        arguments.work = work
        if (work / "run.json").exists() and read_json(work / "run.json") != inputs:
            raise InputError(
                f"{work}: left by a run with other files or settings: remove it, or give another --output_dir"
            )
        write_json(work / "run.json", inputs)
        steps = steps_of(arguments, files, rules, settings, output)
        if arguments.executor == "slurm":
            steps[-1].run()  # submits those before it
            print(f"submitted; {output} appears when the last job, clean-report, has ended; logs are in {work}/logs")
            return
        run_in_order(steps)
        report = read_json(output / "report.json")
        shutil.rmtree(work)
    print(*report["reading"], sep="\n", end="\n" if report["reading"] else "")
    for kind, removed in report["filtered"].items():
        print(f"{kind}: {removed['documents']:,} documents, {removed['bytes']:,} bytes")
    print(f"{report['documents_in']:,} documents in, {report['documents_out']:,} out; they are in {output}/documents")
    if arguments.tokenizer and not report["documents_out"]:
        print("no document is left: there are no tokens")


if __name__ == "__main__":
    run_main(main)
