"""The service's settings: what the environment says, and what is said back."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import BadSettings, Settings, describe, settings_table
from tests.data_folder import REPOSITORY


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


def test_every_setting_is_read_and_typed(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("third\nfourth\n\n", encoding="utf-8")
    environ = {
        "CAT_WEIGHTS": "/srv/own.safetensors",
        "CAT_THRESHOLD": "0.7",
        "CAT_MAX_UPLOAD_BYTES": "1048576",
        "CAT_MAX_PIXELS": "1000000",
        "CAT_WORKERS": "3",
        "CAT_QUEUE": "5",
        "CAT_DEADLINE_SECONDS": "2.5",
        "CAT_UPLOAD_SECONDS": "30",
        "CAT_DRAIN_SECONDS": "0",
        "CAT_API_KEYS": "first, second",
        "CAT_API_KEYS_FILE": str(tmp_path / "keys"),
        "CAT_METRICS": "KEY",
        "CAT_LOG": "json",
        "CAT_CORS_ORIGINS": "https://a.example,https://b.example",
        "CAT_FORWARDED_ALLOW_IPS": "10.0.0.1",
        "CAT_PAGE": "off",
        "CAT_BIND_HOST": "::",
        "CAT_BIND_PORT": "80",
        "PATH": "/bin",
    }
    assert Settings.from_env(environ) == Settings(
        weights=Path("/srv/own.safetensors"),
        threshold=0.7,
        max_upload_bytes=1_048_576,
        max_pixels=1_000_000,
        workers=3,
        queue=5,
        deadline_seconds=2.5,
        upload_seconds=30.0,
        drain_seconds=0.0,
        api_keys=("first", "second"),
        api_keys_file=("third", "fourth"),
        metrics="key",
        log="json",
        cors_origins=("https://a.example", "https://b.example"),
        forwarded_allow_ips="10.0.0.1",
        page=False,
        bind_host="::",
        bind_port=80,
    )
    assert set(settings_table()) == set(environ) - {"PATH"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("CAT_THRESHOLD", "high", "a number between 0 and 1"),
        ("CAT_THRESHOLD", "1.0", "a number between 0 and 1"),
        ("CAT_THRESHOLD", "nan", "a number between 0 and 1"),
        ("CAT_MAX_UPLOAD_BYTES", "10MiB", "a whole number of at least 1"),
        ("CAT_MAX_UPLOAD_BYTES", "0", "a whole number of at least 1"),
        ("CAT_MAX_PIXELS", "-5", "a whole number of at least 1"),
        ("CAT_MAX_PIXELS", "9" * 5000, "a whole number of at least 1"),
        ("CAT_MAX_PIXELS", "٣", "a whole number of at least 1"),
        ("CAT_WORKERS", "0", "a whole number from 1 to 256"),
        ("CAT_WORKERS", "1.5", "a whole number from 1 to 256"),
        ("CAT_QUEUE", "0", "a whole number from 1 to 100,000"),
        ("CAT_DEADLINE_SECONDS", "0", "a number of seconds above 0 up to 3600"),
        ("CAT_UPLOAD_SECONDS", "nan", "a number of seconds above 0 up to 3600"),
        ("CAT_DRAIN_SECONDS", "-1", "a number of seconds up to 3600"),
        ("CAT_METRICS", "yes", "one of open, key, off"),
        ("CAT_PAGE", "1", "one of on, off"),
        ("CAT_BIND_PORT", "65536", "a whole number from 0 to 65,535"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_and_what_it_may_be(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(BadSettings, match=re.escape(f"{name} is {value!r}, but must be {allowed}")):
        Settings.from_env({name: value})


@pytest.mark.parametrize("text", [",", "schlüssel", "one two"])
def test_a_bad_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(BadSettings, match="CAT_API_KEYS is a secret, but must be keys") as refused:
        Settings.from_env({"CAT_API_KEYS": text})
    assert repr(text) not in str(refused.value)


def test_a_file_of_keys_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"CAT_API_KEYS_FILE .* No such file"):
        Settings.from_env({"CAT_API_KEYS_FILE": str(tmp_path / "none")})


def test_metrics_for_keys_alone_need_a_key() -> None:
    with pytest.raises(BadSettings, match="CAT_METRICS is 'key', but there is no key"):
        Settings.from_env({"CAT_METRICS": "key"})


def test_keys_are_not_in_what_settings_look_like() -> None:
    assert "hidden" not in repr(Settings(api_keys=("hidden",), api_keys_file=("hidden",)))


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"CAT_THRESHOLD": "", "CAT_WORKERS": ""}) == Settings()


def test_what_kubernetes_injects_for_a_service_called_cat_is_harmless_and_noted() -> None:
    injected = {
        "CAT_PORT": "tcp://10.0.0.1:8000",
        "CAT_PORT_8000_TCP_ADDR": "10.0.0.1",
        "CAT_SERVICE_HOST": "10.0.0.1",
        "CAT_SERVICE_PORT": "8000",
        "CAT_BIND_PORT": "tcp://10.0.0.2:80",  # of a service called cat-bind
    }
    assert Settings.from_env(injected) == Settings(ignored=tuple(sorted(injected)))


def test_the_help_lists_every_setting_with_its_default() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "app", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert describe() in shown
    for name, setting in settings_table().items():
        assert name in shown
        assert f"(default: {setting.default})" in " ".join(shown.split())


def test_the_defaults_in_words_are_the_defaults() -> None:
    for name, setting in settings_table().items():
        default = getattr(Settings(), name.removeprefix("CAT_").lower())
        if default in (None, (), ""):
            assert setting.default in ("none", "the artifact's own") or " " in setting.default
        else:
            assert setting.parse(setting.default) == default


def test_settings_cannot_be_changed_once_read() -> None:
    with pytest.raises(AttributeError):
        Settings().max_pixels = 1  # type: ignore[misc]
