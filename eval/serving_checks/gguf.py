"""A GGUF file by llama.cpp's converter, with a Modelfile for Ollama, and llama.cpp's answers."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from data_prep.common.files import atomic_write, read_json
from eval.serving_checks.answers import Expected
from eval.serving_checks.modelfile import modelfile, turns_of, written
from eval.serving_checks.rows import FAILS, NOT_INSTALLED, NOTE, Row
from eval.serving_checks.servers import asked

CONVERTER = "convert_hf_to_gguf.py"
# The converter knows pre-tokenizers by a hash of what they and one vocabulary make of a text, so it knows no vocabulary
# that was trained by its user. One that splits as GPT-2 does is named here; what is converted is the converter's own.
CONVERT = """
import runpy, sys
folder, name = sys.argv[1:3]
script = f"{folder}/convert_hf_to_gguf.py"
sys.path[:0] = [folder, f"{folder}/gguf-py"]
if name:
    import conversion.base
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: name
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""


def gguf_row(expected: Expected, folder: str, llama_cpp: str | None, gguf_dir: str | None) -> Row:
    """The file written by llama.cpp's converter, and asked by llama.cpp (xllamacpp) greedily.

    It is left in `gguf_dir` with its Modelfile, or removed.
    """
    check = "llama.cpp (GGUF)"
    if llama_cpp is None:
        return Row(check, NOT_INSTALLED, f"--llama_cpp names the folder of its {CONVERTER}")
    if not (Path(folder) / "config.json").exists():
        return Row(check, NOTE, "not looked at: an adapter is merged first")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(gguf_dir or temporary)
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{Path(folder).resolve().name}.gguf"
        if error := _convert(folder, file, llama_cpp, _known_split(expected.tokenizer)):
            return Row(check, FAILS, error)
        said = _write_modelfile(expected, file)
        missing = [name for name in ("xllamacpp", "openai") if importlib.util.find_spec(name) is None]
        if missing:
            said = f"{said}; converted, not asked: pip install {' '.join(missing)}"
            return Row(check, NOT_INSTALLED, said)
        return _ask(check, expected, file, said)


def _known_split(tokenizer) -> str:
    """llama.cpp's name for how the tokenizer splits a text before merging, where its converter would not know it."""
    split = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return "gpt-2" if split.get("type") == "ByteLevel" and split.get("use_regex", True) else ""


def _convert(folder: str, file: Path, llama_cpp: str, split: str) -> str:
    """Write `file`; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as staged:
        for path in Path(folder).resolve().iterdir():
            if path.is_file():
                os.symlink(path, Path(staged) / path.name)
        config = read_json(Path(folder) / "config.json")
        if "n_positions" in config:  # the converter wants the old name beside it, which transformers 5 does not write
            (Path(staged) / "config.json").unlink()
            (Path(staged) / "config.json").write_text(json.dumps({"n_ctx": config["n_positions"], **config}))
        words = [sys.executable, "-c", CONVERT, str(Path(llama_cpp).resolve()), split, staged]
        words += ["--outfile", str(file.resolve()), "--outtype", "f32"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and file.exists():
        return ""
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it printed nothing")
    if "pre-tokenizer was not recognized" in last:
        return (
            "no: llama.cpp does not split text as this tokenizer does before merging; one trained with "
            "data_prep.train_tokenizer --pre_tokenizer gpt2 is read"
        )
    return f"{CONVERTER}: {last}"


def _write_modelfile(expected: Expected, file: Path) -> str:
    """Write the Modelfile beside `file` if it writes the prompts as the chat template does; what came of it, in words."""
    tokenizer, prompts = expected.tokenizer, expected.prompts
    turns = turns_of(tokenizer)
    texts = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    if turns is None or any(written(turns, prompt) != text for prompt, text in zip(prompts, texts, strict=True)):
        return "no Modelfile: the chat template does not write each turn by itself"
    text = modelfile(file.name, turns, tokenizer.eos_token, tokenizer.bos_token, expected.context)
    with atomic_write(file.with_name("Modelfile")) as out:
        out.write(text)
    return f"Modelfile: {len(prompts)} of {len(prompts)} prompts written the same"


def _ask(check: str, expected: Expected, file: Path, said: str) -> Row:
    import xllamacpp

    parameters, needed = xllamacpp.CommonParams(), max(map(len, expected.ids)) + expected.max_new_tokens
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(file), expected.context or needed, 1
    parameters.verbosity = -1
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        return Row(check, FAILS, f"llama.cpp does not load the file: {error}; {said}")
    # Its matrix products are its own, and it samples unless told: answers are compared, log-probabilities are not.
    greedy = {"temperature": 0, "max_tokens": expected.max_new_tokens}
    row = asked(check, expected, file.name, f"{server.listening_address}/v1", None, **greedy)
    del server
    return row._replace(detail=f"{row.detail}; {said}")
