"""The jobs of heads over the steps of a run, from its records of lens_interval (no torch)."""

from collections.abc import Iterable

HEAD_THRESHOLD = 0.5  # a head has a job when it spends half of its attention on it
JOBS = {"induction": "an induction head", "previous": "a previous-token head"}  # that are named

Curves = dict[str, list[tuple[int, float]]]


def head_curves(records: Iterable[dict], kind: str) -> Curves:
    """{layer.head: [(step, score)]}, the head with the highest last score first.

    kind: "induction", "previous" or "duplicate". Layers and heads count from 0.
    """
    curves: Curves = {}
    for record in records:
        table = record.get("inside", {}).get("heads", {}).get(kind, [])
        for layer, scores in enumerate(table):
            for head, score in enumerate(scores):
                if score is not None:
                    curves.setdefault(f"{layer}.{head}", []).append((record["step"], score))
    return dict(sorted(curves.items(), key=lambda curve: -curve[1][-1][1]))


def step_found(curve: list[tuple[int, float]]) -> int | None:
    """The step since which a head's score is at the threshold or above; None for no head."""
    since = None
    for step, score in curve:
        if score < HEAD_THRESHOLD:
            since = None
        elif since is None:
            since = step
    return since


def jobs_in_words(records: list[dict]) -> str:
    """Which heads have a job at the end, or that there is none; "" where nobody looked."""
    found = []
    for kind, name in JOBS.items():
        curves = head_curves(records, kind)
        if not curves:
            return ""
        best, curve = next(iter(curves.items()))
        score, since = curve[-1][1], step_found(curve)
        if since is None:
            found.append(f"No head is {name}: the highest score is {score:.2g}, of head {best}.")
        else:
            found.append(
                f"Head {best} is {name} since step {since:,}, with a score of {score:.2g}."
            )
    return " ".join(found)
