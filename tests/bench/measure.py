"""One measured number; knows nothing of how it was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A line of a benchmark's report.

    A measure taken at several sizes reports the worst of them. One that is itself a quotient of ours and a peer's has a
    peer's value of 1.

    Attributes:
        measure: what was measured, its unit last: `produce_to_consume_p99_ms`.
        value: the number.
        unit: of the value.
        higher_is_better: which way is better, so that a ratio above 1 always means better than the peer.
        peer: who else did the same work in the same run, if anyone.
        peer_value: the peer's number, in the same unit.
        ci: between which two values it lies with a probability of 95 %, where that was measured.
    """

    measure: str
    value: float
    unit: str
    higher_is_better: bool
    peer: str | None = None
    peer_value: float | None = None
    ci: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (self.peer is None) != (self.peer_value is None):
            raise ValueError(f"{self.measure}: a peer and its value come together, or not at all")

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; None when no peer ran, or nothing can be divided by."""
        if self.peer_value is None:
            return None
        ours, theirs = self.value, self.peer_value
        over, under = (ours, theirs) if self.higher_is_better else (theirs, ours)
        return over / under if under else None

    def as_json(self) -> dict[str, str | float | None]:
        """Return the report's line; the interval only where there is one, a peer's values only where a peer ran."""
        line: dict[str, str | float | None] = {
            "measure": self.measure,
            "value": self.value,
            "unit": self.unit,
        }
        if self.ci is not None:
            line |= {"ci_low": self.ci[0], "ci_high": self.ci[1]}
        if self.peer is None:
            return line
        return line | {"peer": self.peer, "peer_value": self.peer_value, "ratio": self.ratio}


def measured(name: str, value: float, unit: str, *, more: bool = False) -> Measure:
    """Return a number of our own; `more` is better, or less."""
    return Measure(measure=name, value=float(value), unit=unit, higher_is_better=more)


def measured_over(name: str, value: float, peer: str) -> Measure:
    """Return how many times as much as a peer."""
    return Measure(
        measure=name, value=value, unit="times", higher_is_better=True, peer=peer, peer_value=1.0
    )
