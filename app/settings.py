"""The service's settings: environment variables → one frozen dataclass.

`Settings` is the one table of names, defaults and meanings, and `Settings.from_env` the only
reader of the environment. The field `max_pixels` is the variable CAT_MAX_PIXELS.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        int,
        Setting(
            _whole_number(1, 256),
            "processes that answer requests; `python -m app` starts them",
            "1",
        ),
    ] = 1
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
                raise BadSettings(
                    f"{name} is {text!r}, but must be {error}. Change it, or leave it out for the"
                    f" default: {table[name].default}."
                ) from None
        return cls(**values, ignored=tuple(ignored))


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
