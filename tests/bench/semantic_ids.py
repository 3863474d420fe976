"""From upload to semantic ID through Kafka: rate, delay, the event loop's lag and memory, with and without media.

One worker process and its broker share the machine with the load; delays are between the broker's append times. Takes
about twenty minutes: the open loops of text and of media are five each.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from safetensors.torch import load_file

from infra.kafka.broker import start_broker
from infra.settings import Settings, load_settings, with_values
from infra.storage import ObjectStore
from models.codebook import ENCODERS_KEY, WEIGHTS_FILE, current_codebook
from models.encoder_export import load_text_encoder
from models.encoders import Encoders
from models.onnx_session import available_cpus, open_session
from models.quantizer import Quantizer, QuantizerConfig
from streams.events import VideoUploaded
from tests.bench.measure import Measure
from tests.bench.parts.lag import lag_buckets, quantile_s
from tests.bench.parts.plain_loop import plain_loop_per_s
from tests.bench.parts.upload_load import UploadLoad, p99
from tests.bench.parts.upload_sources import (
    clip_uploads,
    films,
    long_uploads,
    plain_tokenizer,
    short_uploads,
)
from tests.integration.uploads_process import UploadsProcess, worker_settings
from workers.bootstrap_codebook import fit_codebook

TEXT_S, TEXT_PER_S = 300, 105.0
MEDIA_S, MEDIA_PER_S = 300, 5.1
WARM_UP, GROWTH_UPLOADS, PLAIN_UPLOADS, LONG_UPLOADS = 3000, 50_000, 500, 400
TOKENS, LONG_TOKENS = 32, 256
BATCH, ROUNDS = 32, 20
MB = 1e6


@dataclass(frozen=True)
class _Run:
    """What the worker did under load."""

    burst_per_s: float
    text_per_s: float
    text_p99_s: float
    removal_p99_s: float
    long_per_s: float
    media_per_s: float
    media_p99_s: float
    lag_ms: float
    growth_mb: float
    plain_per_s: float


def measure() -> list[Measure]:
    """Fit a codebook, start a broker and a worker, and load them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fitted = with_values(Settings(var_dir=root / "var"), storage__root=str(root / "store"))
        _say("fitting a codebook to MovieLens")
        fit_codebook(films(), fitted)
        encoders = root / "store" / "encoders"
        onnx_per_s, torch_per_s = _encoder_rates(encoders)
        with start_broker(root / "broker", jars_dir=load_settings().kafka.jars_dir) as broker:
            settings = worker_settings(
                broker.bootstrap_servers, root / "store", root, media_root=root
            )
            run = _under_load(settings, encoders, root)
    return _measures(run, onnx_per_s, torch_per_s)


def _measures(run: _Run, onnx_per_s: float, torch_per_s: float) -> list[Measure]:
    def of(name: str, value: float, unit: str, *, more: bool = False) -> Measure:
        return Measure(measure=name, value=value, unit=unit, higher_is_better=more)

    return [
        of("text_uploads_per_s", run.text_per_s, "uploads/s", more=True),
        of("text_upload_to_sid_p99_s", run.text_p99_s, "s"),
        of("removal_to_tombstone_p99_s", run.removal_p99_s, "s"),
        of("text_burst_uploads_per_s", run.burst_per_s, "uploads/s", more=True),
        of("long_text_burst_uploads_per_s", run.long_per_s, "uploads/s", more=True),
        of("media_uploads_per_s", run.media_per_s, "uploads/s", more=True),
        of("media_upload_to_sid_p99_s", run.media_p99_s, "s"),
        Measure(
            measure="onnx_over_torch",
            value=onnx_per_s / torch_per_s,
            unit="texts/s over texts/s",
            higher_is_better=True,
            peer="torch eager",
            peer_value=1.0,
        ),
        Measure(
            measure="worker_over_plain_loop",
            value=run.burst_per_s / run.plain_per_s,
            unit="uploads/s over uploads/s",
            higher_is_better=True,
            peer="confluent-kafka and torch, one upload at a time",
            peer_value=1.0,
        ),
        of("event_loop_lag_ms", run.lag_ms, "ms"),
        of("rss_growth_mb", run.growth_mb, "MB"),
    ]


def _under_load(settings: Settings, encoders: Path, root: Path) -> _Run:
    port, idle_port = _free_port(), _free_port()
    settings = with_values(settings, metrics__uploads_port=port)
    tokenizer = plain_tokenizer(encoders)
    texts = short_uploads(tokenizer, tokens_max=TOKENS)
    load = UploadLoad(settings.kafka)
    worker = UploadsProcess(settings)
    rss = _rss_of(worker.process.pid)
    try:
        _say(f"warming up on {WARM_UP} uploads")
        load.burst_per_s(list(itertools.islice(texts, WARM_UP)))
        burst_per_s = load.burst_per_s(list(itertools.islice(texts, WARM_UP)))
        started_mb = rss()
        with _idle_loop(idle_port):
            before = lag_buckets(port), lag_buckets(idle_port)
            text_per_s, text_delays = _open_loop(load, texts, TEXT_S, TEXT_PER_S)
            after = lag_buckets(port), lag_buckets(idle_port)
        busy_ms, idle_ms = (
            1000 * quantile_s(*each, 0.999) for each in zip(before, after, strict=True)
        )
        _say(f"event loop's lag p99.9 {busy_ms:.1f} ms, beside an idle one {idle_ms:.1f} ms")
        further = max(0, GROWTH_UPLOADS - len(text_delays))
        _say(f"{further} further uploads, for the memory")
        load.burst_per_s(list(itertools.islice(texts, further)))
        growth_mb = rss() - started_mb
        long = list(itertools.islice(long_uploads(tokenizer, tokens=LONG_TOKENS), LONG_UPLOADS))
        long_per_s = load.burst_per_s(long)
        removal_delays = load.remove([upload.video_id for upload in long])
        media = clip_uploads(root)
        load.wait_for(load.open_loop(itertools.islice(media, 10), per_s=2))  # the decoders start
        media_per_s, media_delays = _open_loop(load, media, MEDIA_S, MEDIA_PER_S)
    finally:
        worker.close()
        load.close()
    _say("the plain loop")
    plain_per_s = plain_loop_per_s(
        settings.kafka, encoders, _quantizer(encoders.parent), uploads=PLAIN_UPLOADS
    )
    return _Run(
        burst_per_s, text_per_s, p99(text_delays), p99(removal_delays), long_per_s, media_per_s,
        p99(media_delays), busy_ms - idle_ms, growth_mb, plain_per_s,
    )  # fmt: skip


def _open_loop(
    load: UploadLoad, uploads: Iterator[VideoUploaded], seconds: float, per_s: float
) -> tuple[float, list[float]]:
    """Return uploads with a semantic ID per second, and each one's delay, at a pace that waits for nobody."""
    count = round(seconds * per_s)
    _say(f"open loop: {count} uploads at {per_s}/s")
    started = time.monotonic()
    delays = load.wait_for(load.open_loop(itertools.islice(uploads, count), per_s=per_s))
    return count / (time.monotonic() - started), delays


def _encoder_rates(encoders: Path) -> tuple[float, float]:
    """Return texts of 32 tokens per second by ONNX Runtime and by torch eager, turn by turn, with all CPUs each."""
    spec = Encoders(encoders).manifest.spec("text")
    session = open_session(encoders / spec.file)
    eager = load_text_encoder()
    torch.set_num_threads(available_cpus())
    ids = np.random.default_rng(0).integers(1000, 20_000, (BATCH, TOKENS))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    tensors = {name: torch.from_numpy(values) for name, values in feed.items()}

    def run_eager() -> None:
        with torch.inference_mode():
            eager(**tensors)

    seconds: dict[str, list[float]] = {"onnx": [], "torch": []}
    runs: dict[str, Callable[[], object]] = {
        "onnx": lambda: session.run(None, feed),
        "torch": run_eager,
    }
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.monotonic()
            run()
            seconds[name].append(time.monotonic() - started)
    return BATCH / float(np.median(seconds["onnx"])), BATCH / float(np.median(seconds["torch"]))


def _quantizer(store: Path) -> Quantizer:
    """Return the fitted quantizer in torch."""
    manifest, directory = current_codebook(ObjectStore(str(store)), store)
    quantizer = Quantizer(
        QuantizerConfig.from_json(manifest.quantizer), Encoders(store / ENCODERS_KEY).dimensions
    )
    quantizer.load_state_dict(load_file(directory / WEIGHTS_FILE))
    return quantizer.eval()


@contextmanager
def _idle_loop(port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.bench.parts.idle_loop", str(port)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def _rss_of(pid: int) -> Callable[[], float]:
    process = psutil.Process(pid)
    return lambda: float(process.memory_info().rss) / MB


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    Console(stderr=True).print(text)
