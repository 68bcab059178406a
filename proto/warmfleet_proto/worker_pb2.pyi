from warmfleet_proto import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    DEVICE: _ClassVar[Tier]
    HOST: _ClassVar[Tier]
    DISK: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
DEVICE: Tier
HOST: Tier
DISK: Tier

class ServeRequest(_message.Message):
    __slots__ = ("open", "submit", "prompt", "cancel")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    open: Open
    submit: Submit
    prompt: PromptFrame
    cancel: Cancel
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., prompt: _Optional[_Union[PromptFrame, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("gateway_id", "reattach")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    REATTACH_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    reattach: _containers.RepeatedCompositeFieldContainer[Reattach]
    def __init__(self, gateway_id: _Optional[str] = ..., reattach: _Optional[_Iterable[_Union[Reattach, _Mapping]]] = ...) -> None: ...

class Reattach(_message.Message):
    __slots__ = ("handle", "next_positions")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    next_positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handle: _Optional[int] = ..., next_positions: _Optional[_Iterable[int]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("handle", "request_id", "booking", "token_ids", "prompt_tokens", "salt", "sampling", "deadline_s", "pull")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BOOKING_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    handle: int
    request_id: str
    booking: int
    token_ids: bytes
    prompt_tokens: int
    salt: bytes
    sampling: Sampling
    deadline_s: float
    pull: _transfer_pb2.Pull
    def __init__(self, handle: _Optional[int] = ..., request_id: _Optional[str] = ..., booking: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., salt: _Optional[bytes] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., deadline_s: _Optional[float] = ..., pull: _Optional[_Union[_transfer_pb2.Pull, _Mapping]] = ...) -> None: ...

class PromptFrame(_message.Message):
    __slots__ = ("handle", "token_ids")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    token_ids: bytes
    def __init__(self, handle: _Optional[int] = ..., token_ids: _Optional[bytes] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    def __init__(self, handle: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "choices", "stop_ids", "logprobs", "prompt_logprobs", "ignore_eos", "drawn")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    choices: int
    stop_ids: bytes
    logprobs: int
    prompt_logprobs: int
    ignore_eos: bool
    drawn: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., stop_ids: _Optional[bytes] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., ignore_eos: bool = ..., drawn: _Optional[int] = ...) -> None: ...

class ServeResponse(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    def __init__(self, outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("handle", "choice", "position", "token_ids", "logprobs", "prompt_logprobs", "started", "ending")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    handle: int
    choice: int
    position: int
    token_ids: bytes
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    started: Started
    ending: Ending
    def __init__(self, handle: _Optional[int] = ..., choice: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., ending: _Optional[_Union[Ending, _Mapping]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_ids: bytes
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_ids: _Optional[bytes] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("cached_tokens", "queue_s", "prefill_s", "pulled", "host_tokens", "disk_tokens", "peer_tokens", "loaded_bytes", "load_s", "work_s")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    HOST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PEER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    queue_s: float
    prefill_s: float
    pulled: _transfer_pb2.Pulled
    host_tokens: int
    disk_tokens: int
    peer_tokens: int
    loaded_bytes: int
    load_s: float
    work_s: float
    def __init__(self, cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., pulled: _Optional[_Union[_transfer_pb2.Pulled, _Mapping]] = ..., host_tokens: _Optional[int] = ..., disk_tokens: _Optional[int] = ..., peer_tokens: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., load_s: _Optional[float] = ..., work_s: _Optional[float] = ...) -> None: ...

class Ending(_message.Message):
    __slots__ = ("reason", "message", "stop_id")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Ending.Reason]
        STOP: _ClassVar[Ending.Reason]
        LENGTH: _ClassVar[Ending.Reason]
        CANCELLED: _ClassVar[Ending.Reason]
        DEADLINE: _ClassVar[Ending.Reason]
        BAD_REQUEST: _ClassVar[Ending.Reason]
        REJECTED: _ClassVar[Ending.Reason]
        FAILED: _ClassVar[Ending.Reason]
    REASON_UNSPECIFIED: Ending.Reason
    STOP: Ending.Reason
    LENGTH: Ending.Reason
    CANCELLED: Ending.Reason
    DEADLINE: Ending.Reason
    BAD_REQUEST: Ending.Reason
    REJECTED: Ending.Reason
    FAILED: Ending.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STOP_ID_FIELD_NUMBER: _ClassVar[int]
    reason: Ending.Reason
    message: str
    stop_id: int
    def __init__(self, reason: _Optional[_Union[Ending.Reason, str]] = ..., message: _Optional[str] = ..., stop_id: _Optional[int] = ...) -> None: ...

class WatchKvRequest(_message.Message):
    __slots__ = ("epoch", "after_seq")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    after_seq: int
    def __init__(self, epoch: _Optional[int] = ..., after_seq: _Optional[int] = ...) -> None: ...

class WatchKvResponse(_message.Message):
    __slots__ = ("epoch", "batch", "snapshot", "load")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    batch: KvBatch
    snapshot: KvSnapshot
    load: WorkerLoad
    def __init__(self, epoch: _Optional[int] = ..., batch: _Optional[_Union[KvBatch, _Mapping]] = ..., snapshot: _Optional[_Union[KvSnapshot, _Mapping]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ...) -> None: ...

class KvBatch(_message.Message):
    __slots__ = ("seq", "digest", "events")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    digest: bytes
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    def __init__(self, seq: _Optional[int] = ..., digest: _Optional[bytes] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: Stored
    removed: Removed
    cleared: Cleared
    def __init__(self, stored: _Optional[_Union[Stored, _Mapping]] = ..., removed: _Optional[_Union[Removed, _Mapping]] = ..., cleared: _Optional[_Union[Cleared, _Mapping]] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("tier", "depth", "hashes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    depth: int
    hashes: bytes
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., depth: _Optional[int] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class Removed(_message.Message):
    __slots__ = ("tier", "hashes")
    TIER_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    tier: Tier
    hashes: bytes
    def __init__(self, tier: _Optional[_Union[Tier, str]] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class Cleared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KvSnapshot(_message.Message):
    __slots__ = ("seq", "digest", "stored", "first", "last")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    digest: bytes
    stored: _containers.RepeatedCompositeFieldContainer[Stored]
    first: bool
    last: bool
    def __init__(self, seq: _Optional[int] = ..., digest: _Optional[bytes] = ..., stored: _Optional[_Iterable[_Union[Stored, _Mapping]]] = ..., first: bool = ..., last: bool = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("running", "waiting", "prefill_tokens", "context_tokens", "free_blocks", "cached_blocks", "pinned_blocks", "bookings", "prompt_tokens_total", "cached_tokens_total", "completion_tokens_total", "requests_total", "steps_total", "step_seconds_total", "step_age_s", "draining", "evictions_total", "late_hits_total", "clock_s", "leaves_s", "wanted_blocks", "work")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PINNED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BOOKINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_S_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LATE_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CLOCK_S_FIELD_NUMBER: _ClassVar[int]
    LEAVES_S_FIELD_NUMBER: _ClassVar[int]
    WANTED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    prefill_tokens: int
    context_tokens: int
    free_blocks: int
    cached_blocks: int
    pinned_blocks: int
    bookings: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens_total: int
    cached_tokens_total: int
    completion_tokens_total: int
    requests_total: int
    steps_total: int
    step_seconds_total: float
    step_age_s: float
    draining: bool
    evictions_total: int
    late_hits_total: int
    clock_s: float
    leaves_s: float
    wanted_blocks: int
    work: Work
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., free_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., pinned_blocks: _Optional[int] = ..., bookings: _Optional[_Iterable[int]] = ..., prompt_tokens_total: _Optional[int] = ..., cached_tokens_total: _Optional[int] = ..., completion_tokens_total: _Optional[int] = ..., requests_total: _Optional[int] = ..., steps_total: _Optional[int] = ..., step_seconds_total: _Optional[float] = ..., step_age_s: _Optional[float] = ..., draining: bool = ..., evictions_total: _Optional[int] = ..., late_hits_total: _Optional[int] = ..., clock_s: _Optional[float] = ..., leaves_s: _Optional[float] = ..., wanted_blocks: _Optional[int] = ..., work: _Optional[_Union[Work, _Mapping]] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("prompt_steps", "prompt_tokens", "prompt_pairs", "decode_steps", "decode_sequences", "decode_context")
    PROMPT_STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PAIRS_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEPS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DECODE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    prompt_steps: int
    prompt_tokens: int
    prompt_pairs: int
    decode_steps: int
    decode_sequences: int
    decode_context: int
    def __init__(self, prompt_steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., prompt_pairs: _Optional[int] = ..., decode_steps: _Optional[int] = ..., decode_sequences: _Optional[int] = ..., decode_context: _Optional[int] = ...) -> None: ...

class BringRequest(_message.Message):
    __slots__ = ("root", "keys", "pull")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    keys: bytes
    pull: _transfer_pb2.Pull
    def __init__(self, root: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., pull: _Optional[_Union[_transfer_pb2.Pull, _Mapping]] = ...) -> None: ...

class BringResponse(_message.Message):
    __slots__ = ("held_tokens", "pulled")
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    held_tokens: int
    pulled: _transfer_pb2.Pulled
    def __init__(self, held_tokens: _Optional[int] = ..., pulled: _Optional[_Union[_transfer_pb2.Pulled, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("worker", "epoch", "model", "model_fingerprint", "layout_fingerprint", "block_size", "total_blocks", "block_bytes", "max_context", "max_running", "engine", "version", "load", "vocab_size", "gives_blocks", "silent", "depth", "chunk_tokens", "anonymous_load", "silence_s", "models", "adapters")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    GIVES_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANONYMOUS_LOAD_FIELD_NUMBER: _ClassVar[int]
    SILENCE_S_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    epoch: int
    model: str
    model_fingerprint: bytes
    layout_fingerprint: bytes
    block_size: int
    total_blocks: int
    block_bytes: int
    max_context: int
    max_running: int
    engine: str
    version: str
    load: WorkerLoad
    vocab_size: int
    gives_blocks: bool
    silent: bool
    depth: int
    chunk_tokens: int
    anonymous_load: bool
    silence_s: float
    models: _containers.RepeatedScalarFieldContainer[str]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker: _Optional[str] = ..., epoch: _Optional[int] = ..., model: _Optional[str] = ..., model_fingerprint: _Optional[bytes] = ..., layout_fingerprint: _Optional[bytes] = ..., block_size: _Optional[int] = ..., total_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., max_context: _Optional[int] = ..., max_running: _Optional[int] = ..., engine: _Optional[str] = ..., version: _Optional[str] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., vocab_size: _Optional[int] = ..., gives_blocks: bool = ..., silent: bool = ..., depth: _Optional[int] = ..., chunk_tokens: _Optional[int] = ..., anonymous_load: bool = ..., silence_s: _Optional[float] = ..., models: _Optional[_Iterable[str]] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("deadline_s",)
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    deadline_s: float
    def __init__(self, deadline_s: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("unfinished",)
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    unfinished: int
    def __init__(self, unfinished: _Optional[int] = ...) -> None: ...
