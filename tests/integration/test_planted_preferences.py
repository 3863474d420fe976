"""What is planted comes back: who asks, and what they say they want, change what a fitted LRM recommends.

After the women's sprint example of the LRM talk (Tandon, AI Engineer World's Fair 2025). Nobody here has a history, and
an LRM knows no user ids: every viewer is one it has never met.
"""

from __future__ import annotations

import pytest

from tests.planted_preferences import MENS, TOPICS, WOMENS, WORDS, Planted, SomeViewer, planted

WOMAN, MAN = SomeViewer("US", 24, "female", "ANDROID"), SomeViewer("US", 24, "male", "ANDROID")
# A minute of one core, most of it the fit.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
LATER_K = 5  # so many of each topic come later

SAID = {
    "the topic": "{topic}",
    "about it": "something about {topic}",
    "about it, and a word of titles": "something about {topic} {word}",
    "politely": "show me {topic} please",
    "in words never learned": "I'd love to see {topic} tonight",
}
NEVER_LEARNED = "in words never learned"
NEVER_LEARNED_MIN = 0.15
"""Share of what is shown, over the topics: 0.2 to 0.9 in eight fits, where it is 0 unasked."""


@pytest.fixture(scope="module")
def fitted() -> Planted:
    return planted()


def said(how: str, topic: str) -> str:
    return SAID[how].format(topic=topic, word=WORDS[topic].split()[2])


def somebody_else(topic: str) -> SomeViewer:
    """Somebody who is not shown the topic unasked."""
    return WOMAN if topic == MENS else MAN


@pytest.mark.parametrize("gender", ["female", "male"])
def test_features_alone_decide_between_the_planted_topics(fitted: Planted, gender: str) -> None:
    theirs, others = (WOMENS, MENS) if gender == "female" else (MENS, WOMENS)
    known = WOMAN if gender == "female" else MAN
    for viewer in (
        known,
        SomeViewer(gender=gender),
        known._replace(region="BR", age=83, device=None),  # like nobody learned of
    ):
        assert fitted.share(theirs, viewer) >= 0.6
        assert fitted.share(others, viewer) <= 0.4


def mean_share(fitted: Planted, how: str | None, *, later: bool = False, k: int = 10) -> float:
    """Return the topic's share of what somebody else is shown who asks for it, or not, over the topics."""
    shares = [
        fitted.share(topic, somebody_else(topic), intent=how and said(how, topic), later=later, k=k)
        for topic in TOPICS
    ]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("how", [how for how in SAID if how != NEVER_LEARNED])
def test_intent_in_plain_words_brings_its_topic(fitted: Planted, how: str) -> None:
    for topic in TOPICS:
        viewer = somebody_else(topic)
        without = fitted.share(topic, viewer)
        asked = fitted.share(topic, viewer, intent=said(how, topic))
        assert asked >= max(0.5, 2 * without), topic


def test_intent_in_words_never_learned_brings_some_of_its_topic(fitted: Planted) -> None:
    unasked = mean_share(fitted, None)
    assert mean_share(fitted, NEVER_LEARNED) >= max(NEVER_LEARNED_MIN, 2 * unasked)


@pytest.mark.parametrize("how", SAID)
def test_intent_brings_new_videos_of_which_only_the_text_was_read(
    fitted: Planted, how: str
) -> None:
    """On average over the topics: of a few videos that nobody has watched, not every one is placed right."""

    least = NEVER_LEARNED_MIN if how == NEVER_LEARNED else 0.45
    unasked = mean_share(fitted, None, later=True, k=LATER_K)
    assert mean_share(fitted, how, later=True, k=LATER_K) >= max(least, 2 * unasked)


def test_features_alone_bring_new_videos_of_the_planted_topic(fitted: Planted) -> None:
    for topic, viewer, other in ((WOMENS, WOMAN, MAN), (MENS, MAN, WOMAN)):
        theirs = fitted.share(topic, viewer, later=True, k=LATER_K)
        assert theirs > fitted.share(topic, other, later=True, k=LATER_K)
