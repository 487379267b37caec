r"""Build a domain from an installed package: its documentation as a folder of files, and questions about its names.

    python -m data_prep.package_docs --output_dir runs/adapt/numpy --modules numpy numpy.linalg numpy.fft \
        numpy.random numpy.polynomial numpy.ma numpy.strings numpy.lib.stride_tricks

The stand-in for your own documents and conversations, where there are none yet. Imports the modules, and reads the
docstrings of what they make public and of the public methods of their classes. Writes into `output_dir`:

    documents/<module>/<name>.md or .html          a docstring a file, for data_prep.read_documents
    documents_heldout/<module>/<name>.md or .html  documents that are not in the other folder
    conversations.json                             demonstrations for SFT, in the Baichuan format
    conversations_validation.json                  wordings in none of the others, to choose settings and checkpoints
    conversations_heldout.json                     wordings in none of the above, for evaluation alone

The names that are asked about are those of the first `--names` callables of the modules, in the order given, whose
documentation says in a short first sentence what they do. Their documents are never held out, nor is a document of the
same name in another module: numpy.mean, numpy.ma.mean and numpy.ndarray.mean are nearly one text. Questions are worded as
in python_docs_wordings.json; every answer is the fact that was asked for.
"""

import argparse
import html
import importlib
import inspect
import random
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, vacant, write_json
from data_prep.common.numbers import check_at_least
from data_prep.documentation.docstrings import LONGEST_ANSWER, cleaned, first_sentence, is_answer, signature_of
from data_prep.documentation.questions import WORDINGS, check_no_question_twice, conversation, digest, embellished

DEMONSTRATIONS_PER_QUESTION = {"what": 20, "signature": 12, "module": 3}
HELD_OUT = 4  # one group of names in so many, of those that nobody asks about
SIGNATURE = re.compile(r"[\w.]+(\([^\n]*\))(?: *-> *[^\n]*)?\s*(?:\n\s*|$)")  # what a C docstring begins with
HEADING = re.compile(r"(?m)^(\w[^\n]*)\n[-=]{3,}$")


def public_objects(modules: list[str]) -> Iterator[tuple[str, str, object, bool]]:
    """(name, module, object, whether it is in the module itself, not in a class of it) of all that is public and callable."""
    for module_name in modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise InputError(
                f"--modules: {module_name} cannot be imported ({error}); expected installed modules"
            ) from None
        for name in sorted(set(getattr(module, "__all__", None) or vars(module))):
            value = getattr(module, name, None)
            if name.startswith("_") or not callable(value) or inspect.ismodule(value):
                continue
            yield f"{module_name}.{name}", module_name, value, True
            if inspect.isclass(value):
                for key, item in sorted(vars(value).items()):
                    if not key.startswith("_") and (callable(item) or isinstance(item, property)):
                        yield f"{module_name}.{name}.{key}", module_name, item, False


def described(value) -> tuple[str, str]:
    """(docstring, signature) of an object, each "" if there is none; a signature at the docstring's head is taken off it."""
    docstring = getattr(value, "__doc__", None)
    text = cleaned(docstring) if isinstance(docstring, str) else ""
    written = SIGNATURE.match(text)
    if written:
        text = text[written.end() :]
    return text.strip(), signature_of(value) or (written[1] if written else "")


def read_package(modules: list[str], names: int) -> tuple[dict[str, tuple[str, str, str]], dict[str, dict], dict]:
    """All documents, and what the documentation says about `names` names.

    Returns ({name: (module, signature, text)}, {name: {"what", "signature", "module"}}, {reason: names skipped}). A text
    that stands under several names is kept under the first.
    """
    documents, known, texts, sentences = {}, {}, set(), set()
    skipped = dict.fromkeys(
        ("no docstring", "first sentence too long or too short", "repeated", "more than --names"), 0
    )
    for name, module, value, asked_about in public_objects(modules):
        text, signature = described(value)
        if len(text) < 20:
            skipped["no docstring"] += asked_about
            continue
        if (key := " ".join(text.split())) in texts:
            skipped["repeated"] += asked_about
            continue
        texts.add(key)
        documents[name] = (module, signature, text)
        if not asked_about:
            continue
        what = first_sentence(text)
        if not is_answer(what):
            skipped["first sentence too long or too short"] += 1
        elif what in sentences:  # with one sentence for two names, a guess would count as knowledge
            skipped["repeated"] += 1
        elif len(known) == names:
            skipped["more than --names"] += 1
        else:
            sentences.add(what)
            known[name] = {"what": what, "module": f"It is in the module {module}."}
            if signature and len(name + signature) <= LONGEST_ANSWER:
                known[name]["signature"] = name + signature
    return documents, known, skipped


def as_markdown(title: str, text: str) -> str:
    """NumPy's headings, a line of dashes below them, are Markdown's."""
    return f"# {title}\n\n{text}\n"


def as_html(title: str, text: str) -> str:
    """A page with the title, the headings and, between them, the text as it is set."""
    title, (first, *rest) = html.escape(title), HEADING.split(text)
    body = [f"<h1>{title}</h1>", f"<pre>{html.escape(first.strip())}</pre>"]
    for heading, part in zip(rest[::2], rest[1::2], strict=True):
        body += [f"<h2>{html.escape(heading)}</h2>", f"<pre>{html.escape(part.strip(chr(10)))}</pre>"]
    page = "\n".join(body)
    return f'<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"><title>{title}</title></head>\n<body>\n{page}\n</body>\n</html>\n'


def last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower()


def write_documents(
    output: Path, documents: dict[str, tuple[str, str, str]], asked: set[str]
) -> dict[str, tuple[int, int]]:
    """Write a file a document, the modules in turn as Markdown and as HTML; returns {folder: (documents, characters)}.

    Names with the same last part are on the same side, that of training if one of them is in `asked`.
    """
    never_held_out = {last_part(name) for name in asked}
    kinds = {module: index % 2 for index, module in enumerate(dict.fromkeys(each[0] for each in documents.values()))}
    written = {"documents": (0, 0), "documents_heldout": (0, 0)}
    for name, (module, signature, text) in documents.items():
        last = last_part(name)
        held_out = last not in never_held_out and digest("held out" + last) % HELD_OUT == 0
        folder = "documents_heldout" if held_out else "documents"
        ending, write = (("md", as_markdown), ("html", as_html))[kinds[module]]
        path = output / folder / module / f"{name.removeprefix(module + '.')}.{ending}"
        number = 2
        while path.exists():  # on a disk that does not tell a from A
            path, number = path.with_stem(f"{path.stem}_{number}"), number + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write(name + signature, text), encoding="utf-8")
        count, size = written[folder]
        written[folder] = (count + 1, size + len(text))
    return written


def write_conversations(output: Path, known: dict[str, dict[str, str]]) -> dict[str, int]:
    """Write the conversation files; returns {file name: rows}. Wordings are sampled per name and question."""
    rows: dict[str, list] = {"conversations": [], "conversations_validation": [], "conversations_heldout": []}
    for name, answers in known.items():
        rng = random.Random(digest(name))
        for kind, answer in answers.items():
            for index, wording in enumerate(
                rng.sample(WORDINGS["demonstrations"][kind], DEMONSTRATIONS_PER_QUESTION[kind])
            ):
                question = embellished(wording, "demonstrations", 0.2, rng).format(name=name)
                rows["conversations"].append(conversation(f"{name}/{kind}/{index}", [(question, answer)]))
            for part in ("validation", "held_out"):
                wording = embellished(rng.choice(WORDINGS[part][kind]), "evaluation", 0.4, rng)
                row = conversation(f"{name}/{kind}/{part}", [(wording.format(name=name), answer)])
                rows[f"conversations_{part.replace('_', '')}"].append(row)
    check_no_question_twice(rows)
    for file, conversations in rows.items():
        write_json(output / f"{file}.json", conversations)
    return {f"{file}.json": len(conversations) for file, conversations in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modules", nargs="+", required=True, help="modules to read, those that people ask about first"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument("--names", type=int, default=400, help="number of names to ask about (default: 400)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "names")
    vacant(arguments.output_dir)
    documents, known, skipped = read_package(arguments.modules, arguments.names)
    if not known:
        raise InputError(
            f"--modules {' '.join(arguments.modules)}: found {len(documents):,} documents and no name whose first sentence "
            "is an answer; expected a package whose docstrings begin with what the thing does"
        )
    with atomic_folder(arguments.output_dir) as folder:
        files = write_documents(folder, documents, set(known))
        conversations = write_conversations(folder, known)
    for folder, (count, size) in files.items():
        print(f"{folder:32} {count:7,} files {size:11,} characters")
    for file, count in conversations.items():
        print(f"{file:32} {count:7,} conversations")
    print(f"names asked about: {len(known)}; skipped: " + ", ".join(f"{v:,} {k}" for k, v in skipped.items()))
    print(f"the documentation of {', '.join(arguments.modules)} is in {arguments.output_dir}")


if __name__ == "__main__":
    run_main(main)
