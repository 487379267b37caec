"""Tools in conversations: every common shape is read, calls are in the loss, tools and results are not."""

import json
import math

import pyarrow.parquet
import pytest
from helpers.chat_tokens import HARD_TEXTS, trained
from helpers.conversations import FAST, gpt, human, messages, system, write
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.readers.conversation_formats import to_conversation
from data_prep.readers.conversations import read_conversations
from data_prep.tokens.chat_encoder import ChatEncoder, encode_conversations, encode_prompts
from data_prep.tokens.sft_dataset import load_tokenized, messages_of
from data_prep.tokens.template_problems import template_roles
from data_prep.train_tokenizer import SPECIAL_TOKENS

# ChatML as Hermes and Qwen write it, here in a form of its own: results of one call share a user's turn.
CHATML = """
{%- if tools %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '<tools>' }}{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}{% generation %}{{- message.content }}
{%- for call in message.tool_calls %}{{- '\n' if message.content or not loop.first }}
{{- '<tool_call>\n{"name": ' + call.function.name | tojson + ', "arguments": ' + call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{% endgeneration %}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user' if messages[loop.index0 - 1].role != 'tool' }}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}
{%- elif message.role == 'user' or not (tools and loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
PLAIN = "{% for m in messages %}{{ m.role + ':' }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
TEMPLATES = ("own", "chatml", "unmarked")


def with_template(template: str):
    tokenizer = trained()
    tokenizer.chat_template = {"own": tokenizer.chat_template, "chatml": CHATML, "unmarked": UNMARKED}[template]
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {template: with_template(template) for template in TEMPLATES}


def called(name: str, arguments: dict) -> str:
    """A call as the templates write it."""
    named, given = json.dumps(name, ensure_ascii=False), json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {named}, "arguments": {given}}}\n</tool_call>'


def segments(template: str, conversation: list[dict], tools: list[dict]) -> list[tuple[str, bool]]:
    """[(text, whether it is learned), …] of a conversation, put together without the template."""
    own = template == "own"
    start, end = ("<|{}|>", "<|end|>") if own else ("<|im_start|>{}\n", "<|im_end|>\n")
    listed = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    said: list[tuple[str, bool]] = []
    before = ""
    for index, message in enumerate(conversation):
        role, text = message["role"], message["content"]
        if index == 0 and tools:
            text = text if role == "system" else ""
            block = "<tools>\n" + "".join(f"{each}\n" for each in listed) + "</tools>"
            gap = ("\n" if own else "\n\n") if text else ""
            said.append((start.format("system") + text + gap + block + end, False))
            text = message["content"]
        if role == "assistant":
            calls = [
                called(each["function"]["name"], each["function"]["arguments"])
                for each in message.get("tool_calls", [])
            ]
            said.append((start.format(role), False))
            said.append(("\n".join([*([text] if text else []), *calls]) + end, True))
        elif role == "tool":
            result = f"<tool_response>\n{text}\n</tool_response>"
            last = conversation[index + 1]["role"] != "tool"
            if own:
                said.append((f"<|user|>{result}<|end|>", False))
            else:
                said.append((("" if before == "tool" else "<|im_start|>user") + "\n" + result + end * last, False))
        elif not (role == "system" and tools):
            said.append((start.format(role) + text + end, False))
        before = role
    return said


NAMES = st.sampled_from(["add", "weather", "查询"])
ARGUMENTS = st.dictionaries(
    st.sampled_from(["a", "city", "<|end|>"]), HARD_TEXTS | st.integers() | st.lists(st.booleans()), max_size=2
)
RESULTS = HARD_TEXTS.filter(lambda text: "tool_response" not in text)


@st.composite
def with_tools(draw):
    """(messages of one conversation with calls and results, its tools)"""
    conversation = [{"role": "system", "content": draw(HARD_TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        conversation.append({"role": "user", "content": draw(HARD_TEXTS)})
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=2))
            function = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
            conversation.append(
                {"role": "assistant", "content": draw(st.just("") | HARD_TEXTS), "tool_calls": function}
            )
            conversation += [{"role": "tool", "content": draw(RESULTS)} for _ in calls]
        conversation.append({"role": "assistant", "content": draw(HARD_TEXTS)})
    schema = st.builds(
        lambda name, text: {"type": "function", "function": {"name": name, "description": text}}, NAMES, HARD_TEXTS
    )
    return conversation, draw(st.lists(schema, max_size=2))


@FAST
@given(with_tools())
def test_calls_are_learned_and_tools_and_results_are_not(tokenizers, tmp_path, drawn):
    conversation, tools = drawn
    path = write(tmp_path, [{"messages": conversation, **({"tools": tools} if tools else {})}])
    for template, tokenizer in tokenizers.items():
        (row,) = load_tokenized(path, tokenizer, None)
        expected = segments(template, conversation, tools)
        assert tokenizer.decode(row["input_ids"]) == "".join(text for text, _ in expected)
        learned = [token for token in row["labels"] if token != -100]
        assert tokenizer.decode(learned) == "".join(text for text, counts in expected if counts)
        if template == "own":  # control tokens that somebody typed, in a call or a tool too, stay text
            control = set(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))
            turns = len(conversation) + (bool(tools) and conversation[0]["role"] != "system")
            assert sum(token in control for token in row["input_ids"]) == 2 * turns
        whole = messages_of(row)
        assert [{key: each[key] for key in each if key != "tools"} for each in whole] == conversation
        assert encode_conversations(tokenizer, [whole]) == [row["input_ids"]]
        prompt = encode_prompts(tokenizer, [whole[:-1]])[0]
        assert row["input_ids"][: len(prompt)] == prompt


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ADD = {"name": "add", "arguments": {"a": 2, "b": 2}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
# One and the same conversation in every shape that public data have.
SHAPES = {
    "OpenAI": {"messages": [
        {"role": "system", "content": "Count."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"}, {"role": "assistant", "content": "Four."}],
        "tools": [TOOL]},
    "OpenAI's functions": {"messages": [
        {"role": "system", "content": "Count."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
        {"role": "function", "name": "add", "content": "4"}, {"role": "assistant", "content": "Four."}],
        "tools": [TOOL]},
    "LLaMA-Factory": {"conversations": [
        human("2+2?"), {"from": "function_call", "value": json.dumps(ADD)}, {"from": "observation", "value": "4"},
        gpt("Four.")], "system": "Count.", "tools": json.dumps([TOOL["function"]])},
    "LLaMA-Factory, a list of calls": {"conversations": [
        system("Count."), human("2+2?"), {"from": "function_call", "value": json.dumps([ADD])},
        {"from": "observation", "value": "4"}, gpt("Four.")], "tools": json.dumps([TOOL])},
    "LLaMA-Factory's parts": {"messages": [
        {"role": "system", "content": [{"type": "text", "value": "Count."}]},
        {"role": "user", "content": [{"type": "text", "value": "2+"}, {"type": "text", "value": "2?"}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(ADD)}]},
        {"role": "tool", "content": [{"type": "text", "value": "4"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "Four."}]}], "tools": json.dumps([TOOL])},
    "GLM": {"messages": [
        {"role": "system", "content": "Count.", "tools": [TOOL]}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "", "tool_calls": [ADD]}, {"role": "observation", "content": "4"},
        {"role": "assistant", "content": "Four."}]},
    "Hermes": {"conversations": [
        system(f"Count.\n<tools>\n{json.dumps(TOOL)}\n</tools>"), human("2+2?"), gpt(CALL),
        {"from": "tool", "value": "<tool_response>\n4\n</tool_response>"}, gpt("Four.")], "tools": json.dumps([TOOL])},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_text(shape, tokenizers, tmp_path, capsys):
    (row,) = load_tokenized(write(tmp_path, [SHAPES[shape]]), tokenizers["own"], None)
    assert tokenizers["own"].decode(row["input_ids"]) == (
        f"<|system|>Count.\n<tools>\n{json.dumps(TOOL)}\n</tools><|end|><|user|>2+2?<|end|><|assistant|>{CALL}<|end|>"
        "<|user|><tool_response>\n4\n</tool_response><|end|><|assistant|>Four.<|end|>"
    )
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizers["own"].decode(learned) == f"{CALL}<|end|>Four.<|end|>"
    out = capsys.readouterr().out
    said = "fields not read: tools, which the system turn shows (1 row)\n"
    assert (said in out) if shape == "Hermes" else ("not read" not in out)


def test_tools_of_the_first_turn_stay_where_the_row_has_a_system_text(tokenizers, tmp_path):
    turns = [{"role": "user", "content": "a", "tools": [TOOL]}, {"role": "assistant", "content": "b"}]
    (row,) = load_tokenized(write(tmp_path, [{"messages": turns, "system": "Count."}]), tokenizers["own"], None)
    text = f"<|system|>Count.\n<tools>\n{json.dumps(TOOL)}\n</tools><|end|><|user|>a<|end|><|assistant|>b<|end|>"
    assert tokenizers["own"].decode(row["input_ids"]) == text


PIECES = st.sampled_from(
    ["", " ", "a", "<think>x</think>y", "<think>", "<|end|>", "\ud800", "[1]", "<tools>", '{"name": "f"}']
)
KEYS = st.sampled_from(
    ["type", "text", "value", "name", "arguments", "function", "id", "role", "content", "from", "tool_calls"]
)
VALUES = st.recursive(
    PIECES | st.none() | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(["user", "assistant", "tool", "system", "function_call", "observation", "function"])
TURNS = st.fixed_dictionaries(
    {"role": ROLE, "content": st.just("a") | VALUES},
    optional=dict.fromkeys(("tool_calls", "function_call", "reasoning_content", "tools", "name", "weight"), VALUES),
)


@FAST
@given(
    st.lists(TURNS | VALUES, max_size=5), st.dictionaries(st.sampled_from(["system", "tools", "images", "x"]), VALUES)
)
def test_whatever_stands_in_turns_is_read_or_set_aside(tokenizers, tmp_path, turns, beside):
    rows = [{"messages": turns, **beside}, {"messages": messages("a", "b")}]
    path, aside = write(tmp_path, rows), tmp_path / "quarantine.jsonl"
    dataset = load_tokenized(path, tokenizers["own"], None, on_bad="quarantine", quarantine=aside)
    assert len(dataset) + (len(aside.read_text().splitlines()) if aside.exists() else 0) == 2


def test_a_call_after_a_text_is_one_turn_with_it(tokenizers):
    turns = [human("2+2?"), gpt("Let me see."), {"from": "function_call", "value": json.dumps(ADD)}]
    turns += [{"from": "function_call", "value": json.dumps(ADD)}, {"from": "observation", "value": "4"}, gpt("Four.")]
    read, problems = to_conversation({"conversations": turns})
    encoder = ChatEncoder(tokenizers["own"])
    (rendered,) = encoder.render([read])
    learned = [rendered.text[begin:end] for begin, end in rendered.spans]
    assert not problems and learned == [f"Let me see.\n{CALL}\n{CALL}<|end|>", "Four.<|end|>"]


def test_the_template_of_qwen_gets_what_it_was_made_for(tmp_path):
    from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

    tokenizer = trained()
    for own in (qwen2_5_chat_template, "{# a copy that nobody knows #}" + qwen2_5_chat_template):
        tokenizer.chat_template = own
        (row,) = load_tokenized(write(tmp_path, [SHAPES["OpenAI"]]), tokenizer, None)
        conversation = [{k: v for k, v in each.items() if k != "tools"} for each in messages_of(row)]
        assert row["input_ids"] == tokenizer.apply_chat_template(conversation, tools=[TOOL])["input_ids"]
        learned = tokenizer.decode([token for token in row["labels"] if token != -100])
        # TRL's copy has the line break after the role in the loss, too: the prompt ends with it.
        assert learned == f"{CALL}<|im_end|>\nFour.<|im_end|>\n"
    tokenizer.chat_template = qwen2_5_chat_template
    assert "generation" in get_training_chat_template(tokenizer)


def test_a_template_of_its_own_for_tools(tmp_path):
    """Hermes' tokenizers have two templates, of which one is for tools."""
    tokenizer = trained()
    tokenizer.chat_template = {"default": PLAIN, "tool_use": CHATML}
    assert set(template_roles(tokenizer)) == {
        "system", "user", "assistant", "function_call", "tool", "tools", "reasoning_content",
    }  # fmt: skip
    path = write(tmp_path, [SHAPES["OpenAI"], {"messages": messages("a", "b")}])
    first, second = load_tokenized(path, tokenizer, None)
    assert tokenizer.decode(first["input_ids"]).startswith("<|im_start|>system\nCount.\n\n<tools>\n{")
    assert tokenizer.decode(second["input_ids"]) == "user:aassistant:b"


def test_tools_that_a_template_does_not_take_are_counted(tmp_path, capsys):
    tokenizer = trained()
    tokenizer.chat_template = PLAIN
    assert template_roles(tokenizer) == ("system", "user", "assistant", "tool", "reasoning_content")
    rows = [{"messages": messages("a", "b"), "tools": tools} for tools in ([TOOL], json.dumps([TOOL]), [], "[]")]
    dataset = load_tokenized(write(tmp_path, rows), tokenizer, None)
    assert [tokenizer.decode(row["input_ids"]) for row in dataset] == ["user:aassistant:b"] * 4
    assert "fields not read: tools (2 rows)\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="found turns of function_call; expected system, user, assistant, tool only"):
        load_tokenized(write(tmp_path, [SHAPES["OpenAI"]]), tokenizer, None)


def test_pieces_of_a_long_conversation_all_have_the_tools(tmp_path, tokenizers):
    rows = [{"messages": messages("ZZ", "Q", "ZQ", "Z"), "tools": [TOOL]}]
    pieces = load_tokenized(write(tmp_path, rows), tokenizers["own"], 110, long="split")
    start = f"<|system|><tools>\n{json.dumps(TOOL)}\n</tools><|end|>"
    texts = [tokenizers["own"].decode(row["input_ids"]) for row in pieces]
    assert texts == [
        f"{start}<|user|>ZZ<|end|><|assistant|>Q<|end|>",
        f"{start}<|user|>ZQ<|end|><|assistant|>Z<|end|>",
    ]


BROKEN = {
    "a call that is no JSON": ({"from": "function_call", "value": "add(2, 2)"}, "'add(2, 2)' at turn 2; expected {\"name\""),
    "a call without a name": ({"from": "function_call", "value": '{"arguments": {}}'}, "1 × tool call that cannot be read"),
    "arguments that are no object": (
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]},
        "1 × tool call that cannot be read",
    ),
    "half a pair in a call": (
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]},
        "found half a surrogate pair at turn 2; expected complete characters",
    ),
    "a number that JSON has not, in text": (
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": -Infinity}}'},
        "1 × NaN or Infinity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_call_is_named(name, tokenizers, tmp_path):
    turn, found = BROKEN[name]
    path = write(tmp_path, [{"conversations": [human(), turn]}])
    with pytest.raises(InputError) as caught:
        load_tokenized(path, tokenizers["own"], None)
    assert found in str(caught.value)


def test_the_order_of_calls_and_results(tokenizers, tmp_path):
    call, result = {"from": "function_call", "value": json.dumps(ADD)}, {"from": "observation", "value": "4"}
    for turns, found in (
        ([human(), result, gpt()], "found tool at turn 2; expected gpt or function_call"),
        ([human(), call, gpt()], "found gpt at turn 3; expected tool or function_call"),
        ([human(), call, result, human()], "found human at turn 4; expected tool or gpt or function_call"),
    ):
        with pytest.raises(InputError) as caught:
            load_tokenized(write(tmp_path, [{"conversations": turns}]), tokenizers["own"], None)
        assert found in str(caught.value)


@pytest.mark.parametrize("tools", ["add(a, b)", [1], {"function": "add"}])
def test_tools_that_are_not_definitions_are_named(tools, tokenizers, tmp_path):
    path = write(tmp_path, [{"messages": messages("a", "b"), "tools": tools}])
    with pytest.raises(InputError, match="1 × tools that are not definitions"):
        load_tokenized(path, tokenizers["own"], None)


def test_tools_that_json_cannot_write_are_named(tokenizers, tmp_path):
    """Written as they are, the row could not be read again: JSON in a text, and Parquet, have Infinity."""
    row = {"messages": messages("a", "b")}
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "tools": [{"name": math.nan}]}]), tmp_path / "rows.parquet"
    )
    for path in (tmp_path / "rows.parquet", write(tmp_path, [{**row, "tools": '[{"name": 1e999}]'}])):
        with pytest.raises(InputError, match="1 × NaN or Infinity"):
            load_tokenized(path, tokenizers["own"], None)


def test_readers_without_a_template_refuse_calls(tmp_path):
    with pytest.raises(InputError, match="found turns of function_call; expected system, user, assistant only"):
        read_conversations(write(tmp_path, [SHAPES["OpenAI"]]))


def test_a_template_that_cannot_render_a_conversation_names_it(tmp_path):
    tokenizer = trained()
    tokenizer.chat_template = CHATML.replace("{%- for call", "{{- raise_exception('one call at most') if message.tool_calls | length > 1 }}{%- for call")  # fmt: skip
    call = {"role": "assistant", "content": "", "tool_calls": [ADD, ADD]}
    rows = [{"messages": messages("a", "b")}, {"messages": [{"role": "user", "content": "2+2?"}, call]}]
    with pytest.raises(
        InputError,
        match="row 2, line 1: found a conversation that the chat template refuses: one call at most; expected",
    ):
        load_tokenized(write(tmp_path, rows), tokenizer, None)
