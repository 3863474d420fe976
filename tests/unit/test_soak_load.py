"""What a soak sends follows from its seed; what it breaks is refused for the reason it says; what it sends is sound."""

from __future__ import annotations

import pytest

from infra.errors import DecodeError
from infra.settings import Settings, as_environment, load_settings
from streams.codec import decode_upload
from streams.events import VideoUploaded, to_json
from streams.timeline import Timeline, on_timeline
from streams.watches import accepted_watch
from tests.soak.__main__ import parsed
from tests.soak.ledger import Seen
from tests.soak.load import BAD, Shown, Stream, broken
from tests.soak.options import ARMS, EVENT_HOURS, SoakOptions, settings_of

FAR_MS = 4_000_000_000_000


def timeline(name: str, count: int) -> Timeline:
    uploads = [
        VideoUploaded(event_time_ms=n, video_id=f"{name}-{n}", title=f"{name} {n}")
        for n in range(count)
    ]
    return Timeline(tuple(map(on_timeline, uploads)))


def stream(seed: int = 0, seen: Seen | None = None, **options: int) -> Stream:
    return Stream(
        SoakOptions(seed=seed, **options), timeline("old", 20), timeline("new", 30), seen or Seen()
    )


def watches(of: Stream, count: int = 100) -> list[tuple[str, str, float, bool]]:
    found = [of.watch() for _ in range(count)]
    return [(one.user_id, one.video_id, one.watched_s, again) for one, again in found]


def test_watches_follow_from_the_seed() -> None:
    assert watches(stream(1)) == watches(stream(1))
    assert watches(stream(1)) != watches(stream(2))


def test_uploads_have_ids_of_their_own_and_now_and_then_a_clip() -> None:
    of = stream(clip_every=5)
    uploads = [of.upload() for _ in range(60)]
    assert len({one.video_id for one in uploads}) == 60
    assert sum(one.media_uri is not None for one in uploads) == 12


def test_watch_that_is_sent_twice_is_the_one_before_and_sound() -> None:
    of = stream(duplicate_every=4)
    sent = [of.watch(sound=number % 3 > 0) for number in range(1, 41)]
    repeated = [place for place, (_, again) in enumerate(sent) if again]
    assert repeated
    for place in repeated:
        assert sent[place][0] == sent[place - 1][0]
        assert place % 3 > 0  # not behind one that was broken
    assert len({one.event_id for one, again in sent if not again}) == 40 - len(repeated)


def test_what_was_shown_is_watched_with_the_request_and_the_arm_of_its_answer() -> None:
    of = stream()
    of.shown.extend(Shown(f"r-{n}", "viewer", "lrm_fresh", "shorts", "old-3") for n in range(50))
    clicked = [one for one, _ in (of.watch() for _ in range(50)) if one.request_id]
    assert len(clicked) > 10
    assert {(one.user_id, one.arm, one.surface, one.video_id) for one in clicked} == {
        ("viewer", "lrm_fresh", "shorts", "old-3")
    }


def test_oldest_upload_is_surplus_only_when_it_could_be_recommended() -> None:
    seen = Seen()
    of = stream(seen=seen, live_videos_max=2)
    of.live.extend(["a", "b"])
    assert of.surplus() is None
    of.live.append("c")
    assert of.surplus() is None
    seen.servable["a"] = 1
    assert of.surplus() == "a"
    assert list(of.live) == ["b", "c"]


def test_events_clock_begins_a_run_ago_and_is_never_ahead() -> None:
    of = stream()
    watch, _ = of.watch()
    before_ms = round(1000 * EVENT_HOURS * 3600)
    assert abs(of._started_s * 1000 - before_ms - watch.event_time_ms) < 600_000


@pytest.mark.parametrize("number", range(len(BAD)))
def test_broken_upload_is_refused_for_the_reason_it_says(number: int) -> None:
    value, reason = broken(stream().upload(), number)
    with pytest.raises(DecodeError) as refused:
        decode_upload(value)
    assert refused.value.reason == reason


@pytest.mark.parametrize("number", range(len(BAD)))
def test_broken_watch_is_refused_for_the_reason_it_says(number: int) -> None:
    watch, _ = stream().watch()
    value, reason = broken(watch, number)
    with pytest.raises(DecodeError) as refused:
        accepted_watch(watch.user_id.encode(), value, FAR_MS, future_slack_ms=0)
    assert refused.value.reason == reason


def test_sound_watch_is_accepted() -> None:
    watch, _ = stream().watch()
    found = accepted_watch(watch.user_id.encode(), to_json(watch), FAR_MS, future_slack_ms=0)
    assert (found.user_id, found.event_time_ms) == (watch.user_id, watch.event_time_ms)


def test_settings_of_a_run_reach_its_processes() -> None:
    settings = settings_of(Settings(), SoakOptions(), ports={"serve__port": 20_001})
    assert load_settings(as_environment(settings)) == settings
    assert settings.experiment.arms == ARMS


def test_command_line_names_the_options() -> None:
    assert parsed([]) == SoakOptions()
    assert parsed(["--minutes", "5", "--seed", "7"]) == SoakOptions(minutes=5.0, seed=7)
    with pytest.raises(SystemExit):
        parsed(["--minutes", "1"])
