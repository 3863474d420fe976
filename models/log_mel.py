"""YAMNet's ears: a waveform becomes log-mel patches, in numpy; knows nothing of graphs and containers.

Legend: S samples, W windows, N FFT bins, F mel bands (64), P patches, T windows per patch (96).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
WINDOW = 400  # 25 ms
HOP = 160  # 10 ms
FFT_SIZE = 512
MEL_BANDS = 64
MEL_LOW_HZ, MEL_HIGH_HZ = 125.0, 7_500.0
LOG_OFFSET = 0.001
PATCH_WINDOWS, PATCH_HOP = 96, 48  # 0.96 s every 0.48 s

Float32 = npt.NDArray[np.float32]


def log_mel_patches(waveform: Float32) -> Float32:
    """Return overlapping log-mel patches; a waveform shorter than one patch is padded with silence.

    Shapes: waveform [S] float32 at 16 kHz -> [P, 1, 96, 64] float32, P >= 1.
    Source: the YAMNet feature extraction of tensorflow/models (research/audioset/yamnet).
    """
    shortest = WINDOW + (PATCH_WINDOWS - 1) * HOP
    padded = np.pad(waveform, (0, max(0, shortest - len(waveform))))
    windows_WS = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    # The periodic Hann window, not numpy's symmetric one.
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    magnitude_WN = np.abs(np.fft.rfft(windows_WS * hann, FFT_SIZE)).astype(np.float32)
    log_mel_WF = np.log(magnitude_WN @ _mel_weights() + LOG_OFFSET)
    starts = range(0, len(log_mel_WF) - PATCH_WINDOWS + 1, PATCH_HOP)
    return np.stack([log_mel_WF[None, start : start + PATCH_WINDOWS] for start in starts])


@cache
def _mel_weights() -> Float32:
    """Return the [257, 64] triangles, equally wide on the HTK mel scale, straight in mel."""
    bins_mel = _hz_to_mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1))
    edges = np.linspace(_hz_to_mel(MEL_LOW_HZ), _hz_to_mel(MEL_HIGH_HZ), MEL_BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins_mel[:, None] - lower) / (centre - lower)
    falling = (upper - bins_mel[:, None]) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _hz_to_mel(hz: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))
