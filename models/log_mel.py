"""An audio encoder's ears: a waveform becomes log-mel patches, in numpy; knows nothing of graphs and containers.

Legend: S samples, W windows, N FFT bins, F mel bands, P patches, T windows per patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, PositiveFloat, PositiveInt

SAMPLE_RATE: Final = 16_000

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """How a waveform becomes an encoder's input; the defaults are YAMNet's: 0.96 s of sound every 0.48 s.

    Attributes:
        mel_hz: lowest and highest edge of the mel bands, on the HTK scale.
        log_offset: added to a band before its logarithm.
        patch_shape: of one patch in the graph's input, such as [1, 96, 64], [96, 64] or [96, 64, 1].
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    sample_rate: Literal[16_000] = SAMPLE_RATE
    window_samples: PositiveInt = 400
    hop_samples: PositiveInt = 160
    fft_size: PositiveInt = 512
    mel_bands: PositiveInt = 64
    mel_hz: tuple[float, float] = (125.0, 7_500.0)
    spectrum: Literal["magnitude", "power"] = "magnitude"
    log_offset: PositiveFloat = 0.001
    patch_windows: PositiveInt = 96
    patch_hop_windows: PositiveInt = 48
    patch_shape: tuple[PositiveInt, ...] = (1, 96, 64)

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        if self.fft_size < self.window_samples:
            raise ValueError(
                f"fft_size {self.fft_size} is below window_samples {self.window_samples}"
            )
        if not 0 <= self.mel_hz[0] < self.mel_hz[1] <= self.sample_rate / 2:
            raise ValueError(
                f"mel_hz {self.mel_hz} is not a range within 0 to {self.sample_rate // 2}"
            )
        if prod(self.patch_shape) != self.patch_windows * self.mel_bands:
            raise ValueError(
                f"patch_shape {self.patch_shape} does not hold patch_windows x mel_bands, "
                f"{self.patch_windows} x {self.mel_bands} values"
            )


YAMNET = LogMel()


def log_mel_patches(waveform: Float32, *, log_mel: LogMel = YAMNET) -> Float32:
    """Return log-mel patches; a waveform shorter than one patch is padded with silence.

    Shapes: waveform [S] float32 at 16 kHz -> [P, *patch_shape] float32, P >= 1.
    Source: the YAMNet and VGGish feature extraction of tensorflow/models (research/audioset).
    """
    length, count = log_mel.window_samples, log_mel.patch_windows
    shortest = length + (count - 1) * log_mel.hop_samples
    padded = np.pad(waveform, (0, max(0, shortest - len(waveform))))
    windows_WS = np.lib.stride_tricks.sliding_window_view(padded, length)[:: log_mel.hop_samples]
    # The periodic Hann window, not numpy's symmetric one.
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
    spectrum_WN = np.abs(np.fft.rfft(windows_WS * hann, log_mel.fft_size)).astype(np.float32)
    if log_mel.spectrum == "power":
        spectrum_WN = spectrum_WN**2
    log_mel_WF = np.log(spectrum_WN @ _mel_weights(log_mel) + np.float32(log_mel.log_offset))
    starts = range(0, len(log_mel_WF) - count + 1, log_mel.patch_hop_windows)
    patches_PTF = np.stack([log_mel_WF[start : start + count] for start in starts])
    return patches_PTF.reshape(-1, *log_mel.patch_shape)


@cache
def _mel_weights(log_mel: LogMel) -> Float32:
    """Return the [N, F] triangles, equally wide on the HTK mel scale, straight in mel."""
    bins_mel = _hz_to_mel(np.linspace(0.0, log_mel.sample_rate / 2, log_mel.fft_size // 2 + 1))
    low_mel, high_mel = _hz_to_mel(np.array(log_mel.mel_hz))
    edges = np.linspace(low_mel, high_mel, log_mel.mel_bands + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins_mel[:, None] - lower) / (centre - lower)
    falling = (upper - bins_mel[:, None]) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _hz_to_mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(hz / 700.0))
