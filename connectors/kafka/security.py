"""TLS and SASL of every Kafka client, and the reasons for which a broker rejects a login."""

import asyncio
import ssl
from typing import Any, Final

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from flatline.connectors.kafka.config import KafkaConfig, KafkaSecurity
from flatline.engine.errors import LogError, LogRefused, LogUnreachable, SettingsError

# A healthy broker answers its first request within milliseconds; a loaded one within 1 s.
_PROBE_TIMEOUT_S: Final = 5.0

_DEFAULT_PORT: Final = 9092


def client_settings(config: KafkaConfig) -> dict[str, Any]:
    """Return the addresses, client id and security settings of an aiokafka client, as keywords.

    Raises
    ------
    SettingsError
        A certificate or key cannot be read, or a password is missing.
    """
    return {
        "bootstrap_servers": config.servers,
        "client_id": config.client_id,
        **_protection(config.security),
    }


def _protection(security: KafkaSecurity) -> dict[str, Any]:
    settings: dict[str, Any] = {"security_protocol": security.protocol.upper()}
    if security.protocol in ("ssl", "sasl_ssl"):
        settings["ssl_context"] = ssl_context(security)
    if security.protocol.startswith("sasl"):
        if not security.username or security.password is None:
            raise SettingsError(f"{security.protocol} requires a user name and a password")
        settings |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": security.password,
        }
    return settings


def ssl_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Return a context that verifies the broker's name and chain.

    Raises
    ------
    SettingsError
        A file cannot be read or holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
        if security.cert_file is not None:
            context.load_cert_chain(security.cert_file, security.key_file)
    except (OSError, ssl.SSLError) as error:
        files = [
            str(file)
            for file in (security.ca_file, security.cert_file, security.key_file)
            if file is not None
        ]
        raise SettingsError(
            f"the TLS files {', '.join(files)} cannot be used: {error}. Each must be PEM and "
            "readable by the user of this process"
        ) from error
    return context


async def probe(config: KafkaConfig) -> None:
    """Connect once and return when a broker has accepted this client.

    aiokafka hides the reason of a failure: it reports a wrong password as "Unable to bootstrap". So
    this opens a separate connection and distinguishes the reasons.

    Raises
    ------
    LogRefused
        A broker rejected the password, mechanism or certificate.
    LogUnreachable
        No broker answered.
    SettingsError
        No broker is configured, or see `client_settings`.
    """
    problems: list[LogError] = []
    for server in config.servers:
        try:
            await _knock(config, server)
        except LogError as error:
            problems.append(error)
        else:
            return
    refusals = [problem for problem in problems if isinstance(problem, LogRefused)]
    if refusals:
        raise refusals[0]
    if not problems:
        raise SettingsError(
            "log.kafka.bootstrap names no broker. Use host:port, separated by commas"
        )
    raise LogUnreachable("; ".join(str(problem) for problem in problems))


async def _knock(config: KafkaConfig, server: str) -> None:
    host, _, port = server.rpartition(":")
    if not port.isdecimal():
        host, port = server, str(_DEFAULT_PORT)
    protection = _protection(config.security)
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            connection = await create_conn(
                host.strip("[]"),
                int(port),
                client_id=config.client_id,
                request_timeout_ms=int(_PROBE_TIMEOUT_S * 1000),
                **protection,
            )
            try:
                # A broker that requires a login answers the first request of a client without one,
                # and closes the connection at the second. So a second request is sent.
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
    except (OSError, EOFError, KafkaError, TimeoutError, AssertionError, ValueError) as error:
        raise _verdict(config, server, error) from error


def _verdict(config: KafkaConfig, server: str, error: BaseException) -> LogError:
    security = config.security
    if isinstance(error, SaslAuthenticationFailed | AuthenticationFailedError):
        return LogRefused(
            f"Kafka at {server} rejects user {security.username!r}: wrong password, or no such "
            f"user for {security.mechanism}. Check log.kafka.username and the password"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return LogRefused(
            f"Kafka at {server} does not support {security.mechanism}. Set log.kafka.mechanism to "
            "one that the broker has enabled"
        )
    if isinstance(error, IllegalSaslStateError):
        return LogRefused(
            f"Kafka at {server} does not support a login. Set log.kafka.security to ssl or "
            "plaintext"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return LogRefused(
            f"the certificate of Kafka at {server} is not trusted: {error.verify_message}. Set "
            "log.kafka.ca_file to the certificate of the authority that signed it"
        )
    if isinstance(error, ssl.SSLError):
        return LogRefused(
            f"Kafka at {server} does not use TLS on this port ({error.reason}). Check "
            "log.kafka.security and the port"
        )
    if isinstance(error, AssertionError | ValueError):
        # aiokafka raises these if the SCRAM exchange or the server's proof in it is invalid.
        return LogRefused(
            f"the login at Kafka at {server} with {security.mechanism} failed: {error}"
        )
    if isinstance(error, KafkaError | EOFError | ConnectionResetError):
        return LogUnreachable(
            f"Kafka at {server} closed the connection ({error!r}). It is starting or stopping, or "
            f"this port does not use {security.protocol}"
        )
    reason = "no answer" if isinstance(error, TimeoutError) else str(error)
    return LogUnreachable(f"Kafka at {server} is unavailable: {reason or type(error).__name__}")
