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
        ("CAT_CORS_ORIGINS", "cats.example.org", "origins as browsers send them"),
        ("CAT_CORS_ORIGINS", "https://a.example/", "origins as browsers send them"),
        ("CAT_CORS_ORIGINS", "https://A.example", "origins as browsers send them"),
        ("CAT_CORS_ORIGINS", "https://a.example:443", "origins as browsers send them"),
        ("CAT_CORS_ORIGINS", "http://a.example,http://b.example:80", "origins as browsers send"),
        ("CAT_CORS_ORIGINS", "https://*.example.org", "origins as browsers send them"),
        ("CAT_CORS_ORIGINS", ",", "origins as browsers send them"),
        ("CAT_FORWARDED_ALLOW_IPS", "10.0.0.0/99", "addresses such as 10.0.0.1 or networks"),
        ("CAT_FORWARDED_ALLOW_IPS", "10.0.0.1/8", "addresses such as 10.0.0.1 or networks"),
        ("CAT_FORWARDED_ALLOW_IPS", "10.0.0.1, proxy", "addresses such as 10.0.0.1 or networks"),
        ("CAT_FORWARDED_ALLOW_IPS", "*, 10.0.0.1", "addresses such as 10.0.0.1 or networks"),
        ("CAT_FORWARDED_ALLOW_IPS", ",", "addresses such as 10.0.0.1 or networks"),
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


def test_a_file_of_keys_has_one_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    text = "\ufeff# garage camera\r\nfirst-key \r\n\n  # the porch's, #2\nsecond#key"
    path.write_bytes(text.encode())
    settings = Settings.from_env({"CAT_API_KEYS_FILE": str(path)})
    assert settings.keys == ("first-key", "second#key")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("hush1\n# hush2\nhush3,hush4\n", "line 3 of {} is no key"),
        ("hush1 hush2", "line 1 of {} is no key"),
        ("hush1\n\nhush2 # hush3", "line 3 of {} is no key"),
        ("hush1\x0chush2", "line 1 of {} is no key"),
        ("hüsh", "line 1 of {} is no key"),
        ("# hush1\n\n", "{} has none"),
    ],
)
def test_a_line_that_is_no_key_is_refused_by_its_number_alone(
    text: str, where: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadSettings, match=re.escape(where.format(path))) as refused:
        Settings.from_env({"CAT_API_KEYS_FILE": str(path)})
    assert not re.search("h[uü]sh", str(refused.value))


def test_a_file_of_keys_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing", tmp_path / "binary"
    binary.write_bytes("key".encode("utf-16"))
    for path, why in ((missing, "No such file or directory"), (binary, "not UTF-8")):
        with pytest.raises(BadSettings, match=re.escape(f"({path}: {why})")):
            Settings.from_env({"CAT_API_KEYS_FILE": str(path)})


@pytest.mark.parametrize("name", ["CAT_API_KEY", "CAT_API_KEY_FILE", "CAT_APIKEYS", "CAT_KEY"])
def test_a_misspelt_setting_of_keys_does_not_open_the_service(name: str) -> None:
    with pytest.raises(BadSettings, match=f"{name} is not a setting: .*CAT_API_KEYS") as refused:
        Settings.from_env({name: "hush"})
    assert "hush" not in str(refused.value)


def test_other_names_that_begin_alike_are_only_named() -> None:
    others = {"CAT_API_URL": "http://cat:8000", "CAT_API_SERVICE_HOST": "10.0.0.1"}
    assert Settings.from_env({**others, "CAT_CORS_ORIGINS": " "}).ignored == tuple(sorted(others))


def test_origins_and_proxies_are_taken_as_browsers_and_systems_write_them() -> None:
    origins = "https://a.example, http://localhost:3000,http://[::1]:8080,null,app://-,file://,web-extension://0A-1B"
    read = Settings.from_env({"CAT_CORS_ORIGINS": origins}).cors_origins
    assert read == tuple(each.strip() for each in origins.split(","))
    assert Settings.from_env({"CAT_CORS_ORIGINS": "*"}).cors_origins == ("*",)
    for proxies in ("*", "10.0.0.1", "172.18.0.0/16, ::1,fd00::/8"):
        read_back = Settings.from_env({"CAT_FORWARDED_ALLOW_IPS": f" {proxies} "})
        assert read_back.forwarded_allow_ips == proxies.replace(" ", "")


def test_metrics_for_keys_alone_need_a_key() -> None:
    with pytest.raises(BadSettings, match="CAT_METRICS is 'key', but there is no key"):
        Settings.from_env({"CAT_METRICS": "key"})


def test_keys_are_not_in_what_settings_look_like() -> None:
    assert "hidden" not in repr(Settings(api_keys=("hidden",), api_keys_file=("hidden",)))


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"CAT_THRESHOLD": "", "CAT_WORKERS": ""}) == Settings()


def test_what_kubernetes_injects_for_services_called_cat_is_harmless_and_noted() -> None:
    injected = {
        "CAT_PORT": "tcp://10.0.0.1:8000",
        "CAT_PORT_8000_TCP_ADDR": "10.0.0.1",
        "CAT_SERVICE_HOST": "10.0.0.1",
        "CAT_SERVICE_PORT": "8000",
        "CAT_BIND_PORT": "tcp://10.0.0.2:80",  # of a service called cat-bind
        "CAT_API_SERVICE_HOST": "10.0.0.3",  # of one called cat-api
        "CAT_API_SERVICE_PORT_HTTP": "80",
        "CAT_API_PORT": "tcp://10.0.0.3:80",
        "CAT_API_PORT_80_TCP_PROTO": "tcp",
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
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)
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
