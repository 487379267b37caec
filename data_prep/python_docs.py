"""Build a domain from nothing: the documentation inside the running Python, as a corpus and as conversations.

    python -m data_prep.python_docs --output_dir runs/quickstart/data

Reads the docstrings of the standard library's source files, of the built-ins and the extension modules, and the
language reference that pydoc ships (`pydoc_data.topics`). Writes into `output_dir`:

    corpus/{builtins,common,stdlib,reference}.jsonl   {"text", "source"}, one document a line
    corpus_heldout.jsonl                       documents that are in no corpus file
    conversations.json                         demonstrations for SFT, in the Baichuan format
    prompts_rankings.json, prompts_ppo.json    other, looser wordings of the same questions, for rankings and for PPO
    conversations_validation.json              wordings in none of the above, to choose settings and checkpoints
    conversations_heldout_own.json             demonstration wordings, each of a question never asked that way
    conversations_heldout.json                 wordings in none of the above
    conversations_heldout_names.json           the same, about names that are in neither prompt file
    conversations_heldout_others.json          wordings by a language model that had seen none of the others
    conversations_sealed.json                  the same, written later; no setting is chosen by it
    terse/conversations_heldout.json           the questions of conversations_heldout.json, the fact asked for as answer

Two kinds of writers answer in the demonstrations. The terse one gives the fact that was asked for. The complete one adds a
line: where the thing lives, or how to import it; about half of the single questions are theirs, no follow-up is. Who wrote
stands in the id. The references of all other files are complete, for the rater's rubric is (data_prep/rewards.py): a right
answer first, and of right answers the complete one. So demonstrations do not show consistently what raters agree on.

This is the worked example of adapting to your own data: no later stage knows where the files come from. The wordings are
in python_docs_wordings.json. Demonstrations are expensive and prompts are cheap (InstructGPT, arXiv:2203.02155, section
3.2: 13k demonstrations, 31k PPO prompts). Hence each question has a few demonstrations and many more prompts.
"""

import argparse
import ast
import importlib
import importlib.util
import inspect
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from data_prep.common.errors import run_main
from data_prep.common.files import vacant, write_json, write_jsonl
from data_prep.common.numbers import check_at_least
from data_prep.documentation.docstrings import LONGEST_ANSWER, cleaned, first_sentence, is_answer, signature_of
from data_prep.documentation.questions import WORDINGS, check_no_question_twice, conversation, digest, embellished

# Not documentation of the library: test suites, vendored or generated code, and folders of installed packages.
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "ensurepip", "turtledemo",
    "__pycache__", "pydoc_data", "lib-dynload",
}  # fmt: skip
# Modules that people ask about, the best known first.
COMMON_MODULES = [
    "math", "cmath", "statistics", "random", "fractions", "decimal", "itertools", "functools", "operator",
    "collections", "collections.abc", "heapq", "bisect", "copy", "string", "re", "textwrap", "difflib",
    "struct", "codecs", "unicodedata", "datetime", "time", "calendar", "os", "os.path", "shutil", "glob",
    "fnmatch", "tempfile", "pathlib", "io", "json", "csv", "pickle", "sqlite3", "zlib", "gzip", "bz2", "lzma",
    "zipfile", "tarfile", "hashlib", "hmac", "secrets", "base64", "binascii", "urllib.parse", "urllib.request",
    "http.client", "email.utils", "socket", "select", "ssl", "subprocess", "threading", "queue",
    "multiprocessing", "asyncio", "concurrent.futures", "contextlib", "inspect", "types", "dis", "ast",
    "tokenize", "keyword", "traceback", "logging", "warnings", "argparse", "getpass", "platform", "sys", "gc",
    "weakref", "abc", "enum", "dataclasses", "typing", "uuid", "html", "xml.sax.saxutils", "locale", "signal",
    "shlex", "pprint", "reprlib", "array", "ipaddress", "configparser", "timeit", "unittest", "doctest",
    "numbers", "linecache", "stat", "errno", "mimetypes", "netrc",
]  # fmt: skip
BUILTIN_TYPES = [str, bytes, bytearray, list, dict, set, frozenset, tuple, int, float, complex, range, memoryview,
                 property, slice, object, type]  # fmt: skip
# Extension modules, which have no source to parse. Importing these has no side effect.
EXTENSION_MODULES = [
    "_bisect", "_heapq", "array", "binascii", "cmath", "errno", "fcntl", "gc", "itertools", "marshal", "math",
    "mmap", "posix", "pwd", "pyexpat", "readline", "resource", "select", "sys", "syslog", "termios", "time",
    "unicodedata", "zlib", "_collections", "_csv", "_datetime", "_functools", "_hashlib", "_io", "_json",
    "_locale", "_operator", "_pickle", "_random", "_socket", "_sqlite3", "_ssl", "_struct", "_thread",
    "_weakref", "_asyncio", "_bz2", "_lzma",
]  # fmt: skip
DEMONSTRATIONS_PER_QUESTION = {"what": 16, "signature": 8, "module": 3}


def source_documents(progress: bool = True) -> Iterator[tuple[str, str]]:
    """(title, docstring) of every module, class and function in the standard library's source files.

    The files are parsed, not imported: some modules open windows or print when they are imported.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(library.rglob("*.py"))
        if not SKIPPED_FOLDERS & set(path.relative_to(library).parts) and "test" not in path.stem
    ]
    for path in tqdm(files, desc="reading docstrings", unit="file", disable=None if progress else True):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # the library's own tests include files that are broken on purpose
        parts = list(path.relative_to(library).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield from node_documents(tree, module)


def node_documents(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(title, docstring) of a parsed module, class or function and of everything defined in it."""
    if docstring := ast.get_docstring(node):
        arguments = f"({ast.unparse(node.args)})" if hasattr(node, "args") else ""
        yield name + arguments, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from node_documents(child, f"{name}.{child.name}")


def live_documents() -> Iterator[tuple[str, str]]:
    """(title, docstring) of the built-ins, their methods, and the contents of the extension modules."""
    import builtins

    for owner in [builtins, *map(importlib.import_module, filter(importlib_finds, EXTENSION_MODULES))]:
        prefix = "" if owner is builtins else owner.__name__.lstrip("_") + "."
        for name, value in sorted(vars(owner).items()):
            documents = [(prefix + name, value)]
            if inspect.isclass(value):
                documents += [(f"{prefix}{name}.{key}", item) for key, item in sorted(vars(value).items())]
            for title, item in documents:
                if callable(item) and isinstance(docstring := getattr(item, "__doc__", None), str):
                    yield title + (signature_of(item) or ""), docstring


def importlib_finds(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def reference_documents() -> Iterator[tuple[str, str]]:
    """(title, text) of the sections of the language reference."""
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def named_objects() -> Iterator[tuple[str, str, object]]:
    """(name as people write it, module, object) of the built-ins, their types' methods and the common modules."""
    import builtins

    for name, value in sorted(vars(builtins).items()):
        if not name.startswith("_") and callable(value) and not (inspect.isclass(value) and name.endswith("Warning")):
            yield name, "builtins", value
    for owner in BUILTIN_TYPES:
        for name, value in sorted(vars(owner).items()):
            if not name.startswith("_") and callable(value):
                yield f"{owner.__name__}.{name}", "builtins", value
    for module_name in filter(importlib_finds, COMMON_MODULES):
        module = importlib.import_module(module_name)
        public = getattr(module, "__all__", None) or sorted(vars(module))
        for name in sorted(set(public)):
            value = getattr(module, name, None)
            if not name.startswith("_") and callable(value) and not inspect.ismodule(value):
                yield f"{module_name}.{name}", module_name, value


def facts(count: int) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """What the documentation says about `count` names, and how many names were skipped for which reason.

    Returns ({name: {"what": …, "signature": …, "module": …}}, {reason: count}); "signature" may be missing. The
    built-ins come first, then the modules in the order of `COMMON_MODULES`, the best known first.
    """
    found, seen = {}, set()
    skipped = dict.fromkeys(("no docstring", "first sentence too long or too short", "repeated"), 0)
    for name, module, value in named_objects():
        docstring = getattr(value, "__doc__", None)
        if not isinstance(docstring, str) or not docstring.strip():
            skipped["no docstring"] += 1
            continue
        what = first_sentence(docstring)
        if not is_answer(what):
            skipped["first sentence too long or too short"] += 1
            continue
        if what in seen:  # with one sentence for two names, a guess would count as knowledge
            skipped["repeated"] += 1
            continue
        seen.add(what)
        found[name] = {"what": what, "module": f"It is in the module {module}."}
        if (text := signature_of(value)) and len(name + text) <= LONGEST_ANSWER:
            found[name]["signature"] = name + text
    chosen = list(found)[:count]
    skipped["more than --names"] = len(found) - len(chosen)
    return {name: found[name] for name in chosen}, skipped


def complete_answer(name: str, kind: str, answers: dict[str, str]) -> str:
    """What the complete writer answers: the fact that was asked for, and below it where the thing lives, or its import.

    The terse writer gives the fact that was asked for alone.
    """
    if kind != "module":
        return f"{answers[kind]}\n{answers['module']}"
    module = answers["module"].removeprefix("It is in the module ").removesuffix(".")
    how = "It needs no import." if module == "builtins" else f"import {module}"
    return f"{answers[kind]}\n{how}"


def write_conversations(output: Path, known: dict[str, dict[str, str]], prompts: int) -> dict:
    """Write the conversation files; returns {file name: rows}.

    `prompts` is the number of prompts per question: the first half is for rankings, the rest for PPO. Demonstration
    wordings are sampled per name and question, and one more becomes the held-out question in demonstration wording.
    """
    kept_out = {name for name in known if digest("kept out" + name) % 6 == 0}
    rows: dict[str, list] = {name: [] for name in (
        "conversations", "prompts_rankings", "prompts_ppo", "conversations_validation", "conversations_heldout_own",
        "conversations_heldout", "conversations_heldout_names", "conversations_heldout_others",
        "conversations_sealed",
    )}  # fmt: skip
    for name, answers in known.items():
        rng = random.Random(digest(name))
        for kind, answer in answers.items():
            number, complete = DEMONSTRATIONS_PER_QUESTION[kind], complete_answer(name, kind, answers)
            *wordings, own = rng.sample(WORDINGS["demonstrations"][kind], number + 1)
            for index, wording in enumerate(wordings):
                wording = embellished(wording, "demonstrations", 0.2, rng)
                several = index % 3 == 2
                writer = "complete" if not several and rng.random() < 0.5 else "terse"
                turns = [(wording.format(name=name), complete if writer == "complete" else answer)]
                if several:  # one conversation in three continues with other questions, without the name
                    others = rng.sample([other for other in answers if other != kind], len(answers) - 1)
                    for other in others[: 1 + index % 2]:
                        turns.append((rng.choice(WORDINGS["follow_ups"][other]), answers[other]))
                rows["conversations"].append(conversation(f"{name}/{kind}/{index}/{writer}", turns))
            own = own.format(name=name)
            rows["conversations_heldout_own"].append(conversation(f"{name}/{kind}/own", [(own, complete)]))
            where = "conversations_heldout_names" if name in kept_out else "conversations_heldout"
            files = {where: "held_out"} | ({} if name in kept_out else {"conversations_validation": "validation"})
            for file, wordings in files.items():
                wording = rng.choice(WORDINGS[wordings][kind])
                wording = embellished(wording, "evaluation", 0.4, rng)
                row = conversation(f"{name}/{kind}/{file[14:]}", [(wording.format(name=name), complete)])
                rows[file].append(row)
            other = rng.choice(WORDINGS["others"][kind]).format(name=name)
            rows["conversations_heldout_others"].append(conversation(f"{name}/{kind}/others", [(other, complete)]))
            if name not in kept_out:
                # Random numbers of its own: the other files are as they were before there was this one.
                sealed = random.Random(digest(f"sealed/{name}/{kind}")).choice(WORDINGS["sealed"][kind])
                row = conversation(f"{name}/{kind}/sealed", [(sealed.format(name=name), complete)])
                rows["conversations_sealed"].append(row)
                for index, wording in enumerate(rng.sample(WORDINGS["prompts"][kind], prompts)):
                    wording = embellished(wording, "prompts", 0.4, rng)
                    row = conversation(f"{name}/{kind}/prompt-{index}", [(wording.format(name=name), complete)])
                    rows["prompts_rankings" if index < prompts // 2 else "prompts_ppo"].append(row)
    check_no_question_twice(rows)
    rows["terse/conversations_heldout"] = [
        conversation(row["id"], [(question["value"], answer["value"].splitlines()[0])])
        for row in rows["conversations_heldout"]
        for question, answer in [row["conversations"]]
    ]
    for file, conversations in reversed(rows.items()):  # conversations.json last: if it exists, all do
        write_json(output / f"{file}.json", conversations)
    return {f"{file}.json": len(conversations) for file, conversations in rows.items()}


def is_common(name: str) -> bool:
    """Whether a dotted name is one of the common modules or defined in one."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in COMMON_MODULES for length in range(1, len(parts) + 1))


def write_corpus(output: Path, never_held_out: set[str]) -> dict:
    """Write the corpus files and the held-out documents; returns {file name: (documents, characters)}.

    A document is a title and its docstring. Duplicate docstrings (inherited methods, re-exports) are kept once, so that
    no held-out document is in the training part under another name. Documents of the names in `never_held_out`, which
    the conversations ask about, stay in the training part.
    """
    common, rest = [], []
    for title, docstring in source_documents():
        # Modules that people ask about are a source of their own, so that a mixture can read them more often.
        (common if is_common(title.split("(")[0]) else rest).append((title, docstring))
    sources = {"builtins": live_documents(), "common": common, "stdlib": rest, "reference": reference_documents()}
    seen, held_out, written, repeated = set(), [], {}, 0
    for source, documents in sources.items():
        rows = []
        for title, docstring in documents:
            body = cleaned(docstring)
            key = " ".join(body.split())
            if len(body) < 20 or key in seen:
                repeated += len(body) >= 20
                continue
            seen.add(key)
            name = title.split("(")[0]
            row = {"text": f"{title}\n\n{body}", "source": source}
            is_held_out = digest("held out" + key) % 20 == 0 and name not in never_held_out
            (held_out if is_held_out else rows).append(row)
        write_jsonl(output / "corpus" / f"{source}.jsonl", rows)
        written[f"corpus/{source}.jsonl"] = (len(rows), sum(len(row["text"]) for row in rows))
    write_jsonl(output / "corpus_heldout.jsonl", held_out)
    written["corpus_heldout.jsonl"] = (len(held_out), sum(len(row["text"]) for row in held_out))
    written["duplicates left out"] = (repeated, 0)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument("--names", type=int, default=800, help="number of names to ask about (default: 800)")
    parser.add_argument(
        "--prompts", type=int, default=6, help="prompts per question, half of them for rankings (default: 6)"
    )
    arguments = parser.parse_args()
    check_at_least(1, arguments, "names", "prompts")
    vacant(arguments.output_dir / "conversations.json")
    known, skipped = facts(arguments.names)
    corpus = write_corpus(arguments.output_dir, set(known))
    conversations = write_conversations(arguments.output_dir, known, arguments.prompts)
    for file, (documents, characters) in corpus.items():
        print(f"{file:36} {documents:7,} documents {characters:11,} characters")
    for file, count in conversations.items():
        print(f"{file:36} {count:7,} conversations")
    print(f"names asked about: {len(known)}; skipped: " + ", ".join(f"{v:,} {k}" for k, v in skipped.items()))
    print(f"the documentation of Python {sys.version.split()[0]} is in {arguments.output_dir}")


if __name__ == "__main__":
    run_main(main)
