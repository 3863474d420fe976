"""Opens an ONNX graph for the CPUs that this process really has; knows nothing of what the graph computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _errors

# What ONNX Runtime raises for a graph or an input that it refuses; they have no base class of their own.
ONNX_ERRORS: tuple[type[Exception], ...] = (
    _errors.Fail,
    _errors.InvalidArgument,
    _errors.InvalidGraph,
    _errors.InvalidProtobuf,
    _errors.NoSuchFile,
    _errors.NotImplemented,
    _errors.RuntimeException,
)

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cpus() -> int:
    """Return how many CPUs affinity and the cgroup's quota leave to this process, at least one.

    ONNX Runtime counts the host's cores instead, and its threads then fight over the quota.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _cgroup_quota() -> float | None:
    try:
        if _CGROUP_V2.exists():
            limit, period = _CGROUP_V2.read_text().split()
        else:
            limit = (_CGROUP_V1 / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP_V1 / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None  # no cgroup is visible: affinity alone counts
    return None if limit in ("max", "-1") else int(limit) / int(period)


def open_session(graph: Path | bytes, *, num_threads: int | None = None) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU with `num_threads`, or all available ones.

    Idle threads sleep instead of spinning: they share their cores with Kafka clients and asyncio, and
    only batches of one would gain from spinning. The caller has checked the graph's hash.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or available_cpus()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
