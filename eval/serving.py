r"""Does a saved model answer, wherever it is served, as it was trained and measured? Nothing is set but what is saved.

    python -m eval.serving --model runs/quickstart/sft --limit 50 \
        --conversations runs/quickstart/data/conversations_heldout.json --results_dir runs/quickstart/results

Compares, on the first prompts: their tokens with those of training; what the template and `generation_config.json` say
with what was measured; and the project's greedy answers, with their log-probabilities, with those of `pipeline`, of
`transformers serve` (started here, on 127.0.0.1; or of the server at `--url`) through OpenAI's client, of vLLM where
it is installed, and, where LoRA was trained, of the adapter merged and on its base: `--model` may be either. With
`--llama_cpp` a GGUF file is written and asked too. Prints a table: same, differs and at which token, fails, refused,
or not installed. Exits with 0 where all that is installed is the same, with 1 otherwise. Writes `serving_<name>.json`.
"""

import argparse
import math
import sys
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, vacant, write_results
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted, printable
from data_prep.questions.server import check_url, key_from
from eval.common.options import CONVERSATIONS, add_result_options, add_row_options, quarantine_file
from eval.serving_checks.rows import GOOD, table

KEY = "OPENAI_API_KEY"  # the environment variable with the key of the server at --url


def prompts_that_fit(rows: list[dict], tokenizer, most: float) -> list[dict]:
    """The rows whose prompt has at most `most` tokens and no tools; how many are left out is printed."""
    from data_prep.tokens.chat_encoder import encode_prompts, uses_tools

    plain = [row for row in rows if not uses_tools(row["prompt"])]
    lengths = map(len, encode_prompts(tokenizer, [row["prompt"] for row in plain]))
    kept = [row for row, length in zip(plain, lengths, strict=True) if length <= most]
    if len(plain) < len(rows):
        print(f"left out: {counted(len(rows) - len(plain), 'prompt')} with tools")
    if len(kept) < len(plain):
        print(f"left out: {counted(len(plain) - len(kept), 'prompt')} longer than {most} tokens, the context minus")
        print("  --max_new_tokens")
    if not kept:
        raise InputError("no prompt is left: give a smaller --max_new_tokens, or other conversations")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model that is served")
    parser.add_argument("--conversations", nargs="+", required=True, help=CONVERSATIONS)
    add_row_options(parser)
    add_result_options(parser, "the model's folder")
    parser.add_argument("--limit", type=int, default=50, help="number of prompts, the first ones (default: 50)")
    parser.add_argument(
        "--url",
        help="a server with OpenAI's interface; its key, if any, is in OPENAI_API_KEY (default: transformers serve is started)",
    )
    parser.add_argument(
        "--adapter",
        help="folder of the LoRA adapter that was merged into --model (default: the checkpoint in it that holds it)",
    )
    parser.add_argument("--tokenizer", help="folder with the tokenizer of training (default: settings.json names it)")
    parser.add_argument("--llama_cpp", help="folder of llama.cpp, with convert_hf_to_gguf.py (default: no GGUF file)")
    parser.add_argument(
        "--gguf_dir", help="new folder for the GGUF file and its Modelfile (default: they are removed)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer compared (default: 64)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of a token's log-probability (default: 0.001)")
    arguments = parser.parse_args()
    check_at_least(1, arguments, "max_new_tokens", "limit")
    if arguments.url:
        check_url(arguments.url, KEY)
    key = key_from(KEY) if arguments.url else ""
    existing(arguments.model, "recipes/")
    for option, file in (("adapter", "adapter_config.json"), ("llama_cpp", "convert_hf_to_gguf.py")):
        folder = getattr(arguments, option)
        if folder and not (existing(folder) / file).exists():
            raise InputError(f"--{option} {folder}: found no {file} in it")

    if arguments.adapter and (Path(arguments.model) / "adapter_config.json").exists():
        raise InputError(f"--adapter: {arguments.model} is an adapter itself, and is compared with itself merged")
    if arguments.gguf_dir:
        vacant(arguments.gguf_dir)
        if not arguments.llama_cpp:
            raise InputError("--gguf_dir: it needs --llama_cpp, whose converter writes the GGUF file")

    from data_prep.models.loading import check_chat, context_of, load_checkpoint  # slow to import
    from data_prep.readers.prompts import read_prompts
    from eval.serving_checks.adapters import adapter_of_training, adapter_row, is_adapter, merged_row
    from eval.serving_checks.answers import Expected, pipeline_row
    from eval.serving_checks.gguf import gguf_row
    from eval.serving_checks.prompts import (
        end_of_turn_row,
        prompt_row,
        served_prompts,
        settings_row,
        template_notes,
        tokenizer_of_training,
    )
    from eval.serving_checks.servers import server_row, vllm_row

    name = arguments.name or Path(arguments.model).name
    quarantine = quarantine_file(arguments.on_bad, arguments.results_dir, name)
    rows = read_prompts(arguments.conversations, None, 0, arguments.on_bad, quarantine, arguments.columns)
    model, tokenizer = load_checkpoint(arguments.model)
    check_chat(arguments.model, model, tokenizer, arguments.max_new_tokens)
    rows = rows[: arguments.limit]
    rows = prompts_that_fit(rows, tokenizer, (context_of(model.config) or math.inf) - arguments.max_new_tokens)
    training, where = tokenizer_of_training(arguments.model, arguments.tokenizer, tokenizer)
    prompts = [row["prompt"] for row in rows]

    found = [prompt_row(tokenizer, training, where, rows)]
    found.append(end_of_turn_row(arguments.model, model, tokenizer, training))
    found.append(settings_row(model, tokenizer))
    found += template_notes(tokenizer)
    expected = Expected(model, tokenizer, training, prompts, arguments.max_new_tokens)
    served = served_prompts(tokenizer, prompts)
    found.append(pipeline_row(expected, arguments.model, served, model.device, arguments.tolerance))
    found.append(server_row(expected, arguments.model, arguments.url, key, arguments.tolerance))
    found.append(vllm_row(expected, arguments.model, arguments.tolerance))
    if is_adapter(arguments.model):
        found.append(merged_row(expected, model, arguments.model, arguments.tolerance))
    elif adapter := arguments.adapter or adapter_of_training(arguments.model):
        found.append(adapter_row(expected, model, adapter, arguments.tolerance))
    found.append(gguf_row(expected, arguments.model, arguments.llama_cpp, arguments.gguf_dir))

    good = all(row.status in GOOD for row in found)
    if arguments.results_dir:
        about = {"model": arguments.model, "data": arguments.conversations, "prompts": len(rows), "same": good}
        checks = {row.check: {"status": row.status, "detail": row.detail, **row.figures} for row in found}
        write_results(arguments.results_dir, f"serving_{name}", {**about, "checks": checks})
    print(printable(table(found)))
    print(f"{name}: {'serves as it was trained' if good else 'does not serve as it was trained'}")
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
