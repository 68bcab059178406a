"""Discovered servers that Envoy would send keys to in the clear."""

import logging

import pytest
from warmfleet_router.picker.plain import Plain
from warmfleet_router.servers.backend import Backend


def test_servers_of_https_are_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    http, https, another = (Backend(url=url) for url in ("http://a:1", "https://b:1", "https://c:1"))
    plain = Plain()
    with caplog.at_level(logging.WARNING):
        assert plain.of([http, https]) == (http,)
        assert plain.of([https, http, another]) == (http,)
        assert plain.of([http]) == (http,)
        assert plain.of([https]) == ()
    logged = [("https://b:1" in line, "https://c:1" in line) for line in map(str, said(caplog))]
    assert logged == [(True, False), (False, True), (True, False)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
