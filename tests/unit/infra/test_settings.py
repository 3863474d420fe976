from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from infra.errors import ConfigError
from infra.settings import (
    KafkaSettings,
    LogSettings,
    Settings,
    UploadSettings,
    as_environment,
    load_settings,
    setting_fields,
)


def test_no_variables_give_the_defaults() -> None:
    assert load_settings({"PATH": "/bin", "HOME": "/"}) == Settings()


def test_variables_reach_their_fields() -> None:
    settings = load_settings(
        {
            "FRESHET_SEED": "7",
            "FRESHET_VAR_DIR": "/data",
            "FRESHET_KAFKA__PARTITIONS": "16",
            "FRESHET_SERVE__LOG_IMPRESSIONS": "false",
            "FRESHET_UPLOADS__MEDIA_ROOTS": '["/a", "/b c"]',
        }
    )
    assert (settings.seed, settings.var_dir) == (7, Path("/data"))
    assert settings.kafka.partitions == 16
    assert settings.serve.log_impressions is False
    assert settings.uploads.media_roots == ("/a", "/b c")


def test_the_given_environment_is_read_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHET_SEED", "3")
    assert load_settings({}).seed == 0
    assert load_settings().seed == 3


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("FRESHET_KAFAK__PARTITIONS", "FRESHET_KAFKA__PARTITIONS"),
        ("FRESHET_KAFKA__PARTITION", "FRESHET_KAFKA__PARTITIONS"),
        ("freshet_sede", "FRESHET_SEED"),
    ],
)
def test_misspelt_name_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown setting {name}; did you mean {nearest}\?"):
        load_settings({name: "1"})


def test_name_like_no_other_is_refused_with_where_they_are_listed() -> None:
    with pytest.raises(ConfigError, match="`freshet doctor --settings`"):
        load_settings({"FRESHET_QQQQ": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRESHET_KAFKA__PARTITIONS", "0"),
        ("FRESHET_SERVE__PORT", "http"),
        ("FRESHET_LOG__LEVEL", "LOUD"),
        ("FRESHET_UPLOADS__MEDIA_ROOTS", "/a"),
        ("FRESHET_UPLOADS__MEDIA_ROOTS", "3"),
    ],
)
def test_value_that_is_not_valid_is_refused_by_name_and_value(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: value})
    assert name in str(caught.value)
    assert value in str(caught.value)


def test_empty_variable_means_the_default() -> None:
    settings = load_settings({"FRESHET_KAFKA__JARS_DIR": "", "FRESHET_SERVE__PORT": ""})
    assert settings == Settings()


def test_misspelt_field_in_code_is_refused_too() -> None:
    with pytest.raises(ValidationError):
        KafkaSettings.model_validate({"partition": 3})


def test_child_process_rebuilds_the_same_settings() -> None:
    settings = Settings(
        seed=5,
        var_dir=Path("/data/var"),
        kafka=KafkaSettings(
            bootstrap_servers="a:1,b:2", sasl_password=SecretStr('p"w'), jars_dir=Path("/jars")
        ),
        uploads=UploadSettings(media_roots=('/with "quotes"', "back\\slash")),
        log=LogSettings(level="DEBUG"),
    )
    assert load_settings(as_environment(settings)) == settings
    assert load_settings(as_environment(Settings())) == Settings()


def test_password_is_not_shown() -> None:
    settings = load_settings({"FRESHET_KAFKA__SASL_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_every_setting_says_what_it_is() -> None:
    names = [name for name, _ in setting_fields()]
    assert len(set(names)) == len(names)
    assert [name for name, field in setting_fields() if not field.description] == []
