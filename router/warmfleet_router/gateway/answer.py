"""From outputs to the client: one JSON body, or server-sent events of what each step brought."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiohttp import web
from warmfleet_proto.errors import WarmfleetError, http_status

from warmfleet_router.gateway import openai
from warmfleet_router.gateway.choices import ChoiceText, prompt_scores
from warmfleet_router.gateway.generation import Generation
from warmfleet_router.gateway.http import told
from warmfleet_router.gateway.job import Job, check_scores
from warmfleet_router.gateway.record import Record
from warmfleet_router.prompt.scores import Score
from warmfleet_router.prompt.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Clock = Callable[[], float]
Pieces = dict[int, tuple[str, list[Score] | None]]  # choice of the answer -> its new text, its new scores
Sink = Callable[[Pieces], Coroutine[Any, Any, None]]


class Answer:
    """One HTTP request's choices and how far they are."""

    def __init__(
        self, job: Job, generations: Sequence[Generation], tokenizer: Tokenizer, record: Record, clock: Clock
    ) -> None:
        self._job = job
        self._generations = generations
        self._tokenizer = tokenizer
        self._record = record
        self._clock = clock
        options = job.options
        scored = options.logprobs is not None
        self._choices = [ChoiceText(tokenizer, options.stops, scored) for _ in range(job.choices)]

    async def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        texts: list[list[str]] = [[] for _ in self._choices]
        scores: list[list[Score]] = [[] for _ in self._choices]

        async def keep(pieces: Pieces) -> None:
            for index, (text, scored) in pieces.items():
                texts[index].append(text)
                scores[index] += scored or ()
            check_scores(sum(map(len, scores)) * (1 + (self._job.options.logprobs or 0)))

        await together([self._follow(i, keep) for i in range(len(self._generations))])
        scored = self._job.options.logprobs is not None
        choices = [
            openai.Choice("".join(texts[i]), choice.finish_reason, scores[i] if scored else None)
            for i, choice in enumerate(self._choices)
        ]
        respond = openai.chat_response if self._job.chat else openai.completion_response
        return respond(self._job.id, self._job.created, self._job.model, choices, self._usage())

    async def stream(self, response: web.StreamResponse) -> Exception | None:
        """Writes events to a prepared response; a failure ends them with an error event and is returned.

        Raises ConnectionError when the client has left.
        """
        events = _Events(self._job)

        async def send(pieces: Pieces) -> None:
            if data := events.of(pieces, self._choices):
                await response.write(data)

        try:
            await together([self._follow(i, send) for i in range(len(self._generations))])
        except ConnectionError:
            raise
        except Exception as error:
            response.force_close()
            await response.write(error_event(error))
            return error
        usage = events.usage(self._usage()) if self._job.include_usage else b""
        await response.write(usage + openai.DONE)
        return None

    async def _follow(self, prompt: int, sink: Sink) -> None:
        """One generation to its end. Where it fails it has ended with that: others are only given up."""
        generation = self._generations[prompt]
        try:
            await self._read(prompt, generation, sink)
        except WarmfleetError as error:
            generation.finish(error)
            raise

    async def _read(self, prompt: int, generation: Generation, sink: Sink) -> None:
        """A stop string ends it early."""
        n = self._job.options.choices
        first = prompt * n
        choices = self._choices[first : first + n]
        echoed = self._job.prompts[prompt].echo is None
        unended = n
        async for outputs in generation:
            pieces: Pieces = {}
            if not echoed:
                echoed = True
                pieces = self._echo(prompt, first, outputs[0].prompt_logprobs)
            tokens = 0
            for output in outputs:
                choice = choices[output.choice]
                if choice.finish_reason:  # a stop string ended it here, and not yet in the worker
                    continue
                tokens -= choice.tokens
                _add(pieces, first + output.choice, *choice.push(output))
                tokens += choice.tokens
                unended -= bool(choice.finish_reason)
            await sink(pieces)
            self._record.tokens(tokens, self._clock())
            if not unended:
                break
        generation.finish(completion_tokens=sum(choice.tokens for choice in choices))

    def _echo(self, prompt: int, first: int, logprobs: Any) -> Pieces:
        asked = self._job.prompts[prompt]
        scores = None
        if self._job.options.logprobs is not None:
            scores = prompt_scores(self._tokenizer, asked.token_ids, logprobs)
        return {first + i: (asked.echo or "", scores) for i in range(self._job.options.choices)}

    def _usage(self) -> openai.Usage:
        return openai.Usage(
            self._job.prompt_tokens,
            sum(choice.tokens for choice in self._choices),
            sum(generation.cached_tokens for generation in self._generations),
        )


def error_event(error: Exception) -> bytes:
    if isinstance(error, WarmfleetError):
        return openai.error_chunk(str(told(error)), http_status(error))
    _log.error("a stream failed", exc_info=error)
    return openai.error_chunk("internal error", 500)


class _Events:
    """The events of one stream, chat or completion."""

    def __init__(self, job: Job) -> None:
        chunks = (openai.ChatChunks if job.chat else openai.CompletionChunks)(
            job.id, job.created, job.model, job.choices, job.include_usage
        )
        self._chunks = chunks
        self._scored = [0] * job.choices  # characters of tokens; the end of their text may be held back
        self._open = [True] * job.choices
        self._unbegun = set(range(job.choices)) if job.chat else set[int]()
        self.usage = chunks.usage

    def of(self, pieces: Pieces, choices: Sequence[ChoiceText]) -> bytes:
        """Everything that ``pieces`` bring, to be written at once."""
        events = []
        for index, (text, scores) in pieces.items():
            if not self._open[index]:
                continue
            if index in self._unbegun and isinstance(self._chunks, openai.ChatChunks):
                self._unbegun.discard(index)
                events.append(self._chunks.first(index))
            if text or scores:
                events.append(self._text(index, text, scores))
            if choices[index].finish_reason:
                self._open[index] = False
                events.append(self._chunks.last(index, choices[index].finish_reason))
        return b"".join(events)

    def _text(self, index: int, text: str, scores: list[Score] | None) -> bytes:
        if isinstance(self._chunks, openai.ChatChunks):
            return self._chunks.text(index, text, scores)
        offset = self._scored[index]
        self._scored[index] += sum(len(score.token.text) for score in scores or ())
        return self._chunks.text(index, text, scores, offset)


def _add(pieces: Pieces, index: int, text: str, scores: list[Score] | None) -> None:
    """A choice that got several outputs since the last look shows them as one."""
    if index in pieces:
        earlier, scored = pieces[index]
        text = earlier + text
        scores = [*scored, *(scores or ())] if scored is not None else scores
    pieces[index] = (text, scores)


async def together(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of ``calls``; the first error ends the others and is raised as itself."""
    if len(calls) == 1:
        await calls[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
