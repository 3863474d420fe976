"""The waveform's way into YAMNet, VGGish and their like."""

from __future__ import annotations

import numpy as np
import pytest

from models.log_mel import SAMPLE_RATE, YAMNET, LogMel, log_mel_patches


def test_patches_of_ten_seconds_start_every_half_patch() -> None:
    patches = log_mel_patches(np.zeros(10 * SAMPLE_RATE, np.float32))
    # 998 windows of 25 ms fit; patches of 96 start at 0, 48, ... up to 902.
    assert patches.shape == (19, 1, 96, 64)
    assert patches.dtype == np.float32


def test_silence_is_the_log_of_the_offset_everywhere() -> None:
    patches = log_mel_patches(np.zeros(SAMPLE_RATE, np.float32))
    np.testing.assert_allclose(patches, np.log(YAMNET.log_offset), rtol=1e-6)


def test_short_waveform_is_padded_to_one_patch() -> None:
    assert log_mel_patches(np.ones(10, np.float32)).shape == (1, 1, 96, 64)


@pytest.mark.parametrize("hz", [300.0, 1_000.0, 3_000.0, 6_000.0])
def test_tone_is_loudest_in_the_mel_band_around_it(hz: float) -> None:
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    patches = log_mel_patches(np.sin(2 * np.pi * hz * seconds).astype(np.float32))
    mel = 1127.0 * np.log1p(np.array([125.0, hz, 7_500.0]) / 700.0)
    # 64 triangles between 66 edges: band b peaks b + 1 steps above the lowest edge.
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 65 - 1
    assert abs(int(patches.mean(axis=(0, 1, 2)).argmax()) - expected) <= 1.0


def test_patches_of_vggish_do_not_overlap_and_have_its_shape() -> None:
    vggish = LogMel(log_offset=0.01, patch_hop_windows=96, patch_shape=(96, 64, 1))
    patches = log_mel_patches(np.zeros(10 * SAMPLE_RATE, np.float32), log_mel=vggish)
    assert patches.shape == (10, 96, 64, 1)
    np.testing.assert_allclose(patches, np.log(0.01), rtol=1e-6)


def test_power_is_the_square_of_magnitude() -> None:
    waveform = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    # Two bands only: each sums many bins, and a sum of squares is not the square of a sum.
    shape = LogMel(mel_bands=2, patch_windows=1, patch_hop_windows=1, patch_shape=(2,))
    power = LogMel(
        mel_bands=2, patch_windows=1, patch_hop_windows=1, patch_shape=(2,), spectrum="power"
    )
    magnitude = np.exp(log_mel_patches(waveform, log_mel=shape)) - 0.001
    squares = np.exp(log_mel_patches(waveform, log_mel=power)) - 0.001
    assert squares.mean() > magnitude.mean() * 3


def test_other_window_and_hop_change_how_many_patches_there_are() -> None:
    coarse = LogMel(window_samples=512, hop_samples=512, patch_windows=10, patch_shape=(10, 64))
    patches = log_mel_patches(np.zeros(512 * 58, np.float32), log_mel=coarse)
    assert patches.shape == (2, 10, 64)
