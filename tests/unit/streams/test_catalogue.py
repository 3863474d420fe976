from __future__ import annotations

import pytest

from infra.errors import DecodeError
from streams.catalogue import (
    Catalogue,
    parse_semantic_id_key,
    removed_position,
    semantic_id_key,
)
from streams.events import SemanticIdAssigned, to_json


def assigned(
    video_id: str, *, position: int, codes: tuple[int, ...] = (1, 2, 3)
) -> SemanticIdAssigned:
    return SemanticIdAssigned(
        title="Cleo",
        video_id=video_id,
        codes=codes,
        disambiguation_code=0,
        codebook_version=1,
        embedding_f16="",
        upload_time_ms=0,
        upload_append_time_ms=0,
        upload_position=position,
        assigned_time_ms=0,
    )


def key(video_id: str, version: int = 1) -> bytes:
    return semantic_id_key(video_id, version).encode()


def test_key_round_trips_ids_with_colons() -> None:
    assert parse_semantic_id_key(key("a:b:c", 7)) == ("a:b:c", 7)


def test_assignment_edit_and_removal_change_the_view() -> None:
    catalogue = Catalogue(1)
    first, second = assigned("v", position=0), assigned("v", position=5, codes=(4, 5, 6))
    new = catalogue.apply(key("v"), to_json(first))
    assert new is not None
    assert (new.previous, new.current) == (None, first)
    edit = catalogue.apply(key("v"), to_json(second))
    assert edit is not None
    assert (edit.previous, edit.current) == (first, second)
    gone = catalogue.apply(key("v"), None)
    assert gone is not None
    assert (gone.previous, gone.current) == (second, None)
    assert len(catalogue) == 0


def test_assignment_of_an_older_upload_is_ignored() -> None:
    catalogue = Catalogue(1)
    newer = assigned("v", position=5)
    catalogue.apply(key("v"), to_json(newer))
    assert catalogue.apply(key("v"), to_json(assigned("v", position=3, codes=(9, 9, 9)))) is None
    assert catalogue.get("v") == newer


def test_removed_video_stays_away_when_its_removal_overtook_an_assignment() -> None:
    catalogue = Catalogue(1)
    assert catalogue.apply(key("v"), None, removed_position=5) is None
    assert catalogue.apply(key("v"), to_json(assigned("v", position=3))) is None
    assert len(catalogue) == 0


def test_video_uploaded_anew_after_its_removal_is_live_and_the_old_removal_is_spent() -> None:
    catalogue = Catalogue(1)
    again = assigned("v", position=7)
    catalogue.apply(key("v"), None, removed_position=5)
    catalogue.apply(key("v"), to_json(again))
    assert catalogue.apply(key("v"), None, removed_position=5) is None
    assert catalogue.get("v") == again


def test_position_of_a_removal_is_read_from_its_header() -> None:
    assert removed_position([("trace", b"x"), ("upload_position", b"12")]) == 12
    for without in (None, [], [("upload_position", None)], [("upload_position", b"twelve")]):
        assert removed_position(without) is None


def test_another_codebook_and_an_unknown_removal_change_nothing() -> None:
    catalogue = Catalogue(1)
    assert catalogue.apply(key("v", 2), to_json(assigned("v", position=0))) is None
    assert catalogue.apply(key("v"), None) is None


def test_strange_keys_and_values_are_refused_with_a_reason() -> None:
    catalogue = Catalogue(1)
    for bad in (b"", b"novideo", b"x:v", None):
        with pytest.raises(DecodeError) as refused:
            catalogue.apply(bad, b"{}")
        assert refused.value.reason == "invalid_key"
    with pytest.raises(DecodeError):
        catalogue.apply(key("v"), b"{}")
