"""A model to start from: its tokenizer, chat template and size."""

from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.models.loading import carries_state, checkpoint_or_hub_id, context_of, takes_positions
from data_prep.planning.configs import Machine, Model

# Written with the model's own tokens alone, for a base model without a chat template: each answer ends on its end of text.
TEXT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '### Assistant:\\n' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- elif message['role'] in ('user', 'system') -%}
{{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' -}}
{%- else -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}
"""
BYTES = 40  # a parameter in PPO: two models with gradient and moments, 16 each in fp32, and two that stay, 4 each


class Origin(NamedTuple):
    """What a run has to know of the model that it starts from."""

    name: str
    tokenizer: object
    template: str | None  # a chat template to be written, for want of its own
    end_of_turn: str | None  # the token that ends an answer, if it is not the tokenizer's own end
    pads: bool  # whether padding can be told from the end of an answer
    folder: bool  # else it is a model of the Hub


def origin_of(name: str) -> Origin:
    """The model `name`, a folder or Hub id. Raises InputError if it cannot be loaded."""
    from data_prep.models.loading import load_tokenizer  # slow to import
    from data_prep.tokens.chat_encoder import ChatEncoder, end_of_turn

    checkpoint_or_hub_id(name, "recipes/pretrain.py", argument="--model")
    tokenizer = load_tokenizer(name)
    template = None
    try:
        if tokenizer.chat_template is None:
            raise InputError("no chat template")
        ChatEncoder(tokenizer)
    except InputError:
        if tokenizer.eos_token is None:
            raise InputError(f"--model {name}: its tokenizer has neither a chat template nor an end of text") from None
        template = tokenizer.chat_template = TEXT_TEMPLATE
    end = end_of_turn(tokenizer) or tokenizer.eos_token
    other = None if end == tokenizer.eos_token else end
    pads = tokenizer.pad_token not in (None, end)
    return Origin(name, tokenizer, template, other, pads, Path(name).is_dir())


def size_of(origin: Origin, machine: Machine) -> Model:
    """Its parameters, counted without loading its weights; as long a context as it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(origin.name, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = model.num_parameters()
    text = config.get_text_config()
    return Model(
        origin.name,
        text.num_hidden_layers,
        text.hidden_size,
        parameters,
        6 * parameters,
        len(origin.tokenizer),
        context_of(config) or 1024,
        lora=BYTES * parameters > machine.memory / 2,
        packs=takes_positions(model) and not carries_state(config),
    )
