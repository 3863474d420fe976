"""Uploads to load the worker with: real titles of given length, and clips of which no two are the same bytes."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from streams.clips import BIG_BUCK_BUNNY, NASA_WEBB
from streams.events import VideoUploaded
from streams.movielens import load_timeline
from workers.featurize import upload_text


def plain_tokenizer(encoders: Path) -> Tokenizer:
    """Return the text encoder's tokenizer, which neither pads nor cuts."""
    tokenizer = Tokenizer.from_file(str(next(encoders.glob("*tokenizer*.json"))))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def films() -> list[VideoUploaded]:
    """Return the newest state of each film of MovieLens."""
    newest: dict[str, VideoUploaded] = {}
    for upload in load_timeline().uploads():
        newest[upload.video_id] = upload
    return list(newest.values())


def short_uploads(tokenizer: Tokenizer, *, tokens_max: int) -> Iterator[VideoUploaded]:
    """Yield films of at most so many tokens, over and over, each time as another video with another title."""
    tokens = [
        len(one.ids) for one in tokenizer.encode_batch([upload_text(f, 20_000) for f in films()])
    ]
    # Two tokens for the number of the part.
    short = [film for film, n in zip(films(), tokens, strict=True) if n <= tokens_max - 2]
    for turn in itertools.count():
        for film in short:
            title = f"{film.title} {turn}" if turn else film.title
            yield _as_new(film, title=title)


def long_uploads(tokenizer: Tokenizer, *, tokens: int) -> Iterator[VideoUploaded]:
    """Yield videos whose description fills up to that many tokens with the titles of other films."""
    everything = films()
    for start in itertools.count(step=7):
        at = start % len(everything)
        text = ". ".join(film.title for film in everything[at : at + tokens])
        end = tokenizer.encode(text).offsets[tokens - 12][1]
        yield _as_new(everything[at], description=text[:end])


def clip_uploads(folder: Path) -> Iterator[VideoUploaded]:
    """Yield the two clips in turn, each a file of its own, different from all others in its last box.

    Each under the title of another film: under one title, more would share their codes than have room there.
    """
    for number, film in enumerate(itertools.cycle(films())):
        clip = (BIG_BUCK_BUNNY, NASA_WEBB)[number % 2]
        path = folder / f"{number}.mp4"
        free = uuid.uuid4().bytes
        box = (8 + len(free)).to_bytes(4, "big") + b"free" + free  # a box that players skip
        path.write_bytes(Path(clip.media_uri or "").read_bytes() + box)
        yield _as_new(film, media_uri=str(path))


def _as_new(upload: VideoUploaded, **fields: str) -> VideoUploaded:
    return upload.model_copy(update={"video_id": f"load-{uuid.uuid4().hex}", **fields})
