"""The report folder of `python -m training fit`."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.classifier import Classifier
from model.network import sigmoid
from training import report
from training.epochs import LOG, log_text
from training.metrics import confusion, reliability_table
from training.validation import Validation

_ROWS = (
    *("pictures", "accuracy", "balanced_accuracy", "recall", "precision"),
    *("roc_auc", "log_loss", "expected_calibration_error"),
)


def fit_report(
    classifier: Classifier,
    validation: Validation,
    curve: Sequence[Mapping[str, Any]],
    threads: int,
) -> dict[str, bytes]:
    """The files of the report, by name: the page, its plots, metrics.json with everything that the
    weights file says, and the log."""
    facts = classifier.metadata
    y = validation.labels
    p = sigmoid(validation.logits(classifier.layers, threads))
    first = classifier.class_names[0]
    figures = {
        "learning-curve.png": report.learning_curve(
            [row["loss"] for row in curve],
            [row["log_loss"] for row in curve],
            [row["balanced_accuracy"] for row in curve],
            facts["best_epoch"],
        ),
        "confusion.png": report.confusion_matrices(
            {"validation": confusion(y, p, classifier.threshold)}, classifier.class_names
        ),
        "reliability.png": report.reliability_diagram(reliability_table(y, p), first),
    }
    drawn = {name: report.png(figure) for name, figure in figures.items()}
    return {
        report.PAGE: _page(classifier, drawn).encode(),
        "metrics.json": report.json_text(
            {
                "name": classifier.name,
                "class_names": classifier.class_names,
                "threshold": classifier.threshold,
                **facts,
            }
        ).encode(),
        LOG: log_text(curve).encode(),
        **drawn,
    }


def _page(classifier: Classifier, drawn: Mapping[str, bytes]) -> str:
    facts = classifier.metadata
    metrics = facts["metrics"]["validation"]
    config, data = facts["training"], facts["data"]["training"]
    start = facts["started_from"]
    begin = f"fine-tuned from {start['name']}" if start else "trained from random weights"
    calibration = facts["calibration"]
    kept = facts["best_epoch"] or "none: the weights that it started from were better"
    return report.page(
        f"{classifier.name}: {classifier.class_names[0]} or {classifier.class_names[1]}?",
        f"The network, {begin} on {data['pictures']:,} pictures of {', '.join(data['files'])}, "
        f"and what it says of the {metrics['all']['pictures']:,} pictures that were held back.",
        [
            report.Section(
                "Measured on validation",
                "Epoch, calibration and threshold were chosen on these pictures, so that new ones "
                "will come out a little worse: `python -m training evaluate` measures on others.",
                table=report.metrics_table(metrics, _ROWS),
            ),
            *_comparison(facts),
            report.Section(
                "Learning curve",
                f"Epoch that was kept: {kept}. The training loss is that of varied pictures, and "
                "of soft labels where there is a teacher: it compares with itself alone.",
                pictures={"loss and accuracy of each epoch": drawn["learning-curve.png"]},
            ),
            report.Section(
                "Right and wrong answers",
                f"Called {classifier.class_names[0]} from a probability of "
                f"{classifier.threshold:.3f} on. Threshold: {facts['threshold_rule']}.",
                pictures={"confusion matrix": drawn["confusion.png"]},
            ),
            report.Section(
                "Can the probabilities be believed?",
                f"Where a probability of 0.8 is given, 8 of 10 should be right. Calibration: scale "
                f"{calibration['scale']:.3f}, shift {calibration['shift']:.3f}; "
                f"{calibration['rule']}.",
                pictures={"reliability diagram": drawn["reliability.png"]},
            ),
            report.Section(
                "Configuration",
                table=[["", "value"], *([key, str(value)] for key, value in config.items())],
            ),
        ],
    )


def _comparison(facts: Mapping[str, Any]) -> list[report.Section]:
    """Before and after, where it was fine-tuned."""
    comparison = facts.get("comparison")
    if not comparison:
        return []
    sets = {when: comparison[when] for when in ("before", "after")}
    table = report.metrics_table(sets, ("log_loss", "balanced_accuracy", "roc_auc"))
    text = f"On the pictures held back it is {comparison['verdict']}."
    return [report.Section(f"Did it help {facts['started_from']['name']}?", text, table=table)]
