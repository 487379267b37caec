"""The chat page: in a browser as a person uses it, its parts, whom it lets in, and what it refuses before anything loads."""

import argparse
import http.server
import json
import re
import threading
import time
from pathlib import Path

import pytest
from helpers.browser import PHONE, browser, opened, screenshot
from helpers.completions import serving

from data_prep.common.errors import InputError
from data_prep.common.text import printable
from data_prep.pages import launch
from data_prep.pages.words import SHARED, in_language
from data_prep.questions.server import Server
from data_prep.readers.conversations import read_conversations
from eval import chat_page
from eval.pages.chat_html import STYLE, exchange_html
from eval.pages.chat_words import WORDS
from eval.pages.saving import add_row, baichuan_row
from eval.pages.talkers import Checkpoint, Options, Remote, Said, fake_dialogue_ids
from eval.pages.turns import answers

HOSTILE = [
    "<script>window.taken=1</script>", "</script><script>window.taken=1</script>", "<img src=x onerror=window.taken=1>",
    "<svg onload=window.taken=1>", "<svg><script>window.taken=1</script></svg>", "<iframe srcdoc='<script>parent.taken=1</script>'>",
    "\" onmouseover=\"window.taken=1\" x=\"", "' onfocus='window.taken=1' autofocus='", "<body onload=window.taken=1>",
    "<a href=javascript:window.taken=1>x</a>", "[x](javascript:window.taken=1)", "![x](https://example.com/x.png)",
    "<img src=https://example.com/x.png>", "<link rel=stylesheet href=https://example.com/x.css>", "<style>*{display:none}</style>",
    "</div></article></div><h1>out</h1>", "</textarea><script>window.taken=1</script>", "<details open ontoggle=window.taken=1>",
    "${window.taken=1}", "{{constructor.constructor('window.taken=1')()}}", "{{#each value}}{{this}}{{/each}} @children",
    "<math><mi xlink:href=javascript:window.taken=1>x", "<video><source onerror=window.taken=1>", "&lt;script&gt; &amp;amp;",
    "$$\\href{javascript:window.taken=1}{x}$$ `code` **bold**", "\u202egnp.exe \u2067a", "\x1b[2J\x07\x00", "مرحبا 12 שלום <b>x</b>",
    "W" * 4000, "ﷺ" * 300 + "e" + "\u0301" * 300,
]  # fmt: skip


def settings(**changes) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    launch.add_page_options(parser)
    given = {**vars(parser.parse_args([])), "save_to": None, "system": None, "temperature": 0.0, **changes}
    return argparse.Namespace(**given)


class Echo:
    """Says the message again, letter by letter, with a pause after each."""

    kind, name = "chat", "echo"

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def answer(self, exchanges, message, options, stop, tell) -> Said:
        for end in range(1, len(message) + 1 if self.pause else 2):
            said = message[: end if self.pause else None]
            tell(said)
            time.sleep(self.pause)
            if stop.is_set():
                break
        return Said(said, said == message, len(said), "")


@pytest.fixture
def page_of():
    """page_of(talkers, names, …) serves a chat with them, and returns its address."""
    served = []

    def serve(talkers: list, names: list[str], **changes) -> str:
        arguments = settings(**changes)
        chat = chat_page.Chat(talkers, names, None, arguments, in_language(WORDS, arguments.language))
        served.append(chat_page.build(chat, 16, 32))
        style = STYLE + chat_page.LAYOUT
        return launch.start(served[-1], arguments, style, chat_page.SCRIPT % arguments.language)

    pytest.importorskip("gradio", reason="the page is Gradio's (extra pages)")
    yield serve
    for blocks in served:
        blocks.close(verbose=False)


def finished(page) -> None:
    page.wait_for_selector("#retry:not([disabled])")


def test_a_person_asks_two_models_side_by_side_edits_and_saves(
    talker, long_is_good_dir, command, monkeypatch, tmp_path
):
    """By the keyboard alone, on a phone. "yes" is longer than "no", and so better by the reward model."""
    pytest.importorskip("gradio", reason="the page is Gradio's (extra pages)")
    kept, addresses = tmp_path / "kept.jsonl", []

    def in_browser(blocks, arguments, css, js) -> None:
        addresses.append(launch.start(blocks, arguments, css, js))
        with browser() as own, opened(own, addresses[0], PHONE) as page:
            page.locator("#message textarea").press_sequentially("right?")
            page.keyboard.press("Enter")
            finished(page)
            texts = page.locator(".answer > .text").all_inner_texts()
            rewards = page.locator(".reward").all_inner_texts()
            assert texts == ["yes", "no"] and "highest" in rewards[0] and "highest" not in rewards[1]
            page.locator("#edit").press("Enter")
            page.wait_for_function("document.querySelector('#message textarea').value === 'right?'")
            page.locator("#message textarea").press("End")
            page.keyboard.type(" really")
            page.keyboard.press("Enter")
            page.wait_for_function("document.querySelector('.asked .text').innerText === 'right? really'")
            finished(page)
            assert page.locator(".exchange").count() == 1
            page.get_by_role("button", name="Save: yes").press("Enter")
            page.get_by_text("Saved: row 1 of kept.jsonl.").wait_for()
            screenshot(page, "chat_phone", tmp_path)
        blocks.close(verbose=False)

    monkeypatch.setattr(chat_page, "serve", in_browser)
    words = ("--model", talker("yes"), talker("no"), "--reward_model", long_is_good_dir, "--max_new_tokens", 8)
    code, _, err = command(chat_page, *words, "--save_to", kept)
    assert code == 0 and addresses and "Loading weights" not in err, err
    (row,) = map(json.loads, kept.read_text().splitlines())
    turns = [{"from": "human", "value": "right? really"}, {"from": "gpt", "value": "yes"}]
    assert row["conversations"] == turns and row["id"].startswith("chat-yes-")


@pytest.mark.slow
def test_stop_retry_and_a_new_conversation(page_of, tmp_path):
    with browser() as own, opened(own, page_of([Echo(0.05)], ["slow"]), color_scheme="dark") as page:
        page.locator("#message textarea").fill("abcdefgh" * 20)
        page.locator("#message textarea").press("Enter")
        page.wait_for_function("document.querySelector('#last .answer .text')?.innerText.length > 3")
        page.keyboard.press("Escape")
        finished(page)
        assert "stopped by you" in page.locator("#last").inner_text()
        assert 3 < len(page.locator("#last .answer > .text").inner_text()) < 100
        page.locator("#retry").press("Enter")
        page.wait_for_selector("#stop:not([disabled])")
        page.locator("#stop").press("Enter")
        finished(page)
        assert page.locator(".exchange").count() == 1
        assert "the same answer comes again" in page.locator("#status").inner_text()
        screenshot(page, "chat_dark", tmp_path)
        page.locator("#new").press("Enter")
        page.wait_for_function("document.querySelectorAll('.exchange').length === 0")
        page.wait_for_function("document.activeElement.closest('#message') !== null")


@pytest.mark.slow
def test_hostile_messages_answers_and_names_stay_text(page_of):
    with browser() as own:
        with opened(own, page_of([Echo()], ["echo"]), PHONE) as page:
            for number, text in enumerate(HOSTILE, start=1):
                page.locator("#message textarea").fill(text)
                page.locator("#message textarea").press("Enter")
                page.wait_for_function(f"document.querySelectorAll('.exchange').length === {number}")
                finished(page)
            asked = page.locator(".asked .text").evaluate_all("all => all.map(each => each.textContent)")
            answered = page.locator(".answer > .text").evaluate_all("all => all.map(each => each.textContent)")
            # A text field turns NUL and single carriage returns into nothing else than what it sends.
            assert asked == answered == [printable(text) for text in HOSTILE]
        with opened(own, page_of([Echo()] * len(HOSTILE), HOSTILE), PHONE) as page:
            page.locator("#message textarea").fill("hi")
            page.locator("#message textarea").press("Enter")
            finished(page)
            named = page.locator(".answer h3 bdi").evaluate_all("all => all.map(each => each.textContent)")
            assert named == [printable(text) for text in HOSTILE]


@pytest.mark.slow
def test_a_page_in_chinese_behind_a_login(page_of, monkeypatch, tmp_path):
    monkeypatch.setenv("PAGE_PASSWORD", "correct horse")
    address = page_of([Echo()], ["echo"], username="me", language="zh")
    with browser() as own, opened(own, address) as page:
        page.wait_for_selector("input[type=password]")
        assert page.locator("#message").count() == 0 and "请先登录" in page.locator("body").inner_text()
        page.locator("input").first.fill("me")
        page.locator("input[type=password]").fill("correct horse")
        page.keyboard.press("Enter")
        page.wait_for_selector("#message textarea")
        page.locator("#message textarea").fill("你好")
        page.locator("#message textarea").press("Enter")
        finished(page)
        assert page.locator("#send").inner_text() == "发送" and page.evaluate("document.documentElement.lang") == "zh"
        screenshot(page, "chat_chinese", tmp_path)


# Whom the page lets in


@pytest.mark.parametrize(
    ("options", "password", "told"),
    [
        (["--host", "0.0.0.0"], None, "error: --host 0.0.0.0: others can open the page there, so it needs a login"),
        (["--username", "me"], None, "error: --username me: expected a password of at least 8 characters in the environ"),
        (["--username", "me"], "short77", "error: --username me: expected a password of at least 8 characters"),
        (["--username", " "], "long enough", "error: --username: found no name; expected one"),
        (["--port", "70000"], None, "error: --port 70000: expected 1 to 65535"),
        (["--host", "no such host"], None, "error: --host no such host: others can open the page there"),
        ([], None, "error: nobody to talk to: expected --model FOLDER or --url ADDRESS"),
        (["--model", "runs/none", "--temperature", "nan"], None, "error: --temperature nan: expected 0, which is greedy"),
        (["--model", "runs/none"], None, "error: runs/none: no such file or folder"),
        (["--model", "runs/none", "--save_to", "a.csv"], None, "error: --save_to a.csv: expected a name that ends in"),
        (["--url", "ftp://x"], None, "error: --url 'ftp://x': expected an address such as"),
        (["--url", "http://127.0.0.1:9/v1"], None, "error: http://127.0.0.1:9/v1: asked for its models, found"),
        (["--url", "http://a/v1", "b=http://b/v1"], None, "error: --url http://a/v1: found no name; of several addresses"),
        (["--url", "a=http://a/v1", "--url", "a=http://b/v1"], None, "error: --url: found a= twice; expected each name"),
        (["--url", "a=http://me:hidden77@a/v1"], "hidden77", "error: --url: found a password in it; expected the key"),
        (["--url", "http://a/v1", "--url_model", "m", "n"], None, "error: --url_model: found 2 values; expected one, as"),
        (["--url", "a=http://a/v1", "--url_model", "b=m"], None, "error: --url_model b=…: no address has this name"),
        (["--url", "a=http://a/v1", "--api_key_env", "akey5678"], "akey5678", "error: --api_key_env: found no name"),
        (["--url", "a=http://a/v1", "--api_key_env", "a=akey5678"], "akey5678", "error: --api_key_env a=…: found no key"),
        (["--url", "http://a/v1", "--api_key_env", "akey5678"], "akey5678", "error: --api_key_env: found no key; expected"),
        (["--model", "x", "--url_model", "m"], None, "error: --url_model: is for --url, which is not given"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_loads(command, monkeypatch, options, password, told):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("PAGE_PASSWORD", raising=False)
    if password:
        monkeypatch.setenv("PAGE_PASSWORD", password)
    code, out, err = command(chat_page, *options)
    assert (code, out) == (1, "") and err.startswith(told) and err.count("\n") == 1
    assert not password or password not in err


def test_without_gradio_one_line_says_what_to_install(command, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    code, _, err = command(chat_page, "--model", "x")
    assert (code, err) == (1, "error: the page needs gradio: pip install -e '.[pages]'\n")


@pytest.mark.parametrize(
    ("headers", "local", "status"),
    [
        ({"host": "127.0.0.1:7860"}, True, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True, 200),
        ({"host": "evil.example:7860"}, True, 403),  # its DNS says 127.0.0.1
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, True, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, True, 403),
        ({"host": "me.example"}, False, 200),
        ({"host": "me.example", "origin": "https://evil.example"}, False, 403),
        ({"host": "127.0.0.1:7860", "x-forwarded-host": "me.example", "origin": "https://me.example"}, False, 200),
    ],
)
def test_another_sites_requests_are_refused(headers, local, status):
    import asyncio

    sent = []

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def note(message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(launch.Guard(app, local)(scope, None, note))
    assert sent[0]["status"] == status
    assert status == 403 or (b"content-security-policy", launch.POLICY.encode()) in sent[0]["headers"]


def test_both_languages_say_the_same_things():
    for english, chinese in {**SHARED, **WORDS}.values():
        assert english and chinese and english != chinese
        assert sorted(re.findall(r"{(\w+)}", english)) == sorted(re.findall(r"{(\w+)}", chinese))


# What the models are given, and what they say


def test_names_are_as_short_as_they_differ():
    names = ["runs/a/ppo", "runs/b/ppo/", "Qwen/Qwen3-0.6B", "runs/a/ppo"]
    assert chat_page.labels(names) == ["a/ppo", "b/ppo", "Qwen3-0.6B", "a/ppo (2)"]


def test_a_base_model_gets_questions_and_answers_in_front(tiny_tokenizer):
    ids, forgotten, truncated = fake_dialogue_ids(tiny_tokenizer, [("1?", "one")], "2?", 1000, "en")
    text = tiny_tokenizer.decode(ids)
    assert text.startswith("Q: Hello, who are you?\nA: I am") and (forgotten, truncated) == (0, 0)
    assert text.endswith("2 + 2 is 4.\n\nQ: 1?\nA: one\n\nQ: 2?\nA:")
    # A letter is a token. The real conversation is forgotten before the invented one.
    ids, forgotten, truncated = fake_dialogue_ids(tiny_tokenizer, [("1?", "one")], "2?", len(ids) - 1, "en")
    assert forgotten == 1 and tiny_tokenizer.decode(ids).endswith("2 + 2 is 4.\n\nQ: 2?\nA:")
    assert fake_dialogue_ids(tiny_tokenizer, [], "2?", 4, "zh") == (tiny_tokenizer("?\nA:")["input_ids"], 0, 4)


def last_of(talkers, message: str = "hi", exchanges=(), scorer=None, **options) -> list[dict]:
    *_, last = answers(talkers, scorer, list(exchanges), message, Options(0.0, 8, **options), threading.Event())
    return last


def test_an_answer_grows_by_tokens_and_says_how_it_ended(talker, zero_model_dir):
    told, yes, zero = [], Checkpoint(str(talker("yes"))), Checkpoint(str(zero_model_dir))
    said = yes.answer([("a", "b")], "hi", Options(0.0, 8), threading.Event(), told.append)
    assert told == ["y", "ye", "yes", "yes"] and (said.text, said.ended, said.tokens) == ("yes", True, 4)
    assert said.prompt == "<|user|>a<|end|><|assistant|>b<|end|><|user|>hi<|end|><|assistant|>"
    chat, base = last_of([yes, zero])
    assert (chat["mode"], chat["text"], chat["ended"]) == ("chat", "yes", True)
    assert (base["mode"], base["prompt"], base["ended"], base["tokens"]) == ("base", "hi", True, 1)
    cut = yes.answer([], "hi", Options(0.0, 2), threading.Event(), told.append)
    assert (cut.text, cut.ended) == ("ye", False)
    assert last_of([zero], fake_dialogue="en")[0]["mode"] == "dialogue"


def test_stopping_keeps_what_is_written(talker):
    stop, model = threading.Event(), Checkpoint(str(talker("yes")))
    said = model.answer([], "hi", Options(0.0, 8), stop, lambda text: stop.set())
    # The library asks whether to stop before it tells of the token.
    assert (said.text, said.tokens, said.ended) == ("ye", 2, False)


def test_one_model_that_fails_does_not_take_the_others_along():
    class Broken(Echo):
        def answer(self, exchanges, message, options, stop, tell):
            raise InputError("no more")

    broken, echo = last_of([Broken(), Echo()])
    assert (broken["error"], echo["text"], echo["error"]) == ("no more", "hi", "")
    again = last_of([Broken(), Echo()], exchanges=[{"message": "hi", "answers": [broken, echo]}])
    html = exchange_html(in_language(WORDS, "en"), ["a", "b"], {"message": "<b>", "answers": again})
    assert "error: no more" in html and "&lt;b&gt;" in html and "<b>" not in html


@pytest.fixture
def server():
    """server("yes", key) is (the address, what it is asked) of one with OpenAI's interface that says "yes" in two pieces."""
    servers = []

    def serve(answer: str, key: str) -> tuple[str, list[dict]]:
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, "application/json", json.dumps({"data": [{"id": "m"}]}))

            def do_POST(self) -> None:
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if self.headers["Authorization"] != (f"Bearer {key}" if key else None):
                    self._reply(401, "application/json", json.dumps({"error": {"message": "wrong: none"}}))
                    return
                pieces = [(answer[:2], None), (answer[2:], None), ("", "stop")]
                chunks = [{"choices": [{"delta": {"content": text}, "finish_reason": end}]} for text, end in pieces]
                lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in (*chunks, {"choices": [], "usage": {}})]
                self._reply(200, "text/event-stream", ": ping\n\n" + "".join(lines) + "data: [DONE]\n\n")

            def _reply(self, status: int, kind: str, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1", asked

    yield serve
    for own in servers:
        own.shutdown()
        own.server_close()


def test_a_model_behind_an_address_is_streamed_too(server):
    url, asked = server("yes", "secret")
    told = []
    said = Remote("", url, None, "secret").answer([("a", "b")], "hi", Options(0.5, 8), threading.Event(), told.append)
    assert told == ["ye", "yes", "yes", "yes"] and (said.text, said.ended) == ("yes", True)
    assert [each["content"] for each in asked[0]["messages"]] == ["a", "b", "hi"]
    settings = [asked[0][key] for key in ("model", "temperature", "max_tokens", "stream")]
    assert settings == ["m", 0.5, 8, True]
    (refused,) = last_of([Remote("", url, None, "")])
    assert refused["error"] == f"{url}: HTTP 401 Unauthorized (wrong: none)"


@pytest.mark.parametrize(
    ("body", "pieces", "said"),
    [
        ('data: {"choices": [{"delta": {"content": "ye"}}]}\n\ndata: {"error": {"message": "out of memory"}}\n\n',
         ["ye"], "found an error in place of a piece (out of memory)"),
        ('data: {"error": "no\\nkey sk-secret"}\n\n', [], "found an error in place of a piece (no key [key])"),
        ('{"error": {"message": "no such model"}}', [], "found an error in place of a reply (no such model)"),
        ('{\n "choices": [\n  {"message": {"content": "yes"}, "finish_reason": "stop"}\n ], "error": null\n}\n',
         ["yes"], None),
        ("<html>", [], "found the reply '<html>'; expected a chat completion: choices[0].message.content"),
        ("", [], "found the reply ''; expected a chat completion: choices[0].message.content"),
        (": ping\n\ndata: [1]\n\n", [], "found the piece ' [1]\\n'; expected choices[0].delta.content"),
        ('data: {"choices": [{"delta": {"content": 7}}]}\n\n', [], "found the piece ' {"),
        (": ping\n\ndata: [DONE]\n\n", [], None),
    ],
)  # fmt: skip
def test_an_error_midway_and_a_reply_that_is_not_streamed_are_no_empty_answers(body, pieces, said):
    with serving({"": (200, {}, body)}) as other:
        stream = Server(other.url, "m", "sk-secret", 0.0, 8, 0, timeout=5.0, retries=0).stream([{"content": "hi"}])
        found, error = [], None
        try:
            for text, _ in stream:
                found.append(text)
        except InputError as raised:
            error = str(raised)
    assert found == pieces
    assert error is None if said is None else error.startswith(f"{other.url}: {said}")


def test_several_addresses_beside_several_checkpoints_each_with_its_model_and_key(
    server, talker, long_is_good_dir, command, monkeypatch
):
    """A server refuses another's key. On the screen stands a line for each model, and no key."""
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    for variable, key in (("OPENAI_API_KEY", "key of none"), ("FIRST", "first-key"), ("SECOND", "second-key")):
        monkeypatch.setenv(variable, key)
    chats = []
    monkeypatch.setattr(chat_page, "build", lambda chat, *_: chat)
    monkeypatch.setattr(chat_page, "serve", lambda chat, *_, **__: chats.append(chat))
    (one, _), (two, asked), (open_to_all, _) = (
        server("one", "first-key"),
        server("two", "second-key"),
        server("all", ""),
    )
    yes, no = talker("yes"), talker("no")
    words = ["--model", yes, no, "--reward_model", long_is_good_dir, "--url", f"a={one}", f"b={two}"]
    words += ["--url", f"c={open_to_all}", "--url_model", "b=large", "--api_key_env", "b=SECOND", "a=FIRST"]
    code, out, err = command(chat_page, *words, "--max_new_tokens", 8)
    assert code == 0, err
    (chat,) = chats
    assert chat.names == ["yes", "no", "a", "b", "c"]
    *_, (_, _, (exchange,), *_) = chat.send("hi", False, [], (0.0, 8, False), "a page")
    found = [each["text"] or each["error"] for each in exchange["answers"]]
    assert found == ["yes", "no", "one", "two", "all"] and asked[0]["model"] == "large"
    shown = re.sub(r"[\d.]+ M parameters, loaded in [\d.]+ s", "…", out).splitlines()
    assert shown == [
        f"a: {one}, model m",
        f"b: {two}, model large",
        f"c: {open_to_all}, model m",
        f"{long_is_good_dir}: reward model, scores every answer, …",
        f"{yes}: answers, …",
        f"{no}: answers, …",
    ]
    assert err == "" and "key" not in out


# Rows


@pytest.mark.parametrize("name", ["kept.json", "kept.jsonl"])
def test_conversations_are_added_and_what_was_there_stays(name, tmp_path):
    row = {"id": "old", "conversations": [{"from": "human", "value": "漢"}, {"from": "gpt", "value": "字"}]}
    file = tmp_path / name
    file.write_text(json.dumps([row] if name.endswith(".json") else row), encoding="utf-8")  # no line break at its end
    assert add_row(str(file), baichuan_row("m", [("1?", "一"), ("2?", "a\u2028b\n")], "be kind")) == 2
    rows, repaired = read_conversations([str(file)])
    old, new = [each["messages"] for each in rows]
    assert not repaired
    assert [each["content"] for each in old] == ["漢", "字"]
    assert [each["content"] for each in new] == ["be kind", "1?", "一", "2?", "a\u2028b\n"]
    assert [each["role"] for each in new] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "[", '"'])
def test_a_file_that_holds_no_rows_is_refused_and_left_alone(content, tmp_path, command):
    file = tmp_path / "kept.json"
    file.write_text(content)
    code, _, err = command(chat_page, "--model", "runs/none", "--save_to", file)
    assert code == 1 and err.startswith(f"error: {file}: ") and file.read_text() == content


def test_only_conversations_are_saved_and_each_once(tmp_path, talker, zero_model_dir):
    file = tmp_path / "kept.jsonl"
    chat = chat_page.Chat([Echo(), Echo()], ["a", "b"], None, settings(save_to=str(file)), in_language(WORDS, "en"))
    (answer,) = last_of([Echo()])
    exchanges = [{"message": "hi", "answers": [answer, {**answer, "mode": "base"}]}]
    saved, told = chat.save(0, exchanges, [])
    assert told == "Saved: row 1 of kept.jsonl."
    assert chat.save(0, exchanges, saved) == (saved, "This conversation is saved already.")
    assert chat.save(1, exchanges, saved)[1].startswith("Not saved: b continued your text")
    exchanges = [{"message": "hi", "answers": [{**answer, "text": " "}, {**answer, "ended": False}]}]
    assert chat.save(0, exchanges, saved)[1].startswith("Not saved: a has an empty answer")
    assert "did not end by itself" in chat.save(1, exchanges, saved)[1]
    assert len(file.read_text().splitlines()) == 2 and Path(file).exists()
