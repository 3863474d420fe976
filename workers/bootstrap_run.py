"""`freshet bootstrap`: reads a data set, cuts it in two, and has a codebook, or a codebook and an LRM, fitted.

Prints what came of it: the card, what could not be used, and the LRM's last loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from infra.errors import ConfigError
from infra.settings import Settings
from infra.storage import ObjectStore
from models.codebook import CURRENT_KEY, codebook_key, current_manifest
from models.quantizer import CO_WATCHING_WEIGHT, LEVEL_SIZES, METHODS, QuantizerConfig
from streams.events import LRM_MODEL_NAME
from streams.timeline import Timeline, split
from workers import stack
from workers.bootstrap import bootstrap
from workers.bootstrap_codebook import CARD_FILE, PICTURE_FILE, fit_codebook
from workers.bootstrap_data import (
    DataSet,
    catalogue_of,
    later_part,
    load_data,
    split_catalogue,
)
from workers.codebook_picture import summary
from workers.demo_panel import progress_bars
from workers.demo_run import bootstrap_config
from workers.training_state import checkpoint_versions

LEVELS = (3, 5, 8)
SKIPPED_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class BootstrapOptions:
    """What changes per run: of the data, `share` comes before the cut; `num_clusters` 0 keeps the default."""

    data: str
    share: float
    quantizer: str
    num_levels: int
    num_clusters: int
    codebook_only: bool
    if_missing: bool
    model: str
    co_watching: bool


def run_bootstrap(settings: Settings, options: BootstrapOptions, console: Console) -> None:
    """Fit and publish what the options ask for, or nothing where `if_missing` finds it published.

    Blocks: for minutes.

    Raises:
        ConfigError: the options do not go together, or a data set's folder is not set.
    """
    model = bootstrap_config(options.model)
    config = quantizer_config(
        options.quantizer,
        options.num_levels,
        num_clusters=options.num_clusters,
        co_watching=options.co_watching,
    )
    if options.if_missing and _is_there(settings, options):
        there = "a codebook" if options.codebook_only else "a codebook and an LRM"
        console.print(f"nothing to do: {settings.storage.root} has {there}")
        return
    data = load_data(options.data, settings)
    if not options.codebook_only and not data.timeline.watches():
        raise ConfigError(
            f"{options.data} has no watches, so that no LRM can be fitted on it; add --codebook-only"
        )
    earlier, later_events = parts(data, options)
    later = later_part(data, earlier, later_events)
    if options.codebook_only:
        with progress_bars(console) as progress:
            fit_codebook(
                catalogue_of(earlier),
                settings,
                config=config,
                watches=earlier.watches(),
                later=later,
                progress=progress,
            )
        _show(settings, console)
        return
    with stack.kafka_running(settings) as running, progress_bars(console) as progress:
        done = bootstrap(
            running, earlier, config=model, quantizer=config, later=later, progress=progress
        )
    _show(settings, console)
    console.print(
        f"codebook {done.codebook_version}: {done.videos} videos, uniqueness {done.uniqueness:.3f}; "
        f"LRM {done.model_version} on {done.watches} watches, last loss {done.losses[-1]:.3f}",
        soft_wrap=True,
    )


def quantizer_config(
    method: str, num_levels: int, *, num_clusters: int = 0, co_watching: bool = False
) -> QuantizerConfig:
    """Return the quantizer's configuration; 0 clusters is the default number of them.

    With `co_watching`, rqvae learns from watches as well; rkmeans knows no other way than content.

    Raises:
        ConfigError: there is no such method or number of levels, or the method does not learn from watches.
    """
    known = next((each for each in METHODS if each == method), None)
    if known is None:
        raise ConfigError(f"quantizer is {method!r}; there are {', '.join(METHODS)}")
    if num_levels not in LEVELS:
        raise ConfigError(f"levels is {num_levels}; there are {', '.join(map(str, LEVELS))}")
    if co_watching and known != "rqvae":
        raise ConfigError(f"{known} cannot learn from co-watching; use rqvae, or leave it out")
    config = QuantizerConfig(
        method=known,
        codebook_sizes=LEVEL_SIZES[num_levels],
        contrastive_weight=CO_WATCHING_WEIGHT if co_watching else 0.0,
    )
    return replace(config, num_clusters=num_clusters) if num_clusters else config


def parts(data: DataSet, options: BootstrapOptions) -> tuple[Timeline, Timeline]:
    """Return the past and what came later: by watches where an LRM learns them, else by the catalogue's uploads."""
    if options.codebook_only:
        return split_catalogue(data.timeline, options.share)
    return split(data.timeline, options.share)


def _is_there(settings: Settings, options: BootstrapOptions) -> bool:
    store = ObjectStore(settings.storage.root)
    if not store.exists(CURRENT_KEY):
        return False
    return options.codebook_only or bool(checkpoint_versions(store, LRM_MODEL_NAME))


def _show(settings: Settings, console: Console) -> None:
    manifest = current_manifest(ObjectStore(settings.storage.root))
    card = manifest.card
    console.print(summary(card))
    skipped = [f"{video_id}: {why}" for video_id, why in card["skipped"].items()]
    for what, found in (
        ("malformed rows of the data set", card["malformed"]),
        ("videos that could not be encoded", skipped),
    ):
        if found:
            console.print(f"{len(found)} {what} are left out; {CARD_FILE} names them all:")
            for line in found[:SKIPPED_SHOWN]:
                console.print(f"  {line}", markup=False, soft_wrap=True)
    folder = f"{settings.storage.root}/{codebook_key(manifest.codebook_version)}"
    console.print(f"Card: {folder}/{CARD_FILE}   picture: {folder}/{PICTURE_FILE}", soft_wrap=True)
