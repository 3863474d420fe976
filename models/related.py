"""What to watch after a video, whoever watches: the searches behind the offline table; knows no topics and no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from models.beam_search import beam_search
from models.lrm import Lrm
from models.prompts import VideoLike
from models.tasks import render_related
from models.trie import TrieView

Related = list[tuple[str, float]]


@dataclass(frozen=True)
class Question:
    """What the LRM is asked about a video.

    Attributes:
        fingerprint: of the prompt and of how the answer is searched for: 8 bytes, the same for the same question.
    """

    video_id: str
    prompt: str
    fingerprint: int


def question_about(
    video_id: str, video: VideoLike, *, now_ms: int, top_k: int, beam_width: int
) -> Question:
    """Return the unpersonalised question; `now_ms` is what the video's age is told by."""
    prompt = render_related(video, now_ms)
    text = f"{top_k} {beam_width} {prompt}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return Question(video_id, prompt, int.from_bytes(digest, "little"))


def related_videos(
    lrm: Lrm,
    contexts: Sequence[tuple[str, str]],
    view: TrieView,
    *,
    top_k: int,
    beam_width: int,
) -> list[Related]:
    """Return for each (video_id, prompt) up to `top_k` live videos with their log_prob, best first, never itself.

    Args:
        lrm: answers; its codebook_version is the view's.
        contexts: searched together.
        view: the live videos.
        top_k: videos wanted.
        beam_width: of the search, which takes one more where that is not more than `top_k`: the video itself may come
            out of it.
    """
    found = beam_search(
        lrm.model,
        [lrm.encode(prompt) for _, prompt in contexts],
        [view] * len(contexts),
        level_token_ids=lrm.level_token_ids,
        beam_width=max(beam_width, top_k + 1),
        top_k=top_k + 1,
        pad_token_id=lrm.pad_token_id,
    )
    return [
        [(one.video_id, one.log_prob) for one in each if one.video_id != video_id][:top_k]
        for (video_id, _), each in zip(contexts, found, strict=True)
    ]
