"""Says once per video and replica that the video can be recommended; knows nothing of how it came to be so."""

from __future__ import annotations

from infra import metrics
from infra.clock import now_ms
from infra.settings import Settings
from serve.follower import Offsets, read_events
from serve.reports import Reports
from streams.events import SemanticIdAssigned, VideoServable
from streams.topics import SERVABLE


class ServableReports:
    """Says once per video and replica that the video can be recommended from now on.

    A replica that starts stays silent about what some replica has said before, and so about everything at an ordinary
    start; what was uploaded while no replica ran is said then, so that an outage shows in the delays. Nobody waits for
    videos of the bootstrap (upload_position below 0), and of those older than the topic's retention nobody can tell.
    """

    def __init__(self, reports: Reports, *, replica: str) -> None:
        self._reports, self._replica = reports, replica
        self._delay = metrics.STAGE_DELAYS["upload_to_servable"]
        self._said: set[tuple[str, int]] = set()

    def restore(self, settings: Settings) -> Offsets:
        """Read what has been said; return no offsets, so that the catalogue is read from its beginning."""
        for said in read_events(settings.kafka, SERVABLE, VideoServable):
            self._said.add((said.video_id, said.codebook_version))
        return {}

    def live(self, video: SemanticIdAssigned) -> None:
        """Hear that the trie has taken a video."""
        at, now = (video.video_id, video.codebook_version), now_ms()
        too_old = now - video.upload_append_time_ms > SERVABLE.retention_ms
        if at in self._said or video.upload_position < 0 or too_old:
            return
        self._said.add(at)
        servable = VideoServable(
            video_id=video.video_id,
            codebook_version=video.codebook_version,
            semantic_id=video.semantic_id,
            replica=self._replica,
            servable_time_ms=now,
            upload_append_time_ms=video.upload_append_time_ms,
        )
        self._reports.add(SERVABLE, video.video_id, servable)
        delay_s = (now - video.upload_append_time_ms) / 1000
        self._delay.observe(delay_s)
        metrics.LAST_SUCCESS.labels(stage="upload_to_servable").set_to_current_time()
