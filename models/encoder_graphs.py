"""Runs one declared encoder's graph: what goes in, in which batches, and the vectors that come out.

Knows nothing of videos and of other modalities. A graph is tried when it is opened: what it returns is what its
declaration says, or the difference is named. Whoever opens it has checked its hash.

Legend: B texts, P frames or patches, T tokens, D the encoder's dimension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from infra.errors import ConfigError
from models.encoder_manifest import (
    AudioSpec,
    EncoderSpec,
    FramePreprocessing,
    FrameSpec,
    TextSpec,
)
from models.log_mel import log_mel_patches
from models.onnx_session import ONNX_ERRORS, open_session

# Rows per run: enough to fill two cores, little enough that activations stay under ~200 MB. Texts, sorted by length, go
# in small runs, as each is padded to its longest.
_TEXT_ROWS, _FRAME_ROWS, _PATCH_ROWS = 16, 16, 32
_PROBE_ROWS = 2
# A missing input is a ValueError.
_REFUSED: tuple[type[Exception], ...] = (*ONNX_ERRORS, ValueError)

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class _Graph:
    """An opened graph with the declared inputs and output.

    Attributes:
        rows_max: rows of one run; 1 where the graph's batch is fixed.
    """

    def __init__(
        self,
        path: Path,
        spec: EncoderSpec,
        inputs: Sequence[str],
        *,
        rows_max: int,
        num_threads: int | None,
    ) -> None:
        self.spec = spec
        try:
            self._session = open_session(path, num_threads=num_threads)
        except ONNX_ERRORS as error:
            raise ConfigError(
                f"ONNX Runtime cannot open {path} of encoder {spec.name} (operators of other libraries are not "
                f"supported): {_one_line(error)}"
            ) from error
        self.inputs = {each.name: each for each in self._session.get_inputs()}
        self._expect("inputs", set(inputs), set(self.inputs), all_of_them=True)
        outputs = {each.name for each in self._session.get_outputs()}
        self._expect("output", {spec.output}, outputs)
        self.rows_max = self._rows(rows_max)

    def run(self, feed: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """Return the output for at most `rows_max` rows, one row for each."""
        rows = len(next(iter(feed.values())))
        output = np.asarray(self._session.run([self.spec.output], dict(feed))[0], np.float32)
        if self.rows_max == 1 and output.shape[:1] != (1,):
            output = output[None]  # a graph for one row may leave the batch out of what it returns
        if output.shape[:1] != (rows,):
            raise ConfigError(
                f"encoder {self.spec.name}: {rows} rows gave an output of shape {list(output.shape)}: export the graph "
                "with a dynamic batch in all of its inputs and its output, or with a batch of one"
            )
        return output

    def probe(self, feed: Mapping[str, npt.NDArray[Any]], vectors: Any) -> None:
        """Return when `vectors(feed)` is finite and has the declared dimension.

        Raises: ConfigError: it is not so, or ONNX Runtime refuses the feed.
        """
        try:
            found = vectors({name: values[: self.rows_max] for name, values in feed.items()})
        except _REFUSED as error:
            raise ConfigError(
                f"encoder {self.spec.name}: its graph refuses what its declaration makes of a probe: {_one_line(error)}"
            ) from error
        if found.ndim != 2 or found.shape[1] != self.spec.dimension:
            raise ConfigError(
                f"encoder {self.spec.name} declares dimension {self.spec.dimension}, its output {self.spec.output!r} "
                f"gives vectors of {list(found.shape[1:])}: correct the dimension, or name another output"
            )
        if not np.isfinite(found).all():
            raise ConfigError(f"encoder {self.spec.name}: a probe gave numbers that are not finite")

    def _expect(
        self, what: str, declared: set[str], found: set[str], *, all_of_them: bool = False
    ) -> None:
        if not declared <= found or (all_of_them and declared != found):
            raise ConfigError(
                f"encoder {self.spec.name} declares {what} {sorted(declared)}, its graph has {sorted(found)}"
            )

    def _rows(self, rows_max: int) -> int:
        batches = {each.shape[0] for each in self.inputs.values() if each.shape}
        fixed = {batch for batch in batches if isinstance(batch, int)}
        if fixed - {1}:
            raise ConfigError(
                f"encoder {self.spec.name}: its graph takes batches of {max(fixed)} only: export it with a dynamic "
                "batch, or with a batch of one"
            )
        return 1 if fixed else rows_max


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class TextGraph:
    """A text encoder, ready to run; thread-safe."""

    def __init__(self, directory: Path, spec: TextSpec, *, num_threads: int | None = None) -> None:
        self._spec = spec
        names = (spec.inputs.input_ids, spec.inputs.attention_mask, spec.inputs.token_type_ids)
        self._graph = _Graph(
            directory / spec.file,
            spec,
            [name for name in names if name is not None],
            rows_max=_TEXT_ROWS,
            num_threads=num_threads,
        )
        self._tokenizer = _load_tokenizer(directory / spec.preprocessing.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.preprocessing.tokens_max)
        self._probe()

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return one unit vector per text that is not blank, and zeros for the others.

        Texts of similar length go in together, so that little is spent on padding.
        Shapes: B texts -> [B, D].
        """
        vectors_BD = np.zeros((len(texts), self._spec.dimension), np.float32)
        tokens = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        rows.sort(key=lambda row: len(tokens[row]))
        for start in range(0, len(rows), self._graph.rows_max):
            batch = rows[start : start + self._graph.rows_max]
            vectors_BD[batch] = unit(self._vectors(self._feed([tokens[row] for row in batch])))
        return vectors_BD

    def _feed(self, tokens: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[Any]]:
        """Return the graph's inputs, padded to the longest text, or to the length that the graph is fixed to."""
        names = self._spec.inputs
        fixed = self._graph.inputs[names.input_ids].shape[1:2]
        length = fixed[0] if fixed and isinstance(fixed[0], int) else max([1, *map(len, tokens)])
        input_ids_BT = np.full((len(tokens), length), self._spec.preprocessing.pad_id, np.int64)
        attention_mask_BT = np.zeros_like(input_ids_BT)
        for row, ids in enumerate(tokens):
            input_ids_BT[row, : len(ids)] = ids
            attention_mask_BT[row, : len(ids)] = 1
        feed = {names.input_ids: input_ids_BT, names.attention_mask: attention_mask_BT}
        if names.token_type_ids is not None:
            feed[names.token_type_ids] = np.zeros_like(input_ids_BT)
        wanted = {name: _INTEGERS.get(each.type) for name, each in self._graph.inputs.items()}
        return {name: values.astype(wanted[name] or np.int64) for name, values in feed.items()}

    def _vectors(self, feed: Mapping[str, npt.NDArray[Any]]) -> Float32:
        output = self._graph.run(feed)
        pooling = self._spec.preprocessing.pooling
        if pooling == "none":
            return output.reshape(len(output), -1)
        if output.ndim != 3:
            raise ConfigError(
                f"encoder {self._spec.name} declares pooling {pooling}, which takes an output of one vector per token; "
                f"its output {self._spec.output!r} has shape {list(output.shape)}"
            )
        if pooling == "cls":
            return output[:, 0]
        mask_BT1 = feed[self._spec.inputs.attention_mask][:, :, None].astype(np.float32)
        return np.asarray((output * mask_BT1).sum(axis=1) / np.maximum(mask_BT1.sum(axis=1), 1.0))

    def _probe(self) -> None:
        """Try the longest text and the last token: a graph for fewer positions or words is found now."""
        longest, last = (
            self._spec.preprocessing.tokens_max,
            max(self._tokenizer.get_vocab().values()),
        )
        length = self._graph.inputs[self._spec.inputs.input_ids].shape[1:2]
        if length and isinstance(length[0], int) and length[0] < longest:
            raise ConfigError(
                f"encoder {self._spec.name} declares tokens_max {longest}, its graph takes {length[0]} tokens"
            )
        self._graph.probe(self._feed([[last] * longest, [last, last]]), self._vectors)


def _load_tokenizer(path: Path) -> Tokenizer:
    # The library reports what it cannot read as a bare Exception: look first.
    try:
        document = json.loads(path.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict) or "model" not in document:
        raise ConfigError(
            f"{path} is no tokenizer of the tokenizers library: expected the file that `save_pretrained` or "
            "`Tokenizer.save` calls tokenizer.json"
        )
    return Tokenizer.from_file(str(path))


class _PartsGraph:
    """An encoder of videos that come in parts: frames or patches; a video's vector is the direction of their mean."""

    def __init__(self, graph: _Graph, input_name: str) -> None:
        self._graph = graph
        self._input_name = input_name

    def encode(self, videos: Sequence[npt.NDArray[Any] | None]) -> Float32:
        """Return one unit vector per video, and zeros where there is None; parts of all videos run together.

        Shapes: B times [P > 0, ...] -> [B, D].
        """
        vectors_BD = np.zeros((len(videos), self._graph.spec.dimension), np.float32)
        present = [(row, parts) for row, parts in enumerate(videos) if parts is not None]
        if not present:
            return vectors_BD
        stacked = np.concatenate([parts for _, parts in present])
        step = self._graph.rows_max
        runs = [
            self._vectors({self._input_name: self._prepared(stacked[start : start + step])})
            for start in range(0, len(stacked), step)
        ]
        starts = np.cumsum([0, *(len(parts) for _, parts in present)])[:-1]
        sums_BD = np.add.reduceat(np.concatenate(runs), starts, axis=0)
        vectors_BD[[row for row, _ in present]] = unit(sums_BD)
        return vectors_BD

    def _prepared(self, parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return parts

    def _vectors(self, feed: Mapping[str, npt.NDArray[Any]]) -> Float32:
        output = self._graph.run(feed)
        return output.reshape(len(output), -1)

    def _probe(self, parts: npt.NDArray[Any]) -> None:
        self._graph.probe({self._input_name: self._prepared(parts)}, self._vectors)


class FrameGraph(_PartsGraph):
    """An encoder of frames, uint8 [P, size, size, 3] RGB, ready to run; thread-safe."""

    def __init__(self, directory: Path, spec: FrameSpec, *, num_threads: int | None = None) -> None:
        name = spec.inputs.frames
        graph = _Graph(
            directory / spec.file, spec, [name], rows_max=_FRAME_ROWS, num_threads=num_threads
        )
        super().__init__(graph, name)
        self._preprocessing = spec.preprocessing
        shape = (_PROBE_ROWS, spec.preprocessing.size, spec.preprocessing.size, 3)
        self._probe(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def _prepared(self, parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return prepared_frames(parts, self._preprocessing)


def prepared_frames(frames: UInt8, wanted: FramePreprocessing) -> npt.NDArray[Any]:
    """Return frames as a graph wants them.

    Shapes: uint8 [P, S, S, 3] RGB -> [P, S, S, 3] or [P, 3, S, S], uint8 or float32.
    """
    values: npt.NDArray[Any] = frames if wanted.colour == "rgb" else frames[..., ::-1]
    if wanted.dtype == "float32":
        mean, std = np.array(wanted.mean, np.float32), np.array(wanted.std, np.float32)
        values = (values.astype(np.float32) * np.float32(wanted.scale) - mean) / std
    return np.ascontiguousarray(values if wanted.layout == "NHWC" else values.transpose(0, 3, 1, 2))


class AudioGraph(_PartsGraph):
    """An encoder of sound, ready to run; thread-safe."""

    def __init__(self, directory: Path, spec: AudioSpec, *, num_threads: int | None = None) -> None:
        name = spec.inputs.patches
        graph = _Graph(
            directory / spec.file, spec, [name], rows_max=_PATCH_ROWS, num_threads=num_threads
        )
        super().__init__(graph, name)
        self._log_mel = spec.preprocessing
        samples = self._log_mel.sample_rate * 2
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, samples).astype(np.float32)
        self._probe(np.concatenate([self.patches(noise)] * _PROBE_ROWS)[:_PROBE_ROWS])

    def patches(self, waveform: Float32) -> Float32:
        """Return the log-mel patches of a waveform at 16 kHz."""
        return log_mel_patches(waveform, log_mel=self._log_mel)


def unit(vectors_BD: Float32) -> Float32:
    """Return the directions of vectors; zeros stay zeros."""
    norms = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    return np.asarray(vectors_BD / np.maximum(norms, 1e-12))
