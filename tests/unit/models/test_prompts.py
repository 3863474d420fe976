from __future__ import annotations

from models.examples import Behaviour, behaviour_examples
from models.prompts import Ask, render_request, render_semantic_id
from streams.events import UserFeatures
from tests.lrm_factories import SeenWatch, some_videos, tiny_lrm

VIDEOS = some_videos()


def test_request_shows_viewer_history_and_ask_in_the_talks_shape() -> None:
    viewer = UserFeatures(region="US", age=24, gender="female", device="ANDROID")
    watches = [
        SeenWatch("v1", percent=100, watched_s=260),
        SeenWatch("v2", percent=40, watched_s=104, surface="watch_next", context_video_id="v9"),
    ]
    text = render_request(viewer, watches, Ask("watch_next", "v2"), VIDEOS, history_max=10)
    assert text == (
        "User: region US | 24 years female | device ANDROID\n"
        "Watch history:\n"
        "home:<a_1><b_0><c_0><d_0> 100% 260s\n"
        "watch_next after <a_1><b_1><c_0><d_0>:<a_2><b_0><c_0><d_0> 40% 104s\n"
        "watch_next:"
    )


def test_request_without_user_and_history_is_a_prompt_still() -> None:
    text = render_request(None, [], Ask("home"), VIDEOS, history_max=10)
    assert text == "User: unknown\nWatch history:\nhome:"


def test_request_leaves_out_removed_videos_and_a_removed_context() -> None:
    watches = [SeenWatch("gone"), SeenWatch("v1")]
    text = render_request(None, watches, Ask("watch_next", "gone"), VIDEOS, history_max=10)
    assert "gone" not in text
    assert text.endswith("home:<a_1><b_0><c_0><d_0> 100% 60s\nwatch_next:")


def test_request_keeps_the_newest_watches() -> None:
    watches = [SeenWatch(f"v{number}") for number in range(10)]
    text = render_request(None, watches, Ask("home"), VIDEOS, history_max=3)
    assert text.count("100%") == 3
    assert render_semantic_id(VIDEOS["v9"].semantic_id) in text


def test_intent_and_query_reach_the_prompt_on_one_line() -> None:
    text = render_request(
        None, [], Ask("search", query="women's\nsprint", intent="calm"), VIDEOS, history_max=3
    )
    assert text.endswith("\nsearch query women's sprint wants calm:")


def test_serving_prompt_is_byte_for_byte_a_prefix_of_the_training_text() -> None:
    lrm = tiny_lrm()
    history = [SeenWatch("v1"), SeenWatch("v2", surface="watch_next", context_video_id="v1")]
    target = SeenWatch("v3", surface="watch_next", context_video_id="v7")
    prompt = lrm.encode(
        render_request(None, history, Ask("watch_next", "v7"), VIDEOS, history_max=20)
    )
    [example] = behaviour_examples(lrm, [Behaviour(None, history, [target])], VIDEOS)
    assert list(example.token_ids[: len(prompt)]) == prompt
    answer = [token for token in example.labels if token >= 0]
    assert list(example.token_ids[len(prompt) : len(prompt) + 4]) == answer
    expected = [
        int(ids[code])
        for ids, code in zip(lrm.level_token_ids, VIDEOS["v3"].semantic_id, strict=True)
    ]
    assert answer == expected
