"""The values of settings from files, variables and flags."""

from pathlib import Path

import pytest

from flatline.engine.errors import SettingsError
from flatline.engine.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLATLINE_CONFIG", raising=False)
    monkeypatch.setattr("flatline.engine.settings.DEFAULT_FILE", tmp_path / "absent.toml")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "flatline.toml"
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str = "", **flags: str) -> str:
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, text), flags=dotted)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_nothing_written_gives_the_embedded_log_and_ten_seconds() -> None:
    settings, file = load_settings()
    assert settings.log.kind == "embedded"
    assert settings.collect.interval_s == 10.0
    assert file is None


def test_environment_overrides_the_file_and_a_flag_overrides_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[site]\nname = 'f'\nzone = 'f'\ncell = 'f'\n"
    monkeypatch.setenv("FLATLINE_SITE__ZONE", "e")
    monkeypatch.setenv("FLATLINE_SITE__CELL", "e")
    settings, file = load_settings(written(tmp_path, text), flags={"site.cell": "g"})
    assert (settings.site.name, settings.site.zone, settings.site.cell) == ("f", "e", "g")
    assert file == tmp_path / "flatline.toml"


def test_the_file_named_by_the_environment_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "site.name = 'north'\n")
    monkeypatch.setenv("FLATLINE_CONFIG", str(file))
    assert load_settings()[0].site.name == "north"


def test_an_unknown_key_is_refused_with_file_line_and_nearest_name(tmp_path: Path) -> None:
    text = "[site]\nname = 'north'\n\n[collect]\nintervall_s = 5\n"
    assert refusal(tmp_path, text) == (
        f"{tmp_path}/flatline.toml, line 5: unknown setting 'collect.intervall_s'. Did you mean "
        "collect.interval_s?"
    )


def test_an_unknown_section_is_refused_with_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[site]\n[lgo]\n")
    assert "line 2: unknown setting 'lgo'. Did you mean log?" in message


def test_an_unknown_variable_is_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLATLINE_LOG__KNID", "kafka")
    with pytest.raises(SettingsError, match=r"FLATLINE_LOG__KNID: .* FLATLINE_LOG__KIND\?"):
        load_settings()


def test_one_underscore_where_two_belong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATLINE_COLLECT_INTERVAL_S", "5")
    with pytest.raises(SettingsError, match=r"mean FLATLINE_COLLECT__INTERVAL_S\?"):
        load_settings()


def test_variables_of_the_labs_scripts_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATLINE_LAB_DIR", "anywhere")
    assert load_settings()[0].log.kind == "embedded"


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, collect__interval="5")
    assert message.startswith("--set collect.interval: unknown setting")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[collect]\ninterval_s = 'soon'\n", "line 2", "valid number"),
        ("[collect]\ninterval_s = 0.1\n", "line 2", "greater than or equal to 1"),
        ("[log]\nkind = 'redis'\n", "line 2", "'embedded' or 'kafka'"),
        ("log = 3\n", "line 1", "log: it is a section: use [log] with"),
        ("[site]\ncell = ''\n", "line 2", "pattern"),
        ("[http]\nport = 99999\n", "line 2", "65535"),
    ],
    ids=["type", "range", "choice", "section", "empty", "port"],
)
def test_a_wrong_value_is_refused_with_its_line_and_what_fits(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    message = refusal(tmp_path, text)
    assert where in message
    assert what in message


def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    assert "is not TOML" in refusal(tmp_path, "[site\n")


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read: No such file"):
        load_settings(tmp_path / "gone.toml")


def test_a_password_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    flags = {"log.kafka.username": "collector", "log.kafka.password_file": str(secret)}
    settings, _ = load_settings(flags=flags)
    assert settings.log.kafka.secret() == "open sesame"
    inline, _ = load_settings(flags={"log.kafka.password": "open sesame"})
    assert inline.log.kafka.secret() == "open sesame"
    assert "open sesame" not in repr(inline) + inline.model_dump_json()


def test_an_unreadable_password_file_is_named(tmp_path: Path) -> None:
    settings, _ = load_settings(flags={"log.kafka.password_file": str(tmp_path / "gone")})
    with pytest.raises(SettingsError, match=r"password_file .*gone cannot be read"):
        settings.log.kafka.secret()


def test_sasl_without_a_password_is_refused(tmp_path: Path) -> None:
    text = "[log.kafka]\nsecurity = 'sasl_ssl'\n"
    assert "sasl_ssl requires username and password_file" in refusal(tmp_path, text)


def test_every_setting_is_described() -> None:
    schema = Settings.model_json_schema()
    undescribed = [
        f"{section}.{name}"
        for section, definition in schema["$defs"].items()
        for name, field in definition["properties"].items()
        if not field.get("description") and "$ref" not in field
    ]
    assert not undescribed
