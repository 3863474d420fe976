"""Real clips as uploads among others, so that frames and audio are decoded for real; knows nothing of decoding.

MovieLens has no pictures and no sound, and no film gets another film's. So the two clips that this project carries are
videos of their own, with their true titles and descriptions, uploaded several times by several channels, as happens to
clips. Nobody watches them: MovieLens has no watches of them, and none are invented.
"""

from __future__ import annotations

from streams.events import VideoUploaded
from streams.timeline import Timeline, on_timeline

BIG_BUCK_BUNNY = VideoUploaded(
    event_time_ms=0,
    video_id="clip-big-buck-bunny",
    title="Big Buck Bunny (2008), excerpt",
    description="A giant rabbit comes out of his burrow and stretches. (c) Blender Foundation, CC BY 3.0.",
    tags=("animation", "open movie", "short film", "rabbit"),
    channel="Blender Foundation",
    language="en",
    category="Animation",
    topics=("Animation", "Comedy"),
    duration_s=5.3,
    media_uri="streams/data/clips/bigbuckbunny.mp4",
)
NASA_WEBB = VideoUploaded(
    event_time_ms=0,
    video_id="clip-nasa-13013",
    title="The Webb space telescope in the cleanroom at NASA Goddard",
    description="A technician on a lift before the golden mirror of the James Webb Space Telescope. NASA footage.",
    tags=("nasa", "james webb space telescope", "cleanroom", "engineering"),
    channel="NASA",
    language="en",
    category="Documentary",
    topics=("Documentary",),
    duration_s=13.1,
    # The clip's own subtitle track.
    transcript="This is the optical and science segment of the Webb space telescope in one of the largest cleanrooms "
    "in the world at NASA's Goddard Space Flight Center in Greenbelt, Maryland. "
    "This half of the observatory element successfully",
    media_uri="streams/data/clips/nasa_13013.mp4",
)


def clip_upload(number: int, event_time_ms: int) -> VideoUploaded:
    """Return upload `number` of a clip: even ones the rabbit, odd ones the telescope, each a video of its own."""
    clip = (BIG_BUCK_BUNNY, NASA_WEBB)[number % 2]
    copy = number // 2
    return clip.model_copy(
        update={
            "event_id": f"{clip.video_id}-upload-{copy}",
            "event_time_ms": event_time_ms,
            "video_id": f"{clip.video_id}-{copy}",
            "channel": f"{clip.channel}, mirror {copy}" if copy else clip.channel,
        }
    )


def with_clips(timeline: Timeline, num_uploads: int = 8) -> Timeline:
    """Return the timeline with that many uploads of clips spread evenly over it, each at its predecessor's event time.

    Insert them into the part that will be played: ids depend on the number alone.
    """
    events = list(timeline.events)
    if not events:
        return timeline
    cuts = [round(len(events) * (number + 1) / (num_uploads + 1)) for number in range(num_uploads)]
    for number, cut in reversed(list(enumerate(cuts))):
        event_time_ms = events[max(cut - 1, 0)].event_time_ms
        events.insert(cut, on_timeline(clip_upload(number, event_time_ms)))
    return Timeline(tuple(events))
