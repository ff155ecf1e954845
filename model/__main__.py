"""Answer for pictures on the command line: `python -m model PICTURE…`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.classifier import BadArtifact, Classifier, default_weights
from model.preprocessing import InvalidImage, accepted_formats

STANDARD_INPUT = "-"
UNREADABLE = "unreadable"  # beside the reasons of InvalidImage: there are no bytes to judge


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a picture; return 0, 1 if any picture was bad, 2 if the weights are."""
    options = _parser().parse_args(arguments)
    try:
        classifier = Classifier.load(options.weights)
    except BadArtifact as error:
        print(error, file=sys.stderr)
        return 2
    bad = False
    try:
        for answer in _answers(classifier, options.pictures):
            bad = bad or "error" in answer
            print(json.dumps(answer) if options.json else _sentence(answer), flush=True)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model",
        description="Say for each picture how probable it is that it shows a cat.",
        epilog="The exit status is 0, 1 if any picture could not be used, and 2 if the weights or "
        "the arguments could not.",
    )
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="+",
        help=f"a {accepted_formats()} file; - is standard input",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        default=default_weights(),
        help="weights file (default: %(default)s)",
    )
    return parser


def _answers(classifier: Classifier, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        try:
            prediction = classifier.predict(_read(name))
        except InvalidImage as error:
            yield {"picture": name, "error": {"reason": error.reason, "detail": str(error)}}
        except OSError as error:
            yield _unreadable(name, error.strerror or str(error))
        except ValueError as error:  # a name that no file can have
            yield _unreadable(name, str(error))
        else:
            yield {
                "picture": name,
                "cat_probability": prediction.cat_probability,
                "label": prediction.label,
                "warnings": prediction.warnings,
            }


def _unreadable(name: str, why: str) -> dict[str, Any]:
    detail = f"The file cannot be read: {why}."
    return {"picture": name, "error": {"reason": UNREADABLE, "detail": detail}}


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()


def _sentence(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"{answer['picture']}: {answer['error']['reason']}: {answer['error']['detail']}"
    notes = "".join(f"; {note}" for note in answer["warnings"])
    return f"{answer['picture']}: {answer['label']} ({answer['cat_probability']:.4f}){notes}"


if __name__ == "__main__":
    sys.exit(main())
