"""A compiled training step: one graph, no mask, no logits; the loss, and what is measured beside it, stay what they are."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from recipes.trainers.compiled import ease_compiling

SHAPE = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SHAPE, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))


def graphs_of(model, **inputs) -> list:
    torch._dynamo.reset()
    found = []

    def backend(graph, example_inputs):
        found.append(graph)
        return graph.forward

    torch.compile(model, backend=backend)(**inputs)
    return found


def attention_of(graphs: list) -> list[dict]:
    """What each attention is given by name."""
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    return [node.kwargs for node in nodes if "scaled_dot_product_attention" in str(node.target)]


def test_a_training_step_is_one_graph_with_causal_attention(model):
    ids = torch.randint(61, (2, 64))
    before = graphs_of(model, input_ids=ids, labels=ids)
    assert len(before) > 1 and all(given["attn_mask"] is not None for given in attention_of(before))
    ease_compiling(model, masked=False)
    after = graphs_of(model, input_ids=ids, labels=ids)
    assert len(after) == 1
    given = attention_of(after)
    assert len(given) == 2 and all(each["attn_mask"] is None and each["is_causal"] for each in given)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_logits_and_answers_are_as_before(model, masked, tmp_path):
    ids = torch.randint(61, (2, 64))
    eased = copy.deepcopy(model)
    ease_compiling(eased, masked)
    with_labels = eased(input_ids=ids, labels=ids)
    assert list(with_labels) == ["loss"]
    torch.testing.assert_close(with_labels["loss"], model(input_ids=ids, labels=ids).loss)
    torch.testing.assert_close(eased(input_ids=ids).logits, model(input_ids=ids).logits)
    told = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    assert eased.generate(ids[:1, :9], **told).tolist() == model.generate(ids[:1, :9], **told).tolist()
    assert eased.config._attn_implementation == ("sdpa" if masked else "causal_sdpa")
    eased.save_pretrained(tmp_path)
    assert "causal_sdpa" not in (tmp_path / "config.json").read_text()


def test_documents_stay_apart_where_they_are_to(model):
    ids = torch.randint(61, (1, 64))
    positions = torch.cat([torch.arange(32), torch.arange(32)])[None]
    ease_compiling(model, masked=True)
    other = ids.clone()
    other[0, :32] = (other[0, :32] + 1) % 61
    first, second = (model(input_ids=each, position_ids=positions).logits[0, 32:] for each in (ids, other))
    torch.testing.assert_close(first, second)
