"""What an endpoint picker answers to Envoy: the messages of ``envoy.service.ext_proc.v3``.

The endpoint goes into a header and into dynamic metadata, as the Gateway API Inference Extension has
it: ``x-gateway-destination-endpoint``, in the namespace ``envoy.lb``.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from warmfleet_proto.errors import WarmfleetError

from warmfleet_router.gateway.http import told
from warmfleet_router.gateway.openai import error_of
from warmfleet_router.gateway.pick import Header

ENDPOINT = "x-gateway-destination-endpoint"
CHOICE = "x-warmfleet-endpoint"  # for who can read but one: the first of the above
SUBSET = "x-gateway-destination-endpoint-subset"
NAMESPACE = "envoy.lb"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
CHUNK_BYTES = 60_000  # of a body on its way through: Envoy's own buffers take 64 KiB

Reply = Any  # ext.ProcessingResponse: the stubs have no types
# Envoy writes fields in their order: a message begins with what it is, and the first one of a request ends
# with how bodies are sent.
_REQUEST_HEADERS = ext.ProcessingRequest(request_headers=ext.HttpHeaders()).SerializeToString()[:1]
_RESPONSE_HEADERS = ext.ProcessingRequest(response_headers=ext.HttpHeaders()).SerializeToString()[:1]
_BUFFERED = tuple(
    ext.ProcessingRequest(
        protocol_config=ext.ProtocolConfiguration(
            request_body_mode=ProcessingMode.BodySendMode.BUFFERED, response_body_mode=answers
        )
    ).SerializeToString()
    for answers in (ProcessingMode.BodySendMode.NONE, ProcessingMode.BodySendMode.STREAMED)
)
_REPLACE = HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD


@cache
def goes_on(kind: str) -> Reply:
    """Nothing is changed; ``kind`` is the field that the message came in. To be read only."""
    if kind.endswith("trailers"):
        return ext.ProcessingResponse(**{kind: ext.TrailersResponse()})
    make = ext.HeadersResponse if kind.endswith("headers") else ext.BodyResponse
    return ext.ProcessingResponse(**{kind: make()})


@cache
def watched() -> Reply:
    """Answers the headers of an answer: its body is to pass the picker, if Envoy allows a picker to say so.
    To be read only."""
    mode = ProcessingMode(response_body_mode=ProcessingMode.BodySendMode.STREAMED)
    return ext.ProcessingResponse(response_headers=ext.HeadersResponse(), mode_override=mode)


def foreseen(message: bytes, keys: bool, timed: bool) -> Reply | None:
    """What a message of Envoy's is answered whatever else is in it; None where that has to be read first.

    ``keys``: requests are let in by what is in their headers. ``timed``: as of an Exchange.
    """
    if message.startswith(_RESPONSE_HEADERS):
        return watched() if timed else goes_on("response_headers")
    if not keys and message.startswith(_REQUEST_HEADERS) and message.endswith(_BUFFERED):
        return goes_on("request_headers")
    return None


@lru_cache(maxsize=4096)  # of all that clients ask for
def goes_on_with(headers: tuple[Header, ...]) -> Reply:
    """Answers a request's headers: these ones replace the client's. To be read only."""
    common = ext.CommonResponse(header_mutation=_mutation(headers))
    return ext.ProcessingResponse(request_headers=ext.HeadersResponse(response=common))


def picked(endpoints: Sequence[str], headers: tuple[Header, ...], body: bytes | None) -> Reply:
    """Answers a buffered body. The first endpoint is the choice, the others are for when it fails.

    ``headers`` and ``body`` replace the client's; without a body, the client's goes on. To be read only.
    """
    if body is None:
        return _untouched(tuple(endpoints), headers)
    reply = _picked(endpoints, headers, body)
    reply.request_body.response.body_mutation.body = body
    return reply


@lru_cache(maxsize=4096)  # of a fleet there are few
def _untouched(endpoints: Sequence[str], headers: tuple[Header, ...]) -> Reply:
    return _picked(endpoints, headers, None)


def _picked(endpoints: Sequence[str], headers: tuple[Header, ...], body: bytes | None) -> Reply:
    common = ext.CommonResponse(clear_route_cache=True, header_mutation=_changed(endpoints, headers, body))
    return ext.ProcessingResponse(
        request_body=ext.BodyResponse(response=common), dynamic_metadata=_metadata(endpoints)
    )


def picked_duplex(
    endpoints: Sequence[str], headers: tuple[Header, ...], body: bytes, changed: bool
) -> Iterator[Reply]:
    """Answers a body that was taken off its stream: with the headers first, then with all of it in pieces."""
    common = ext.CommonResponse(
        clear_route_cache=True, header_mutation=_changed(endpoints, headers, body if changed else None)
    )
    yield ext.ProcessingResponse(
        request_headers=ext.HeadersResponse(response=common), dynamic_metadata=_metadata(endpoints)
    )
    for start in range(0, len(body) or 1, CHUNK_BYTES):
        yield passed_on("request_body", body[start : start + CHUNK_BYTES], start + CHUNK_BYTES >= len(body))


def passed_on(kind: str, piece: bytes, last: bool) -> Reply:
    """A piece of a body in full duplex, where nothing passes by itself."""
    common = ext.CommonResponse()
    common.body_mutation.streamed_response.body = piece
    common.body_mutation.streamed_response.end_of_stream = last
    return ext.ProcessingResponse(**{kind: ext.BodyResponse(response=common)})


def passed(piece: bytes) -> Reply:
    """Answers a piece of an answer's body: this one goes on in its place."""
    common = ext.CommonResponse()
    if piece:
        common.body_mutation.body = piece
    else:
        common.body_mutation.clear_body = True
    return ext.ProcessingResponse(response_body=ext.BodyResponse(response=common))


def refused(error: WarmfleetError) -> Reply:
    """An answer at once, in OpenAI's shape, with Retry-After where that helps."""
    status, headers, body = error_of(told(error))
    immediate = ext.ImmediateResponse(
        status=HttpStatus(code=status), body=body, details=type(error).__name__.lower()
    )
    for name, value in (headers | {"Content-Type": "application/json"}).items():
        immediate.headers.set_headers.append(_value(name, value))
    return ext.ProcessingResponse(immediate_response=immediate)


def _changed(endpoints: Sequence[str], headers: tuple[Header, ...], body: bytes | None) -> Any:
    length = () if body is None else (("content-length", str(len(body))),)
    return _mutation(((ENDPOINT, ",".join(endpoints)), *headers, *length))


def _mutation(headers: tuple[Header, ...]) -> Any:
    values = [_value(name, value) for name, value in headers if value is not None]
    gone = [name for name, value in headers if value is None]
    return ext.HeaderMutation(set_headers=values, remove_headers=gone)


def _value(name: str, value: str) -> Any:
    header = HeaderValue(key=name.lower(), raw_value=value.encode())
    return HeaderValueOption(header=header, append_action=_REPLACE)


def _metadata(endpoints: Sequence[str]) -> Struct:
    metadata = Struct()
    metadata.update({NAMESPACE: {ENDPOINT: ",".join(endpoints), CHOICE: endpoints[0]}})
    return metadata
