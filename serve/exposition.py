"""One page of metrics for the endpoint and all its replicas; knows nothing of Ray and HTTP.

    who                      which series                              label
    this process             freshet_ingress_*, process_*              none
    each replica             all others, process_* of its own          replica="0", "1", ...

A replica's label is its place among the replicas, not its name: one that is replaced hands its place on, so there are
never more values than replicas, and what counts from zero again is what `rate()` expects of a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import REGISTRY, generate_latest

INGRESS = "freshet_ingress_"


class ReplicaMetrics(NamedTuple):
    """What one replica exposes, and its place among the replicas, from 0."""

    place: int
    text: str


def exposed() -> str:
    """Return all metrics of this process in Prometheus's text format."""
    return generate_latest(REGISTRY).decode()


def one_page(own: str, replicas: Iterable[ReplicaMetrics]) -> str:
    """Return the metrics of the ingress and of its replicas, each family once, as the format wants it.

    Of two replicas in one place (the one that leaves, and the one that comes) the first is shown: the same series twice
    would make Prometheus refuse the whole page.
    """
    families: dict[str, _Family] = {}
    _add(families, own, label="", wanted=lambda name: name.startswith((INGRESS, "process_")))
    places: set[int] = set()
    for replica in sorted(replicas):
        if replica.place not in places:
            label = f'replica="{replica.place}"'
            _add(families, replica.text, label=label, wanted=lambda name: INGRESS not in name)
        places.add(replica.place)
    return "".join(
        f"{line}\n" for family in families.values() for line in (*family.headers, *family.samples)
    )


class _Family(NamedTuple):
    headers: list[str]
    samples: list[str]


def _add(
    families: dict[str, _Family], text: str, *, label: str, wanted: Callable[[str], bool]
) -> None:
    """Add the families of a page that `generate_latest` wrote: `# HELP name …`, `# TYPE name …`, then the samples."""
    family, is_new = None, False
    for line in text.rstrip("\n").split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            is_new = name not in families
            family = families.setdefault(name, _Family([], [])) if wanted(name) else None
        if family is None:
            continue
        if not line.startswith("#"):
            family.samples.append(_labelled(line, label) if label else line)
        elif is_new:
            family.headers.append(line)


def _labelled(sample: str, label: str) -> str:
    """Return `name{a="b"} 1` or `name 1` with one label more."""
    name, brace, labels = sample.partition("{")
    if brace:
        return f"{name}{{{label},{labels}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
