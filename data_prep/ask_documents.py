r"""Make questions and answers out of documents, each with the place in the document where its answer stands.

    python -m data_prep.ask_documents runs/mine/documents/documents.jsonl --output runs/mine/conversations.json \
        --reworded runs/mine/conversations_reworded.json --heldout runs/mine/conversations_heldout.json
    python -m data_prep.ask_documents runs/mine/documents/documents.jsonl --output runs/mine/conversations.json \
        --model Qwen/Qwen3-0.6B --max_new_tokens 512
    python -m data_prep.ask_documents runs/mine/documents/documents.jsonl --output runs/mine/conversations.json \
        --url http://127.0.0.1:8000/v1 --model qwen3 --heldout runs/mine/conversations_heldout.json

Reads documents in any format, such as those of data_prep.read_documents: rows {"text"}, with "file", "heading" and "page"
if there are. Writes conversations in the Baichuan format, {"id", "conversations", "source"}: the source is {"file", "row",
"start", "end", "kind"}, the characters of the row's text in which the answer stands; where the rows of several inputs say
which "file" they come from, "input" is the one that has the row.

Without a model the answers are what documents say word for word, in English and Chinese: definitions, headings with their
first paragraph, FAQs, docstrings (purpose, signature, parameters) and tables (data_prep/questions/facts.py). A question
that several documents answer differently is left out. The wordings of the questions are in a file, in three sets that
share none: one for --output, one for --prompts (the same questions for rankings and PPO), and one for evaluation:
--reworded asks the questions of --output again, --heldout those of documents that are held out whole.

With --model a language model writes them, a checkpoint or the model of an OpenAI-compatible server (--url; its key, if it
needs one, from the environment variable OPENAI_API_KEY). An answer is taken if its words stand in the part of the document
that the model was shown, and every number does; the others, and what the model itself calls unanswerable, questions asked
before, replies that are no JSON and prompts that the server refuses are in OUTPUT.quarantine.jsonl with the reason. Replies
are kept in a journal beside the output: the same command, run again, goes on. What it cost is printed.
"""

import argparse
import contextlib
import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_write, vacant, write_json
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted, file_names
from data_prep.questions.asking import ask_checkpoint, ask_server, cost, digest
from data_prep.questions.facts import KINDS, Fact, facts
from data_prep.questions.replies import PROMPT, SHORTEST_SPAN, judged, messages, read_template, spans
from data_prep.questions.server import Server, check_url, key_from
from data_prep.questions.wordings import WORDINGS, Wordings, questions, read_wordings
from data_prep.ranking.journal import Journal
from data_prep.readers.documents import documents, reading_counts
from data_prep.rows.bad_rows import ON_BAD, BadRows
from data_prep.rows.read import identify

FIELDS = ("file", "page", "heading")  # of a document, which are written with every question
# Options that only one way of asking reads, with their defaults; given without it they are refused.
WITHOUT_MODEL = {
    "kinds": list(KINDS), "wordings": WORDINGS, "wordings_per_question": 4, "longest_answer": 300, "prompts": None,
    "reworded": None, "questions_per_document": None,
}  # fmt: skip
WITH_MODEL = {
    "url": None, "prompt": PROMPT, "questions_per_span": 5, "span": 2000, "min_overlap": 0.8, "max_new_tokens": 1024, "temperature": 0.0,
}  # fmt: skip
WITH_URL = {"api_key_env": "OPENAI_API_KEY", "timeout": 120.0, "retries": 3, "concurrency": 8}
WITH_CHECKPOINT = {"batch_size": 16}


class Source(NamedTuple):
    """A document to ask about."""

    id: str  # of no other document: its own, or the file and row by the shortest path that tells the files apart
    text: str
    file: str
    heading: str
    place: dict  # of it, as it is written with every question
    held_out: bool


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("documents", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    add("--output", type=Path, required=True, help="the JSON file of conversations to write")
    add("--heldout", type=Path, help="JSON file for the questions of the documents held out (default: none is)")
    add("--heldout_fraction", type=float, help="of the documents, for --heldout (default: 0.1)")
    add("--text_column", default="text", help="column with the text of documents (default: text)")
    add(
        "--on_bad",
        choices=ON_BAD,
        default="error",
        help="bad rows of the documents (quarantine: into OUTPUT.bad_rows.quarantine.jsonl)",
    )
    add("--seed", type=int, default=0, help="of the wordings, the samples and the documents held out (default: 0)")
    without = parser.add_argument_group("options without a model")
    add = without.add_argument
    add("--kinds", nargs="+", choices=KINDS, help="what to ask for (default: all)")
    add("--wordings", type=Path, help="YAML or JSON file of wordings (default: data_prep/questions/wordings.yaml)")
    add("--wordings_per_question", type=int, help="in which a question is asked in --output (default: 4)")
    add("--questions_per_document", type=int, help="at most, sampled by --seed (default: all)")
    add("--longest_answer", type=int, help="characters; longer ones are left out and counted (default: 300)")
    add("--prompts", type=Path, help="JSON file for the questions of --output in the wordings for PPO")
    add("--reworded", type=Path, help="JSON file for the questions of --output in wordings for evaluation")
    model = parser.add_argument_group("options with a model")
    add = model.add_argument
    add("--model", help="folder or Hub id of the model that asks; with --url its name there")
    add("--url", help="address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--prompt", type=Path, help="YAML file of the prompt (default: data_prep/questions/prompt.yaml)")
    add("--questions_per_span", type=int, help="that the model is asked for at once (default: 5)")
    add("--span", type=int, help="characters of a document that the model is shown at once (default: 2000)")
    add("--min_overlap", type=float, help="share of an answer's words that must stand in its span (default: 0.8)")
    add("--max_new_tokens", type=int, help="longest reply in tokens (default: 1024)")
    add("--temperature", type=float, help="sampling temperature (default: 0, greedy)")
    add("--batch_size", type=int, help="with a checkpoint: prompts at once (default: 16)")
    add("--api_key_env", help="with --url: the environment variable with the key (default: OPENAI_API_KEY)")
    add("--timeout", type=float, help="with --url: seconds to wait for a reply (default: 120)")
    add("--retries", type=int, help="with --url: further tries where a server is busy or not there (default: 3)")
    add("--concurrency", type=int, help="with --url: requests at once (default: 8)")
    return settled(parser.parse_args())


def settled(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with their defaults. Raises InputError for one that nothing reads, and one out of its range."""
    with_model, with_url = arguments.model is not None, arguments.url is not None
    for options, used, needs in (
        (WITHOUT_MODEL, not with_model, "is for questions without --model"),
        (WITH_MODEL, with_model, "needs --model"),
        (WITH_URL, with_url, "needs --url"),
        (WITH_CHECKPOINT, with_model and not with_url, "is for a checkpoint: --model without --url"),
        ({"heldout_fraction": 0.1}, arguments.heldout is not None, "needs --heldout"),
    ):
        for name, default in options.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, default)
            elif not used:
                raise InputError(f"--{name} {needs}")
    least = (
        "questions_per_document",
        "questions_per_span",
        "wordings_per_question",
        "longest_answer",
        "max_new_tokens",
        "batch_size",
        "concurrency",
    )
    check_at_least(1, arguments, *least)
    check_at_least(0, arguments, "retries", "temperature")
    check_at_least(SHORTEST_SPAN, arguments, "span")
    if not 0 < arguments.heldout_fraction < 1:
        raise InputError(f"--heldout_fraction {arguments.heldout_fraction}: expected more than 0 and less than 1")
    if not 0 <= arguments.min_overlap <= 1:
        raise InputError(f"--min_overlap {arguments.min_overlap}: expected 0 to 1")
    if not 0 < arguments.timeout < float("inf"):
        raise InputError(f"--timeout {arguments.timeout}: expected seconds, more than 0")
    named = ("output", "heldout", "prompts", "reworded")
    paths = {name: vacant(getattr(arguments, name)) for name in named if getattr(arguments, name) is not None}
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise InputError(f"{', '.join(f'--{name}' for name in paths)}: found one file twice; give each its own")
    return arguments


def read_sources(arguments: argparse.Namespace) -> list[Source]:
    """The documents, and which of them are held out: by the file that they come from, and the seed."""
    counts: Counter = Counter()
    bad_rows = BadRows(arguments.on_bad, f"{arguments.output}.bad_rows.quarantine.jsonl")
    found, own_ids, files = [], [], []
    for text, row in documents(arguments.documents, arguments.text_column, bad_rows, counts, FIELDS):
        fields = row.value if isinstance(row.value, dict) else {}
        place = {"file": str(fields.get("file") or row.path), "row": row.number}
        place |= {key: fields[key] for key in FIELDS[1:] if isinstance(fields.get(key), str | int)}
        key = place["file"] if fields.get("file") else f"{row.path}:{row.number}"
        position = int.from_bytes(hashlib.sha256(f"{arguments.seed} {key}".encode()).digest()[:8], "big") / 2**64
        held_out = arguments.heldout is not None and position < arguments.heldout_fraction
        heading = fields.get("heading") if isinstance(fields.get("heading"), str) else ""
        found.append(Source("", text, place["file"], heading, place, held_out))
        identifier, told = identify(row)
        own_ids.append(identifier if fields.get("id") is not None and told is row else None)
        files.append(row.path)
    for line in reading_counts(bad_rows, counts):
        print(line)
    if arguments.heldout is not None and len({source.held_out for source in found}) == 1:
        raise InputError(
            f"--heldout_fraction {arguments.heldout_fraction}: of {counted(len(found), 'document')} "
            f"{'all are' if found[0].held_out else 'none is'} held out; give another fraction, another --seed or more documents"
        )
    times, names = Counter(own_ids), file_names(dict.fromkeys(files))
    sources = []
    for source, own, file in zip(found, own_ids, files, strict=True):
        if len(names) > 1 and source.file != file:
            source.place["input"] = names[file]
        sources.append(source._replace(id=own if own and times[own] == 1 else f"{names[file]}:{source.place['row']}"))
    return sources


def conversation(key: str, question: str, answer: str, source: dict) -> dict:
    """A question and its answer in the Baichuan format."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": key, "conversations": turns, "source": source}


def sampled(found: list, number: int | None, key: str) -> list:
    """`number` of the items in their order, all if it is None; which ones depends on `key` alone."""
    if number is None or len(found) <= number:
        return found
    return [found[index] for index in sorted(random.Random(key).sample(range(len(found)), number))]


def known_facts(sources: list[Source], arguments: argparse.Namespace, left_out: Counter) -> list[tuple[Source, Fact]]:
    """The facts of all documents, but those that several documents state differently; one that is repeated, once."""
    found: dict[tuple, list[tuple[Source, Fact]]] = {}
    for source in sources:
        for fact in facts(source.text, arguments.longest_answer, source.heading, left_out):
            if fact.kind in arguments.kinds:
                found.setdefault((fact.kind, *map(str.casefold, fact.asked.values())), []).append((source, fact))
    kept: dict[str, list[tuple[Source, Fact]]] = {}
    for same in found.values():
        if len({"".join(fact.answer.split()) for _, fact in same}) > 1:
            left_out["question with several answers"] += len(same)
            continue
        left_out["repeated"] += len(same) - 1
        kept.setdefault(same[0][0].id, []).append(same[0])
    chosen = []
    for identifier, own in kept.items():
        own = sorted(own, key=lambda each: (each[1].start, each[1].end))
        few = sampled(own, arguments.questions_per_document, f"{arguments.seed} {identifier}")
        left_out["more than --questions_per_document"] += len(own) - len(few)
        chosen += few
    return chosen


def without_model(sources: list[Source], arguments: argparse.Namespace, wordings: Wordings) -> dict[str, list[dict]]:
    """{output: conversations} of what the documents say word for word. Prints what is left out."""
    left_out: Counter = Counter()
    chosen = known_facts(sources, arguments, left_out)
    rows: dict[str, list[dict]] = {"output": [], "prompts": [], "reworded": [], "heldout": []}
    several = arguments.wordings_per_question
    uses = (("output", "demonstrations", several), ("prompts", "prompts", several), ("reworded", "held_out", 1), ("heldout", "held_out", 1))  # fmt: skip
    asked: set[str] = set()
    for name, use, number in uses:
        if getattr(arguments, name) is None:
            continue
        for source, fact in chosen:
            if source.held_out != (name == "heldout"):
                continue
            place = {**source.place, "start": fact.start, "end": fact.end, "kind": fact.kind}
            place |= {"field": fact.field} if fact.field != "text" else {}
            key = f"{source.id}/{fact.kind}/{fact.start}-{fact.end}"
            for index, question in enumerate(questions(fact, wordings[use], number, f"{arguments.seed} {name} {key}")):
                if question in asked:  # by another kind of fact, with another answer
                    left_out["question asked already"] += 1
                    continue
                asked.add(question)
                rows[name].append(conversation(f"{key}/{name}-{index}", question, fact.answer, place))
    kinds = Counter(fact.kind for _, fact in chosen)
    print(f"{counted(len(sources), 'document')}: {counted(len(chosen), 'answer')} found"
          + (f": {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}" if kinds else ""))  # fmt: skip
    if left_out := +left_out:
        print("left out: " + ", ".join(f"{count:,} × {reason}" for reason, count in left_out.most_common()))
    return rows


def with_model(sources: list[Source], arguments: argparse.Namespace, template, key: str) -> dict[str, list[dict]]:
    """{output: conversations} that a model writes and that stand in their span. Writes the quarantine, prints the counts."""
    parts = [span for number, source in enumerate(sources) for span in spans(number, source.text, arguments.span)]
    short = sum(len(span.text) < SHORTEST_SPAN for span in parts)
    parts = [span for span in parts if len(span.text) >= SHORTEST_SPAN]
    if not parts:
        raise InputError(f"{arguments.documents[0]}: no document has {SHORTEST_SPAN} characters or more to ask about")
    prompts = [
        messages(
            template, span, arguments.questions_per_span, sources[span.document].file, sources[span.document].heading
        )
        for span in parts
    ]
    names = ("model", "max_new_tokens", "temperature", "seed")
    settings = {name: getattr(arguments, name) for name in names} | {
        "prompts": digest([json.dumps(each) for each in prompts])
    }
    path = arguments.output.with_name(f"{arguments.output.name}.journal")
    with contextlib.closing(Journal(path, settings, durable=arguments.url is not None, stamp="replied_at")) as journal:
        if journal.rankings:
            print(
                f"{path}: {len(journal.rankings):,} of {len(prompts):,} replies of an earlier run; resuming after them"
            )
        if arguments.url is not None:
            how = (
                arguments.temperature,
                arguments.max_new_tokens,
                arguments.seed,
                arguments.timeout,
                arguments.retries,
            )
            server = Server(arguments.url, arguments.model, key, *how)
            replies = ask_server(server, prompts, journal, arguments.concurrency)
        else:
            how = (arguments.max_new_tokens, arguments.temperature, arguments.batch_size, arguments.seed)
            replies = ask_checkpoint(arguments.model, prompts, journal, *how)
    rows: dict[str, list[dict]] = {"output": [], "heldout": []}
    bad, asked, per_document = [], set(), Counter()
    for span, reply in zip(parts, replies, strict=True):
        source = sources[span.document]
        for item in judged(reply, span, arguments.min_overlap, asked):
            place = {**source.place, "start": item.start, "end": item.end, "kind": "model"}
            if item.reason:
                place |= {"start": span.start, "end": span.end}
                bad.append({"file": source.file, "reason": item.reason, "found": item.found, "question": item.question,
                            "answer": item.answer, "overlap": round(item.overlap, 4), "source": place})  # fmt: skip
                continue
            place |= {"overlap": round(item.overlap, 4), "model": arguments.model}
            identifier = f"{source.id}/{span.start}-{span.end}/{per_document[span]}"
            per_document[span] += 1
            rows["heldout" if source.held_out else "output"].append(
                conversation(identifier, item.question, item.answer, place)
            )
    quarantine = Path(f"{arguments.output}.quarantine.jsonl")
    quarantine.unlink(missing_ok=True)
    if bad:
        with atomic_write(quarantine) as file:
            file.writelines(json.dumps(row) + "\n" for row in bad)
    good = sum(map(len, rows.values()))
    print(f"{counted(len(replies), 'span')} of {counted(len(sources), 'document')}: {good + len(bad):,} written = "
          f"{good:,} accepted + {len(bad):,} quarantined" + (f", which are in {quarantine}" if bad else ""))  # fmt: skip
    for reason, count in Counter(row["reason"] for row in bad).most_common():
        print(f"  {count:,} × {reason}")
    if short:
        print(f"{counted(short, 'span')} of less than {SHORTEST_SPAN} characters not asked about")
    print(cost(replies)[1] + (", as the server reports" if arguments.url is not None else ""))
    return rows


def main() -> None:
    arguments = parse_arguments()
    template, key = None, ""
    if arguments.model is None:
        used = {"demonstrations"} | ({"prompts"} if arguments.prompts else set())
        used |= {"held_out"} if arguments.reworded or arguments.heldout else set()
        wordings = read_wordings(arguments.wordings, tuple(used), tuple(arguments.kinds))
    else:
        template = read_template(arguments.prompt)
        if arguments.url is not None:
            check_url(arguments.url)
            key = key_from(arguments.api_key_env)
    sources = read_sources(arguments)
    rows = (
        without_model(sources, arguments, wordings)
        if template is None
        else with_model(sources, arguments, template, key)
    )
    for name in rows:
        if getattr(arguments, name) is not None and not rows[name]:
            hint = (
                "a model can ask about any text: --model" if template is None else "see the quarantine for the reasons"
            )
            raise InputError(f"--{name}: found no question to write from {counted(len(sources), 'document')}; {hint}")
    for name in reversed(rows):  # --output last: if it is there, all are
        if getattr(arguments, name) is not None:
            write_json(getattr(arguments, name), rows[name])
            print(f"{counted(len(rows[name]), 'conversation')} in {getattr(arguments, name)}")
    if template is not None:
        arguments.output.with_name(f"{arguments.output.name}.journal").unlink()


if __name__ == "__main__":
    run_main(main)
