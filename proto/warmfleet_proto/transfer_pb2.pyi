from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Claims(_message.Message):
    __slots__ = ("source", "target", "epoch", "root", "first", "keys", "expires_s")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    epoch: int
    root: bytes
    first: int
    keys: bytes
    expires_s: float
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., epoch: _Optional[int] = ..., root: _Optional[bytes] = ..., first: _Optional[int] = ..., keys: _Optional[bytes] = ..., expires_s: _Optional[float] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("claims", "mac")
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    claims: bytes
    mac: bytes
    def __init__(self, claims: _Optional[bytes] = ..., mac: _Optional[bytes] = ...) -> None: ...

class Pull(_message.Message):
    __slots__ = ("source", "address", "from_tokens", "tokens", "within_s", "grant", "seconds")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FROM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    source: str
    address: str
    from_tokens: int
    tokens: int
    within_s: float
    grant: Grant
    seconds: float
    def __init__(self, source: _Optional[str] = ..., address: _Optional[str] = ..., from_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., within_s: _Optional[float] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class Pulled(_message.Message):
    __slots__ = ("tokens", "seconds", "bytes", "wasted_bytes", "failure")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WASTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    seconds: float
    bytes: int
    wasted_bytes: int
    failure: str
    def __init__(self, tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes: _Optional[int] = ..., wasted_bytes: _Optional[int] = ..., failure: _Optional[str] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("target", "grant", "layout_fingerprint", "first", "hashes", "digest")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    target: str
    grant: Grant
    layout_fingerprint: bytes
    first: int
    hashes: bytes
    digest: bool
    def __init__(self, target: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., layout_fingerprint: _Optional[bytes] = ..., first: _Optional[int] = ..., hashes: _Optional[bytes] = ..., digest: bool = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("lease", "secret", "blocks", "token_ids", "offers", "token_digest")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    lease: int
    secret: bytes
    blocks: int
    token_ids: bytes
    offers: _containers.RepeatedCompositeFieldContainer[Offer]
    token_digest: bytes
    def __init__(self, lease: _Optional[int] = ..., secret: _Optional[bytes] = ..., blocks: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., offers: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ..., token_digest: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("transport", "port", "host", "socket")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    transport: str
    port: int
    host: str
    socket: str
    def __init__(self, transport: _Optional[str] = ..., port: _Optional[int] = ..., host: _Optional[str] = ..., socket: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease", "secret")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    lease: int
    secret: bytes
    def __init__(self, lease: _Optional[int] = ..., secret: _Optional[bytes] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: bool = ...) -> None: ...
