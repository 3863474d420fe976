from __future__ import annotations

import pytest

from infra.errors import DecodeError
from streams.catalogue import (
    Catalogue,
    parse_semantic_id_key,
    position_header,
    semantic_id_key,
    upload_position,
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


def test_record_that_is_read_again_changes_nothing_in_the_end() -> None:
    catalogue = Catalogue(1)
    records = [to_json(assigned("v", position=0)), None, to_json(assigned("v", position=5))]
    for value in 2 * records:
        catalogue.apply(key("v"), value)
    assert catalogue.get("v") == assigned("v", position=5)


def test_position_is_read_from_the_header_it_was_written_to() -> None:
    assert upload_position([("trace", b"x"), *position_header(12).items()]) == 12
    assert upload_position(position_header(2**63).items()) == 2**63
    for without in (None, [], [("trace", b"1")], position_header(-1).items()):
        assert upload_position(without) is None


@pytest.mark.parametrize("value", [None, b"", b"twelve", b"-1", b"1.5", b"9" * 5000, b"\xb2"])
def test_header_that_is_no_offset_is_refused(value: bytes | None) -> None:
    with pytest.raises(DecodeError) as refused:
        upload_position([("upload_position", value)])
    assert refused.value.reason == "invalid_position"


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
