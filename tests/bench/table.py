"""The offline table: how fast it answers, how much it spares, and whether it knows more than what is popular.

An LRM is fitted to the first 60 % of MovieLens as the bootstrap does it, and refreshed in rounds up to 80 %, as it is
by the time of a build. The table is computed for the head of that part, and the watches after it that came from a head
video are asked for. `BENCH_SCALE=0.05` tries it on less.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import torch

from infra.settings import Settings, TableSettings, load_settings
from models.evaluation import recall_at_k
from models.lrm import Lrm
from models.offline_table import OfflineTable, TableRow, build_table
from models.related import question_about, related_videos
from serve.schemas import RecommendationRequest, WatchedVideo
from serve.table_answers import TableAnswers, routes_to_table
from streams import movielens
from streams.events import SemanticIdAssigned, WatchEvent
from streams.timeline import Timeline, split
from tests.bench.measure import Measure, measured, measured_over
from tests.bench.parts.quality_arms import LrmArm
from tests.bench.parts.quality_budget import budget_of
from tests.bench.parts.quality_data import Catalogue, coded, encode
from tests.bench.parts.quality_films import first_fit
from tests.bench.parts.quality_stream import rounds, stream_of
from tests.bench.parts.table_requests import BEAM_WIDTH, Served, cpu_s_per_1000
from tests.bench.quality import say
from workers.bootstrap_lrm import BootstrapConfig

FIT_SHARE, FIRST_SHARE = 0.6, 0.8
HEAD = 1_000
RELATED = 50
SEARCHED_TOGETHER = 16
POPULARITY_WINDOWS = (1_000, 5_000, 20_000, 1_000_000)
"""Newest watches that are counted; the peer is whichever finds most, in hindsight."""
LOOKUPS, SEARCHES = 5_000, 100
NOBODY_SHARE = 0.3
"""Of the mixed requests: asked by nobody known, below a head video; the others are of users with a history."""
HISTORY = 32


def measure() -> list[Measure]:
    """Fit, build, and measure on one thread."""
    torch.set_num_threads(1)
    settings = load_settings()
    budget = budget_of("cpu", float(os.environ.get("BENCH_SCALE", "1")))
    timeline = movielens.load_timeline()
    timeline = Timeline(timeline.events[: round(budget.data_share * len(timeline.events))])
    earlier, later = split(timeline, FIRST_SHARE)
    say("table: encode, and fit a codebook")
    folder = settings.var_dir / "bench" / "table"
    encoded, digest = encode(earlier, later, settings, folder)
    catalogue = coded(encoded, digest, steps=budget.quantizer_steps, seed=settings.seed)
    num_first = round(FIT_SHARE * len(timeline.watches()))
    stream = stream_of(catalogue, timeline, num_first)
    say("table: fit the LRM")
    state = first_fit(stream, BootstrapConfig(), settings)
    arm = LrmArm("LRM", state, stream, replay_share=settings.training.replay_share)
    end, size = len(earlier.watches()), budget.round_watches
    for this in rounds(
        stream, start=num_first, end=end, size=size, per_stratum=1, seed=settings.seed
    ):
        say(f"table: a round up to {this.num_known:,} videos")
        arm.learn(this)
    return measures(state.lrm, catalogue, earlier.watches(), later.watches(), settings)


def measures(
    lrm: Lrm,
    catalogue: Catalogue,
    earlier: Sequence[WatchEvent],
    later: Sequence[WatchEvent],
    settings: Settings,
) -> list[Measure]:
    """Build the table on the earlier watches and return all measures."""
    now_ms = earlier[-1].event_time_ms
    num_live = catalogue.num_live(now_ms)
    live = set(catalogue.video_ids[:num_live])
    views = Counter(watch.video_id for watch in earlier)
    head = [video_id for video_id, _ in views.most_common(HEAD)]
    served = Served(
        lrm,
        compute(lrm, catalogue, head, now_ms=now_ms),
        catalogue.view(num_live),
        {video_id: assigned_of(catalogue, video_id) for video_id in catalogue.video_ids[:num_live]},
        now_ms,
        TableAnswers(),
    )
    return [
        *speed(served, later, settings.table, seed=settings.seed),
        *quality(served.table, earlier, later, live),
    ]


def compute(lrm: Lrm, catalogue: Catalogue, head: Sequence[str], *, now_ms: int) -> OfflineTable:
    """Return the rows of some videos, as a build computes them."""
    view, rows = catalogue.view(catalogue.num_live(now_ms)), []
    for start in range(0, len(head), SEARCHED_TOGETHER):
        questions = [
            question_about(
                video_id,
                catalogue.videos[video_id],
                now_ms=now_ms,
                top_k=RELATED,
                beam_width=BEAM_WIDTH,
            )
            for video_id in head[start : start + SEARCHED_TOGETHER]
        ]
        asked = [(one.video_id, one.prompt) for one in questions]
        found = related_videos(lrm, asked, view, top_k=RELATED, beam_width=BEAM_WIDTH)
        rows += [
            TableRow(one.video_id, one.fingerprint, 1, related)
            for one, related in zip(questions, found, strict=True)
        ]
        if start % (10 * SEARCHED_TOGETHER) == 0:
            say(f"table: {len(rows):,} of {len(head):,} rows")
    return build_table(rows, codebook_version=lrm.space.codebook_version)


def assigned_of(catalogue: Catalogue, video_id: str) -> SemanticIdAssigned:
    """Return what a replica's catalogue holds of an item."""
    video = catalogue.videos[video_id]
    *codes, last = video.semantic_id
    return SemanticIdAssigned(
        video_id=video_id, title=video.title, channel=video.channel, topics=video.topics,
        codes=tuple(codes), disambiguation_code=last, codebook_version=catalogue.space.codebook_version,
        embedding_f16="", upload_time_ms=video.upload_time_ms, upload_append_time_ms=0,
        upload_position=0, assigned_time_ms=0,
    )  # fmt: skip


def speed(
    served: Served, later: Sequence[WatchEvent], table: TableSettings, *, seed: int
) -> list[Measure]:
    """Return the cost of answers by the table, by the LRM, and by both as the policy says."""
    rng = random.Random(seed)
    head = [row.video_id for row in served.table.rows() if len(row.related) >= 10]
    nobody = [_body(context_video_id=rng.choice(head)) for _ in range(LOOKUPS)]
    say("table: cost of answers")
    by_table = cpu_s_per_1000(served.by_table, nobody)
    by_search = cpu_s_per_1000(served.by_search, nobody[:SEARCHES])
    mixed = mixed_requests(later, head, rng)
    routed = sum(
        routes_to_table(RecommendationRequest.model_validate_json(body), served.table, table.route)
        for body in mixed
    )
    by_policy = cpu_s_per_1000(lambda body: served.by_policy(body, table.route), mixed)
    all_by_search = cpu_s_per_1000(served.by_search, mixed)
    return [
        measured("lookups_per_s_per_core", 1000 / by_table, "answers/s", more=True),
        measured("cpu_s_per_1000_by_table", by_table, "CPU-seconds"),
        measured("cpu_s_per_1000_by_lrm", by_search, "CPU-seconds"),
        measured_over("cost_lrm_over_table", by_search / by_table, "the same requests by the LRM"),
        measured("mixed_routed_share", routed / len(mixed), "share", more=True),
        Measure(
            measure="cpu_s_per_1000_mixed",
            value=by_policy,
            unit="CPU-seconds",
            higher_is_better=False,
            peer="the same mix, all by the LRM",
            peer_value=all_by_search,
        ),
    ]


def mixed_requests(
    later: Sequence[WatchEvent], head: Sequence[str], rng: random.Random
) -> list[bytes]:
    """Return requests of which a share is by nobody below a head video, and the rest by users with their histories."""
    by_user: dict[str, list[WatchEvent]] = {}
    for watch in later:
        by_user.setdefault(watch.user_id, []).append(watch)
    histories = list(by_user.values())
    bodies = []
    for number in range(SEARCHES):
        if number < round(NOBODY_SHARE * SEARCHES):
            bodies.append(_body(context_video_id=rng.choice(head)))
            continue
        watches = rng.choice(histories)[:HISTORY]
        history = tuple(WatchedVideo(video_id=one.video_id, surface=one.surface) for one in watches)
        bodies.append(_body(user_id=watches[0].user_id, history=history, surface="home"))
    return bodies


def _body(*, surface: str = "watch_next", **asked: object) -> bytes:
    request = RecommendationRequest.model_validate({"surface": surface, **asked})
    return request.model_dump_json(exclude_none=True).encode()


def quality(
    table: OfflineTable,
    earlier: Sequence[WatchEvent],
    later: Sequence[WatchEvent],
    live: Collection[str],
) -> list[Measure]:
    """Return recall@10 of what was watched after a head video: by its row, and by what is popular without it."""
    pairs = [
        (watch.context_video_id, watch.video_id)
        for watch in later
        if watch.context_video_id in table and watch.video_id in live
    ]
    contexts, targets = [str(one) for one, _ in pairs], [target for _, target in pairs]
    ours = recall_at_k(
        [[video_id for video_id, _ in table.lookup(one) or ()] for one in contexts], targets
    )
    by_window = {
        newest: recall_at_k(list(_popular(earlier[-newest:], contexts)), targets)
        for newest in POPULARITY_WINDOWS
    }
    window, theirs = max(by_window.items(), key=lambda found: found[1])
    say(f"table: {len(pairs):,} targets; popularity's best window is {window:,} watches")
    return [
        measured("table_targets", len(pairs), "watches", more=True),
        Measure(
            measure="table_recall_at_10",
            value=ours,
            unit="recall@10",
            higher_is_better=True,
            peer=f"the most watched of the last {window:,} watches",
            peer_value=theirs,
        ),
        measured_over(
            "table_over_popularity", ours / theirs if theirs else 0.0, "recall@10 of popularity"
        ),
    ]


def _popular(watches: Iterable[WatchEvent], contexts: Sequence[str]) -> Iterable[list[str]]:
    best = [video_id for video_id, _ in Counter(one.video_id for one in watches).most_common(11)]
    return ([video_id for video_id in best if video_id != context][:10] for context in contexts)
