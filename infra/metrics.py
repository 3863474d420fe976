"""Every Prometheus metric of Freshet, in one place; ids of users and videos are never labels.

Names are `freshet_<subsystem>_<what>_<unit>[_total]`; buckets contain the objectives (5 s, 60 s, 300 s) exactly. Ages
are exported as times, and taken in PromQL, where that of a process that is gone grows on; the model's, which the field
looks for by its name, is there as well. What an alert counts exists from the start, at zero: Prometheus cannot see the
first step of a series that begins with it.
"""

from __future__ import annotations

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

# They are a second series for each counter and histogram, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs

STAGE_BUCKETS_S = (
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
)

STAGE_METRICS = {
    "upload_to_sid": "freshet_event_to_sid_seconds",
    "upload_to_servable": "freshet_upload_to_first_recommendable_seconds",
    "upload_to_first_shown": "freshet_upload_to_first_shown_seconds",
    "upload_to_first_watched": "freshet_upload_to_first_watched_seconds",
    "watch_to_shard": "freshet_event_to_shard_seconds",
    "shard_to_checkpoint": "freshet_shard_to_checkpoint_seconds",
    "checkpoint_to_serving": "freshet_checkpoint_to_serving_seconds",
    "watch_to_serving": "freshet_watch_to_serving_seconds",
}
STAGE_DELAYS = {
    stage: Histogram(
        name,
        f"Seconds from {stage.replace('_', ' ')}, on broker append times and the wall clock.",
        buckets=STAGE_BUCKETS_S,
    )
    for stage, name in STAGE_METRICS.items()
}
"""By stage; each is observed in one process, where the stage ends."""
RECORDS = Counter(
    "freshet_records_total", "Records handled, by topic and outcome.", ["topic", "outcome"]
)
DEAD_LETTERS = Counter(
    "freshet_dlq_records_total", "Records refused, by topic and reason.", ["topic", "reason"]
)
LOOP_LAG = Histogram(
    "freshet_worker_loop_lag_seconds",
    "How late the event loop of a worker wakes up.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5),
)
CODEBOOK_WINDOW = Gauge(
    "freshet_codebook_window_videos",
    "Newest videos that the drift of the codebook is taken from; below some thousand the figures are rough.",
)
CODEBOOK_RESIDUAL_NORM = Gauge(
    "freshet_codebook_residual_norm_ratio",
    "Residual norm of the newest videos over that of the codebook's own catalogue, by quantile.",
    ["quantile"],
)
CODEBOOK_DIVERGENCE = Gauge(
    "freshet_codebook_usage_divergence",
    "Jensen-Shannon divergence, in bits, of the newest videos' codes from the codebook's own catalogue, by level.",
    ["level"],
)
CODEBOOK_COLLISIONS = Gauge(
    "freshet_codebook_collision_ratio",
    "Share of the newest videos with whom another of them shares all codes.",
)
SHARDS = Counter("freshet_shard_seal_total", "Training shards sealed, by outcome.", ["outcome"])
LATE_WATCHES = Counter(
    "freshet_late_watches_total", "Watches in shards that were behind their partition's watermark."
)
EXPIRED_WATCHES = Counter(
    "freshet_expired_watches_total",
    "Records of watch.events that retention removed before any sealer had them: lost.",
)
UNLABELLED_WATCHES = Counter(
    "freshet_unlabelled_watches_total",
    "Watches in shards whose video had no semantic ID when the shard was sealed.",
)
UNKNOWN_VIDEOS = Counter(
    "freshet_training_unknown_videos_total",
    "Watches whose video had no semantic ID at training time.",
    ["model_name"],
)
ROUNDS = Counter(
    "freshet_training_rounds_total",
    "Training rounds, by model and outcome.",
    ["model_name", "outcome"],
)
SHARDS_SKIPPED = Counter(
    "freshet_training_shards_skipped_total",
    "Announced shards that training skipped, because they are not what was announced.",
    ["model_name"],
)
BACKLOG = Gauge(
    "freshet_training_backlog_shards",
    "Announced shards that no round has taken yet.",
    ["model_name"],
)
ADAPTERS = Counter(
    "freshet_training_adapters_total",
    "Adapters after a round that was promoted, by outcome.",
    ["adapter", "outcome"],
)
BACKLOG_WATCHES = Gauge(
    "freshet_training_backlog_watches",
    "Watches in announced shards that no round has taken yet.",
    ["model_name"],
)
WATCHES_LEFT_OUT = Counter(
    "freshet_training_watches_left_out_total",
    "Watches that were not learned because training was behind.",
    ["model_name"],
)
PREQUENTIAL_RECALL = Gauge(
    "freshet_training_prequential_recall_ratio",
    "Recall@10 on new watches before training on them, by how many watches of the video were learned before.",
    ["model_name", "earlier_watches"],
)
REQUESTS = Counter(
    "freshet_serving_requests_total", "Requests, by route and status.", ["route", "status"]
)
REQUEST_SECONDS = Histogram(
    "freshet_serving_request_seconds",
    "Seconds to answer a request.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
SEARCH_WAIT = Histogram(
    "freshet_serving_search_wait_seconds",
    "Seconds that a call waits until its beam search begins.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
SEARCH_BATCH = Histogram(
    "freshet_serving_search_batch_requests",
    "Requests that are searched together.",
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32),
)
SWAPS = Counter(
    "freshet_serving_swaps_total", "Checkpoint swaps, by model and outcome.", ["model", "outcome"]
)
SERVED_VERSION = Gauge("freshet_serving_model_version", "The version that answers.", ["model_name"])
SERVED_PROMOTED = Gauge(
    "freshet_serving_model_promoted_timestamp_seconds",
    "When the version that answers was promoted.",
    ["model_name"],
)
SERVED_TRAINED_UNTIL = Gauge(
    "freshet_serving_model_trained_until_timestamp_seconds",
    "Event time of the newest watch that the version that answers has learned.",
    ["model_name"],
)
MODEL_AGE = Gauge(
    "freshet_serving_model_age_seconds",
    "Since the event time of the newest watch that the version that answers has learned, as its process sees it.",
    ["model_name"],
)
LIVE_VIDEOS = Gauge("freshet_serving_live_videos", "Videos that the trie holds.")
IMPRESSIONS = Counter(
    "freshet_freshness_impressions_total",
    "Impressions, by arm, surface and whether the video was new.",
    ["arm", "surface", "new"],
)
COVERAGE = Gauge(
    "freshet_freshness_coverage_ratio",
    "Share of all impressions so far that are new videos, by arm and surface.",
    ["arm", "surface"],
)
DELAY_QUANTILE = Gauge(
    "freshet_freshness_delay_seconds",
    "Quantiles of all delays so far, by stage; of a window, take them from the stages' histograms.",
    ["stage", "quantile"],
)
MODEL_VERSION = Gauge(
    "freshet_freshness_model_version", "The version that was swapped to last.", ["model_name"]
)
RESPONSES = Counter(
    "freshet_ingress_responses_total",
    "What callers got, by route and status code; code gone is a caller that did not wait.",
    ["route", "code"],
)
RESPONSE_SECONDS = Histogram(
    "freshet_ingress_response_seconds",
    "Seconds from a request to its answer, the wait for a replica included.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)
REPLICAS_WANTED = Gauge("freshet_ingress_replicas_wanted", "Replicas that there should be.")
REPLICAS_ANSWERING = Gauge(
    "freshet_ingress_replicas_answering", "Replicas whose metrics are in this answer."
)
CONSUMER_LAG = Gauge(
    "freshet_consumer_lag_records",
    "Records of a topic that this process has yet to finish, of the partitions that it has.",
    ["topic"],
)
NEW_VIDEOS_SHOWN = Gauge(
    "freshet_freshness_new_videos_shown_ratio",
    "Share of the new videos that the arm has shown at least once.",
    ["arm"],
)
THRESHOLD_REACHED = Gauge(
    "freshet_freshness_threshold_reached_ratio",
    "Share of the new videos whose window is over that reached the arm's view threshold within it.",
    ["arm"],
)
TIME_TO_THRESHOLD = Gauge(
    "freshet_freshness_time_to_threshold_seconds",
    "Event time from upload to the arm's view threshold, of the new videos that reached it, by quantile.",
    ["arm", "quantile"],
)
EFFECTIVE_VOCABULARY = Gauge(
    "freshet_freshness_effective_vocabulary_videos",
    "Videos that have 95 % of the arm's impressions of the newest two days.",
    ["arm"],
)
CLICKS_PER_IMPRESSION = Gauge(
    "freshet_freshness_clicks_per_impression",
    "Watches that name the arm, per impression of it, over the newest hours.",
    ["arm"],
)
LIKES_PER_IMPRESSION = Gauge(
    "freshet_freshness_likes_per_impression",
    "Likes in watches that name the arm, per impression of it, over the newest hours.",
    ["arm"],
)
TRAINED_UNTIL = Gauge(
    "freshet_freshness_trained_until_timestamp_seconds",
    "Newest event time that the version which serves has learned from.",
    ["model_name"],
)
IMPRESSIONS_LOST = Counter(
    "freshet_serving_impressions_lost_total", "Impressions that could not be logged."
)
TABLE_BUILDS = Counter(
    "freshet_table_builds_total", "Builds of the offline table, by outcome.", ["outcome"]
)
DEGRADED = Counter(
    "freshet_serving_degraded_total",
    "Requests answered without the LRM, because too many waited for a search.",
)
NEIGHBOURS = Counter(
    "freshet_serving_neighbours_total",
    "Questions to the catalogue for neighbours, by outcome: answered, failed, or not_asked after a failure.",
    ["outcome"],
)
LAST_SUCCESS = Gauge(
    "freshet_last_success_timestamp_seconds", "When a stage last succeeded.", ["stage"]
)


def expose(host: str, port: int) -> None:
    """Serve /metrics from a thread of its own, so that a blocked loop stays visible; port 0 is off."""
    if port:
        start_http_server(port, addr=host)
