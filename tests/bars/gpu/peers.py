"""transformers beside ours: a model of the same shape, prefill alone, before our engine takes the memory."""

import torch
from warmfleet_worker.models.config import ModelConfig

from tests.bars.gpu.timing import wall_s

Rates = dict[int, float]
"""Tokens a second by prompt length."""


@torch.inference_mode()
def transformers_prefill(config: ModelConfig, counts: tuple[int, ...]) -> Rates:
    """Eager, with torch's scaled dot product attention, its cache filled, logits of the last row alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    model.to_empty(device="cuda")
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(shape, device="cuda")
    model.train(False)
    rates = {}
    for count in counts:
        token_ids = torch.randint(0, config.vocab_size, (1, count), device="cuda")
        took = wall_s(
            lambda token_ids=token_ids: model(token_ids, use_cache=True, logits_to_keep=1), repeats=3, warm=1
        )
        rates[count] = count / took
    return rates
