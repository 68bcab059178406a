"""Bar 6.1: one real vLLM with two data-parallel ranks and a LoRA adapter: ranks as workers, it as a model.

See ``vllm_server`` for what must be installed. The adapter is made of random numbers.
"""

import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bars.conversations import ask, words
from tests.bars.programs import LOGS, programs
from tests.bars.rows import Row
from tests.bars.vllm import AGREE, Front
from tests.bars.vllm_server import MODEL, PYTHON, Server, running

ADAPTER, RANK, LAYERS = "poet", 8, 30
SIZES = {"q_proj": (576, 576), "v_proj": (576, 192)}  # of SmolLM2-135M: in, out
RANKS, PROMPTS, TIMES = 2, 4, 3
PROMPT_WORDS, PAUSE_S = 200, 0.5


def main() -> list[Row]:
    if not PYTHON.exists():
        print("   skipped: vLLM is not installed; see vllm_server.py", flush=True)
        return []
    lora = ("--enable-lora", "--max-lora-rank", str(RANK), "--lora-modules", f"{ADAPTER}={adapter()}")
    with programs() as starter:
        server = Server(starter, "vllm-ranks", "--data-parallel-size", str(RANKS), *lora, ranks=RANKS)
        with running([server]):
            front = Front(starter, "cheapest", [server])
            models = front.models()
            chance = random.Random(17)
            for text in [words(chance, PROMPT_WORDS) for _ in range(PROMPTS)]:
                for model in (ADAPTER, MODEL):  # the same text is another prompt there
                    for _ in range(TIMES):
                        ask(front.url, model, [{"role": "user", "content": text}], 4)
                        time.sleep(PAUSE_S)
            told, workers = front.told(2 * PROMPTS * TIMES), front.used(2 * PROMPTS * TIMES)
    right = sum(each.agrees for each in told)
    cold = sum(not each.delivered for each in told)
    return [
        Row("6.1", "vLLM: models", ", ".join(models), f"{MODEL}, {ADAPTER}", set(models) == {MODEL, ADAPTER}),
        Row("6.1", "vLLM: ranks placed on", f"{len(workers)}", f"{RANKS}", len(workers) == RANKS),
        Row(
            "6.1",
            "vLLM, an adapter and two ranks: predicted = reported",
            f"{right} of {len(told)}, {cold} cold",
            f">= {AGREE:.0%}",
            right >= AGREE * len(told) and cold < len(told) // 2,
        ),
    ]


def adapter() -> Path:
    """A LoRA of the demo model, as PEFT writes them."""
    made = LOGS / "lora"
    made.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    weights = {}
    for layer in range(LAYERS):
        for name, (wide, out) in SIZES.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = 0.02 * torch.randn(RANK, wide)
            weights[f"{at}.lora_B.weight"] = 0.02 * torch.randn(out, RANK)
    save_file(weights, made / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "bias": "none",
    }
    config |= {"target_modules": list(SIZES), "base_model_name_or_path": MODEL}
    (made / "adapter_config.json").write_text(json.dumps(config))
    return made
