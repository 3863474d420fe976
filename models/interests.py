"""Whom a video is interesting to and why, in the LRM's own words, as far as the video's metadata bears them out.

Only for an LRM that writes English. Knows nothing of viewers.

Shape suffixes: V vocabulary, C codes of all levels.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Final

import torch
from transformers import DynamicCache

from models.lrm import Lrm
from models.prompts import VideoLike
from models.tasks import Interest, interest_prompt, parse_interest

TOKENS_MAX: Final = 40
"""Of a sentence; one that is longer is lost, or begins to repeat itself."""
_WORD: Final = re.compile(r"\w{3,}")
_EMPTY_WORDS: Final = {
    "about", "and", "are", "channel", "fans", "for", "from", "has", "not", "that", "the", "this", "video", "videos",
    "with",
}  # fmt: skip
"""Words of three letters or more that say nothing of a video."""


def write_interest(lrm: Lrm, video: VideoLike) -> Interest | None:
    """Return what the LRM answers when asked whom a video is interesting to; None for what nobody should read.

    That is an answer of another shape, one that repeats itself, and one that is not borne out (`is_borne_out`).
    """
    answer = _written_line(lrm, interest_prompt(video))
    interest = None if answer is None else parse_interest(answer)
    if interest is None or repeats_itself(answer or "") or not is_borne_out(interest, video):
        return None
    return interest


def is_borne_out(interest: Interest, video: VideoLike) -> bool:
    """Return whether the subject shares a word with what the uploader says: title, topics, channel or description.

    Where the video has topics, the audience has to share one as well. Words count from three letters on, small and
    capital letters alike, without those that say nothing, such as "the" and "fans".
    """
    return bool(borne_out_words(interest.subject, video)) and (
        not video.topics or bool(borne_out_words(interest.audience, video))
    )


def borne_out_words(text: str, video: VideoLike) -> list[str]:
    """Return the words of a text that the video's metadata has too, each once, in small letters."""
    said = (video.title, video.channel, *video.topics, getattr(video, "description", ""))
    known = {word for each in said for word in _words(each)}
    return [word for word in dict.fromkeys(_words(text)) if word in known]


def repeats_itself(text: str) -> bool:
    """Return whether a word stands twice side by side or, if it says something, more than twice in all."""
    words = re.findall(r"\w+", text.casefold())
    in_a_row = any(first == second for first, second in pairwise(words))
    return in_a_row or max(Counter(_words(text)).values(), default=0) > 2


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _EMPTY_WORDS]


@torch.inference_mode()
def _written_line(lrm: Lrm, prompt: str) -> str | None:
    """Return the most probable words behind a prompt, without codes, to the end of line or text.

    None when they have not come to an end after `TOKENS_MAX`. Each token is the most probable one; the prompt is run
    once.
    """
    code_ids_C = torch.cat(lrm.level_token_ids).to(lrm.model.device)
    cache, written = DynamicCache(), list[int]()
    new = lrm.encode(prompt)
    for _ in range(TOKENS_MAX):
        logits_V = lrm.model(
            input_ids=torch.tensor([new], device=lrm.model.device),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[0, -1]
        logits_V[code_ids_C] = -torch.inf
        new = [int(logits_V.argmax())]
        if new[0] == lrm.eos_token_id or "\n" in lrm.tokenizer.decode(new):
            return str(lrm.tokenizer.decode(written))
        written += new
    return None
