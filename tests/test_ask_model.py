"""Questions that a model writes: by a server's stand-in and a checkpoint, what is taken, quarantined, resumed and paid for."""

import contextlib
import json
import socket

import pytest
from helpers.completions import serving

from data_prep import ask_documents, check
from data_prep.common.files import write_jsonl
from data_prep.questions import server as server_module
from data_prep.questions.grounding import overlap
from data_prep.questions.replies import parsed

BRIDGE = "The bridge was opened in 1890 by the king. It is made of steel."
RIVER = "The river below it is 40 metres wide, and deep enough for ships."
KEY = "sk-secret-0123456789"


@pytest.fixture
def ask(tmp_path, command, monkeypatch):
    """ask(texts, "--option", …) runs the command with a model; returns (exit code, stdout, stderr, rows, quarantined)."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    waited: list[float] = []
    monkeypatch.setattr(server_module.time, "sleep", waited.append)

    def run(texts, *options):
        write_jsonl(tmp_path / "documents.jsonl", [{"text": text, "file": f"{n}.md"} for n, text in enumerate(texts)])
        given = [tmp_path / "documents.jsonl", "--output", tmp_path / "out.json", *options]
        code, out, err = command(ask_documents, *given)
        output, bad = tmp_path / "out.json", tmp_path / "out.json.quarantine.jsonl"
        rows = json.loads(output.read_text()) if output.exists() else None
        return (
            code,
            out,
            err,
            rows,
            [json.loads(line) for line in bad.read_text().splitlines()] if bad.exists() else [],
        )

    run.waited = waited
    return run


def pairs(*of: tuple) -> str:
    return json.dumps([{"question": question, "answer": answer} for question, answer in of])


def test_what_stands_in_its_span_is_taken_and_the_rest_quarantined_with_its_reason(ask, tmp_path, command):
    bridge = pairs(
        ("When was the bridge opened?", "in 1890"),
        ("Who opened the bridge?", "The king opened the bridge."),  # in other words: all five are there
        ("What is it made of?", "It is made of wood."),  # 4 of 5 words: less than 0.81
        ("How old is it?", "opened in 1980"),
        ("who opened the bridge", "the king"),
        ("Who built it?", None),
        ("And the river?", "Nothing is said about that anywhere."),
    )
    river = f"<think>[1]</think>Here they are:\n```json\n{pairs(('How wide is the river?', '40 metres wide'))}\n```"
    with serving({BRIDGE: bridge, RIVER: river, "silent": "I cannot.", "empty": "[]", "odd": '[{"q": 1}]'}) as server:
        texts = [BRIDGE, RIVER, "A silent part of the text.", "An empty part of the text.", "An odd part of the text."]
        options = ("--url", server.url, "--model", "m", "--min_overlap", 0.81, "--span", 200)
        code, out, err, rows, bad = ask(texts, *options)
    assert code == 0, err
    assert [[turn["value"] for turn in row["conversations"]] for row in rows] == [
        ["When was the bridge opened?", "in 1890"],
        ["Who opened the bridge?", "The king opened the bridge."],
        ["How wide is the river?", "40 metres wide"],
    ]
    places = [(row["source"]["file"], row["source"]["start"], row["source"]["end"]) for row in rows]
    assert places == [("0.md", 22, 29), ("0.md", 0, len(BRIDGE)), ("1.md", 22, 36)], "word for word, or the span"
    assert BRIDGE[22:29] == "in 1890" and RIVER[22:36] == "40 metres wide"
    assert sorted((row["file"], row["reason"], row["question"]) for row in bad) == [
        ("0.md", "answer not in its span", "And the river?"),
        ("0.md", "answer not in its span", "How old is it?"),
        ("0.md", "answer not in its span", "What is it made of?"),
        ("0.md", "asked before", "who opened the bridge"),
        ("0.md", "unanswerable", "Who built it?"),
        ("2.md", "unparsable reply", ""),
        ("3.md", "no question in the reply", ""),
        ("4.md", "no question and answer", ""),
    ]  # fmt: skip
    assert "5 spans of 5 documents: 11 written = 3 accepted + 8 quarantined" in out
    assert "3 × answer not in its span\n" in out
    assert "cost: 5 requests, 50 prompt tokens, 15 completion tokens, as the server reports\n" in out
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("m", 0.0, 1024, 0)
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"] and "up to 5" in body["messages"][1][
        "content"
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"documents.jsonl", "out.json", "out.json.quarantine.jsonl"}
    code, out, _ = command(check, tmp_path / "out.json")
    assert code == 0 and "fields" not in out and "nothing is wrong with these rows" in out


def test_a_number_that_is_not_there_is_quarantined_and_the_threshold_is_an_option(ask):
    reply = pairs(("When?", "The bridge was opened in 1891 by the king."), ("Of what?", "It is made of wood."))
    with serving({BRIDGE: reply}) as server:
        code, _, err, rows, bad = ask([BRIDGE], "--url", server.url, "--model", "m")
    assert code == 0, err  # 8 of 9 and 4 of 5 words are there
    assert [row["conversations"][0]["value"] for row in rows] == ["Of what?"] and rows[0]["source"]["overlap"] == 0.8
    assert [(row["reason"], row["found"]) for row in bad] == [("number not in its span", "1891")]


def test_overlap_of_words_and_of_pairs_of_chinese_characters():
    assert overlap("The KING, opened!", BRIDGE) == 1.0
    assert overlap("the the the the", BRIDGE) == 0.5, "a word counts as often as the text has it"
    assert overlap("…", BRIDGE) == 0.0
    # 桥是 是钢 钢的 of 桥是铁的，钢是… : 桥是 alone
    assert overlap("桥是钢的", "桥是铁的，的钢。") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('[{"question": "a", "answer": "b"}]', [{"question": "a", "answer": "b"}]),
        ('{"qa_pairs": [{"question": "a"}]}', [{"question": "a"}]),
        ('{"question": "a"}\n{"question": "b"}', [{"question": "a"}, {"question": "b"}]),
        ('See [1]: [{"question": "a"}]', [{"question": "a"}]),
        ("[]", []),
        ('[{"question": "a', None),
        ("[" * 5000, None),
        ("no", None),
    ],
)
def test_json_is_found_in_a_reply(text, items):
    assert parsed(text) == items


def test_a_long_document_is_asked_about_in_parts_in_its_language(ask):
    texts = [f"{BRIDGE}\n\n{RIVER}", "这座桥是一八九〇年建成的，全部用钢材建造而成。"]
    with serving(
        {"1890": pairs(("a?", "steel")), "40": pairs(("b?", "ships")), "钢": pairs(("用什么建造？", "用钢材建造"))}
    ) as server:
        code, out, err, rows, _ = ask(texts, "--url", server.url, "--model", "m", "--span", 70)
    assert code == 0, err
    start = texts[0].index("ships")
    assert [(row["source"]["start"], row["source"]["end"]) for row in rows] == [(57, 62), (start, start + 5), (15, 20)]
    chinese = next(body for _, _, body in server.asked if "钢" in body["messages"][1]["content"])
    assert chinese["messages"][0]["content"].startswith("你根据文档")


def test_a_busy_server_is_asked_again_and_a_stopped_run_goes_on(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    busy = (503, {"Retry-After": "7"}, "busy")
    replies = {BRIDGE: [busy, busy, pairs(("Of what?", "made of steel"))], RIVER: [busy]}
    options = ("--model", "m", "--concurrency", 1, "--retries", 2)
    with serving(replies) as server:
        code, out, err, rows, _ = ask([BRIDGE, RIVER], "--url", server.url, *options)
        assert (
            code == 1
            and rows is None
            and err.splitlines()[-1]
            == (
                f"error: {server.url}: no reply in 3 tries (HTTP 503 Service Unavailable (busy)); the same command, run again, "
                "goes on with the replies that have come"
            )
        )
        assert ask.waited == [7.0] * 4 and len(server.asked) == 6
        assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.asked)
        journal = tmp_path / "out.json.journal"
        assert KEY not in journal.read_text() + out + err
        code, _, err, _, _ = ask([BRIDGE, RIVER], "--url", server.url, *options, "--temperature", 1)
        assert code == 1 and f"{journal}: was started with temperature 0.0, now it is 1.0" in err
        replies[RIVER] = [pairs(("How deep?", "deep enough for ships"))]
        code, out, err, rows, _ = ask([BRIDGE, RIVER], "--url", server.url, *options)
    assert code == 0 and len(rows) == 2 and len(server.asked) == 7, err
    assert "1 of 2 replies of an earlier run; resuming after them" in out
    assert "cost: 4 requests (2 of them again), 20 prompt tokens, 6 completion tokens, as the server reports\n" in out
    assert not journal.exists()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((401, {}, json.dumps({"error": {"message": f"Incorrect key: {KEY}"}})), "HTTP 401 Unauthorized (Incorrect key: [key])"),
        # A key where the text is truncated: half of it would not be found any more.
        ((400, {}, json.dumps({"error": {"message": f"{190 * 'x'} {KEY} has"}})), f"HTTP 400 Bad Request ({190 * 'x'} [key] has)"),
        ((400, {}, f"{190 * 'x'}\n{KEY} expired"), f"HTTP 400 Bad Request ({190 * 'x'} [key] exp)"),
        ((200, {}, f"{190 * 'x'} {KEY}"), f"found the reply '{56 * 'x'}...; expected"),
        ((200, {}, f"{40 * 'x'} {KEY} {40 * 'x'}"), f"found the reply '{40 * 'x'} [key] {9 * 'x'}...; expected"),
        ((404, {}, json.dumps({"error": "no such model"})), "HTTP 404 Not Found (no such model)"),
        ((307, {"Location": "http://127.0.0.1:1/"}, ""), "HTTP 307 Temporary Redirect"),
        ((200, {}, "<html>"), "found the reply '<html>'; expected a chat completion: choices[0].message.content"),
        ((200, {}, '{"choices": []}'), "found the reply '{\"choices\": []}'; expected a chat completion"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_without_the_key_and_is_not_tried_again(reply, says, ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving({"": reply}) as server:
        code, out, err, rows, _ = ask([BRIDGE], "--url", server.url, "--model", "m", "--api_key_env", "MY_KEY")
    assert code == 1 and rows is None and err.splitlines()[-1].startswith(f"error: {server.url}: {says}")
    assert "Traceback" not in err and KEY[:5] not in out + err
    # A bad request may be that of its prompt alone: whether a short one is refused too is asked, once.
    asked = [[turn["content"] for turn in body["messages"]] for _, _, body in server.asked]
    assert len(asked) == 1 + (reply[0] == 400) and asked[1:] in ([], [["Hi", "Hi"]])
    if reply[0] == 400:
        assert err.endswith("; it refuses a prompt of two letters too: expected a model and settings that it knows\n")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_alone_is_refused_is_quarantined_and_the_others_are_asked(status, ask, tmp_path, monkeypatch):
    """The second document is refused; a run that stops at the third goes on. In the end all three are refused."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusal = (status, {}, json.dumps({"error": {"message": f"filtered, with {KEY}"}}))
    replies = {
        BRIDGE: pairs(("Of what?", "made of steel")),
        "Secret": refusal,
        RIVER: [(401, {}, "gone")],
        "Hi": "Hello.",
    }
    replies[RIVER] += [pairs(("How deep?", "deep enough for ships"))]
    texts = [BRIDGE, "Secret words of the document.", RIVER]
    with serving(replies) as server:
        options = ("--url", server.url, "--model", "m", "--concurrency", 1, "--retries", 0)
        code, _, err, rows, _ = ask(texts, *options)
        assert code == 1 and rows is None and err.endswith(f"error: {server.url}: HTTP 401 Unauthorized (gone)\n")
        asked = [body["messages"][-1]["content"] for _, _, body in server.asked]
        assert len(asked) == 4 and asked[2] == "Hi" and BRIDGE in asked[0] and RIVER in asked[3]
        code, out, err, rows, bad = ask(texts, *options)
    assert code == 0, err
    assert [row["conversations"][0]["value"] for row in rows] == ["Of what?", "How deep?"]
    (row,) = bad
    assert (row["file"], row["reason"], row["source"]["start"]) == ("1.md", "refused by the server", 0)
    said = {400: "Bad Request", 413: "Request Entity Too Large", 422: "Unprocessable Entity"}[status]
    assert row["found"] == f"HTTP {status} {said} (filtered, with [key])" and KEY not in out + err
    assert f"{server.url}: refused 1 of 3 prompts, which count as not answered; the first: {row['found']}\n" in out
    assert "3 spans of 3 documents: 3 written = 2 accepted + 1 quarantined" in out
    # Two replies, the refusal and the reply to "Hi", none of them again; each reply has 10 and 3 tokens.
    assert "cost: 4 requests, 30 prompt tokens, 9 completion tokens, as the server reports\n" in out
    assert len(server.asked) == 4 + 3, "the refused one again, Hi, and the river"
    (tmp_path / "out.json").unlink()
    with serving({**replies, BRIDGE: refusal, RIVER: refusal}) as server:
        code, _, err, rows, bad = ask(texts, "--url", server.url, "--model", "m")
    assert code == 1 and "--output: found no question to write from 3 documents; see the quarantine" in err
    assert [row["reason"] for row in bad] == ["refused by the server"] * 3


def whole(message: dict | None, finish: str, **more) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": finish, **more}]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps({"error": {"code": 403, "message": f"flagged, {KEY}"}}), "found an error in place of a reply (flagged, [key])"),
        (json.dumps({"error": "too long"}), "found an error in place of a reply (too long)"),
        (whole({"content": ""}, "error", error={"message": "odd"}), "found an error in place of a reply (odd)"),
        (whole({"content": None}, "content_filter"), "found no text in its reply (content_filter)"),
        (whole(None, "content_filter"), "found no text in its reply (content_filter)"),
    ],
)  # fmt: skip
def test_a_refusal_of_one_prompt_may_have_status_200(content, says, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    texts, options = [RIVER, BRIDGE], ("--model", "m", "--concurrency", 1)
    with serving({"": (200, {}, content)}) as server:
        code, out, err, rows, _ = ask(texts, "--url", server.url, *options)
    assert code == 1 and rows is None and len(server.asked) == 2 and KEY not in out + err
    assert err.endswith(
        f"error: {server.url}: {says}; it refuses a prompt of two letters too: expected a model and settings that it "
        "knows\n"
    )
    replies = {BRIDGE: pairs(("Of what?", "made of steel")), RIVER: (200, {}, content), "Hi": "Hello."}
    with serving(replies) as server:
        code, out, err, rows, bad = ask(texts, "--url", server.url, *options)
    assert code == 0, err
    assert [row["conversations"][0]["value"] for row in rows] == ["Of what?"]
    assert [(row["file"], row["reason"], row["found"]) for row in bad] == [("0.md", "refused by the server", says)]
    assert f"{server.url}: refused 1 of 2 prompts, which count as not answered; the first: {says}\n" in out
    assert "cost: 3 requests, 20 prompt tokens" in out and len(server.asked) == 3 and ask.waited == []


@pytest.mark.parametrize("code", [429, "503"])
def test_a_server_may_say_that_it_is_busy_under_status_200(code, ask):
    busy = (200, {}, json.dumps({"error": {"code": code, "message": "busy"}}))
    with serving({BRIDGE: busy}) as server:
        status, _, err, rows, _ = ask([BRIDGE], "--url", server.url, "--model", "m", "--retries", 1)
    assert status == 1 and rows is None and len(server.asked) == 2 and ask.waited == [1.0]
    assert f"{server.url}: no reply in 2 tries (found an error in place of a reply (busy)); the same" in err
    with serving({BRIDGE: [busy, busy, pairs(("Of what?", "made of steel"))]}) as server:
        status, _, err, rows, _ = ask([BRIDGE], "--url", server.url, "--model", "m")
    assert status == 0 and len(rows) == 1 and len(server.asked) == 3 and ask.waited == [1.0, 1.0, 2.0], err


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_concerns_every_request_stops_even_where_it_comes_in_between(status, ask, tmp_path):
    """A server that refuses one prompt, and then everything: the refusal of the short prompt says which."""
    replies = {BRIDGE: pairs(("Of what?", "made of steel")), RIVER: (400, {}, "odd"), "Hi": (status, {}, "no credit")}
    with serving(replies) as server:
        options = ("--url", server.url, "--model", "m", "--concurrency", 1, "--retries", 1)
        code, _, err, rows, _ = ask([BRIDGE, RIVER], *options)
        assert code == 1 and rows is None and f"HTTP {status} " in err and err.count("error: ") == 1
        assert not (tmp_path / "out.json.quarantine.jsonl").exists()
        replies["Hi"] = (400, {}, "no credit")
        code, _, err, rows, _ = ask([BRIDGE, RIVER], *options)
    assert code == 1 and err.splitlines()[-1] == (
        f"error: {server.url}: HTTP 400 Bad Request (odd); it refuses a prompt of two letters too: expected a model and "
        "settings that it knows"
    )


def test_no_server_and_one_that_is_silent_are_one_line(ask):
    code, _, err, _, _ = ask([BRIDGE], "--url", "http://127.0.0.1:1/v1", "--model", "m", "--retries", 1)
    assert code == 1 and "error: http://127.0.0.1:1/v1: no reply in 2 tries (" in err and "refused" in err
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        code, _, err, _, _ = ask([BRIDGE], "--url", url, "--model", "m", "--retries", 0, "--timeout", 0.2)
    assert code == 1 and f"error: {url}: no reply in 1 try (timed out)" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "127.0.0.1:8000"], "--url '127.0.0.1:8000': expected an address such as http://127.0.0.1:8000/v1"),
        (
            ["--url", "http://me:pass@a/v1"],
            "--url: found a password in it; expected the key in an environment variable",
        ),
        (["--prompt", "{dir}/p.yaml"], "{dir}/p.yaml: prompt: found no {{text}} in it"),
        (
            ["--prompt", "{dir}/q.yaml"],
            "{dir}/q.yaml: unknown key 'promt'; expected prompt, system, prompt_zh, system_zh",
        ),
        (["--min_overlap", "2"], "--min_overlap 2.0: expected 0 to 1"),
    ],
)
def test_bad_settings_are_told_before_any_work(options, says, ask, tmp_path):
    (tmp_path / "p.yaml").write_text("prompt: ask\n")
    (tmp_path / "q.yaml").write_text("promt: '{text}'\n")
    code, _, err, rows, _ = ask([BRIDGE], "--model", "m", *[word.format(dir=tmp_path) for word in options])
    assert (
        code == 1 and err.startswith(f"error: {says.format(dir=tmp_path)}") and err.count("\n") == 1 and rows is None
    )


def test_a_key_with_strange_characters_is_not_shown(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk geheim ä")
    code, _, err, _, _ = ask([BRIDGE], "--url", "http://127.0.0.1:1/v1", "--model", "m")
    assert (
        code == 1
        and err.startswith("error: OPENAI_API_KEY: the environment variable holds no key")
        and "geheim" not in err
    )


def test_a_checkpoint_writes_them_too(ask, tmp_path, talker):
    """A model of the tests can say no letter twice, and so no JSON with a question: its reply is quarantined, and paid for."""
    model = talker("yes")
    (tmp_path / "p.yaml").write_text("prompt: 'Ask {number}: {text}'\n")
    options = ("--model", model, "--prompt", tmp_path / "p.yaml", "--max_new_tokens", 8, "--questions_per_span", 2)
    code, out, err, rows, bad = ask(["Twenty letters, a few."], *options)
    assert code == 1 and "--output: found no question to write from 1 document; see the quarantine" in err
    assert [(row["reason"], row["found"]) for row in bad] == [("unparsable reply", "yes")]
    # "Ask 2: Twenty letters, a few." is 29 tokens between <|user|>, <|end|> and <|assistant|>; "yes" and the end are 4
    assert "cost: 1 request, 32 prompt tokens, 4 completion tokens\n" in out
    (tmp_path / "out.json.journal").unlink()
    code, _, err, _, _ = ask(["Sixty letters are too many for a context of 64 tokens, indeed."], *options)
    assert (
        code == 1
        and "the longest prompt has 72 tokens, but its context has room for 56 beside" in err.splitlines()[-1]
    )
