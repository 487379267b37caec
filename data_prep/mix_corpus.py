"""Mix corpora by weights in tokens, tokenize them, and write shards of token ids for pretraining.

    python -m data_prep.mix_corpus --config recipes/configs/quickstart/mix.yaml --dry_run
    python -m data_prep.mix_corpus --config recipes/configs/quickstart/mix.yaml

An example is the mixture that LLaMA was trained on (arXiv:2302.13971, table 1): CommonCrawl 67 %, C4 15 %, GitHub
4.5 %, Wikipedia 4.5 %, books 4.5 %, arXiv 2.5 %, StackExchange 2 %. These are shares of the *tokens*, whatever the sizes
of the sources: a small good source is read several times, a large one in part. `max_epochs` limits how often a source is
read. Then it stops, and the others share the rest. Four epochs are nearly as good as new text (Muennighoff 2023,
arXiv:2305.16264). recipes/configs/llama_mixture/mix.yaml is that mixture over open data sets.

`--dry_run` only prints the plan: tokens, passes and disk. What a source of the Hub holds is not known before it is
read: `tokens` says about how many, for the plan alone. Otherwise each source is tokenized once, and the mixture is
written from its ids: documents in an order given by the seed, each followed by the end-of-text token.
data_prep/tokens/shards.py describes the output. It is a second copy of the ids, not an index over the sources' shards,
so that training reads each block as one slice and needs no other file. The sources' shards, which take as much disk
again, are deleted at the end.

A killed run leaves a folder `.NAME.unfinished` beside the output, from which the same command resumes: after the last
whole shard of a source, or, if all sources were tokenized, at the beginning of the mixture.
"""

import argparse
import math
import os
import re
import shutil
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, unfinished, vacant
from data_prep.common.yaml_file import read_yaml
from data_prep.corpus.mixture import Source, mix
from data_prep.corpus.mixture_plan import Estimate, disk_line, estimate, needed_tokens, plan_table, realised_table
from data_prep.rows.bad_rows import ON_BAD
from data_prep.rows.read import HUB, data_files, is_glob
from data_prep.tokens.corpus_tokens import CorpusTokenizer, enough, load_tokenizer, tokenize_source
from data_prep.tokens.shards import SHARD_TOKENS, ShardWriter, token_dtype, write_index

HUB_MODEL = re.compile(r"\w[\w.-]*/[\w.-]+")
KEYS = {"tokenizer", "sources", "total_tokens", "passes", "shuffle_buffer", "seed", "output_dir", "on_bad"}
KEYS |= {"num_workers", "shard_tokens"}
MIXTURE = ".mixture"  # beside the folders of the sources until it is complete
SOURCE_KEYS = {"files", "weight", "max_epochs", "text_column", "tokens"}


def read_config(path: str | Path) -> dict:
    """The mixture's YAML. Raises InputError for an unknown or missing key, a value of the wrong type, a missing file."""
    config = read_yaml(path)
    if unknown := set(config) - KEYS:
        raise InputError(f"{path}: unknown key {', '.join(sorted(unknown))}; the keys are {', '.join(sorted(KEYS))}")
    if missing := {"tokenizer", "sources", "output_dir"} - set(config):
        raise InputError(f"{path}: missing key {', '.join(sorted(missing))}")
    if ("total_tokens" in config) == ("passes" in config):
        raise InputError(f"{path}: give either total_tokens or passes (over the whole corpus)")
    for key in ("tokenizer", "output_dir"):
        check_text(path, key, config[key])
    for key in ("total_tokens", "passes", "shuffle_buffer", "num_workers", "shard_tokens"):
        check_positive(path, key, config.get(key, 1))
    if config.get("on_bad", "error") not in ON_BAD:
        raise InputError(f"{path}: on_bad is {config['on_bad']!r}; expected {', '.join(ON_BAD)}")
    if not isinstance(config["sources"], dict) or not config["sources"]:
        raise InputError(f"{path}: expected sources: {{name: {{files: [...], weight: ...}}}}")
    for name, source in config["sources"].items():
        if not isinstance(name, str) or name != Path(name).name:  # it names a folder
            raise InputError(f"{path}: the source name {name!r}: expected a word")
        if not isinstance(source, dict) or set(source) - SOURCE_KEYS or not isinstance(source.get("files"), list):
            found = sorted(source) if isinstance(source, dict) else source
            expected = "a list under 'files' and optionally 'weight', 'max_epochs', 'text_column', 'tokens'"
            raise InputError(f"{path}: source {name}: expected {expected}, found {found}")
        for key in ("weight", "max_epochs", "tokens"):
            check_positive(path, f"source {name}: the {key}", source.get(key, 1))
        check_text(path, f"source {name}: text_column", source.get("text_column", "text"))
        for file in source["files"]:
            check_text(path, f"source {name}: each of files", file)
            if not (file.startswith(HUB) or is_glob(file)):
                existing(file)
    unweighted = [name for name, source in config["sources"].items() if "weight" not in source]
    if 0 < len(unweighted) < len(config["sources"]):
        raise InputError(
            f"{path}: found no weight of {', '.join(unweighted)}, but of the others; expected one of every source, or of none: "
            "then all are read equally often"
        )
    if not names_hub_model(config["tokenizer"]):
        existing(config["tokenizer"], "python -m data_prep.train_tokenizer")
    return config


def names_hub_model(tokenizer: str) -> bool:
    """Whether this is owner/name, a model of the Hub, and no path: none here begins with a dot or in runs/."""
    return bool(HUB_MODEL.fullmatch(tokenizer)) and not tokenizer.startswith("runs/") and not Path(tokenizer).exists()


def folder_of(tokenizer: str) -> str | Path:
    """The folder with the tokenizer, for a model of the Hub that in the cache, fetched if it is not there."""
    if not names_hub_model(tokenizer):
        return tokenizer
    from data_prep.models import loading  # slow to import, like transformers

    loading.load_tokenizer(tokenizer)  # all of its files, or one line of what is wrong
    return loading.tokenizer_folder(tokenizer)


def check_positive(path: str | Path, name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{path}: {name} must be positive, found {value!r}")


def check_text(path: str | Path, name: str, value) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"{path}: {name} must be a text, found {value!r}")


def plan(config: dict, files: dict[str, list[str]], tokenizer: CorpusTokenizer) -> dict[str, Estimate]:
    """Estimate the sources and print the plan; returns {source: estimate}."""
    found = {
        name: Estimate(None, source["tokens"])
        if "tokens" in source
        else estimate(files[name], source.get("text_column", "text"), tokenizer)
        for name, source in config["sources"].items()
    }
    print(plan_table(config, files, found))
    bytes_a_token = int(token_dtype(tokenizer.vocab_size)[-1])  # "<u2" or "<u4"
    print(disk_line(config, found, bytes_a_token, shutil.disk_usage(existing_parent(config["output_dir"])).free))
    return found


def collect_quarantine(work: Path, names, folder: Path) -> int:
    """Join the quarantined rows of all sources in `folder`/quarantine.jsonl, if there are any; returns their number."""
    count = 0
    for name in names:
        path = work / name / "quarantine.jsonl"
        if path.exists() and path.stat().st_size:
            with path.open("rb") as rows, (folder / path.name).open("ab") as file:
                for row in rows:
                    file.write(row)
                    count += 1
    return count


def tokenized_sources(
    config: dict, files: dict[str, list[str]], tokenizer: CorpusTokenizer, work: Path, estimates: dict[str, Estimate]
) -> list[Source]:
    """Every source as shards in `work`, created or resumed."""
    buffer, shard_tokens = config.get("shuffle_buffer", 10_000), config.get("shard_tokens", SHARD_TOKENS)
    needed = needed_tokens(config)
    sources = []
    for name, source in config["sources"].items():
        most = (needed[name], buffer) if needed[name] < math.inf else None
        shards = tokenize_source(
            work / name,
            files[name],
            tokenizer,
            text_column=source.get("text_column", "text"),
            on_bad=config.get("on_bad", "error"),
            most=most,
            shard_tokens=shard_tokens,
            expected_bytes=estimates[name].bytes,
        )
        # The default weight is the length: if no source has a weight, all are read equally often.
        weight = source.get("weight", len(shards))
        whole = most is None or not enough(len(shards), shards.documents, *most)
        sources.append(Source(name, shards, weight, source.get("max_epochs"), buffer, config.get("seed", 42), whole))
    return sources


def write_mixture(folder: Path, sources: list[Source], total_tokens: int, config: dict, tokenizer) -> dict:
    """Write the shards of the mixture and their index into `folder`; returns the index."""
    dtype = token_dtype(tokenizer.vocab_size)
    writer = ShardWriter(folder, dtype, config.get("shard_tokens", SHARD_TOKENS))
    with tqdm(total=total_tokens, unit="tok", unit_scale=True, desc="mixing", disable=None) as bar:
        for ids, size in mix(sources, total_tokens):
            writer.add(ids, size)
            bar.update(len(ids))
    writer.close()
    realised = {
        source.name: {
            "asked_weight": source.weight,
            "tokens": source.tokens,
            "documents": source.documents,
            "bytes": source.bytes,
            "passes" if source.whole else "passes_at_most": source.passes,
        }
        for source in sources
    }
    more = {"seed": config.get("seed", 42), "sources": realised}
    return write_index(folder, writer.shards, dtype, tokenizer.vocab_size, tokenizer.hash, **more)


def existing_parent(output: str | Path) -> Path:
    """The folder above `output` that is there already: what tells the free disk."""
    return next(path for path in Path(output).absolute().parents if path.exists())


def check_room(output: Path, total_tokens: float, tokenizer) -> None:
    """Raise InputError for a mixture that the disk cannot hold."""
    bytes_a_token = int(token_dtype(tokenizer.vocab_size)[-1])  # "<u2" or "<u4"
    needed, free = total_tokens * bytes_a_token, shutil.disk_usage(existing_parent(output)).free
    if needed > free:
        raise InputError(
            f"{output}: a mixture of {total_tokens:,} tokens takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free there; expected fewer total_tokens or passes, or another output_dir"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, such as recipes/configs/quickstart/mix.yaml")
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    output = vacant(config["output_dir"])
    if "num_workers" in config:
        os.environ["RAYON_NUM_THREADS"] = str(config["num_workers"])  # read when the first batch is tokenized
    tokenizer = load_tokenizer(folder_of(config["tokenizer"]))
    files = {name: data_files(source["files"], plain_text=True) for name, source in config["sources"].items()}
    estimates = plan(config, files, tokenizer)
    if arguments.dry_run:
        return

    with unfinished(output) as work:
        sources = tokenized_sources(config, files, tokenizer, work, estimates)
        there = sum(len(source.shards) for source in sources)
        total_tokens = config.get("total_tokens") or int(config["passes"] * there)
        if not there or not total_tokens:
            raise InputError(
                f"{arguments.config}: the sources hold {there:,} tokens, of which the mixture would take none; expected "
                "more text: python -m data_prep.check says what is wrong with the files"
            )
        check_room(output, total_tokens, tokenizer)
        mixture = work / MIXTURE
        shutil.rmtree(mixture, ignore_errors=True)  # left by a run that was killed while mixing
        index = write_mixture(mixture, sources, total_tokens, config, tokenizer)
        quarantined = collect_quarantine(work, config["sources"], mixture)
        os.replace(mixture, output)
    print(realised_table(sources))
    if index["tokens"] < total_tokens:
        print(
            f"every source has reached its max_epochs: {total_tokens - index['tokens']:,} tokens fewer than requested"
        )
    if quarantined:
        print(f"{quarantined:,} bad rows are in {output}/quarantine.jsonl")
    print(f"mixed {index['tokens']:,} tokens ({index['bytes']:,} bytes); they are in {output}")


if __name__ == "__main__":
    run_main(main)
