"""A catalogue and viewers in whom a preference is planted, and an LRM that the project's own code has fitted to them.

Six topics. Women mostly watch one of them, men another; everything else is drawn evenly. A semantic ID says the topic
by its first code, as it does where codes come from content. Some videos of every topic come later: nobody has watched
them, and a round knows their text alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.lrm import Lrm, LrmConfig
from models.prompts import Ask, Videos
from models.recommend import Request, recommend
from models.semantic_id import SemanticIdSpace
from models.training import TrainingConfig
from models.trie import LiveTrie, TrieView
from streams.shards import ShardRow
from tests.lrm_factories import new_watch
from workers.bootstrap_lrm import BootstrapConfig, initial_fit
from workers.training_actor import Video
from workers.training_round import RoundInput, RoundLimits, run_round

WORDS = {
    "women's sprint": "relay 100m heats finals blocks Zurich",
    "men's shot put": "throw circle 22m qualifying glide Oslo",
    "pottery": "wheel glaze kiln clay bowl studio",
    "chess openings": "gambit defence Sicilian bishop tempo theory",
    "jazz piano": "trio voicing ballad swing solo club",
    "street food": "noodles stall market grill dumplings night",
}
TOPICS = tuple(WORDS)
WOMENS, MENS = TOPICS[:2]
SPACE = SemanticIdSpace(codebook_version=1, codebook_sizes=(12, 8), disambiguation_size=16)
PER_TOPIC, LATER_PER_TOPIC = 16, 5
NUM_VIEWERS, WATCHES = 600, 2
PREFERRED_SHARE = 0.5
REGIONS = ("US", "FR", "IN")


class SomeViewer(NamedTuple):
    """What a request says of somebody."""

    region: str | None = None
    age: int | None = None
    gender: str | None = None
    device: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Planted:
    """A fitted LRM, with the videos it was fitted to and the later ones, of which a round has read the text."""

    lrm: Lrm
    videos: dict[str, Video]
    later: dict[str, Video]
    known_view: TrieView
    later_view: TrieView

    def share(
        self,
        topic: str,
        viewer: SomeViewer,
        *,
        intent: str | None = None,
        later: bool = False,
        k: int = 10,
    ) -> float:
        """Return the share of a topic's videos in the first k, for somebody without a history."""
        view = self.later_view if later else self.known_view
        request = Request(viewer, [], Ask("home", intent=intent))
        videos: Videos = {**self.videos, **self.later}
        [found] = recommend(self.lrm, [request], view, videos, top_k=k, beam_width=k)
        return sum(topic in videos[one.video_id].topics for one in found) / k


def catalogue(rng: random.Random) -> tuple[dict[str, Video], dict[str, Video]]:
    """Return the videos that are watched and those that come later."""
    known: dict[str, Video] = {}
    later: dict[str, Video] = {}
    taken: dict[tuple[int, int], int] = {}
    for number, topic in enumerate(TOPICS):
        for place in range(PER_TOPIC + LATER_PER_TOPIC):
            cell = (2 * number + rng.randrange(2), rng.randrange(8))
            taken[cell] = taken.get(cell, -1) + 1
            title = " ".join(rng.sample(WORDS[topic].split(), 3)) + f" {rng.randrange(100)}"
            channel = f"{rng.choice(('Daily', 'Global', 'Little'))} {WORDS[topic].split()[-1]}"
            video = Video((*cell, taken[cell]), title, channel, (topic,))
            (known if place < PER_TOPIC else later)[f"v{number}-{place}"] = video
    return known, later


def rows_of(videos: dict[str, Video], rng: random.Random) -> list[ShardRow]:
    """Return a shard's rows: each viewer's first watches."""
    of_topic = {
        topic: [each for each, video in videos.items() if topic in video.topics] for topic in TOPICS
    }
    rows = []
    for number in range(NUM_VIEWERS):
        gender = ("female", "male")[number % 2]
        preferred = WOMENS if gender == "female" else MENS
        watched: dict[str, None] = {}
        while len(watched) < WATCHES:
            topic = preferred if rng.random() < PREFERRED_SHARE else rng.choice(TOPICS)
            watched[rng.choice(of_topic[topic])] = None
        watches = [new_watch(each, at_ms=1000 + place) for place, each in enumerate(watched)]
        rows.append(
            ShardRow(
                f"u{number}", rng.choice(REGIONS), rng.randrange(18, 70), gender, "ANDROID", None, [], watches, 1,
            )
        )  # fmt: skip
    return rows


def view_of(videos: dict[str, Video]) -> TrieView:
    """Return a trie of these videos."""
    trie = LiveTrie(SPACE)
    trie.insert_many(
        [video.semantic_id for video in videos.values()], list(videos), [0] * len(videos)
    )
    return trie.view


def planted(*, epochs: int = 10, seed: int = 0) -> Planted:
    """Fit an LRM to the watched videos, then run a round in which the later ones are new."""
    rng = random.Random(seed)
    known, later = catalogue(rng)
    rows = rows_of(known, rng)
    config = BootstrapConfig(
        lrm=LrmConfig(
            hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, text_vocabulary_size=800,
        ),
        training=TrainingConfig(blocks_per_step=2),
        watch_texts_share=1.0,
        metadata_share=0.2,
        epochs=epochs,
        fit_max_s=1e9,  # as many steps on any machine
    )  # fmt: skip
    state, _ = initial_fit(rows, known, SPACE, config, seed=seed)
    later_rows: Sequence[ShardRow] = rows_of(known, rng)[:40]
    everything = {**known, **later}
    run_round(
        state,
        RoundInput(later_rows, list(later.values()), everything),
        RoundLimits(replay_share=0.25, evaluate_max=0),
    )
    return Planted(state.lrm, known, later, view_of(known), view_of(later))
