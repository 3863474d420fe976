"""Does a pretrained model speak both languages? SmolLM2 learns MovieLens's codes, and keeps its English.

A tenth of the films is held out of everything that is fitted: of the codebook and of the model. Of such a film the
model is given the codes, behind a few films that it knows, and is to say whom it is interesting to: the film's first
genre. Chance is drawing a genre by how often it comes first. Takes ten minutes on one core, of which most is
training; `BENCH_SCALE=0.05` tries it small, and says nothing.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import cross_entropy

from infra.settings import Settings
from infra.storage import ObjectStore
from models.base_models import SMOLLM2, extended_lrm
from models.code_embeddings import Start, read_code_vectors
from models.encoders import Encoders
from models.examples import IGNORED, Example, pack, text_examples
from models.lrm import Lrm
from models.quantizer import QuantizerConfig
from models.semantic_id import SemanticId, SemanticIdSpace
from models.tasks import VIDEO_TASKS, Recipe, Text, video_texts
from models.training import (
    initial_learning_rate,
    make_optimizer,
    prepare,
    pretrained_config,
    train_on,
)
from streams.events import VideoUploaded
from tests.bench.measure import Measure
from tests.bench.parts.english_text import ENGLISH
from workers.bootstrap_codebook import fit_encoded
from workers.bootstrap_data import Later, catalogue_of, load_data
from workers.catalogue_encoding import encode_catalogue, publish_encoders
from workers.training_actor import Video

FILMS, FILMS_MIN, HELD_OUT_SHARE, ASKED = 9742, 600, 0.1, 300
LEARNED_TEXTS = 5000
RECIPE = Recipe(video_tasks={"interest": 1.0, "topics": 0.5})
EXAMPLES = 3
ANSWER_TOKENS = 4  # enough for any genre and the word behind it
SEED = 0


@dataclass(frozen=True)
class Films:
    """Films with codes: those that are learned, and those that are held out."""

    learned: Sequence[Video]
    held_out: Sequence[Video]
    space: SemanticIdSpace
    quantizer_weights: bytes


def measure() -> list[Measure]:
    """Fit a codebook, teach the model, ask it about films that it has not read of, score its English."""
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    torch.set_num_threads(1)  # what a training actor has by default
    with TemporaryDirectory() as folder:
        films = coded_films(Path(folder), num_films=max(FILMS_MIN, round(scale * FILMS)))
    lrm = begin(films)
    before = english_loss(lrm, with_codes=False)
    learn(lrm, films, num_texts=round(scale * LEARNED_TEXTS))
    after = english_loss(lrm)
    asked = films.held_out[: max(20, round(scale * ASKED))]
    named = name_topics(lrm, films, asked)
    return _measures(films, asked, named, after / before)


def coded_films(folder: Path, *, num_films: int) -> Films:
    """Fit encoders and a codebook to nine tenths of the films, and code all of them."""
    uploads = [
        each for each in catalogue_of(load_data("movielens", Settings()).timeline) if each.topics
    ]
    uploads = random.Random(SEED).sample(uploads, min(num_films, len(uploads)))
    num_held_out = round(HELD_OUT_SHARE * len(uploads))
    encoders = Encoders(publish_encoders(ObjectStore(str(folder / "store")), folder / "cache"))
    catalogue = encode_catalogue(
        encoders, uploads[num_held_out:], uploads[:num_held_out], Settings(), progress=_say
    )
    coded = fit_encoded(
        catalogue,
        QuantizerConfig(),
        watches=(),
        later=Later(),
        encoders_sha256=encoders.manifest.digest,
        codebook_version=1,
        seed=SEED,
        progress=_say,
    )
    videos = _videos(catalogue.uploads, coded.quantized.codes_BL.tolist())
    parts = videos[: catalogue.num_fitted], videos[catalogue.num_fitted :]
    return Films(*parts, coded.manifest.space, coded.weights)


def _videos(uploads: Sequence[VideoUploaded], codes: Sequence[Sequence[int]]) -> list[Video]:
    """Return the films with a disambiguation code each; the workers' is as good as any other."""
    taken: Counter[SemanticId] = Counter()
    videos = []
    for upload, cell in zip(uploads, map(tuple, codes), strict=True):
        videos.append(Video((*cell, taken[cell] % 64), upload.title, "", upload.topics))
        taken[cell] += 1
    return videos


def begin(films: Films, *, start: Start = "codebook") -> Lrm:
    """Return SmolLM2 with a token per code, of which it knows nothing yet."""
    vectors = read_code_vectors(films.quantizer_weights, films.space)
    return extended_lrm(SMOLLM2, films.space, vectors, start=start, seed=SEED)


def learn(lrm: Lrm, films: Films, *, num_texts: int) -> list[float]:
    """Train on texts of the learned films, as a first fit does, and return the loss of each step."""
    config, rng = pretrained_config(), random.Random(SEED)
    prepare(lrm, config, seed=SEED)
    texts = list(video_texts(films.learned, RECIPE, rng))
    lines = _pages(lrm, rng.sample(texts, min(num_texts, len(texts))))
    blocks = pack(lines, block_tokens=config.block_tokens, rng=rng)
    return train_on(
        lrm,
        make_optimizer(lrm, config),
        blocks,
        config,
        learning_rate=lambda step, steps: initial_learning_rate(config, step, steps),
        on_step=lambda step, steps, loss: _say(f"learning, loss {loss:.2f}", step / steps),
    )


def _pages(lrm: Lrm, texts: Sequence[Text]) -> list[Example]:
    """Return the texts a few to an example, a line each, as the questions will be: only answers are learned."""
    line_end = tuple(lrm.encode("\n"))
    unlearned = (IGNORED,) * len(line_end)
    pages = []
    for start in range(0, len(texts), EXAMPLES + 1):
        lines = text_examples(lrm, texts[start : start + EXAMPLES + 1])
        pages.append(
            Example(
                tuple(one for line in lines for one in (*line.token_ids[:-1], *line_end)),
                tuple(one for line in lines for one in (*line.labels[:-1], *unlearned)),
            )
        )
    return pages


@torch.inference_mode()
def english_loss(lrm: Lrm, *, with_codes: bool = True) -> float:
    """Return the loss per token of plain English, in nats; without codes, that of the base model as it came."""
    code_ids_C, total, count = torch.cat(lrm.level_token_ids), 0.0, 0
    for paragraph in ENGLISH:
        ids = torch.tensor([lrm.encode(paragraph)], device=lrm.model.device)
        logits_TV = lrm.model(ids).logits[0, :-1]
        if not with_codes:
            logits_TV[:, code_ids_C] = -torch.inf
        total += float(cross_entropy(logits_TV, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


@torch.inference_mode()
def name_topics(lrm: Lrm, films: Films, asked: Sequence[Video]) -> list[str]:
    """Return whom the model says each film is interesting to, told its codes and a few films that it knows."""
    interest = VIDEO_TASKS["interest"].render
    rng = random.Random(SEED)
    named = []
    for done, video in enumerate(asked):
        known = [interest(each) for each in rng.sample(films.learned, EXAMPLES)]
        shown = "".join(f"{text.prompt}{text.answer}\n" for text in known if text)
        question = interest(video)
        assert question is not None
        prompt = torch.tensor([lrm.encode(shown + question.prompt)], device=lrm.model.device)
        answer = lrm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=lrm.pad_token_id,
        )[0, prompt.shape[1] :]
        words = lrm.tokenizer.decode(answer.tolist())
        named.append(words.partition(" fans")[0].strip())
        _say("asking", (done + 1) / len(asked))
    return named


def _measures(
    films: Films, asked: Sequence[Video], named: Sequence[str], english_ratio: float
) -> list[Measure]:
    first = Counter(video.topics[0] for video in films.learned)
    share = {topic: count / first.total() for topic, count in first.items()}
    drawn = sum(share.get(video.topics[0], 0.0) for video in asked) / len(asked)
    most = first.most_common(1)[0][0]
    always = sum(video.topics[0] == most for video in asked) / len(asked)
    right = sum(name == v.topics[0] for name, v in zip(named, asked, strict=True)) / len(asked)
    among = sum(name in v.topics for name, v in zip(named, asked, strict=True)) / len(asked)
    drawn_among = sum(share.get(t, 0.0) for v in asked for t in v.topics) / len(asked)

    def of(name: str, value: float, peer: str, peer_value: float) -> Measure:
        return Measure(
            measure=name,
            value=value,
            unit="share of held-out films",
            higher_is_better=True,
            peer=peer,
            peer_value=peer_value,
        )

    return [
        Measure(
            measure="topic_from_sid_over_chance",
            value=right / drawn,
            unit="share over share",
            higher_is_better=True,
            peer="a first genre drawn by its frequency",
            peer_value=1.0,
        ),
        of("topic_from_sid", right, "a first genre drawn by its frequency", drawn),
        of("topic_from_sid_beside_most_frequent", right, f"always {most}", always),
        of("any_topic_from_sid", among, "a first genre drawn by its frequency", drawn_among),
        Measure(
            measure="english_loss_ratio",
            value=english_ratio,
            unit="loss after over loss before",
            higher_is_better=False,
            peer="the model before it learned codes",
            peer_value=1.0,
        ),
    ]


def _say(stage: str, share: float) -> None:
    sys.stderr.write(f"\r{stage} {share:4.0%}   ")
