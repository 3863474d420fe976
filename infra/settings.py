"""Deployment settings, read once per process from `FRESHET_*` variables; knows nothing of hyper-parameters.

Nested fields are joined by a double underscore: `FRESHET_KAFKA__BOOTSTRAP_SERVERS=broker:9092`.
A misspelt name is refused, with the nearest real one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from infra.errors import ConfigError

PREFIX = "FRESHET_"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Group):
    """Where the log is, and how clients authenticate."""

    bootstrap_servers: str = Field(
        "", description="host:port,… of a cluster; empty starts a local broker"
    )
    topic_prefix: str = Field("", description="put before every topic and group name")
    partitions: int = Field(4, ge=1, description="partitions of topics keyed by user or video")
    replication: int = Field(1, ge=1, description="replication factor of created topics")
    security_protocol: str = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    sasl_mechanism: str = Field("", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    sasl_username: str = Field("", description="SASL user")
    sasl_password: SecretStr = Field(SecretStr(""), description="SASL password; never logged")
    ssl_ca_location: str = Field("", description="PEM file with the cluster's CA")
    jars_dir: Path | None = Field(
        None, description="folder with the broker's jars; empty uses the per-user cache"
    )


class StorageSettings(_Group):
    """The object store that holds shards, checkpoints, encoders and codebooks."""

    root: str = Field(
        "var/store", description="a local folder or any fsspec URL, such as s3://bucket/prefix"
    )


class UploadSettings(_Group):
    """The uploads worker: features and semantic IDs."""

    encoders: Path | None = Field(
        None,
        description="folder whose encoders.json declares your own encoders, for `freshet bootstrap`; empty is built-in",
    )
    batch_max: int = Field(64, ge=1, description="uploads featurized together")
    future_slack_s: float = Field(
        86_400.0, ge=0, description="seconds an event time may lie in the future"
    )
    max_text_chars: int = Field(
        20_000, ge=1, description="characters of title, description, tags and transcript together"
    )
    media_roots: tuple[str, ...] = Field(
        ("streams/data/clips",),
        description="folders and URL prefixes (https://, s3://) that media_uri may point into (JSON list)",
    )
    media_max_bytes: int = Field(
        200_000_000, ge=1, description="bytes read of one media file, all passes together"
    )
    media_max_s: float = Field(60.0, gt=0, description="seconds of media decoded")
    media_max_pixels: int = Field(4096 * 2304, ge=1, description="pixels of one frame")
    media_timeout_s: float = Field(
        30.0, gt=0, description="seconds that reading and decoding one item may take"
    )
    media_retries: int = Field(5, ge=0, description="tries again for media that may come back")
    media_retry_s: float = Field(
        60.0, ge=0, description="seconds after which media are not tried again"
    )
    decoders: int = Field(2, ge=1, description="processes that decode media")


class WatchSettings(_Group):
    """The sealer of training shards."""

    shard_max_rows: int = Field(50_000, ge=1, description="watches in a shard before it is sealed")
    shard_max_bytes: int = Field(
        64_000_000, ge=1, description="raw bytes of events in a shard before it is sealed"
    )
    shard_max_age_s: float = Field(
        10.0, gt=0, description="seconds from a shard's first watch until it is sealed"
    )
    history_length: int = Field(100, ge=1, le=10_000, description="watches kept per user")
    future_slack_s: float = Field(
        86_400.0, ge=0, description="seconds an event time may lie in the future"
    )
    duplicates_window: int = Field(
        100_000,
        ge=1,
        description="offsets of a partition within which an event_id that comes again is a duplicate",
    )
    lateness_s: float = Field(
        3_600.0,
        ge=0,
        description="seconds behind its partition's newest event after which a watch is marked as late",
    )
    orphan_age_s: float = Field(
        3_600.0,
        gt=60.0,
        description="seconds after which a shard's file is removed that is not announced, or no longer; more than the "
        "60 that a file may wait for its announcement",
    )
    counts_window_s: int = Field(
        3_600, ge=1, description="seconds of event time that a record of video.counts sums up"
    )


AdapterName = Literal["home", "watch_next", "shorts", "search", "music", "ranking"]


class TrainingSettings(_Group):
    """The training loop."""

    models: tuple[Literal["lrm", "two_tower_cluster", "two_tower_hash"], ...] = Field(
        ("lrm", "two_tower_cluster", "two_tower_hash"),
        min_length=1,
        description="models that are refreshed, each in an actor of its own (JSON list)",
    )
    base_model: str = Field(
        "nano",
        description="what `freshet bootstrap` begins with: nano, smollm2-135m, or a folder of a Hugging Face causal LM",
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of each training actor, or of each worker"
    )
    workers: int = Field(
        1,
        ge=1,
        description="processes that make the steps of an LRM's round: 1 is its training actor, more are Ray Train "
        "workers, each on a GPU where the cluster has as many; of use up to the blocks of a step",
    )
    round_watches_max: int = Field(
        10_000, ge=1, description="watches after which a round takes no further shard"
    )
    backlog_rounds_max: int = Field(
        10,
        ge=1,
        description="rounds' worth of watches that may wait; beyond it one round takes all and learns a sample",
    )
    new_videos_min: int = Field(
        64, ge=1, description="new videos that are worth a round without any shard"
    )
    idle_poll_s: float = Field(0.5, gt=0, description="seconds between looks for new shards")
    replay_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of the rows of an LRM's round drawn from the replay reservoir",
    )
    reward_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how much of what a watch counts in a model's loss follows from how much of the video was watched: "
        "0, all count the same; 1, in proportion",
    )
    evaluate_max: int = Field(
        64, ge=0, description="new rows scored before each round trains on them"
    )
    adapters: tuple[AdapterName, ...] = Field(
        (),
        description="adapters beside the base, a JSON list of home, watch_next, shorts, search, music, ranking; "
        "none by default, as each learns its rows once more and so lengthens every round",
    )
    keep_checkpoints: int = Field(
        4,
        ge=2,
        description="newest checkpoints kept; the last two promoted ones are kept in any case",
    )


class ServeSettings(_Group):
    """The HTTP endpoint."""

    host: str = Field(
        "127.0.0.1", description="address to bind; anything but loopback needs an API key"
    )
    port: int = Field(8000, ge=0, le=65_535, description="HTTP port; 0 picks a free one")
    replicas: int = Field(1, ge=1, description="model replicas")
    threads: int = Field(1, ge=1, description="CPU threads of one replica")
    api_key: SecretStr = Field(
        SecretStr(""), description="required in X-API-Key when set; never logged"
    )
    beam_width: int = Field(20, ge=1, description="beams of the constrained search")
    smoothing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of each code's probability, but for the first, that is even over what may follow, "
        "so that videos nobody has watched yet are proposed; not beside a fresh lane, which brings them",
    )
    refresh_interval_s: float = Field(
        0.2, gt=0, description="seconds between polls of the topics behind the views"
    )
    log_impressions: bool = Field(True, description="log impressions to serving.impressions")
    fresh_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of an answer's places that the arm lrm_fresh fills with new videos, "
        "two_tower_hash_random_new with new ones at random",
    )
    fresh_max_age_h: float = Field(
        24.0,
        gt=0,
        description="hours since upload, on the events' clock, up to which these are new",
    )
    fresh_smoothing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="as FRESHET_SERVE__SMOOTHING, in the search among new videos alone",
    )
    batch_max: int = Field(8, ge=1, description="requests that are searched for together")
    waiting_max: int = Field(
        16,
        ge=1,
        description="requests that wait for a search; what is beyond is answered without the LRM",
    )


class ExperimentSettings(_Group):
    """Which users are answered by which arm; whoever knows these settings knows every user's arm."""

    arms: tuple[str, ...] = Field(
        ("lrm",),
        min_length=1,
        description="JSON list of lrm, lrm_fresh, two_tower_cluster, two_tower_hash, two_tower_hash_random_new, each "
        'with a weight where that is not 1: ["lrm:9", "lrm_fresh"]; who has no user id gets the first',
    )
    salt: str = Field("", description="another one deals the users anew")


TableRoute = Literal["no_user", "watch_next_head"]


class TableSettings(_Group):
    """The offline table: what to watch after each head video, computed ahead."""

    head: int = Field(
        10_000, ge=1, description="videos that have a row: the most viewed of the last 7 days"
    )
    related: int = Field(50, ge=1, le=1_000, description="videos in a row")
    interval_h: float = Field(24.0, gt=0, description="hours between two builds")
    first_build_s: float = Field(
        1_800.0,
        ge=0,
        description="seconds from a start until the first table is built, where there is none yet",
    )
    kept_overlap: float = Field(
        0.8,
        ge=0,
        le=1,
        description="rows whose prompt is as before are kept while a sample of them, computed anew, has at least this "
        "share of its first 10 in common; below it all rows are built again",
    )
    route: tuple[TableRoute, ...] = Field(
        ("no_user",),
        description="requests that the table answers (JSON list): no_user: nothing known of the viewer, a context "
        "video that has a row; watch_next_head: whoever watches one; [] sends none there",
    )


class RaySettings(_Group):
    """The Ray cluster."""

    address: str = Field("", description="an existing cluster's address; empty starts a local one")


class MetricsSettings(_Group):
    """Prometheus exposition."""

    host: str = Field("127.0.0.1", description="address that /metrics binds to")
    uploads_port: int = Field(
        0, ge=0, description="port of the uploads worker's /metrics; 0 is off"
    )
    watches_port: int = Field(0, ge=0, description="port of the sealer's /metrics; 0 is off")
    freshness_port: int = Field(
        0, ge=0, description="port of the freshness worker's /metrics; 0 is off"
    )
    catalogue_port: int = Field(
        0, ge=0, description="port of the catalogue worker's /metrics; 0 is off"
    )
    training_port: int = Field(
        0, ge=0, description="port of the training loop's /metrics; 0 is off"
    )
    table_port: int = Field(
        0, ge=0, description="port of the offline table's builder's /metrics; 0 is off"
    )


class QdrantSettings(_Group):
    """The catalogue view."""

    url: str = Field(
        "",
        description="a Qdrant server that the catalogue worker keeps in step; empty: it has one in its own memory",
    )


class FreshnessSettings(_Group):
    """What counts as fresh."""

    new_video_age_h: float = Field(
        24.0 * 7,
        gt=0,
        description="hours after upload in which a video is new, on the events' clock",
    )
    window_h: float = Field(
        24.0, gt=0, description="hours after upload in which a video is to reach the view threshold"
    )
    view_threshold: int = Field(
        10,
        ge=1,
        description="views that a video is to reach; of an arm, its share of the users as a share of it, at least 1",
    )
    lateness_s: float = Field(
        3_600.0,
        ge=0,
        description="seconds after its end, on the events' clock, in which an hour or a window may still change",
    )
    hours: int = Field(
        168, ge=1, description="newest hours with any events that the figures of an arm add up"
    )
    videos_max: int = Field(
        50_000, ge=1, description="new videos that are followed; beyond it the oldest are dropped"
    )


class DataSettings(_Group):
    """Data sets that may not be copied into the project; benchmarks name the setting they miss."""

    beauty: Path | None = Field(None, description="folder of the Amazon Beauty 5-core data")
    youtube_trending: Path | None = Field(None, description="folder of the YouTube trending data")


class LogSettings(_Group):
    """Logging."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level that is logged"
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="console, json, or auto: console on a terminal, JSON elsewhere"
    )
    file_max_bytes: int = Field(
        50_000_000,
        ge=10_000,
        description="bytes of a log under var_dir/logs after which it begins anew; the one before is kept",
    )


class Settings(_Group):
    """All deployment settings; build it with `load_settings`, pass it as an argument."""

    var_dir: Path = Field(Path("var"), description="everything a local run writes")
    seed: int = Field(0, description="seed of every random choice")
    bench_budget: Literal["cpu", "full"] = Field(
        "cpu",
        description="what the quality benchmark may spend: under an hour of two cores, or a day",
    )
    kafka: KafkaSettings = KafkaSettings()
    storage: StorageSettings = StorageSettings()
    uploads: UploadSettings = UploadSettings()
    watches: WatchSettings = WatchSettings()
    training: TrainingSettings = TrainingSettings()
    serve: ServeSettings = ServeSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    table: TableSettings = TableSettings()
    ray: RaySettings = RaySettings()
    metrics: MetricsSettings = MetricsSettings()
    qdrant: QdrantSettings = QdrantSettings()
    freshness: FreshnessSettings = FreshnessSettings()
    data: DataSettings = DataSettings()
    log: LogSettings = LogSettings()


def setting_fields() -> Iterator[tuple[str, Any]]:
    """Yield each environment variable's name with its pydantic field, in the order of `Settings`."""
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            for key, nested in group.model_fields.items():
                yield f"{PREFIX}{name}__{key}".upper(), nested
        else:
            yield f"{PREFIX}{name}".upper(), field


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigError: a `FRESHET_*` name is unknown, or a value is not valid.
    """
    environ = os.environ if environ is None else environ
    known = {name for name, _ in setting_fields()}
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise ConfigError(f"unknown setting {name}; {_way_out(name.upper(), known)}")
    try:
        return Settings.model_validate(_nested(environ))
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"setting {name} has value {first['input']!r}: {first['msg']}") from None


def _way_out(name: str, known: Iterable[str]) -> str:
    # Without the prefix, which makes all names look alike.
    endings = [each.removeprefix(PREFIX) for each in known]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1)
    return (
        f"did you mean {PREFIX}{near[0]}?" if near else "`freshet doctor --settings` lists them all"
    )


def _nested(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values by group and name; an empty variable is as good as none."""
    texts = {name.upper(): text for name, text in environ.items() if text}
    values: dict[str, Any] = {}
    for name, field in setting_fields():
        if name not in texts:
            continue
        value: Any = texts[name]
        if get_origin(field.annotation) is tuple:
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ConfigError(
                    f'setting {name} has value {value!r}, expected a JSON list, such as ["a", "b"]'
                ) from error
        *groups, key = name.removeprefix(PREFIX).lower().split("__")
        group = values.setdefault(groups[0], {}) if groups else values
        group[key] = value
    return values


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the variables from which `load_settings` in a child process rebuilds these settings."""
    variables: dict[str, str] = {}
    for name, _ in setting_fields():
        value: Any = settings
        for part in name.removeprefix(PREFIX).lower().split("__"):
            value = getattr(value, part)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is None:
            continue
        variables[name] = _as_text(value)
    return variables


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def with_values(settings: Settings, **values: Any) -> Settings:
    """Return a copy with other values, named `group__field`: `with_values(settings, serve__port=0)`."""
    for name, value in values.items():
        group, _, key = name.partition("__")
        if key:
            value = getattr(settings, group).model_copy(update={key: value})
        settings = settings.model_copy(update={group: value})
    return settings
