"""``python -m tests.bars [NAME...]``: runs the bars and prints their figures; all of them without a name.

Exits 0 even when a bar is missed, since every figure is wanted; MISSED says so.
"""

import argparse
import importlib
import time
import traceback

from tests.bars.rows import Row, table

# By module: the bar's number and what it shows; 3.2 is bar 2 of issue 3.
BARS = {
    "first_light": "1: a fleet by one command, its first answer and the second turn's cached tokens",
    "exactness": "2: logits with the cache on and off, and against transformers",
    "cpu_weights": "2: weights laid out once on a CPU, beside torch's linear",
    "warm": "3: TTFT of a prefix hit against a cold prefix, at the client",
    "openai_client": "4: the official client, unchanged",
    "sharing": "5: conversations that share a system prompt, cheapest against round robin",
    "users": "6: locust users for 30 s",
    "bad_input": "7: bad requests and the death of a worker",
    "gateway_cost": "8: CPU and latency that the gateway adds, beside sglang-router",
    "trace_conversation": "3.1: the conversation trace, flat and on the fitted H200; minutes",
    "trace_agents": "3.1: the Claude Code trace with pulls; minutes",
    "trace_all": "3.1: four traces, two sizes of caches, three loads; an hour or two",
    "trace_capacity": "3.1: the highest speed that each policy sustains; minutes",
    "trace_lambda": "3.1: the adaptive externality beside the best constant one; minutes",
    "ablation": "3.1: the price without each of its terms; minutes",
    "index": "3.2: the index beside Dynamo's radix tree",
    "index_soak": "3.5: ten million blocks through an index bounded at one million",
    "route": "3.3: a placement in microseconds",
    "router_soak": "3.5: a million requests through the core in virtual time; minutes",
    "memo": "3.4: tokenising a next turn, and what long prompts do to the loop",
    "pull": "5.1: a prefix pulled from the worker that made it, real model",
    "overlap": "5.5: prefill beside a pull over a link that is 100 ms away; minutes",
    "replication": "5.5: hot prefixes copied ahead of requests, pulls, both and neither; minutes",
    "transfer_tcp": "5.2: blocks over loopback beside iperf3 and a gRPC stream",
    "staleness": "3.7: hit rate against the delay and loss of presence events",
    "replay_speed": "3.8: the replay's own CPU, 8 and 1,000 workers",
    "relay": "6.4: streams relayed from other servers: gateway and Envoy beside sglang-router",
    "usage": "6.4: what it costs to read the usage of answers that pass Envoy",
    "picks": "6.2: CPU of an endpoint pick for Envoy",
    "vllm": "6.1: two real vLLM behind the gateway: predicted against reported cached tokens; minutes",
    "vllm_ranks": "6.1: one real vLLM with two data-parallel ranks and an adapter; minutes",
    "llama_cpp": "6.3: two llama.cpp servers, placed by their prompts' text; minutes",
    "replicas": "6.5: one, two and four routers over the same workers; minutes",
    "replicas_live": "6.5: the same with real processes; ten minutes",
    "tiers": "5.3: TTFT by the tier that a prefix lies in, and with a disk in trouble",
    "disk_tier": "5.6: the disk tier killed at random bytes, and reopened",
    "hostile": "3.9: never worse than simple policies on hostile traffic, 20 seeds",
    "live_vs_sglang": "3.6: 8 workers live, agents and chats, beside sglang-router",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bars", description=__doc__.partition("\n")[0])
    names = "\n".join(f"  {name:15} {what}" for name, what in BARS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"bars:\n{names}"
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of those below")
    chosen = parser.parse_args().names or list(BARS)
    if unknown := set(chosen) - set(BARS):
        parser.error(f"no bar is called {', '.join(sorted(unknown))}")
    rows = [row for name in chosen for row in run(name)]
    print(f"\n{table(rows)}")
    return 0


def run(name: str) -> list[Row]:
    """One bar, printed as it ends. What raises is a miss, and the next bar runs."""
    print(f"\n== {name} ({BARS[name]})", flush=True)
    began = time.perf_counter()
    try:
        rows: list[Row] = importlib.import_module(f"tests.bars.{name}").main() or []
    except Exception as error:
        traceback.print_exc()
        rows = [Row(name, "ended by an error", f"{type(error).__name__}: {error}"[:100], "figures", ok=False)]
    for row in rows:
        print(row)
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
