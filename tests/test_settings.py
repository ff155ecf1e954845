"""The service's settings: what the environment says, and what is said back."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import BadSettings, Settings, describe, settings_table
from tests.data_folder import REPOSITORY

READ: dict[str, tuple[str, Any]] = {  # a variable's text, and the setting that it makes
    "weights": ("/srv/own.safetensors", Path("/srv/own.safetensors")),
    "threshold": ("0.7", 0.7),
    "views": ("one", "one"),
    "max_upload_bytes": ("1048576", 1_048_576),
    "max_pixels": ("1000000", 1_000_000),
    "workers": ("3", 3),
    "queue": ("5", 5),
    "processor_seconds": ("1.5", 1.5),
    "deadline_seconds": ("2.5", 2.5),
    "upload_seconds": ("30", 30.0),
    "drain_seconds": ("0", 0.0),
    "api_keys": ("first, second", ("first", "second")),
    "metrics": ("KEY", "key"),
    "log": ("json", "json"),
    "cors_origins": ("https://a.example,null", ("https://a.example", "null")),
    "forwarded_allow_ips": (" 172.18.0.0/16, ::1", "172.18.0.0/16,::1"),
    "collect": ("/srv/feedback", Path("/srv/feedback")),
    "collect_pictures": ("50", 50),
    "collect_bytes": ("5000000", 5_000_000),
    "page": ("off", False),
    "bind_host": ("::", "::"),
    "bind_port": ("80", 80),
}


@pytest.mark.parametrize("end", ["", "\r"])  # as files written on Windows end their lines
def test_every_setting_is_read_and_typed(tmp_path: Path, end: str) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xef\xbb\xbf# porch\r\nthird \r\n\n  # the garage's, #2\nfourth#key")
    environ = {f"CAT_{name.upper()}": text + end for name, (text, _) in READ.items()}
    environ["CAT_API_KEYS_FILE"] = f"{keys}{end}"
    values = {name: value for name, (_, value) in READ.items()}
    settings = Settings.from_env(environ | {"PATH": "/bin"})
    assert settings == Settings(**values, api_keys_file=("third", "fourth#key"))
    assert settings.keys == ("first", "second", "third", "fourth#key")
    assert not re.search("third|fourth", repr(settings)), "keys are shown to nobody"
    assert set(settings_table()) == set(environ)
    assert Settings.from_env({"CAT_THRESHOLD": "", "CAT_WORKERS": " \r"}) == Settings()
    for origins in ("http://localhost:3000,http://[::1]:8080", "app://-,file://", "*"):
        read = Settings.from_env({"CAT_CORS_ORIGINS": origins})
        assert read.cors_origins == tuple(origins.split(","))
    assert Settings.from_env({"CAT_FORWARDED_ALLOW_IPS": "*"}).forwarded_allow_ips == "*"


ORIGINS = "origins as browsers send them"
PROXIES = "addresses such as 10.0.0.1 or networks"


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("CAT_THRESHOLD", ["high", "1.0", "nan"], "a number between 0 and 1"),
        ("CAT_MAX_UPLOAD_BYTES", ["10MiB", "0", "9" * 5000], "a whole number of at least 1"),
        ("CAT_MAX_PIXELS", ["-5"], "a whole number of at least 1"),
        ("CAT_WORKERS", ["0", "1.5"], "a whole number from 1 to 256"),
        ("CAT_QUEUE", ["0"], "a whole number from 1 to 100,000"),
        ("CAT_DEADLINE_SECONDS", ["0", "nan"], "a number of seconds above 0 up to 3600"),
        ("CAT_DRAIN_SECONDS", ["-1"], "a number of seconds up to 3600"),
        ("CAT_VIEWS", ["two"], "'all' or 'one'"),
        ("CAT_METRICS", ["yes"], "'open', 'key' or 'off'"),
        ("CAT_CORS_ORIGINS", ["cats.example.org", "https://a.example/", ","], ORIGINS),
        ("CAT_CORS_ORIGINS", ["https://A.example", "https://*.a.org", "http://a.b:80"], ORIGINS),
        ("CAT_FORWARDED_ALLOW_IPS", ["10.0.0.0/99", "*, 10.0.0.1", "proxy", ","], PROXIES),
        ("CAT_PAGE", ["1"], "'on' or 'off'"),
        ("CAT_BIND_PORT", ["65536"], "a whole number from 0 to 65,535"),
        ("CAT_BIND_HOST", ["'::1'"], "without quotation marks around it"),
        ("CAT_WEIGHTS", ['"/srv/own.safetensors"'], "without quotation marks around it"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_and_what_it_may_be(
    name: str, values: list[str], allowed: str
) -> None:
    for value in values:
        sentence = re.escape(f"{name} is {value!r}, but must be {allowed}")
        with pytest.raises(BadSettings, match=sentence):
            Settings.from_env({name: value})


@pytest.mark.parametrize("text", [",", "schlüssel", "one two", "'one'", '"one,two"'])
def test_a_bad_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(BadSettings, match="CAT_API_KEYS is a secret, but must be ") as refused:
        Settings.from_env({"CAT_API_KEYS": text})
    assert repr(text) not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hush1\n# hush2\nhush3,hush4\n", ", but must be a file of keys .*line 3 is not a key"),
        (b"# hush1\n\n", ", but must be a file of keys .*it has none"),
        ("hush".encode("utf-16"), r"\(not UTF-8\)"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_named_and_not_quoted(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSettings, match=f"^CAT_API_KEYS_FILE is '{path}'.*{why}") as refused:
        Settings.from_env({"CAT_API_KEYS_FILE": str(path)})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("name", ["CAT_API_KEY", "CAT_APIKEYS", "CAT_KEY"])
def test_a_misspelt_setting_of_keys_does_not_open_the_service(name: str) -> None:
    with pytest.raises(BadSettings, match=f"{name} is not a setting: .*CAT_API_KEYS") as refused:
        Settings.from_env({name: "hush"})
    assert "hush" not in str(refused.value)
    with pytest.raises(BadSettings, match="CAT_METRICS is 'key', but there is no key"):
        Settings.from_env({"CAT_METRICS": "key"})


def test_other_names_that_begin_alike_are_noted_and_do_no_harm() -> None:
    """Among them those that Kubernetes injects for services called cat, cat-api and cat-bind."""
    others = {
        "CAT_API_URL": "http://cat:8000",
        "CAT_PORT": "tcp://10.0.0.1:8000",
        "CAT_SERVICE_HOST": "10.0.0.1",
        "CAT_BIND_PORT": "tcp://10.0.0.2:80",
        "CAT_KEY_PORT_80_TCP_PROTO": "tcp",
    }
    assert Settings.from_env(others) == Settings(ignored=tuple(sorted(others)))


def test_the_help_and_the_settings_in_force_name_every_setting_and_no_key() -> None:
    def printed(option: str) -> str:
        command = [sys.executable, "-m", "app", option]
        environ = {"CAT_API_KEYS": "hush,hush-hush", "CAT_QUEUE": "7", "CAT_OTHER": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True)
        ignored = "CAT_OTHER is not a setting of this service and is ignored\n"
        assert (done.returncode, done.stderr) == (0, ignored * (option == "--settings"))
        return done.stdout

    assert describe() in (text := printed("--help"))
    assert max(map(len, text.splitlines())) < 100
    in_force = dict(re.findall(r"^(CAT_\w+) +(.+)$", printed("--settings"), re.MULTILINE))
    assert list(in_force) == list(settings_table())
    assert in_force["CAT_QUEUE"] == "7 (from the environment)"
    assert in_force["CAT_DEADLINE_SECONDS"] == "10 (default)"
    assert in_force["CAT_API_KEYS"] == "set, hidden: 2 keys (from the environment)"
    for name, setting in settings_table().items():
        assert re.search(rf"^  {name} ", describe(), re.MULTILINE)
        assert f"(default: {setting.default})" in " ".join(describe().split())
        default = getattr(Settings(), name.removeprefix("CAT_").lower())
        if default not in (None, (), "") and name != "CAT_WEIGHTS":
            assert setting.parse(setting.default) == default
