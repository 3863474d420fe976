"""Turns a video's text, frames and sound into one embedding per modality, with the encoders of a folder.

Knows nothing of torch (a worker starts in a second without it), of containers, Kafka and semantic IDs.

Legend: B videos, M modalities, D an encoder's dimension, F frames of a video, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.encoder_graphs import AudioGraph, FrameGraph, TextGraph
from models.encoder_manifest import MODALITIES, Modality, load_manifest

__all__ = ["FRAME_SIZE", "MODALITIES", "Content", "Embeddings", "Encoders", "Modality"]

FRAME_SIZE = 224
"""Pixels of a frame's side that the built-in encoder takes."""

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Content:
    """What is known of one video; an empty text, or None, says that the modality is missing.

    Shapes: frames uint8 [F, size, size, 3] RGB of `Encoders.frame_size`, waveform float32 [S] at 16 kHz mono.
    """

    text: str
    frames: UInt8 | None = None
    waveform: Float32 | None = None


@dataclass(frozen=True)
class Embeddings:
    """One unit vector per video and modality; where `present_BM` is False the row is zero.

    Shapes: text_BD, frames_BD, audio_BD float32 [B, D], each with the D of `Encoders.dimensions`;
    present_BM bool [B, 3], columns in the order of MODALITIES.
    """

    text_BD: Float32
    frames_BD: Float32
    audio_BD: Float32
    present_BM: Bool


class Encoders:
    """Three encoders, tried and ready to run; thread-safe.

    Attributes:
        frame_size: pixels of a frame's side.

    Raises:
        ConfigError: the directory has no manifest, or a graph does not do what its declaration says.
        VersionMismatchError: a file is not the one that the manifest announces.
    """

    def __init__(self, directory: Path, *, num_threads: int | None = None) -> None:
        self.manifest = load_manifest(directory)
        self.dimensions: dict[Modality, int] = {
            spec.modality: spec.dimension for spec in self.manifest.encoders
        }
        self.frame_size = self.manifest.frames.preprocessing.size
        self._text = TextGraph(directory, self.manifest.text, num_threads=num_threads)
        self._frames = FrameGraph(directory, self.manifest.frames, num_threads=num_threads)
        self._audio = AudioGraph(directory, self.manifest.audio, num_threads=num_threads)

    def encode(self, contents: Sequence[Content]) -> Embeddings:
        """Embed each video's modalities; several frames or patches become their mean's direction.

        Shapes: B contents -> Embeddings of B rows; B may be 0.
        Raises: ValueError: frames or a waveform have another shape or type than Content says.
        """
        for content in contents:
            self._check_shapes(content)
        waveforms = [content.waveform for content in contents]
        patches = [None if each is None else self._audio.patches(each) for each in waveforms]
        present = [_is_present(content) for content in contents]
        return Embeddings(
            self._text.encode([content.text for content in contents]),
            self._frames.encode([content.frames for content in contents]),
            self._audio.encode(patches),
            np.array(present, dtype=bool).reshape(-1, len(MODALITIES)),
        )

    def _check_shapes(self, content: Content) -> None:
        frames, waveform, size = content.frames, content.waveform, self.frame_size
        if frames is not None and (
            frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3) or not len(frames)
        ):
            raise ValueError(
                f"frames are {frames.dtype} {frames.shape}, expected uint8 [F > 0, {size}, {size}, 3]"
            )
        if waveform is not None and (
            waveform.dtype != np.float32 or waveform.ndim != 1 or not len(waveform)
        ):
            raise ValueError(
                f"waveform is {waveform.dtype} {waveform.shape}, expected float32 [S > 0] at 16 kHz"
            )


def _is_present(content: Content) -> tuple[bool, bool, bool]:
    return bool(content.text.strip()), content.frames is not None, content.waveform is not None
