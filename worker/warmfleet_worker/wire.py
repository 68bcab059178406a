"""From the worker's own types to the messages of worker.proto."""

from array import array
from collections.abc import Iterable, Iterator

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.limits import HASHES_PER_MESSAGE
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_worker.engine.base import Logprobs
from warmfleet_worker.events import Batch, Event, Removed, Snapshot, Stored
from warmfleet_worker.load import Load, Totals
from warmfleet_worker.sequence import Ending, Output, Started
from warmfleet_worker.source import Source


def pack(token_ids: Iterable[int]) -> bytes:
    """u32 little-endian."""
    return array("I", token_ids).tobytes()


def logprobs(of: Iterable[Logprobs]) -> list[pb.TokenLogprobs]:
    return [
        pb.TokenLogprobs(logprob=each.logprob, top_ids=pack(each.top_ids), top_logprobs=each.top_logprobs)
        for each in of
    ]


def started(of: Started) -> pb.Started:
    return pb.Started(
        cached_tokens=of.cached_tokens,
        queue_s=of.queue_s,
        prefill_s=of.prefill_s,
        host_tokens=of.brought[Source.HOST],
        disk_tokens=of.brought[Source.DISK],
        peer_tokens=of.brought[Source.PEER],
        pulled=None if of.pulled is None else _pulled(of),
        load_s=of.loaded.seconds if of.loaded else 0.0,
        loaded_bytes=of.loaded.bytes if of.loaded else 0,
        work_s=of.work_s,
    )


def _pulled(of: Started) -> Pulled:
    assert of.pulled is not None
    return Pulled(
        tokens=of.brought[Source.PEER],
        seconds=of.pulled.seconds,
        bytes=of.pulled.bytes,
        wasted_bytes=of.pulled.wasted_bytes,
        failure=of.pulled.failure,
    )


def ending(of: Ending) -> pb.Ending:
    return pb.Ending(reason=of.reason.name, message=of.message, stop_id=of.stop_id)


def output(of: Output) -> pb.Output:
    return pb.Output(
        handle=of.request.key.handle,
        choice=of.choice,
        position=of.position,
        token_ids=pack(of.token_ids),
        logprobs=logprobs(of.logprobs),
        prompt_logprobs=logprobs(of.prompt_logprobs),
        started=started(of.started) if of.started else None,
        ending=ending(of.ending) if of.ending else None,
    )


def batch(of: Batch) -> pb.KvBatch:
    return pb.KvBatch(seq=of.seq, digest=of.digest, events=[_event(event) for event in of.events])


def _event(of: Event) -> pb.KvEvent:
    if isinstance(of, Stored):
        return pb.KvEvent(stored=_stored(of))
    if isinstance(of, Removed):
        return pb.KvEvent(removed=pb.Removed(tier=of.tier.name, hashes=b"".join(of.hashes)))
    return pb.KvEvent(cleared=pb.Cleared())


def _stored(of: Stored) -> pb.Stored:
    return pb.Stored(tier=of.tier.name, depth=of.depth, hashes=b"".join(of.hashes))


def snapshot(of: Snapshot) -> Iterator[pb.KvSnapshot]:
    """The snapshot in parts of at most HASHES_PER_MESSAGE hashes; an empty one has one part."""
    part = pb.KvSnapshot(seq=of.seq, digest=of.digest, first=True)
    room = HASHES_PER_MESSAGE
    for run in of.stored:
        start = 0
        while start < len(run.hashes):
            if not room:
                yield part
                part, room = pb.KvSnapshot(seq=of.seq, digest=of.digest), HASHES_PER_MESSAGE
            piece = run.hashes[start : start + room]
            part.stored.append(_stored(Stored(run.tier, run.depth + start, piece)))
            start += len(piece)
            room -= len(piece)
    part.last = True
    yield part


def load(
    of: Load,
    totals: Totals,
    *,
    bookings: Iterable[int],
    step_age_s: float,
    draining: bool,
    clock_s: float,
    leaves_s: float = 0.0,
) -> pb.WorkerLoad:
    return pb.WorkerLoad(
        **of._asdict(),
        bookings=bookings,
        prompt_tokens_total=totals.prompt_tokens,
        cached_tokens_total=totals.cached_tokens,
        completion_tokens_total=totals.completion_tokens,
        requests_total=totals.requests,
        steps_total=totals.steps,
        step_seconds_total=totals.step_seconds,
        work=pb.Work(**totals.work._asdict()),
        step_age_s=step_age_s,
        draining=draining,
        clock_s=clock_s,
        leaves_s=leaves_s,
    )
