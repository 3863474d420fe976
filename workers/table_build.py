"""One build of the offline table: what is read, what is computed, what is published; `freshet table build`.

    reads     model.checkpoints, video.semantic_ids, video.counts, and the table that is announced
    waits for the searches (`workers.table_search`)
    writes    a table in the object store, then its announcement in model.checkpoints

"Now" is the newest event that the topics tell of, not the wall clock: a replayed past has a last week, too.
Knows nothing of when it is done (`workers.table_schedule`) and by which rules (`workers.table_rules`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from infra.claim import claim
from infra.clock import now_ms as wall_clock_ms
from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.log import get_logger
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import current_manifest
from models.offline_table import OfflineTable, TableRow, build_table
from models.related import Question, question_about
from models.semantic_id import SemanticIdSpace
from streams.catalogue import Catalogue
from streams.client import TopicReader
from streams.codec import decode
from streams.events import (
    LRM_MODEL_NAME,
    TABLE_MODEL_NAME,
    CheckpointPromoted,
    SemanticIdAssigned,
    VideoCounts,
)
from streams.topics import COUNTS, SEMANTIC_IDS
from workers.table_rules import BuildPlan, HeadViews, mean_overlap, plan_build
from workers.table_search import SearchTask, search
from workers.table_store import collect_tables, load_announced, publish_table, read_pointers

Progress = Callable[[str, int, int | None], None]
SLACK_MS = 86_400_000  # an event further in the future has a wrong clock

log = get_logger()


@dataclass(frozen=True)
class TableInputs:
    """What a build goes by."""

    space: SemanticIdSpace
    lrm: CheckpointPromoted
    videos: Mapping[str, SemanticIdAssigned]
    views: HeadViews
    now_ms: int
    announced: CheckpointPromoted | None
    before: OfflineTable | None


@dataclass(frozen=True)
class Built:
    """What came of the searches: the rows, and what the announcement says of them."""

    rows: list[TableRow]
    measured: dict[str, float]


def build(
    settings: Settings,
    *,
    everything: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> CheckpointPromoted:
    """Build, publish and announce a table, on the Ray that this process has joined; return the announcement.

    Args:
        settings: name the cluster, the store, the size of the table and the rule for keeping rows.
        everything: compute every row, whatever could be kept.
        progress: told (stage, done, total).

    Delivery: killed at any point, the table that was announced stays, whole; the next build collects what is left.
    Blocks: for the searches: each row that is computed costs what an answer of the LRM does.

    Raises:
        ConfigError: another build is under way, or there is no codebook.
        TransientError: there is no LRM, or no view was counted yet.
    """
    started = time.monotonic()
    store = ObjectStore(settings.storage.root)
    with claim(settings.var_dir / "table.lock", "build of the offline table"):
        inputs = read_inputs(settings, store, progress)
        collect_tables(store, inputs.announced)
        questions = head_questions(inputs, settings)
        if not questions:
            raise TransientError(
                "no live video was viewed in the last 7 days of video.counts: nothing to build"
            )
        plan = plan_build(
            questions,
            None if everything else inputs.before,
            live=inputs.videos,
            kept_overlap=settings.table.kept_overlap,
            seed=settings.seed,
        )
        built = _built(plan, questions, inputs, settings, progress)
        seconds = round(time.monotonic() - started, 3)
        promoted = publish_table(
            settings.kafka,
            store,
            build_table(built.rows, codebook_version=inputs.space.codebook_version),
            measured=built.measured | {"seconds": seconds},
            newest_event_time_ms=inputs.now_ms,
        )
        collect_tables(store, inputs.announced, promoted)
    log.info("table_published", model_version=promoted.model_version, **promoted.metrics)
    return promoted


def read_inputs(settings: Settings, store: ObjectStore, progress: Progress) -> TableInputs:
    """Read the topics to their ends.

    Raises:
        TransientError: no LRM is announced.
        VersionMismatchError: it speaks another codebook than the current one.
    """
    space = current_manifest(store).space
    pointers = read_pointers(settings.kafka)
    lrm = pointers.get(LRM_MODEL_NAME)
    if lrm is None:
        raise TransientError("no LRM is announced in model.checkpoints yet: nothing to build with")
    if lrm.codebook_version != space.codebook_version:
        raise VersionMismatchError(
            f"the LRM that is announced speaks codebook {lrm.codebook_version}, current is {space.codebook_version}"
        )
    catalogue, views = _read_topics(settings, space.codebook_version, progress)
    announced = pointers.get(TABLE_MODEL_NAME)
    before = load_announced(
        store,
        announced,
        codebook_version=space.codebook_version,
        cache=settings.var_dir / "cache",
    )
    videos = _servable(catalogue.videos, space)
    newest = (video.upload_time_ms for video in videos.values())
    latest_ms = wall_clock_ms() + SLACK_MS
    now_ms = max(
        (at for at in (views.newest_ms, lrm.newest_event_time_ms, *newest) if at <= latest_ms),
        default=0,
    )
    return TableInputs(space, lrm, videos, views, now_ms, announced, before)


def _servable(
    videos: Mapping[str, SemanticIdAssigned], space: SemanticIdSpace
) -> dict[str, SemanticIdAssigned]:
    """Return the videos that a trie can hold: each with a semantic ID of the space, and of its own."""
    holders: dict[tuple[int, ...], SemanticIdAssigned] = {}
    for video in videos.values():
        codes = video.semantic_id
        fits = len(codes) == space.num_levels and all(
            code < size for code, size in zip(codes, space.level_sizes, strict=True)
        )
        if fits:
            holders.setdefault(codes, video)
    return {video.video_id: video for video in holders.values()}


def _read_topics(
    settings: Settings, codebook_version: int, progress: Progress
) -> tuple[Catalogue, HeadViews]:
    catalogue, views, read = Catalogue(codebook_version), HeadViews(), 0
    with TopicReader(settings.kafka, [SEMANTIC_IDS, COUNTS]) as reader:
        total = sum(reader.end_offsets().values())
        for topic, message in reader.read_to_end():
            read += 1
            if read % 1000 == 0:
                progress("read topics", read, total)
            try:
                if topic is COUNTS:
                    views.add(decode(VideoCounts, message.value()))
                else:
                    catalogue.apply(message.key(), message.value())
            except DecodeError as error:
                log.warning("record_refused", topic=topic.name, reason=error.reason)
    progress("read topics", read, read)
    return catalogue, views


def head_questions(inputs: TableInputs, settings: Settings) -> dict[str, Question]:
    """Return what is asked about each head video, most viewed first."""
    head = inputs.views.top(settings.table.head, now_ms=inputs.now_ms, live=inputs.videos)
    return {
        video_id: question_about(
            video_id,
            inputs.videos[video_id],
            now_ms=inputs.now_ms,
            top_k=settings.table.related,
            beam_width=settings.serve.beam_width,
        )
        for video_id in head
    }


def _built(
    plan: BuildPlan,
    questions: Mapping[str, Question],
    inputs: TableInputs,
    settings: Settings,
    progress: Progress,
) -> Built:
    """Have computed what has to be, the sample first among it; keep the others, or compute them, too."""
    task = _task(inputs, settings)
    first = [questions[row.video_id] for row in plan.sample] + plan.computed
    answers = search(first, task, on_progress=lambda done: progress("search", done, len(first)))
    overlap = mean_overlap(plan.sample, answers)
    kept = {row.video_id: row for row in plan.kept}
    if overlap < settings.table.kept_overlap:
        rest, kept = [questions[video_id] for video_id in kept], {}
        answers |= search(
            rest, task, on_progress=lambda done: progress("search the rest", done, len(rest))
        )
    measured = {
        "rows": float(len(questions)),
        "rows_rebuilt": float(len(answers)),
        "lrm_model_version": float(inputs.lrm.model_version),
    }
    if plan.sample:
        measured["sample_overlap"] = round(overlap, 4)
    version = inputs.lrm.model_version
    rows = [
        kept[video_id]
        if video_id in kept
        else TableRow(video_id, question.fingerprint, version, answers[video_id])
        for video_id, question in questions.items()
    ]
    return Built(rows, measured)


def _task(inputs: TableInputs, settings: Settings) -> SearchTask:
    videos = inputs.videos
    return SearchTask(
        store_root=ObjectStore(settings.storage.root).root,
        path=inputs.lrm.path,
        sha256=inputs.lrm.sha256,
        cache=settings.var_dir.absolute() / "cache",
        space=inputs.space,
        video_ids=list(videos),
        semantic_ids_VL=np.array([video.semantic_id for video in videos.values()], dtype=np.int64),
        upload_times_ms_V=np.array([one.upload_time_ms for one in videos.values()], dtype=np.int64),
        top_k=settings.table.related,
        beam_width=settings.serve.beam_width,
    )
