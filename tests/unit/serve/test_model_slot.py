"""A checkpoint that is not what it claims to be never answers, and the one before it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY

from infra.errors import TransientError
from infra.metrics import STAGE_METRICS
from infra.storage import ObjectStore, sha256_of
from models.lrm import SIDECAR, WEIGHTS
from models.semantic_id import SemanticIdSpace
from serve.model_bundles import ModelBundle, lrm_loader
from serve.model_slot import CheckpointFiles, Slot, SwapLog
from serve.model_trial import Trial
from serve.views import CatalogueView, EventClock
from streams.events import CheckpointPromoted, SwapReported
from tests.tiny_serving import SPACE, assigned, record_of, save_checkpoint, tiny_lrm

Damage = Callable[[Path], CheckpointPromoted]
LrmSlot = Slot[ModelBundle]


@pytest.fixture
def slot(tmp_path: Path) -> LrmSlot:
    catalogue = CatalogueView(SPACE, EventClock())
    catalogue.take([record_of(assigned(number)) for number in range(40)])
    return slot_of(catalogue, tmp_path)


def slot_of(catalogue: CatalogueView, root: Path) -> LrmSlot:
    files = CheckpointFiles(ObjectStore(str(root)), root / "cache", codebook_version=1)
    load = lrm_loader(files, Trial(catalogue, beam_width=20), SPACE)
    return Slot(load, SwapLog(replica="r"))


def swapped(slot: LrmSlot, promoted: CheckpointPromoted) -> SwapReported:
    report = slot.swap(promoted)
    assert report is not None
    return report


def version_of(slot: LrmSlot) -> int:
    return slot.current.model_version if slot.current else 0


def flipped_bit(root: Path) -> CheckpointPromoted:
    promoted = save_checkpoint(root, 2)
    path = root / promoted.path / WEIGHTS
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    return promoted


def truncated(root: Path) -> CheckpointPromoted:
    promoted = save_checkpoint(root, 2)
    path = root / promoted.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    return promoted


def truncated_before_it_was_announced(root: Path) -> CheckpointPromoted:
    promoted = truncated(root)
    return promoted.model_copy(update={"sha256": sha256_of(root / promoted.path / WEIGHTS)})


def without_sidecar(root: Path) -> CheckpointPromoted:
    promoted = save_checkpoint(root, 2)
    (root / promoted.path / SIDECAR).write_text("{}")
    return promoted


def missing(root: Path) -> CheckpointPromoted:
    promoted = save_checkpoint(root, 2)
    (root / promoted.path / WEIGHTS).unlink()
    return promoted


def without_config(root: Path) -> CheckpointPromoted:
    promoted = save_checkpoint(root, 2)
    (root / promoted.path / "config.json").unlink()
    return promoted


def outside_of_the_store(root: Path) -> CheckpointPromoted:
    return save_checkpoint(root, 2).model_copy(update={"path": "../elsewhere"})


def not_a_number(root: Path) -> CheckpointPromoted:
    lrm = tiny_lrm(seed=2)
    with torch.no_grad():
        next(lrm.model.parameters())[0, 0] = float("nan")
    return save_checkpoint(root, 2, lrm)


def that_overflows(root: Path) -> CheckpointPromoted:
    lrm = tiny_lrm(seed=2)
    with torch.no_grad():
        lrm.model.model.norm.weight.fill_(3e38)
        lrm.model.get_input_embeddings().weight.mul_(1e3)
    return save_checkpoint(root, 2, lrm)


def of_another_codebook(root: Path) -> CheckpointPromoted:
    space = SemanticIdSpace(codebook_version=2, codebook_sizes=(8, 4), disambiguation_size=4)
    return save_checkpoint(root, 2, tiny_lrm(seed=2, space=space))


def that_lies_about_its_codebook(root: Path) -> CheckpointPromoted:
    return of_another_codebook(root).model_copy(update={"codebook_version": 1})


def of_another_shape(root: Path) -> CheckpointPromoted:
    space = SemanticIdSpace(codebook_version=1, codebook_sizes=(8, 8), disambiguation_size=4)
    return save_checkpoint(root, 2, tiny_lrm(seed=2, space=space))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped_bit, "announced was"),
        (truncated, "announced was"),
        (truncated_before_it_was_announced, "SafetensorError"),
        (without_sidecar, "space"),
        (missing, "incomplete"),
        (without_config, "config.json"),
        (outside_of_the_store, "leaves the store"),
        (not_a_number, "not finite"),
        (that_overflows, "trial search found 0"),
        (of_another_codebook, "announced for codebook 2, live is 1"),
        (that_lies_about_its_codebook, "speaks codebook 2, live is 1"),
        (of_another_shape, "codebook_sizes=\\(8, 8\\)"),
    ],
)
def test_bad_checkpoint_is_rejected_and_the_old_one_serves_on(
    slot: LrmSlot, tmp_path: Path, damage: Damage, reason: str
) -> None:
    swapped(slot, save_checkpoint(tmp_path, 1))
    before = slot.current
    report = swapped(slot, damage(tmp_path))
    assert report.outcome == "rejected"
    assert re.search(reason, report.reason)
    assert slot.current is before
    assert (slot._log.swaps, slot._log.rejected_swaps) == (1, 1)


def test_good_checkpoint_takes_over_and_the_one_before_is_kept(
    slot: LrmSlot, tmp_path: Path
) -> None:
    assert slot.current is None
    first = swapped(slot, save_checkpoint(tmp_path, 1))
    second = swapped(slot, save_checkpoint(tmp_path, 2))
    assert (first.outcome, first.previous_version) == ("succeeded", 0)
    assert (second.outcome, second.previous_version, second.reason) == ("succeeded", 1, "")
    assert version_of(slot) == 2
    assert slot.previous is not None
    assert slot.previous.model_version == 1


def test_pointer_to_what_serves_already_changes_nothing(slot: LrmSlot, tmp_path: Path) -> None:
    promoted = save_checkpoint(tmp_path, 1)
    swapped(slot, promoted)
    assert slot.swap(promoted) is None
    assert slot._log.swaps == 1


def test_pointer_back_to_the_one_before_needs_no_file(slot: LrmSlot, tmp_path: Path) -> None:
    first, second = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    swapped(slot, first)
    bundle = slot.current
    swapped(slot, second)
    (tmp_path / first.path / WEIGHTS).unlink()
    report = swapped(slot, first)
    assert report.outcome == "succeeded"
    assert slot.current is bundle
    assert slot.previous is not None
    assert slot.previous.model_version == 2


def test_newest_pointer_is_served_and_those_it_overtook_are_not_loaded(
    slot: LrmSlot, tmp_path: Path
) -> None:
    reports = slot.follow([save_checkpoint(tmp_path, version) for version in (1, 2, 3)])
    assert [report.model_version for report in reports] == [3]
    assert version_of(slot) == 3


def test_bad_newest_checkpoint_gives_way_to_the_one_it_overtook(
    slot: LrmSlot, tmp_path: Path
) -> None:
    bad = flipped_bit(tmp_path)
    reports = slot.follow([save_checkpoint(tmp_path, 1), bad])
    assert [(one.model_version, one.outcome) for one in reports] == [
        (2, "rejected"),
        (1, "succeeded"),
    ]
    reports = slot.follow([save_checkpoint(tmp_path, 3), bad])
    assert [one.outcome for one in reports] == ["rejected", "succeeded"]
    assert version_of(slot) == 3


def test_bad_newest_checkpoint_after_the_one_that_serves_changes_nothing(
    slot: LrmSlot, tmp_path: Path
) -> None:
    first = save_checkpoint(tmp_path, 1)
    slot.follow([first])
    reports = slot.follow([first, flipped_bit(tmp_path)])
    assert [one.outcome for one in reports] == ["rejected"]
    assert version_of(slot) == 1


@pytest.mark.parametrize("error", [TransientError("no answer"), OSError(5, "I/O"), RuntimeError()])
def test_checkpoint_out_of_reach_is_tried_again_at_the_next_follow(
    slot: LrmSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    slot.follow([save_checkpoint(tmp_path, 1)])

    def unreachable(*_: object) -> Path:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "local_directory", unreachable)
        assert slot.follow([save_checkpoint(tmp_path, 2)]) == []
        assert slot.follow([]) == []
    assert (version_of(slot), slot._log.rejected_swaps) == (1, 0)
    assert [one.outcome for one in slot.follow([])] == ["succeeded"]
    assert version_of(slot) == 2
    assert slot.follow([]) == []


def test_checkpoint_out_of_reach_is_given_up_once_a_newer_one_serves(
    slot: LrmSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_read(*_: object, **__: object) -> None:
        raise OSError(5, "I/O")

    with monkeypatch.context() as patched:
        patched.setattr("serve.model_bundles.load_lrm", failing_read)
        assert slot.follow([save_checkpoint(tmp_path, 1)]) == []
    assert [one.model_version for one in slot.follow([save_checkpoint(tmp_path, 2)])] == [2]
    assert slot.follow([]) == []


def test_first_checkpoint_is_tried_also_before_any_video_is_live(tmp_path: Path) -> None:
    slot = slot_of(CatalogueView(SPACE, EventClock()), tmp_path)
    assert swapped(slot, save_checkpoint(tmp_path, 1)).outcome == "succeeded"


def observed(stage: str) -> float:
    return REGISTRY.get_sample_value(f"{STAGE_METRICS[stage]}_count") or 0.0


def test_swap_says_how_long_its_oldest_watch_took_and_a_rollback_does_not(
    slot: LrmSlot, tmp_path: Path
) -> None:
    first = save_checkpoint(tmp_path, 1)
    second = save_checkpoint(tmp_path, 2).model_copy(update={"first_append_time_ms": 1})
    swapped(slot, first)
    before = observed("watch_to_serving")
    swapped(slot, second)
    assert observed("watch_to_serving") == before + 1
    swapped(slot, first.model_copy(update={"first_append_time_ms": 1}))
    assert observed("watch_to_serving") == before + 1
    served = {"model_name": "lrm"}
    assert REGISTRY.get_sample_value("freshet_serving_model_version", served) == 1
