"""An adapter answers only on top of the base that it was made for; without it, its base answers alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest
import torch

from infra.errors import TransientError
from infra.storage import ObjectStore
from models.lrm import Lrm, load_lrm
from models.surface_adapters import BELONGS_TO_FILE, WEIGHTS_FILE, adapted, adapter_weights
from serve.adapters import BASES_KEPT
from serve.model_bundles import ModelBundle
from serve.model_slots import ModelSlots
from serve.schemas import ModelState
from serve.views import CatalogueView, EventClock
from streams.events import CheckpointPromoted, SwapReported
from tests.tiny_serving import SPACE, assigned, record_of, save_checkpoint, save_surface_adapter

Damage = Callable[[Path, CheckpointPromoted], CheckpointPromoted]


@pytest.fixture
def slots(tmp_path: Path) -> ModelSlots:
    catalogue = CatalogueView(SPACE, EventClock())
    catalogue.take([record_of(assigned(number)) for number in range(40)])
    return ModelSlots(
        ObjectStore(str(tmp_path)), catalogue, replica="r", cache=tmp_path / "cache", beam_width=10
    )


def served(slots: ModelSlots) -> ModelBundle:
    assert slots.lrm is not None
    return slots.lrm


def versions(slots: ModelSlots) -> tuple[int, dict[str, int]]:
    """The base's, and each adapter's."""
    bundle = served(slots)
    assert bundle.adapters.keys() == bundle.adapter_pointers.keys()
    return bundle.model_version, {
        name: one.model_version for name, one in bundle.adapter_pointers.items()
    }


def said(reports: list[SwapReported]) -> list[tuple[str, int, int, str]]:
    return [
        (one.model_name, one.model_version, one.previous_version, one.outcome) for one in reports
    ]


def logits(lrm: Lrm) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = lrm.model(torch.tensor([lrm.encode("User: unknown\nhome:")])).logits
    return found


def test_base_and_its_adapters_take_over_together(slots: ModelSlots, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path, 1)
    home, ranking = (save_surface_adapter(tmp_path, base, name) for name in ("home", "ranking"))
    reports = slots.follow([base, home, ranking])
    bundle = served(slots)
    assert versions(slots) == (1, {"home": 1, "ranking": 1})
    assert bundle.for_surface("home") is bundle.adapters["home"]
    assert bundle.for_surface("music") is bundle.lrm
    assert bundle.ranking is bundle.adapters["ranking"]
    assert not torch.allclose(logits(bundle.for_surface("home")), logits(bundle.lrm), atol=1e-3)
    assert said(reports) == [
        ("lrm", 1, 0, "succeeded"),
        ("lrm.home", 1, 0, "succeeded"),
        ("lrm.ranking", 1, 0, "succeeded"),
    ]
    assert slots.follow([base, home, ranking]) == []
    assert served(slots) is bundle


def test_adapter_joins_a_base_that_serves_already_and_waits_for_one_that_does_not(
    slots: ModelSlots, tmp_path: Path
) -> None:
    base = save_checkpoint(tmp_path, 1)
    home, shorts = (save_surface_adapter(tmp_path, base, name) for name in ("home", "shorts"))
    assert slots.follow([home]) == []
    slots.follow([base])
    before = served(slots)
    assert versions(slots) == (1, {"home": 1})
    assert said(slots.follow([shorts])) == [("lrm.shorts", 1, 0, "succeeded")]
    assert versions(slots) == (1, {"home": 1, "shorts": 1})
    assert before.adapters.keys() == {"home"}  # what a request holds stays as it was
    assert slots.previous_lrm is None


def test_base_waits_for_adapters_that_are_announced_right_behind_it(
    slots: ModelSlots, tmp_path: Path
) -> None:
    first, second = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    slots.follow([first, save_surface_adapter(tmp_path, first, "home")])
    assert slots.follow([second]) == []
    assert versions(slots) == (1, {"home": 1})
    reports = slots.follow([save_surface_adapter(tmp_path, second, "home")])
    assert said(reports) == [("lrm", 2, 1, "succeeded"), ("lrm.home", 2, 1, "succeeded")]
    assert versions(slots) == (2, {"home": 2})


def test_base_whose_adapters_do_not_come_serves_without_them_a_call_later(
    slots: ModelSlots, tmp_path: Path
) -> None:
    first, second = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    slots.follow([first, save_surface_adapter(tmp_path, first, "home")])
    slots.follow([second])
    assert said(slots.follow([])) == [("lrm", 2, 1, "succeeded")]
    assert versions(slots) == (2, {})
    assert served(slots).for_surface("home") is served(slots).lrm


def test_rollback_brings_base_and_adapters_back_at_once_and_needs_no_file(
    slots: ModelSlots, tmp_path: Path
) -> None:
    first, second = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    homes = [save_surface_adapter(tmp_path, base, "home") for base in (first, second)]
    slots.follow([first, homes[0]])
    bundle = served(slots)
    slots.follow([second, homes[1]])
    rmtree(tmp_path / "checkpoints")
    again = {"promoted_time_ms": first.promoted_time_ms + 1}
    pointers = [one.model_copy(update=again) for one in (first, homes[0])]
    assert said(slots.follow(pointers[:1])) == [("lrm", 1, 2, "succeeded")]
    assert served(slots) is bundle
    assert slots.follow(pointers[1:]) == []  # it is there already
    assert served(slots) is bundle
    slots.follow([second])
    assert versions(slots) == (2, {"home": 2})
    held = ModelState(model_version=2, previous_version=1)
    assert slots.states() == {"lrm": held, "lrm.home": held}


def test_adapter_of_the_base_before_joins_it_there_for_a_rollback(
    slots: ModelSlots, tmp_path: Path
) -> None:
    first, second = save_checkpoint(tmp_path, 1), save_checkpoint(tmp_path, 2)
    slots.follow([first])
    slots.follow([second])
    current = served(slots)
    slots.follow([save_surface_adapter(tmp_path, first, "home")])
    assert served(slots) is current
    slots.follow([first])
    assert versions(slots) == (1, {"home": 1})


def test_base_from_long_ago_is_loaded_again_with_its_adapters(
    slots: ModelSlots, tmp_path: Path
) -> None:
    bases = [save_checkpoint(tmp_path, version) for version in (1, 2, 3)]
    for base in bases:
        slots.follow([base, save_surface_adapter(tmp_path, base, "home")])
    slots.follow([bases[0]])
    assert versions(slots) == (1, {"home": 1})


def test_replica_that_starts_late_serves_what_the_last_pointers_say(
    slots: ModelSlots, tmp_path: Path
) -> None:
    bases = [save_checkpoint(tmp_path, version) for version in (1, 2)]
    homes = [save_surface_adapter(tmp_path, base, "home") for base in bases]
    rolled_back = [bases[0], homes[0], bases[1], homes[1], bases[0]]
    slots.follow(rolled_back)
    assert versions(slots) == (1, {"home": 1})


def test_pointers_are_kept_of_a_bounded_number_of_bases(slots: ModelSlots, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path, 1)
    home = save_surface_adapter(tmp_path, base, "home")
    others = [home.model_copy(update={"base_sha256": str(number)}) for number in range(BASES_KEPT)]
    slots.follow([home, *others])
    slots.follow([base])
    assert versions(slots) == (1, {})


def flipped_bit(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    path = root / promoted.path / WEIGHTS_FILE
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    return promoted


def truncated(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    path = root / promoted.path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    return promoted


def missing(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    (root / promoted.path / WEIGHTS_FILE).unlink()
    return promoted


def without_its_base(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    (root / promoted.path / BELONGS_TO_FILE).write_text("{}")
    return promoted


def that_names_no_base(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    return promoted.model_copy(update={"base_sha256": None})


def of_another_base(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, save_checkpoint(root, 9), "home")
    return promoted.model_copy(update={"base_sha256": base.sha256})


def of_another_codebook(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    return promoted.model_copy(update={"codebook_version": 2})


def outside_of_the_store(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    promoted = save_surface_adapter(root, base, "home")
    return promoted.model_copy(update={"path": "../elsewhere"})


def weights_of(root: Path, base: CheckpointPromoted, value: float) -> dict[str, torch.Tensor]:
    weights = adapter_weights(adapted(load_lrm(root / base.path), name="home"))
    return {name: torch.full_like(one, value) for name, one in weights.items()}


def not_a_number(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    return save_surface_adapter(root, base, "home", weights=weights_of(root, base, float("nan")))


def that_overflows(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    return save_surface_adapter(root, base, "home", weights=weights_of(root, base, 1e30))


def ranking_that_overflows(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    return save_surface_adapter(root, base, "ranking", weights=weights_of(root, base, 1e30))


def of_another_shape(root: Path, base: CheckpointPromoted) -> CheckpointPromoted:
    weights = {name: one[:, :-1].contiguous() for name, one in weights_of(root, base, 0.1).items()}
    return save_surface_adapter(root, base, "home", weights=weights)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped_bit, "announced was"),
        (truncated, "announced was"),
        (missing, "incomplete"),
        (without_its_base, "incomplete"),
        (that_names_no_base, "names no base"),
        (of_another_base, "belongs to model_version 9"),
        (of_another_codebook, "announced for codebook 2, live is 1"),
        (outside_of_the_store, "leaves the store"),
        (not_a_number, "not finite"),
        (that_overflows, "trial search found 0"),
        (ranking_that_overflows, "trial rating"),
        (of_another_shape, "does not fit"),
    ],
)
def test_bad_adapter_is_rejected_once_and_its_base_serves_on(
    slots: ModelSlots, tmp_path: Path, damage: Damage, reason: str
) -> None:
    base = save_checkpoint(tmp_path, 1)
    slots.follow([base, save_surface_adapter(tmp_path, base, "shorts")])
    before = served(slots)
    bad = damage(tmp_path, base)
    [report] = slots.follow([bad])
    assert (report.outcome, report.model_name) == ("rejected", bad.model_name)
    assert re.search(reason, report.reason)
    assert served(slots) is before
    assert slots.follow([]) == []
    assert (slots.swaps, slots.rejected_swaps) == (2, 1)


def test_base_takes_over_with_its_good_adapters_where_one_is_bad(
    slots: ModelSlots, tmp_path: Path
) -> None:
    base = save_checkpoint(tmp_path, 1)
    good = save_surface_adapter(tmp_path, base, "music")
    reports = slots.follow([base, flipped_bit(tmp_path, base), good])
    assert versions(slots) == (1, {"music": 1})
    assert [one.outcome for one in reports] == ["succeeded", "rejected", "succeeded"]


def test_adapter_out_of_reach_is_tried_again_at_the_next_call(
    slots: ModelSlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_checkpoint(tmp_path, 1)
    home = save_surface_adapter(tmp_path, base, "home")
    slots.follow([base])

    def unreachable(*_: object) -> Path:
        raise TransientError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "local_directory", unreachable)
        assert slots.follow([home]) == []
    assert versions(slots) == (1, {})
    assert said(slots.follow([])) == [("lrm.home", 1, 0, "succeeded")]


def test_adapter_that_serving_does_not_know_is_passed_over(
    slots: ModelSlots, tmp_path: Path
) -> None:
    base = save_checkpoint(tmp_path, 1)
    reports = slots.follow([base, save_surface_adapter(tmp_path, base, "billboards")])
    assert said(reports) == [("lrm", 1, 0, "succeeded")]
    assert versions(slots) == (1, {})


def test_whoever_asks_meanwhile_holds_one_base_and_adapters_of_that_base(
    slots: ModelSlots, tmp_path: Path
) -> None:
    bases = [save_checkpoint(tmp_path, version) for version in (1, 2, 3)]
    pointers = [[base, save_surface_adapter(tmp_path, base, "home")] for base in bases]
    slots.follow(pointers[0])
    stopping, torn, seen = threading.Event(), [], set[int]()

    def ask_on() -> None:
        while not stopping.is_set():
            bundle = served(slots)
            base_weights = bundle.lrm.model.get_input_embeddings().weight
            adapted_weights = bundle.for_surface("home").model.get_input_embeddings().weight
            if base_weights.data_ptr() != adapted_weights.data_ptr() or not bundle.adapters:
                torn.append(bundle)
            seen.add(bundle.model_version)

    asking = [threading.Thread(target=ask_on) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        for some in (pointers[1], pointers[2], pointers[1][:1]):
            slots.follow(some)
    finally:
        stopping.set()
        for one in asking:
            one.join()
    assert torn == []
    assert {1, 2} <= seen
