"""Whether fine-tuning helped: the network before and after on pictures that neither saw."""

from dataclasses import dataclass

import numpy as np

from model.network import Array, sigmoid
from training.calibration import mean_balanced_accuracy, source_weights
from training.cost import loss
from training.metrics import roc_auc
from training.validation import Validation, source_log_loss

CLEARLY, BY_CHANCE, NOT = "clearly better", "better, maybe by chance", "no better"


@dataclass(frozen=True)
class Comparison:
    """Figures on the held-back pictures, JSON values; the verdict is one of the three above."""

    before: dict[str, float]
    after: dict[str, float]
    verdict: str


def compare(
    before: Array, after: Array, validation: Validation, thresholds: tuple[float, float]
) -> Comparison:
    """before, after: logits (m,) of the held-back pictures, as training left them: a calibration
    that is fitted to these very pictures must not take part. thresholds: of both.

    By the log loss, which counts every picture. Clearly better: by more than 1.96 standard errors
    of the mean difference, picture by picture.
    """
    y, weights = validation.labels, source_weights(validation.sources)
    gains = weights * (loss(before, y) - loss(after, y))
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    verdict = CLEARLY if gains.mean() > 1.96 * error else BY_CHANCE
    if gains.mean() <= 0:
        verdict = NOT
    return Comparison(
        _figures(before, validation, thresholds[0]),
        _figures(after, validation, thresholds[1]),
        verdict,
    )


def _figures(z: Array, validation: Validation, threshold: float) -> dict[str, float]:
    y, p = validation.labels, sigmoid(z)
    return {
        "log_loss": source_log_loss(z, y, validation.sources),
        "balanced_accuracy": mean_balanced_accuracy(y, p, validation.sources, threshold),
        "roc_auc": roc_auc(y, p),
    }


def as_text(comparison: Comparison, pictures: int, start: str) -> str:
    """The comparison in words, for the person at the terminal."""
    figures = "; ".join(
        f"{name} {comparison.before[key]:{form}} before, {comparison.after[key]:{form}} after"
        for name, key, form in (
            ("log loss", "log_loss", ".3f"),
            ("balanced accuracy", "balanced_accuracy", ".1%"),
            ("ROC AUC", "roc_auc", ".3f"),
        )
    )
    how, _, reserve = comparison.verdict.partition(", ")
    text = f"On {pictures} held-back pictures it is {how} than {start}"
    text += f", {reserve}: {figures}." if reserve else f": {figures}."
    if comparison.verdict == NOT:
        text += f" The weights written are those of {start}. More pictures may help, or others."
    elif comparison.verdict == BY_CHANCE:
        text += " Hold back more pictures to be sure (--validation)."
    return text
