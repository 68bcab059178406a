from warmfleet_proto import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union
from warmfleet_proto.transfer_pb2 import Claims as Claims
from warmfleet_proto.transfer_pb2 import Grant as Grant
from warmfleet_proto.transfer_pb2 import Pull as Pull
from warmfleet_proto.transfer_pb2 import Pulled as Pulled
from warmfleet_proto.transfer_pb2 import LeaseRequest as LeaseRequest
from warmfleet_proto.transfer_pb2 import LeaseResponse as LeaseResponse
from warmfleet_proto.transfer_pb2 import Offer as Offer
from warmfleet_proto.transfer_pb2 import ReleaseRequest as ReleaseRequest
from warmfleet_proto.transfer_pb2 import ReleaseResponse as ReleaseResponse

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "gateway_id", "model", "tenant", "salt", "token_ids", "keys", "prompt_tokens", "max_tokens", "choices", "exclude", "bypass_cache")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway_id: str
    model: str
    tenant: str
    salt: bytes
    token_ids: bytes
    keys: bytes
    prompt_tokens: int
    max_tokens: int
    choices: int
    exclude: _containers.RepeatedScalarFieldContainer[str]
    bypass_cache: bool
    def __init__(self, request_id: _Optional[str] = ..., gateway_id: _Optional[str] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., salt: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., exclude: _Optional[_Iterable[str]] = ..., bypass_cache: bool = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("booking", "worker", "address", "action", "expected_tokens", "available_tokens", "policy", "price_s", "terms", "reason", "pull")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[Placement.Action]
        SERVE: _ClassVar[Placement.Action]
        PULL: _ClassVar[Placement.Action]
    ACTION_UNSPECIFIED: Placement.Action
    SERVE: Placement.Action
    PULL: Placement.Action
    BOOKING_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PRICE_S_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    booking: int
    worker: str
    address: str
    action: Placement.Action
    expected_tokens: int
    available_tokens: int
    policy: str
    price_s: float
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    reason: str
    pull: _transfer_pb2.Pull
    def __init__(self, booking: _Optional[int] = ..., worker: _Optional[str] = ..., address: _Optional[str] = ..., action: _Optional[_Union[Placement.Action, str]] = ..., expected_tokens: _Optional[int] = ..., available_tokens: _Optional[int] = ..., policy: _Optional[str] = ..., price_s: _Optional[float] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., reason: _Optional[str] = ..., pull: _Optional[_Union[_transfer_pb2.Pull, _Mapping]] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ("booking", "cached_tokens", "queue_s", "prefill_s", "ttft_s", "pulled_tokens", "pull_s", "pulled_bytes", "wasted_bytes", "pull_failure", "loaded_bytes", "load_s", "work_s", "cached_unknown", "cached_later")
    BOOKING_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PULL_S_FIELD_NUMBER: _ClassVar[int]
    PULLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WASTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULL_FAILURE_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    CACHED_LATER_FIELD_NUMBER: _ClassVar[int]
    booking: int
    cached_tokens: int
    queue_s: float
    prefill_s: float
    ttft_s: float
    pulled_tokens: int
    pull_s: float
    pulled_bytes: int
    wasted_bytes: int
    pull_failure: str
    loaded_bytes: int
    load_s: float
    work_s: float
    cached_unknown: bool
    cached_later: bool
    def __init__(self, booking: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., pulled_tokens: _Optional[int] = ..., pull_s: _Optional[float] = ..., pulled_bytes: _Optional[int] = ..., wasted_bytes: _Optional[int] = ..., pull_failure: _Optional[str] = ..., loaded_bytes: _Optional[int] = ..., load_s: _Optional[float] = ..., work_s: _Optional[float] = ..., cached_unknown: bool = ..., cached_later: bool = ...) -> None: ...

class ProgressResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("booking", "outcome", "completion_tokens", "cached_tokens", "e2e_s", "reason", "ttft_s", "cached_known", "keyed_on_text", "prompt_tokens")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[FinishRequest.Outcome]
        OK: _ClassVar[FinishRequest.Outcome]
        IGNORE: _ClassVar[FinishRequest.Outcome]
        DROPPED: _ClassVar[FinishRequest.Outcome]
    OUTCOME_UNSPECIFIED: FinishRequest.Outcome
    OK: FinishRequest.Outcome
    IGNORE: FinishRequest.Outcome
    DROPPED: FinishRequest.Outcome
    BOOKING_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_KNOWN_FIELD_NUMBER: _ClassVar[int]
    KEYED_ON_TEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    booking: int
    outcome: FinishRequest.Outcome
    completion_tokens: int
    cached_tokens: int
    e2e_s: float
    reason: str
    ttft_s: float
    cached_known: bool
    keyed_on_text: bool
    prompt_tokens: int
    def __init__(self, booking: _Optional[int] = ..., outcome: _Optional[_Union[FinishRequest.Outcome, str]] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., e2e_s: _Optional[float] = ..., reason: _Optional[str] = ..., ttft_s: _Optional[float] = ..., cached_known: bool = ..., keyed_on_text: bool = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class FinishResponse(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: bool = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("gateway_id", "live")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    live: LiveBookings
    def __init__(self, gateway_id: _Optional[str] = ..., live: _Optional[_Union[LiveBookings, _Mapping]] = ...) -> None: ...

class LiveBookings(_message.Message):
    __slots__ = ("bookings",)
    BOOKINGS_FIELD_NUMBER: _ClassVar[int]
    bookings: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bookings: _Optional[_Iterable[int]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("bookings",)
    BOOKINGS_FIELD_NUMBER: _ClassVar[int]
    bookings: int
    def __init__(self, bookings: _Optional[int] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("worker", "address", "state", "model", "model_fingerprint", "block_size", "total_blocks", "held_blocks", "running", "waiting", "bookings", "max_context", "epoch", "vocab_size", "engine", "silent", "models", "adapters")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    BOOKINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    address: str
    state: str
    model: str
    model_fingerprint: bytes
    block_size: int
    total_blocks: int
    held_blocks: int
    running: int
    waiting: int
    bookings: int
    max_context: int
    epoch: int
    vocab_size: int
    engine: str
    silent: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., model: _Optional[str] = ..., model_fingerprint: _Optional[bytes] = ..., block_size: _Optional[int] = ..., total_blocks: _Optional[int] = ..., held_blocks: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., bookings: _Optional[int] = ..., max_context: _Optional[int] = ..., epoch: _Optional[int] = ..., vocab_size: _Optional[int] = ..., engine: _Optional[str] = ..., silent: bool = ..., models: _Optional[_Iterable[str]] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("chosen", "candidates")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    chosen: Placement
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, chosen: _Optional[_Union[Placement, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("worker", "overlap_tokens", "price_s", "terms", "why", "source", "pulled_tokens")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_S_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    overlap_tokens: int
    price_s: float
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    why: str
    source: str
    pulled_tokens: int
    def __init__(self, worker: _Optional[str] = ..., overlap_tokens: _Optional[int] = ..., price_s: _Optional[float] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., why: _Optional[str] = ..., source: _Optional[str] = ..., pulled_tokens: _Optional[int] = ...) -> None: ...
