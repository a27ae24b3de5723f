from pathlib import Path

import pytest

from flatline.connectors.kafka.config import KafkaConfig, KafkaSecurity
from flatline.connectors.kafka.security import client_settings
from flatline.engine.errors import SettingsError


def test_a_plain_client_gets_no_security_settings() -> None:
    settings = client_settings(KafkaConfig(bootstrap="a:1, b:2"))
    assert settings["bootstrap_servers"] == ["a:1", "b:2"]
    assert settings["security_protocol"] == "PLAINTEXT"
    assert "ssl_context" not in settings
    assert "sasl_mechanism" not in settings


def test_scram_inside_tls_verifies_the_broker() -> None:
    security = KafkaSecurity(protocol="sasl_ssl", username="flatline", password="secret")
    settings = client_settings(KafkaConfig(bootstrap="a:1", security=security))
    assert settings["security_protocol"] == "SASL_SSL"
    assert settings["sasl_mechanism"] == "SCRAM-SHA-512"
    assert settings["sasl_plain_username"] == "flatline"
    assert settings["ssl_context"].check_hostname
    assert "secret" not in repr(security)


def test_a_login_without_a_password_is_refused() -> None:
    security = KafkaSecurity(protocol="sasl_plaintext", username="flatline")
    with pytest.raises(SettingsError, match="requires a user name and a password"):
        client_settings(KafkaConfig(bootstrap="a:1", security=security))


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "ca.crt"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "absent.crt"):
        security = KafkaSecurity(protocol="ssl", ca_file=file)
        with pytest.raises(SettingsError, match=rf"{file.name} cannot be used: .*PEM"):
            client_settings(KafkaConfig(bootstrap="a:1", security=security))
