r"""Chat in the browser with one or several checkpoints side by side, on this machine and without the network.

    python -m eval.chat_page --model runs/quickstart/base runs/quickstart/sft runs/quickstart/ppo \
        --reward_model runs/quickstart/reward --save_to chats.jsonl
    python -m eval.chat_page --model runs/quickstart/ppo --url http://127.0.0.1:8000/v1 --language zh
    python -m eval.chat_page --model runs/quickstart/sft runs/quickstart/ppo \
        --url mine=http://127.0.0.1:8000/v1 big=https://models.example/v1 --url_model big=large --api_key_env big=BIG_KEY
    PAGE_PASSWORD=… python -m eval.chat_page --model runs/quickstart/ppo --host 0.0.0.0 --username me

Every model answers the same message as it remembers the conversation itself; the answers grow side by side, and the
reward model's score stands under each. A base model is shown as what it is: it continues the text, and remembers
nothing. A switch puts a few invented questions and answers in front of the message, so that it seems to converse. Of
several addresses each has a name, its own model and its own key, which is read from an environment variable. A
conversation can be saved as a row that recipes/sft.py reads. It needs the extra `pages`; the terminal's chat is
eval/chat.py.
"""

import argparse
import math
import threading
import time
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.text import printable
from data_prep.pages.launch import add_page_options, check_page_options, page, serve, text_html
from data_prep.pages.words import in_language
from eval.pages.addresses import add_address_options, addresses
from eval.pages.chat_html import STYLE, exchange_html, models_html
from eval.pages.chat_words import WORDS
from eval.pages.saving import add_row, baichuan_row, check_file
from eval.pages.talkers import LONGEST_ANSWER, Checkpoint, Options, Remote
from eval.pages.turns import Scorer, answers, history_of

LONGEST_MESSAGE = 100_000  # characters

LAYOUT = """
#ask { position: sticky; bottom: 0; z-index: 10; background: var(--body-background-fill); padding: .5rem 0; gap: .5rem; }
#ask button, #saves button { flex: 1 1 auto; min-width: 4rem; padding: .45rem .6rem; }
#buttons, #saves { flex-wrap: wrap; gap: .5rem; }
@media (max-width: 640px) { #message .info { display: none; } }
#status { min-height: 1.4em; font-size: .85rem; }
#conversation { gap: 0; }
h1 { font-size: 1.4rem; margin: 0; }
"""
# Escape stops; the page follows the answers as long as its end is in sight.
SCRIPT = """() => {
  document.documentElement.lang = "%s";
  let follow = true;
  const sight = () => { follow = innerHeight + scrollY >= document.documentElement.scrollHeight - 120; };
  addEventListener("scroll", sight, {passive: true});
  addEventListener("keydown", event => {
    if (event.key === "Escape") document.querySelector("#stop:not([disabled])")?.click();
    if (event.key === "Enter" && event.target.closest?.("#message")) follow = true;
  });
  new MutationObserver(() => { if (follow) scrollTo(0, document.documentElement.scrollHeight); })
    .observe(document.querySelector("#conversation"), {childList: true, subtree: true, characterData: true});
}"""
FOCUS = "() => setTimeout(() => document.querySelector('#message textarea').focus(), 100)"


def labels(names: list[str]) -> list[str]:
    """What the models are called on the page: the end of each name that no other has; the same model twice is numbered."""
    shown = []
    for number, name in enumerate(names):
        parts, others = name.rstrip("/").split("/"), {other.rstrip("/") for other in names} - {name.rstrip("/")}
        tails = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        tail = next((tail for tail in tails if not any(f"/{other}".endswith(f"/{tail}") for other in others)), name)
        again = names[:number].count(name)
        shown.append(f"{tail} ({again + 1})" if again else tail)
    return shown


class Chat:
    """What the buttons do. A conversation is a list of {"message", "answers": one for each model, see `turns.answers`}."""

    def __init__(self, talkers: list, names: list[str], scorer: Scorer | None, arguments, words) -> None:
        self.talkers, self.names, self.scorer, self.arguments, self.words = talkers, names, scorer, arguments, words
        self.stops: dict[str, threading.Event] = {}  # of each open page, set unless its models are writing

    def html(self, exchanges: list[dict]) -> str:
        return "".join(exchange_html(self.words, self.names, exchange) for exchange in exchanges)

    def send(self, message: str, editing: bool, exchanges: list[dict], settings: tuple, session: str):
        """Yields (message, editing, exchanges, earlier ones as HTML, the last as HTML, status, is writing)."""
        kept = exchanges[:-1] if editing else exchanges
        message = message.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair
        words, refusal = self.words, ""
        if not message.strip():
            refusal = words.nothing_written
        elif len(message) > LONGEST_MESSAGE:
            refusal = words.too_long.format(count=f"{len(message):,}", most=f"{LONGEST_MESSAGE:,}")
        elif session in self.stops and not self.stops[session].is_set():
            refusal = words.busy
        if refusal:
            yield message, editing, exchanges, self.html(exchanges[:-1]), self.html(exchanges[-1:]), refusal, False
            return
        yield from self._answered(message, kept, settings, session, words.done)

    def retry(self, message: str, exchanges: list[dict], settings: tuple, session: str):
        """As `send`, for the last message again."""
        if not exchanges:
            yield message, False, exchanges, "", "", self.words.nothing_to_retry, False
            return
        status = self.words.greedy if settings[0] == 0 else self.words.done
        for _, *state in self._answered(exchanges[-1]["message"], exchanges[:-1], settings, session, status):
            yield message, *state

    def _answered(self, message: str, kept: list[dict], settings: tuple, session: str, status: str):
        temperature, max_new_tokens, fake_dialogue = settings
        language = self.arguments.language if fake_dialogue else ""
        options = Options(temperature, int(max_new_tokens), language, self.arguments.system or "")
        stop = self.stops[session] = threading.Event()
        earlier, exchange = self.html(kept), {"message": message, "answers": []}
        for exchange["answers"] in answers(self.talkers, self.scorer, kept, message, options, stop):
            yield "", False, [*kept, exchange], earlier, self.html([exchange]), self.words.busy, True
        yield "", False, [*kept, exchange], earlier, self.html([exchange]), status, False

    def stop(self, session: str) -> None:
        if session in self.stops:
            self.stops[session].set()

    def left(self, session: str) -> None:
        """The page was closed: its models need not write on."""
        self.stop(session)
        self.stops.pop(session, None)

    def save(self, index: int, exchanges: list[dict], saved: list) -> tuple[list, str]:
        """Add the conversation with the model at `index` to the file; returns what is saved, and the status."""
        words, name, own = self.words, self.names[index], [exchange["answers"][index] for exchange in exchanges]
        history = history_of(exchanges, index)
        if not exchanges:
            return saved, words.nothing_to_retry
        if any(answer["mode"] == "base" for answer in own):
            return saved, words.not_saved_continued.format(model=name)
        if any(answer["error"] or not answer["text"].strip() for answer in own):
            return saved, words.not_saved_empty.format(model=name)
        if (index, history) in saved:
            return saved, words.saved_already
        try:
            system = self.arguments.system if own[0]["mode"] != "dialogue" else None
            count = add_row(self.arguments.save_to, baichuan_row(name, history, system or ""))
        except InputError as error:
            return saved, words.not_saved.format(error=error)
        told = words.saved if all(answer["ended"] for answer in own) else words.saved_cut
        return [*saved, (index, history)], told.format(count=count, file=Path(self.arguments.save_to).name)


def build(chat: Chat, longest: int, most: int):
    """The page, as Gradio's Blocks. `longest` is the longest answer at first, `most` what the slider goes up to."""
    words, talkers, arguments = chat.words, chat.talkers, chat.arguments
    blocks = page(words.title)
    import gradio as gr

    with blocks:
        scored = Path(chat.scorer.name).name if chat.scorer else None
        gr.HTML(models_html(words, chat.names, [talker.kind for talker in talkers], scored))
        with gr.Column(elem_id="conversation"):
            earlier = gr.HTML("", elem_id="earlier")
            last = gr.HTML("", elem_id="last")
        with gr.Column(elem_id="ask"):
            status = gr.HTML(status_html(words.unkept), elem_id="status")
            message = gr.Textbox(
                label=words.message, info=words.keys, lines=1, max_lines=8, autofocus=True, elem_id="message"
            )
            with gr.Row(elem_id="buttons"):
                send = gr.Button(words.send, variant="primary", elem_id="send", size="md")
                stop = gr.Button(words.stop, variant="stop", elem_id="stop", size="md", interactive=False)
                retry = gr.Button(words.retry, elem_id="retry", size="md", interactive=False)
                edit = gr.Button(words.edit, elem_id="edit", size="md", interactive=False)
                new = gr.Button(words.new, elem_id="new", size="md")
        with gr.Row(elem_id="saves"):
            name = words.save_of if len(talkers) > 1 else words.save_one
            saves = [
                gr.Button(name.format(model=each), size="md", interactive=False, visible=bool(arguments.save_to))
                for each in chat.names
            ]
            if not arguments.save_to:
                gr.HTML(status_html(words.no_file))
        with gr.Accordion(words.settings, open=False, elem_id="settings"):
            temperature = gr.Slider(0, 2, arguments.temperature, step=0.1, label=words.temperature)
            length = gr.Slider(1, most, longest, step=1, label=words.longest)
        any_base = any(talker.kind == "base" for talker in talkers)
        fake = gr.Checkbox(False, label=words.fake, visible=any_base, elem_id="fake")
        exchanges, editing, saved = gr.State([]), gr.State(False), gr.State([])

        after = [message, editing, exchanges, earlier, last, status, send, stop, retry, edit, new, *saves]

        def shown(states):
            for text, edited, kept, before, now, told, writing in states:
                whole = bool(kept) and not writing
                yield [
                    text, edited, kept, before, now, status_html(told), gr.update(interactive=not writing),
                    gr.update(interactive=writing), gr.update(interactive=whole),
                    gr.update(interactive=whole, value=words.cancel_edit if edited else words.edit),
                    gr.update(interactive=not writing), *[gr.update(interactive=whole)] * len(saves),
                ]  # fmt: skip

        def on_send(text, edited, kept, warmth, tokens, dialogue, request: gr.Request):
            settings = (warmth, tokens, dialogue)
            yield from shown(chat.send(text, edited, kept, settings, request.session_hash))

        def on_retry(text, kept, warmth, tokens, dialogue, request: gr.Request):
            yield from shown(chat.retry(text, kept, (warmth, tokens, dialogue), request.session_hash))

        def on_stop(request: gr.Request):
            chat.stop(request.session_hash)

        def on_left(request: gr.Request):
            chat.left(request.session_hash)

        def on_edit(kept, edited):
            if edited or not kept:
                return "", False, gr.update(value=words.edit), status_html("")
            return kept[-1]["message"], True, gr.update(value=words.cancel_edit), status_html(words.editing)

        settings = [temperature, length, fake]
        common = {"show_progress": "hidden", "api_visibility": "private"}
        inputs = [message, editing, exchanges, *settings]
        gr.on([send.click, message.submit], on_send, inputs, after, trigger_mode="once", **common)
        retry.click(on_retry, [message, exchanges, *settings], after, trigger_mode="once", **common)
        stop.click(on_stop, queue=False, **common)
        edit.click(on_edit, [exchanges, editing], [message, editing, edit, status], **common).then(js=FOCUS, **common)
        anew = gr.update(interactive=False)
        new.click(
            lambda: ["", False, [], "", "", status_html(words.begun_anew), anew, anew, *[anew] * len(saves)],
            None,
            [message, editing, exchanges, earlier, last, status, retry, edit, *saves],
            **common,
        ).then(js=FOCUS, **common)
        for index, button in enumerate(saves):

            def on_save(kept, was_saved, index=index):
                now_saved, told = chat.save(index, kept, was_saved)
                return now_saved, status_html(told)

            button.click(on_save, [exchanges, saved], [saved, status], **common)
        blocks.unload(on_left)
    return blocks.queue(default_concurrency_limit=16)


def status_html(text: str) -> str:
    return f'<div role="status">{text_html(text, "quiet")}</div>'


def loaded(kind: type[Checkpoint] | type[Scorer], name: str):
    """A `Checkpoint` or a `Scorer`, with a line on the screen."""
    begun = time.monotonic()
    made = kind(name)
    size = f"{made.model.num_parameters() / 1e6:,.1f} M parameters"
    print(f"{printable(name)}: {made.words}, {size}, loaded in {time.monotonic() - begun:.1f} s", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", action="extend", default=[], help="folders or Hub ids of causal language models"
    )
    add_address_options(parser)
    parser.add_argument(
        "--reward_model", help="folder or Hub id of a reward model, whose score stands under each answer"
    )
    parser.add_argument(
        "--save_to", help=".json or .jsonl file that conversations are added to, in the Baichuan format"
    )
    parser.add_argument("--system", help="text of a system turn")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature at first (default: 0, greedy)"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help="longest answer in tokens at first (default: 128, or half the context if less)",
    )
    add_page_options(parser)
    arguments = parser.parse_args()
    check_page_options(arguments)
    if not arguments.model and not arguments.url:
        raise InputError("nobody to talk to: expected --model FOLDER or --url ADDRESS")
    behind = addresses(arguments)
    if not 0 <= arguments.temperature <= 2 or math.isnan(arguments.temperature):
        raise InputError(f"--temperature {arguments.temperature:g}: expected 0, which is greedy, to 2")
    if arguments.save_to:
        check_file(arguments.save_to)

    from data_prep.models.loading import check_folder, context_of, load_config  # slow to import

    configs = [load_config(name, "recipes/pretrain.py, sft.py or ppo.py") for name in arguments.model]
    if arguments.reward_model:
        check_folder(arguments.reward_model, "recipes/reward.py")
    enough = 2 * LONGEST_ANSWER  # where there is no limit
    context = min([context_of(config) or enough for config in configs], default=enough)
    most = min(LONGEST_ANSWER, context * 3 // 4)
    longest = min(128, context // 2) if arguments.max_new_tokens is None else arguments.max_new_tokens
    if not 0 < longest <= most:
        raise InputError(f"--max_new_tokens {longest}: expected 1 to {most}, three quarters of the shortest context")
    remote = [Remote(*address) for address in behind]
    for talker in remote:
        print(printable(f"{talker.name}: {talker.server.url}, model {talker.server.model}"))
    scorer = loaded(Scorer, arguments.reward_model) if arguments.reward_model else None
    own = {name: loaded(Checkpoint, name) for name in dict.fromkeys(arguments.model)}
    talkers = [*(own[name] for name in arguments.model), *remote]
    words = in_language(WORDS, arguments.language)
    chat = Chat(talkers, labels([talker.name for talker in talkers]), scorer, arguments, words)
    serve(build(chat, longest, most), arguments, css=STYLE + LAYOUT, js=SCRIPT % arguments.language)


if __name__ == "__main__":
    run_main(main)
