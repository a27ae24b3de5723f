"""The real parts of integration tests: Kafka brokers, InfluxDB, hypervisors and guests.

A missing part is an error with its name and the command that installs it.
"""

import importlib.util
import os
from collections.abc import Iterator

import pytest

from deploy.lab.influx_server import Influx
from deploy.lab.kafka_broker import Cluster
from deploy.lab.kafka_jars import LabError, cache_dir
from deploy.lab.libvirt_lab import Guests, Lab, sweep


def _cluster(factory: pytest.TempPathFactory, security: str) -> Iterator[Cluster]:
    cluster = Cluster(factory.mktemp("kafka") / security, security=security)
    with cluster:
        yield cluster
    cluster.remove()


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker without security: bootstrap, kill, stop, start, wait."""
    yield from _cluster(tmp_path_factory, "plain")


@pytest.fixture(scope="session")
def sasl_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker with SCRAM-SHA-256; its users and passwords are in `credentials`."""
    yield from _cluster(tmp_path_factory, "sasl")


@pytest.fixture(scope="session")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One broker with SCRAM-SHA-256 inside TLS; its authority's certificate is `ca_file`."""
    yield from _cluster(tmp_path_factory, "tls")


@pytest.fixture(scope="session")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    """One InfluxDB 2.7 with an organisation and an administrator's token: kill, start, freeze."""
    server = Influx(tmp_path_factory.mktemp("influx"))
    with server:
        yield server
    server.remove()


@pytest.fixture(scope="session")
def hypervisors() -> Iterator[Lab]:
    """Two libvirtds, a and b: uri(name), ro_uri(name), pid, kill, start.

    Raises
    ------
    LabError
        No root, no apt or no libvirt-python; the message names the command to run.
    """
    if importlib.util.find_spec("libvirt") is None:
        raise LabError(
            "libvirt-python is missing: deploy/lab/packages libvirt, "
            "then .venv/bin/pip install 'flatline[libvirt]'"
        )
    sweep()
    lab = Lab(cache_dir() / f"lab-test-{os.getpid()}")
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def guests(hypervisors: Lab) -> Iterator[Guests]:
    """A factory of guests: define, boot, tell, migrate, ping; all are removed after the test."""
    made = Guests(hypervisors)
    try:
        yield made
    finally:
        made.destroy()
