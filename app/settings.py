"""The service's settings: environment variables → one frozen dataclass.

`Settings` is the one table of names, defaults and meanings, and `Settings.from_env` the only
reader of the environment. The field `max_pixels` is the variable CAT_MAX_PIXELS.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

PREFIX = "CAT_"


class BadSettings(ValueError):
    """A variable has a value that cannot be used. The message names it, and what it may be."""


def _whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    bounds = f"of at least {minimum:,}" if maximum is None else f"from {minimum:,} to {maximum:,}"

    def parse(text: str) -> int:
        digits = text.strip()
        plain = digits.isascii() and digits.isdecimal() and len(digits) < 20
        number = int(digits) if plain else minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            raise ValueError(f"a whole number {bounds}")
        return number

    return parse


def _seconds(maximum: float, *, zero: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= maximum or (number == 0 and not zero):  # also refuses NaN
            raise ValueError(f"a number of seconds{'' if zero else ' above 0'} up to {maximum:g}")
        return number

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return word

    return parse


def _switch(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _keys(text: str) -> tuple[str, ...]:
    keys = _list(text)
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("keys of printable ASCII characters without spaces, parted by commas")
    return keys


def _keys_in_file(text: str) -> tuple[str, ...]:
    try:
        lines = Path(text).read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise ValueError(f"a file of keys, a line each, that can be read ({error})") from None
    return _keys(",".join(lines))


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:  # also refuses NaN
        raise ValueError("a number between 0 and 1")
    return number


@dataclass(frozen=True)
class Setting:
    """One row of the table: how a variable's text is read, what it means, its default in words."""

    parse: Callable[[str], Any]
    meaning: str
    default: str
    secret: bool = False


@dataclass(frozen=True)
class Settings:
    """What an operator decides. `ignored` are variables with our prefix that are no setting."""

    weights: Annotated[
        Path | None,
        Setting(
            Path,
            "the artifact to serve, a file that training wrote",
            "the one that comes with the service",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        Setting(
            _probability,
            "from this probability on the label is the first class; between 0 and 1",
            "the artifact's own",
        ),
    ] = None
    max_upload_bytes: Annotated[
        int, Setting(_whole_number(1), "the largest picture that is accepted, in bytes", "10485760")
    ] = 10 * 2**20
    max_pixels: Annotated[
        int,
        Setting(
            _whole_number(1), "the most pixels, width × height, that a picture may have", "25000000"
        ),
    ] = 25_000_000
    workers: Annotated[
        int | None,
        Setting(
            _whole_number(1, 256),
            "processes that answer requests; `python -m app` starts them",
            "one a core, as far as the memory reaches",
        ),
    ] = None
    queue: Annotated[
        int,
        Setting(
            _whole_number(1, 100_000),
            "requests that a worker takes on at once, those being uploaded among them; beyond"
            " it answers 503 at once",
            "64",
        ),
    ] = 64
    deadline_seconds: Annotated[
        float,
        Setting(
            _seconds(3600), "how long a picture that has arrived may wait for its answer", "10"
        ),
    ] = 10.0
    upload_seconds: Annotated[
        float,
        Setting(
            _seconds(3600),
            "how long an upload may take; each 50 kB that arrived give it a second more",
            "10",
        ),
    ] = 10.0
    drain_seconds: Annotated[
        float,
        Setting(
            _seconds(3600, zero=True),
            "how long a service that is stopping still takes requests, while /health/ready"
            " already sends load balancers elsewhere",
            "0",
        ),
    ] = 0.0
    api_keys: Annotated[
        tuple[str, ...],
        Setting(_keys, "keys, parted by commas, one of which requests must bring", "none", True),
    ] = field(default=(), repr=False)
    api_keys_file: Annotated[
        tuple[str, ...],
        Setting(_keys_in_file, "a file of more such keys, a line each", "none", True),
    ] = field(default=(), repr=False)
    metrics: Annotated[
        str,
        Setting(
            _one_of("open", "key", "off"),
            "who may read /metrics: anybody (open), whoever has an API key (key), nobody (off)",
            "open",
        ),
    ] = "open"
    log: Annotated[
        str,
        Setting(_one_of("text", "json", "off"), "the line that is logged a request", "text"),
    ] = "text"
    cors_origins: Annotated[
        tuple[str, ...],
        Setting(
            _list,
            "origins, parted by commas, whose web pages may call the service; * for all",
            "none",
        ),
    ] = ()
    forwarded_allow_ips: Annotated[
        str,
        Setting(
            str,
            "addresses of proxies, parted by commas, whose X-Forwarded-For and -Proto are believed",
            "none",
        ),
    ] = ""
    page: Annotated[bool, Setting(_switch, "the page for people at /; on or off", "on")] = True
    bind_host: Annotated[
        str,
        Setting(str, "the address that `python -m app` listens on; 0.0.0.0 for all", "127.0.0.1"),
    ] = "127.0.0.1"
    bind_port: Annotated[
        int,
        Setting(
            _whole_number(0, 65535),
            "the port that `python -m app` listens on; 0 for any free one",
            "8000",
        ),
    ] = 8000
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables that start with CAT_; an empty one counts as unset.

        Raises BadSettings for a value that cannot be used. A name that is no setting is only
        noted in `ignored`: beside a Kubernetes service called `cat` every container gets
        CAT_SERVICE_HOST, CAT_PORT and more, which nobody wrote. For the same reason an address
        such as tcp://10.0.0.1:8000 is never taken for a setting's value.
        """
        table = settings_table()
        values: dict[str, Any] = {}
        ignored = []
        for name, text in sorted(environ.items()):
            if not name.startswith(PREFIX) or not text:
                continue
            if name not in table or text.startswith(("tcp://", "udp://", "sctp://")):
                ignored.append(name)
                continue
            try:
                values[name.removeprefix(PREFIX).lower()] = table[name].parse(text)
            except ValueError as error:
                shown = "a secret" if table[name].secret else repr(text)
                raise BadSettings(
                    f"{name} is {shown}, but must be {error}. Change it, or leave it out for the"
                    f" default: {table[name].default}."
                ) from None
        settings = cls(**values, ignored=tuple(ignored))
        if settings.metrics == "key" and not settings.keys:
            raise BadSettings(
                "CAT_METRICS is 'key', but there is no key: set CAT_API_KEYS or CAT_API_KEYS_FILE."
            )
        return settings

    @property
    def keys(self) -> tuple[str, ...]:
        """All API keys, from the variable and from the file; none: anybody may ask."""
        return self.api_keys + self.api_keys_file


def settings_table() -> dict[str, Setting]:
    """The environment variables that are settings, in the order of the class."""
    hints = get_type_hints(Settings, include_extras=True)
    return {
        PREFIX + name.upper(): hint.__metadata__[0]
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    }


def describe() -> str:
    """Names, meanings and defaults as text, for a command line's help."""
    return "\n".join(
        textwrap.fill(
            f"{setting.meaning} (default: {setting.default})",
            width=96,
            initial_indent=f"  {name:<22}",
            subsequent_indent=" " * 24,
        )
        for name, setting in settings_table().items()
    )
