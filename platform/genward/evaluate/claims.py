"""The claims of a judgement, in the order in which they are told, and what each means to a reader."""

from __future__ import annotations

ABOUT = {
    "c2st": "How well a gradient booster tells synthetic rows from held-out real ones (area under the ROC curve). "
    "0.5 is a coin: it sees no difference. 1 is certainty.",
    "tstr": "What a model that learnt the target from synthetic rows is worth on held-out real rows.",
    "tstr_drop": "The share of what a model taught by real rows knows beyond guessing that one taught by as many "
    "synthetic rows does not. 0 is nothing lost.",
    "one_way": "How far single columns are from the real ones, on average. 0 is the same distribution; two samples of "
    "the same distribution show the reference.",
    "pairs": "The same for pairs of columns, cut into few values: dependence that is lost shows here.",
    "correlations": "How far rank correlations of number columns are from the real ones.",
    "coverage": "The share of real rows that have a synthetic row nearby: what is never generated lowers it.",
    "precision": "The share of synthetic rows that lie where real rows are: what cannot be lowers it.",
    "novelty": "The share of synthetic rows that are not suspiciously close to a training row. Held-out rows show the "
    "reference.",
    "nearest_is_training": "The share of synthetic rows that lie nearer to training rows than to held-out ones. Above "
    "one half, the model remembers.",
    "exact_copies": "The share of synthetic rows that equal a training row in every column. Real rows repeat each "
    "other too: the reference.",
    "rules_violated": "The share of synthetic rows that break a bound, a sum or an order that the schema states.",
    "held_out_overlap": "The share of held-out rows that are training rows too. More than repeated rows explain would "
    "mean that the judges were bribed.",
}
CLAIMS = tuple(ABOUT)
