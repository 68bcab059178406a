"""The tcp transport over mutual TLS."""

from pathlib import Path

import pytest
from warmfleet_proto.channel import Tls
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer.frames import PIECE_BYTES
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.tcp_source import TcpSource
from warmfleet_worker.transfer.tcp_target import TcpTarget
from warmfleet_worker.transfer.tls import source_context, target_context
from warmfleet_worker.transfer.transport import Address

from tests.unit.transfer import certificates
from tests.unit.transfer.hauls import LEASE, SECRET, Blocks, Collected, random_blocks

COUNT, SIZE = 20, 500_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Path:
    return certificates.authority(folder, "fleet")


@pytest.fixture(scope="module")
def source_tls(folder: Path, fleet: Path) -> Tls:
    return certificates.certificate(folder, "source", fleet)


def pull(source: TcpSource, target: TcpTarget) -> Collected:
    address = Address("127.0.0.1", source.listen("127.0.0.1", 0))
    haul = Collected(COUNT, SIZE, Slabs(2, PIECE_BYTES))
    try:
        target.pull(address.host, Offer(port=address.port), LEASE, SECRET, haul)
    finally:
        source.close()
    return haul


def test_blocks_arrive(folder: Path, fleet: Path, source_tls: Tls) -> None:
    made = random_blocks(COUNT, SIZE)
    source = TcpSource(Blocks(made), source_context(source_tls))
    target = TcpTarget(target_context(certificates.certificate(folder, "target", fleet)))
    haul = pull(source, target)
    assert [haul.got[i] for i in range(COUNT)] == made


def test_without_a_certificate_of_the_fleet_nothing_is_served(folder: Path, source_tls: Tls) -> None:
    stranger = certificates.certificate(folder, "stranger", certificates.authority(folder, "others"))
    trusting = Tls(stranger.certificate, stranger.key, source_tls.authority)
    source = TcpSource(Blocks(random_blocks(COUNT, SIZE)), source_context(source_tls))
    with pytest.raises(WorkerLost):
        pull(source, TcpTarget(target_context(trusting)))
    assert source.refused == 1


def test_a_source_of_another_authority_is_not_trusted(folder: Path, source_tls: Tls) -> None:
    others = certificates.authority(folder, "more-others")
    foreign = certificates.certificate(folder, "foreign", others)
    source = TcpSource(Blocks(random_blocks(COUNT, SIZE)), source_context(foreign))
    with pytest.raises(WorkerLost, match="no data connection"):
        pull(source, TcpTarget(target_context(source_tls)))


def test_plain_connections_are_refused(source_tls: Tls) -> None:
    source = TcpSource(Blocks(random_blocks(COUNT, SIZE)), source_context(source_tls))
    with pytest.raises(WorkerLost):
        pull(source, TcpTarget())
    assert source.refused == 1


def test_missing_files_are_named(source_tls: Tls) -> None:
    with pytest.raises(ConfigError, match="tls"):
        source_context(Tls("/nowhere.pem", source_tls.key, source_tls.authority))
