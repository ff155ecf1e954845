"""The service's settings: environment variables → one frozen dataclass.

`Settings` is the one table of names, defaults and meanings, and `Settings.from_env` the only
reader of the environment. The field `max_pixels` is the variable CAT_MAX_PIXELS.
"""

import re
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Self

PREFIX = "CAT_"
KEY = re.compile(r"[!-+\--~]+")  # printable ASCII without spaces and commas
# As browsers write them: in small letters, without a path or the scheme's usual port. Of other
# schemes, as apps and extensions have them, the rest is anything without a path.
ORIGIN = re.compile(
    r"(?!http://.*:80$|https://.*:443$)"
    r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://[^/\s]*|null|\*"
)


class BadSettings(ValueError):
    """A variable has an invalid value. The message names the variable and the valid values."""


# --- from a variable's text to its value: each raises ValueError with what the text may be --------


def _number(
    allowed: str, fits: Callable[[Any], bool], kind: Callable[[str], float] = float
) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        with suppress(ValueError):
            if fits(number := kind(text)):
                return number
        raise ValueError(allowed)

    return parse


def _whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    bounds = f"of at least {minimum:,}" if maximum is None else f"from {minimum:,} to {maximum:,}"
    return _number(f"a whole number {bounds}", lambda n: minimum <= n <= (maximum or n), int)


_seconds = _number("a number of seconds above 0 up to 3600", lambda number: 0 < number <= 3600)
_pause = _number("a number of seconds up to 3600", lambda number: 0 <= number <= 3600)
_probability = _number("a number between 0 and 1", lambda number: 0 < number < 1)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            *others, last = map(repr, words)
            raise ValueError(f"{', '.join(others)} or {last}")
        return text.lower()

    return parse


def _switch(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


def _is_key(text: str) -> bool:
    return bool(KEY.fullmatch(text)) and not _is_quoted(text)


def _keys(text: str) -> tuple[str, ...]:
    keys = _list(text)
    if not keys or not all(map(_is_key, keys)):
        raise ValueError(
            "keys of printable ASCII characters, without spaces or quotation marks around them,"
            " separated by commas"
        )
    return keys


def _keys_in_file(text: str) -> tuple[str, ...]:
    try:
        # Some editors begin a file with a mark, which is no part of the first key.
        lines = Path(text).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"a file of keys, one per line, that can be read ({why})") from None
    filled = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    keys = {number: key for number, key in filled if not key.startswith("#")}
    wrong = [number for number, key in keys.items() if not _is_key(key)]
    if wrong or not keys:
        raise ValueError(
            "a file of keys of printable ASCII characters, one per line, without spaces, commas "
            "or quotation marks around them, with comments only on lines that begin with # "
            f"({f'its line {wrong[0]} is not a key' if wrong else 'it has none'})"
        )
    return tuple(keys.values())


def _origins(text: str) -> tuple[str, ...]:
    origins = _list(text)
    if not origins or not all(map(ORIGIN.fullmatch, origins)):
        raise ValueError(
            "origins as browsers send them, such as https://cats.example.org: in lower case, "
            "without a path or the default port; separated by commas, or * for all"
        )
    return origins


def _host(text: str) -> str:
    return text.removeprefix("[").removesuffix("]")  # of an IPv6 address, as URLs have it


def _proxies(text: str) -> str:
    proxies = _list(text)
    try:
        for each in proxies if proxies != ("*",) else ():
            (ip_network if "/" in each else ip_address)(each)
    except ValueError:
        proxies = ()
    if not proxies:
        raise ValueError(
            "addresses such as 10.0.0.1 or networks such as 10.0.0.0/24, separated by commas,"
            " or * for all"
        )
    return ",".join(proxies)


# --- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One row of the table: how a variable's text is read, what it means, its default in words."""

    parse: Callable[[str], Any]
    meaning: str
    default: str
    secret: bool = False


def _setting(
    value: Any, parse: Callable[[str], Any], meaning: str, default: str = "", secret: bool = False
) -> Any:
    """A field with this default value; `default` says it in words where it does not itself."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    row = Setting(parse, meaning, default or shown, secret)
    return field(default=value, repr=not secret, metadata={"setting": row})


@dataclass(frozen=True)
class Settings:
    """What an operator decides. `ignored` are variables with our prefix that are not settings."""

    weights: Path | None = _setting(  # noqa: RUF009 - it makes a field
        None, Path, "the weights file to serve", "model/cat.safetensors"
    )
    threshold: float | None = _setting(
        None,
        _probability,
        "the lowest probability that is labelled with the first class; between 0 and 1",
        "the one in the weights file",
    )
    views: str = _setting(
        "all",
        _one_of("all", "one"),
        "all: if the model is unsure about the whole picture, it also looks at parts of it; "
        "one: it looks only at the whole picture",
    )
    max_upload_bytes: int = _setting(2**25, _whole(1), "the largest accepted picture, in bytes")
    max_pixels: int = _setting(
        25_000_000, _whole(1), "the largest accepted picture, in pixels (width × height)"
    )
    workers: int | None = _setting(
        None, _whole(1, 256), "number of worker processes", "one per core, fewer if memory is short"
    )
    queue: int = _setting(
        128,
        _whole(1, 100_000),
        "how many pictures may wait for a worker; beyond that, new requests get 503",
    )
    processor_seconds: float = _setting(
        5.0,
        _seconds,
        "processor time for one request, in seconds; a worker that takes longer is stopped, "
        "and the answer is 422",
    )
    deadline_seconds: float = _setting(
        10.0,
        _seconds,
        "seconds from the end of an upload to its answer; after that, the answer is 503",
    )
    upload_seconds: float = _setting(
        10.0, _seconds, "seconds for an upload, plus one second for each 50 kB received"
    )
    drain_seconds: float = _setting(
        0.0,
        _pause,
        "seconds for which a stopping service still accepts requests; /health/ready answers "
        "503 at once",
    )
    api_keys: tuple[str, ...] = _setting(
        (), _keys, "API keys, separated by commas; each request must send one of them", "none", True
    )
    api_keys_file: tuple[str, ...] = _setting(
        (),
        _keys_in_file,
        "a file with more API keys, one per line; lines that begin with # are comments",
        "none",
        True,
    )
    metrics: str = _setting(
        "open",
        _one_of("open", "key", "off"),
        "who may read /metrics: everyone (open), clients with an API key (key), nobody (off)",
    )
    log: str = _setting(
        "text",
        _one_of("text", "json", "off"),
        "the log format, text or json; off: text, without request lines",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        _origins,
        "origins, separated by commas, whose web pages may call the service; * for all",
        "none",
    )
    forwarded_allow_ips: str = _setting(
        "",
        _proxies,
        "trusted proxies, separated by commas; X-Forwarded-For and -Proto are read only from them",
        "none",
    )
    collect: Path | None = _setting(  # noqa: RUF009 - the same
        None,
        Path,
        "the folder for pictures that clients send to /feedback with their correct class",
        "none: nothing is saved",
    )
    collect_pictures: int = _setting(
        10_000, _whole(1), "the most pictures that this folder may hold"
    )
    collect_bytes: int = _setting(10**9, _whole(1), "the most bytes that this folder may hold")
    page: bool = _setting(True, _switch, "the web page at /; on or off", "on")
    bind_host: str = _setting(
        "127.0.0.1", _host, "the address that `python -m app` listens on; 0.0.0.0 for all"
    )
    bind_port: int = _setting(
        8000, _whole(0, 65535), "the port that `python -m app` listens on; 0 for any free one"
    )
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables that start with CAT_; an empty one counts as unset.

        Raises BadSettings for a value that cannot be used. A name that is not a setting is only
        noted in `ignored`: next to a Kubernetes service called `cat` every container gets
        CAT_SERVICE_HOST, CAT_PORT and more, which nobody wrote. For the same reason an address such
        as tcp://10.0.0.1:8000 is never taken for a setting's value. But CAT_API_KEY stops the
        start: its author wants keys, not a service that is open to all.
        """
        table = settings_table()
        values: dict[str, Any] = {}
        ignored = []
        for name, text in sorted(environ.items()):
            if not name.startswith(PREFIX) or not text.strip():
                continue
            of_kubernetes = "_SERVICE_" in name or "_PORT" in name
            if name not in table and "KEY" in name and not of_kubernetes:
                raise BadSettings(
                    f"{name} is not a setting: keys are set with CAT_API_KEYS, or in a file that"
                    " CAT_API_KEYS_FILE names."
                )
            if name not in table or text.startswith(("tcp://", "udp://", "sctp://")):
                ignored.append(name)
                continue
            try:
                if _is_quoted(text.strip()):
                    raise ValueError("without quotation marks around it")
                values[name.removeprefix(PREFIX).lower()] = table[name].parse(text.strip())
            except ValueError as error:
                shown = "a secret" if table[name].parse is _keys else repr(text)
                raise BadSettings(
                    f"{name} is {shown}, but must be {error}. Change it, or unset it to use the "
                    f"default: {table[name].default}."
                ) from None
        settings = cls(**values, ignored=tuple(ignored))
        if settings.metrics == "key" and not settings.keys:
            raise BadSettings(
                "CAT_METRICS is 'key', but there is no key: set CAT_API_KEYS or CAT_API_KEYS_FILE."
            )
        return settings

    @property
    def keys(self) -> tuple[str, ...]:
        """All API keys, from the variable and from the file; none: anyone can use the service."""
        return self.api_keys + self.api_keys_file

    @property
    def warnings(self) -> list[str]:
        """A sentence for each variable that is ignored."""
        return [f"{name} is not a setting of this service and is ignored" for name in self.ignored]


def settings_table() -> dict[str, Setting]:
    """The environment variables that are settings, in the order of the class."""
    rows = {each.name: each.metadata.get("setting") for each in fields(Settings)}
    return {PREFIX + name.upper(): row for name, row in rows.items() if row}


def describe() -> str:
    """Names, meanings and defaults as text, for a command line's help."""
    table = settings_table()
    column = max(map(len, table)) + 4
    return "\n".join(
        textwrap.fill(
            f"{setting.meaning} (default: {setting.default})",
            width=96,
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
        )
        for name, setting in table.items()
    )


def in_force(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """A line for each setting: its name, its value, and whether somebody chose it."""
    lines = []
    for name, setting in settings_table().items():
        text = environ.get(name, "").strip()
        chosen = bool(text) and name not in settings.ignored
        shown = text if chosen else setting.default
        if chosen and setting.secret:
            count = len(getattr(settings, name.removeprefix(PREFIX).lower()))
            shown = f"set, hidden: {count} key{'' if count == 1 else 's'}"
        lines.append(f"{name:<25}{shown} ({'from the environment' if chosen else 'default'})")
    return lines
