"""What lets `torch.compile` make a language model's pretraining fast: attention without a mask, and a loss without logits."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

CAUSAL = "causal_sdpa"


def ease_compiling(model: PreTrainedModel, masked: bool) -> None:
    """Change a causal language model so that a compiled training step is one graph, on flash attention.

    - transformers 5.23 gives a model that is compiled a mask, though causality is all there is to mask
      (`masking_utils.find_packed_sequence_indices` cannot read positions while tracing), and with a mask torch takes no
      flash kernel. An attention without a mask function of its own gets none.
    - Without `loss_type` a warning, and with it a break of the graph, lies between model and loss.
    - A training step needs no logits. Left out, they are not kept, copied in fp32 and given a gradient: 26 GB for 32 rows
      of 1,024 tokens and GPT-2's vocabulary.

    Args:
        masked: rows hold documents that must not see each other: attention stays as it is. Without it, padding on the
            left would be attended to: there is none in blocks of tokens, and none in front of a single prompt.
    """
    from transformers import AttentionInterface  # slow to import
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not masked:
        AttentionInterface.register(CAUSAL, sdpa_attention_forward)
        model.set_attn_implementation(CAUSAL)
    model.loss_type = "ForCausalLM"
    forward = model.forward

    @functools.wraps(forward)  # the Trainer reads its signature
    def loss_alone(*args, labels=None, **kwargs):
        output = forward(*args, labels=labels, **kwargs)
        return output if labels is None else {"loss": output.loss}

    model.forward = loss_alone
