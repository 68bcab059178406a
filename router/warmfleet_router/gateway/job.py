"""A parsed request made ready for workers: token ids, budgets and sampling of each prompt."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.worker_pb2 import Sampling

from warmfleet_router.gateway.catalogue import Catalogue
from warmfleet_router.gateway.encoders import Encoders
from warmfleet_router.gateway.schema import ChatRequest, CompletionRequest, SamplingOptions, completion_budget
from warmfleet_router.prompt import ids
from warmfleet_router.prompt.tokenizer import Tokenizer

MAX_SCORES = 100_000  # tokens and their alternatives in one body or event: half a second to write out

INLINE_BYTES = 256 << 10  # of a body; parsed in a few ms, the worst ones in 40

T = TypeVar("T")


class Prompt(NamedTuple):
    token_ids: bytes  # packed
    sampling: Sampling
    echo: str | None  # the text to repeat before each choice


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for; choice c of prompt p is choice p * n + c of its answer."""

    id: str
    created: int  # Unix seconds
    chat: bool
    model: str
    prompts: tuple[Prompt, ...]
    options: SamplingOptions
    stream: bool
    include_usage: bool

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.options.choices

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.token_ids) // TOKEN_BYTES for prompt in self.prompts)


class Preparer:
    """Turns parsed requests into jobs."""

    def __init__(self, encoders: Encoders, catalogue: Catalogue) -> None:
        self._encoders = encoders
        self._catalogue = catalogue

    async def parsed(self, parse: Callable[[bytes], T], body: bytes) -> T:
        """``parse(body)``, in a thread where it takes its time. Raises as ``parse`` does, and Rejected."""
        if len(body) <= INLINE_BYTES:
            return parse(body)
        return await self._encoders.own.offload.run(len(body), parse, body)

    def tokenizer(self, job: Job) -> Tokenizer:
        return self._encoders.of(job.model).tokenizer

    async def chat(self, request: ChatRequest, salt: bytes) -> Job:
        """Raises BadRequest and Rejected."""
        context = self._catalogue.context(request.model)
        token_ids = await self._encoders.of(request.model).chat(
            request.messages, request.tools, request.add_generation_prompt, salt, context
        )
        sampling = self._sampling(request.options, request.model, token_ids, "messages")
        prompt = Prompt(token_ids, sampling, None)
        return _job("chatcmpl", request, (prompt,))

    async def completion(self, request: CompletionRequest, salt: bytes) -> Job:
        """Raises BadRequest and Rejected."""
        context = self._catalogue.context(request.model)
        encoder = self._encoders.of(request.model)
        tokenizer = encoder.tokenizer
        prompts = []
        for asked in request.prompts:
            if isinstance(asked, str):
                token_ids = await encoder.text(asked, salt, context)
            else:
                token_ids = encoder.tokens(asked, tokenizer.vocab_size)
            sampling = self._sampling(request.options, request.model, token_ids, "prompt")
            prompts.append(Prompt(token_ids, sampling, _echo(tokenizer, asked) if request.echo else None))
        return _job("cmpl", request, tuple(prompts))

    def _sampling(self, options: SamplingOptions, model: str, token_ids: bytes, field: str) -> Sampling:
        prompt_tokens = len(token_ids) // TOKEN_BYTES
        catalogue = self._catalogue
        context = catalogue.context(model) if options.max_tokens else catalogue.roomy(model, prompt_tokens)
        max_tokens = completion_budget(options, prompt_tokens, context, field)
        if options.prompt_logprobs is not None:
            check_scores(prompt_tokens * (1 + options.prompt_logprobs))
        ends = () if options.ignore_eos else self._encoders.of(model).tokenizer.eos_ids
        return Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            seed=secrets.randbits(64) if options.seed is None else options.seed,
            max_tokens=max_tokens,
            choices=options.choices,
            stop_ids=ids.pack((*ends, *options.stop_token_ids)),
            logprobs=options.logprobs,
            prompt_logprobs=options.prompt_logprobs,
        )


def check_scores(count: int) -> None:
    """Raises BadRequest."""
    if count > MAX_SCORES:
        raise BadRequest(
            f"logprobs: {count} log-probabilities are more than one answer may hold ({MAX_SCORES})",
            "logprobs",
        )


def _job(kind: str, request: ChatRequest | CompletionRequest, prompts: tuple[Prompt, ...]) -> Job:
    return Job(
        id=f"{kind}-{secrets.token_hex(12)}",
        created=int(time.time()),
        chat=isinstance(request, ChatRequest),
        model=request.model,
        prompts=prompts,
        options=request.options,
        stream=request.stream,
        include_usage=request.include_usage,
    )


def _echo(tokenizer: Tokenizer, asked: str | bytes) -> str:
    if isinstance(asked, str):
        return asked
    return b"".join(tokenizer.token_bytes[i] for i in ids.unpack(asked)).decode(errors="replace")
