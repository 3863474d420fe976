"""The bilingual benchmark: what is learned of a page, and how it adds up; on a tiny base, without a download."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from infra.settings import Settings
from models.examples import IGNORED
from models.tasks import Text
from tests.base_model_factories import tiny_extended
from tests.bench import bilingual
from tests.lrm_factories import SPACE
from workers.bootstrap_data import catalogue_of, load_data
from workers.training_actor import Video


def films(*topics: str) -> list[Video]:
    return [Video((at, 0, 0, 0), f"film {at}", "", (topic,)) for at, topic in enumerate(topics)]


def test_page_holds_texts_line_by_line_and_teaches_answers_only(tmp_path: Path) -> None:
    lrm = tiny_extended(tmp_path)
    texts = [Text("Video <a_1><b_0> has topics", " Drama"), Text("Video <a_2><b_1> has", " War")]
    (page,) = bilingual._pages(lrm, texts)
    read = lrm.tokenizer.decode(page.token_ids, skip_special_tokens=False)
    learned = [one for one in page.labels if one != IGNORED]
    assert read == "Video <a_1><b_0> has topics Drama\nVideo <a_2><b_1> has War\n"
    assert lrm.tokenizer.decode(learned, skip_special_tokens=False) == " Drama War"


def test_measures_say_how_often_the_first_genre_is_named_beside_chance() -> None:
    learned = films("Drama", "Drama", "Drama", "War")
    asked = films("Drama", "War")
    known = bilingual.Films(learned, asked, SPACE, b"")
    found = {
        each.measure: (each.value, each.peer_value)
        for each in bilingual._measures(known, asked, ["Drama", "War"], 1.05)
    }
    assert found["topic_from_sid"] == (1.0, 0.5)  # (3/4 + 1/4) / 2
    assert found["topic_from_sid_over_chance"] == (2.0, 1.0)
    assert found["topic_from_sid_beside_most_frequent"] == (1.0, 0.5)
    assert found["english_loss_ratio"] == (1.05, 1.0)


def test_codes_can_only_add_to_the_loss_of_english(tmp_path: Path) -> None:
    lrm = tiny_extended(tmp_path)
    without = bilingual.english_loss(lrm, with_codes=False)
    assert bilingual.english_loss(lrm) > without
    head = lrm.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[torch.cat(lrm.level_token_ids)] = 0.0
    assert bilingual.english_loss(lrm, with_codes=False) == pytest.approx(without)


def test_every_film_that_is_asked_about_gets_a_name(tmp_path: Path) -> None:
    learned = films(*["Drama"] * 5)
    known = bilingual.Films(learned, learned, SPACE, b"")
    assert len(bilingual.name_topics(tiny_extended(tmp_path), known, learned[:2])) == 2


def test_films_in_one_cell_get_codes_of_their_own() -> None:
    timeline = load_data("movielens", Settings()).timeline
    uploads = catalogue_of(timeline)[:4]
    videos = bilingual._videos(uploads, [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    assert [video.semantic_id[-1] for video in videos] == [0, 1, 0, 2]
    assert max(Counter(video.semantic_id for video in videos).values()) == 1
