"""Chat with any checkpoint in the terminal.

    python -m eval.chat --model runs/quickstart/ppo
    python -m eval.chat --model runs/quickstart/base --raw

A model whose end-of-sequence token ends a turn of its chat template answers, and remembers the conversation. Any other
model (a base model), and every model with `--raw`, continues the given text. /help lists the commands. Questions can
also come from a pipe, one per line. Typed text stays text: "<|endoftext|>" reaches the model as characters, as in
training. Control characters of an answer are shown as codes.
"""

import argparse
import math
import sys

from data_prep.common.errors import InputError, run_main
from data_prep.common.text import counted, printable
from eval.pages.talkers import fitting, generation_settings, is_chat_model

HELP = """\
/reset   forget the conversation
/help    show this text
/exit    leave, as Ctrl-D and Ctrl-C do; in an answer Ctrl-C stops the answer alone"""


def note_of(forgotten: int, truncated: int) -> str:
    """What of a conversation the model is not given, in words."""
    notes = [f"no longer fits and is forgotten: the oldest {counted(forgotten, 'exchange')}"] if forgotten else []
    notes += [f"the first {truncated} tokens do not fit and are truncated"] if truncated else []
    return "; ".join(notes)


def is_text(line: str) -> bool:
    """Whether `line`, read with half surrogate pairs for the bytes that its encoding lacks, has none."""
    return not any("\ud800" <= letter <= "\udfff" for letter in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal language model")
    parser.add_argument("--raw", action="store_true", help="continue the text, without chat template or history")
    parser.add_argument("--system", help="text of a system turn")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (default: 0, greedy)")
    parser.add_argument(
        "--max_new_tokens", type=int, help="longest answer in tokens (default: 128, or half the context if less)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed for sampling (default: 42)")
    arguments = parser.parse_args()
    if not 0 <= arguments.temperature < math.inf:
        raise InputError(f"--temperature {arguments.temperature:g}: expected at least 0, where 0 is greedy")
    if not is_text(arguments.system or ""):
        raise InputError(f"--system: {arguments.system!r} is not {sys.getfilesystemencoding()}")

    import torch  # slow to import
    from transformers import TextStreamer

    from data_prep.models.batched_generate import given_settings_alone
    from data_prep.models.loading import check_answer, check_template, context_of, load_checkpoint
    from data_prep.tokens.chat_encoder import encode_text
    from data_prep.tokens.generation_prompt import head_of_answers, without_head

    class PrintableStreamer(TextStreamer):
        def __init__(self, tokenizer, head: list[int]) -> None:
            """`head` is not shown where an answer begins with it."""
            super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
            self.head, self.held = head, []

        def put(self, value) -> None:
            if self.next_tokens_are_prompt:
                super().put(value)
                return
            self.held += value.tolist()
            if self.held != self.head[: len(self.held)]:  # no part of the head: told from it now
                super().put(torch.tensor(without_head(self.held, self.head)))
                self.head, self.held = [], []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    model, tokenizer = load_checkpoint(arguments.model)
    context, max_new_tokens = context_of(model.config), arguments.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = min(128, context // 2) if context else 128
    check_answer(arguments.model, model.config, max_new_tokens)
    longest = (context or math.inf) - max_new_tokens
    if not arguments.raw and tokenizer.chat_template is not None:
        check_template(tokenizer, arguments.model)
    chat = not arguments.raw and is_chat_model(model, tokenizer)
    settings = generation_settings(model, tokenizer, arguments.temperature, max_new_tokens)
    head = head_of_answers(tokenizer) if chat else []
    torch.manual_seed(arguments.seed)
    beginning = [{"role": "system", "content": arguments.system}] if arguments.system else []
    history = list(beginning)
    mode = "it answers, and remembers" if chat else "it continues your text, and remembers nothing"
    print(f"{printable(arguments.model)}: {mode}. /reset forgets, /exit leaves, /help says more.")
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no text come as half surrogate pairs, not as an error
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            question = input("\nyou> " if chat else "\ntext> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(left; a conversation is not kept)")
            sys.exit(130)
        if question.strip() == "/exit":
            return
        if question.strip() == "/help":
            print(HELP)
        elif question.strip() == "/reset":
            history = list(beginning)
            print("(forgotten)")
        elif not is_text(question):
            print(f"(that line is not {sys.stdin.encoding}, and was not sent)")
        elif question.strip():
            if chat:
                asked = [*history, {"role": "user", "content": question}]
                history, ids, forgotten, truncated = fitting(tokenizer, asked, longest)
            else:
                ids = encode_text(tokenizer, question)
                forgotten, truncated = 0, max(0, len(ids) - longest)
                ids = ids[truncated:]
            if note := note_of(forgotten, truncated):
                print(f"({note})")
            sys.stdout.write("model> " if chat else printable(question))
            streamer = PrintableStreamer(tokenizer, head)
            inputs = torch.tensor([ids], device=model.device)
            try:
                with given_settings_alone(model):
                    output = model.generate(
                        inputs, attention_mask=torch.ones_like(inputs), generation_config=settings, streamer=streamer
                    )
            except KeyboardInterrupt:  # a stopped answer is forgotten, together with its question
                print("\n(stopped)")
                history = history[:-1] if chat else history
                continue
            if chat:
                written = without_head(output[0, len(ids) :].tolist(), head)
                answer = tokenizer.decode(written, skip_special_tokens=True)
                history.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    run_main(main)
