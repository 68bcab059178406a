"""What a router or a gateway refuses to start with, and that the key is named."""

from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from warmfleet_proto.settings import ConfigError, load, to_toml
from warmfleet_router.config import GatewayConfig, Https, RouterConfig, check, https_context

DIGEST = "0" * 64
TENANT = {"name": "a", "key_sha256": [DIGEST]}
OPEN = "0.0.0.0:8000"
TLS = {"certificate": "c", "key": "k", "authority": "a"}


def router(**settings: Any) -> RouterConfig:
    return msgspec.convert(settings, RouterConfig)


def test_defaults_are_loopback_and_round_trip(tmp_path: Any) -> None:
    check(router())
    check(GatewayConfig())
    file = tmp_path / "router.toml"
    config = router(workers=["127.0.0.1:1"], tenants=[TENANT], routing={"policy": "round_robin"})
    text = to_toml(config)
    assert text.startswith("# not set: https, tls\n")
    file.write_text(text)
    assert load(RouterConfig, str(file)) == config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"http": OPEN}, "http"),
        ({"http": OPEN, "https": {"certificate": "c", "key": "k"}}, "tenants"),
        ({"listen": OPEN}, "listen"),
        ({"admin": OPEN}, "admin"),
        ({"admin": "db:80"}, "admin"),
        ({"admin": OPEN, "tls": TLS}, "admin"),
        ({"http": "localhost"}, "HOST:PORT"),
        ({"workers": ["127.0.0.1:1", "127.0.0.1"]}, r"workers\[1\]"),
        ({"workers": ["127.0.0.1:1", "127.0.0.1:1"]}, "twice"),
        ({"tenants": [TENANT | {"key_sha256": ["secret"]}]}, r"tenants\[0\].key_sha256"),
        ({"tenants": [TENANT | {"key_sha256": [DIGEST.upper().replace("0", "A")]}]}, "key_sha256"),
        ({"tenants": [TENANT, TENANT | {"name": "b"}]}, "twice"),
        ({"tenants": [TENANT, TENANT | {"key_sha256": ["1" * 64]}]}, "name"),
        ({"tenants": [TENANT | {"name": ""}]}, "name"),
        ({"tenants": [TENANT | {"salt": ""}]}, "salt"),
        ({"tenants": [TENANT | {"salt": "x" * 65}]}, "salt"),
    ],
)
def test_refusals_name_the_key(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check(router(**settings))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"key": "k"}, r"http://a:1 and http://b:1: behind one Envoy \(picker\) all have the same key"),
        ({"url": "http://b:1/base/v1"}, "http://a:1 and http://b:1/base/v1: .* the same base path"),
        ({"url": "http://b:1/v1"}, ""),
    ],
)
def test_servers_behind_one_envoy_share_what_it_sends_them(other: dict[str, str], named: str) -> None:
    pytest.importorskip("envoy")
    backends = [{"url": "http://a:1"}, {"url": "http://b:1"} | other]
    check(router(backends=backends))
    with pytest.raises(ConfigError, match=named) if named else nullcontext():
        check(router(backends=backends, picker="127.0.0.1:9002"))


def test_envoy_reaches_no_listed_server_by_https_beside_discovery() -> None:
    pytest.importorskip("envoy")
    settings: dict[str, Any] = {"backends": [{"url": "https://a:1"}], "picker": "127.0.0.1:9002"}
    check(router(**settings))
    with pytest.raises(ConfigError, match="https://a:1: Envoy can use https only without discovery"):
        check(router(**settings, discovery={"file": "f"}))


@pytest.mark.parametrize("address", ["127.0.0.1:80", "127.9.0.1:80", "[::1]:80", "localhost:80"])
def test_loopback_needs_neither(address: str) -> None:
    check(router(http=address, listen=address, admin=address))


def test_beyond_loopback_with_tls_and_keys_or_spelled_out() -> None:
    check(router(http=OPEN, https={"certificate": "c", "key": "k"}, tenants=[TENANT], listen=OPEN, tls=TLS))
    check(router(http=OPEN, listen=OPEN, admin=OPEN, insecure=True))


def test_unknown_keys_and_values_are_named() -> None:
    with pytest.raises(ConfigError, match=r"routing\.policy"):
        load(RouterConfig, None, ["routing.policy=magic"])
    with pytest.raises(ConfigError, match="no_such_key"):
        load(GatewayConfig, None, ["no_such_key=1"])


def test_a_missing_certificate_is_named() -> None:
    assert https_context(None) is None
    with pytest.raises(ConfigError, match=r"https\.certificate: /nowhere\.pem: No such file"):
        https_context(Https("/nowhere.pem", "/nowhere.key"))
    with pytest.raises(ConfigError, match=r"https\.key: /nowhere\.key: No such file"):
        https_context(Https(__file__, "/nowhere.key"))
    with pytest.raises(ConfigError, match=f"https: {__file__} with {__file__}: "):
        https_context(Https(__file__, __file__))


def test_what_would_protect_an_address_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^http = .*: configure https, or set insecure"):
        check(router(http=OPEN, tls=TLS))
    with pytest.raises(ConfigError, match=r"^admin = .* there is no TLS for it"):
        check(router(admin=OPEN, tls=TLS))


def test_a_slip_in_a_list_is_told() -> None:
    """Values that are no TOML are strings, so that addresses need no quotes."""
    with pytest.raises(ConfigError, match=r"\$\.workers`: \[127\.0\.0\.1:1\] is not TOML: "):
        load(RouterConfig, None, ["workers=[127.0.0.1:1]"])
    assert load(RouterConfig, None, ["http=[::1]:1"]).http == "[::1]:1"
