"""From an upload to its codes: what the encoders are given, and what is made of the result.

An upload is taken whole or not at all: one whose media cannot be used is refused even though its title could be coded,
so that its semantic ID never depends on luck. Knows nothing of Faust, consumer groups and disambiguation codes, and of
where media may be read from.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from infra.clock import now_ms
from infra.errors import DecodeError, VersionMismatchError
from infra.settings import Settings, UploadSettings
from infra.storage import ObjectStore
from models.codebook import ENCODERS_KEY, GRAPH_FILE, CodebookManifest, current_codebook
from models.encoders import FRAME_SIZE, Content, Encoders
from models.media import Media
from models.onnx_quantizer import OnnxQuantizer, QuantizedBatch
from streams.codec import Upload
from streams.codes import encode_embedding
from streams.events import CodesComputed, VideoMetadata, VideoUploaded
from workers.media_sources import load_media

# What people write first says most. The text encoder hears some thousand characters: so the transcript is among them.
DESCRIPTION_HEAD_CHARS = 400

# Format characters that Persian, Hindi and emoji are spelt with.
_JOINERS = "\u200c\u200d"


class Featurizer:
    """A codebook and the encoders it was fitted on, ready to run; thread-safe.

    Raises:
        VersionMismatchError: the codebook was fitted on other encoders.
    """

    def __init__(self, encoders: Encoders, quantizer: OnnxQuantizer) -> None:
        self.codebook = quantizer.manifest
        self.frame_size = encoders.frame_size
        self._encoders = encoders
        self._quantizer = quantizer
        if encoders.manifest.digest != self.codebook.encoders_sha256:
            raise VersionMismatchError(
                f"codebook {self.codebook.codebook_version} was fitted on encoders "
                f"{self.codebook.encoders_sha256}, the store holds {encoders.manifest.digest}: "
                "run `freshet bootstrap` to fit a new one"
            )

    def featurize(self, contents: Sequence[Content]) -> list[QuantizedBatch | DecodeError]:
        """Return each video's codes, as a batch of one, or why it has none.

        Videos are encoded together; where one of them is refused, one by one, so that it spoils no other.
        """
        try:
            together = self._quantizer.quantize(self._encoders.encode(contents))
        except DecodeError as error:
            if len(contents) == 1:
                return [error]
            return [self.featurize([content])[0] for content in contents]
        return list(together.split())


def load_featurizer(settings: Settings) -> Featurizer:
    """Return the featurizer of the object store's encoders and current codebook, every hash checked.

    Raises:
        ConfigError: the store has no codebook yet.
        VersionMismatchError: a file is not the one that was published.
    """
    store = ObjectStore(settings.storage.root)
    cache = settings.var_dir / "cache"
    codebook, directory = current_codebook(store, cache)
    encoders = Encoders(store.local_directory(ENCODERS_KEY, cache))
    return Featurizer(encoders, OnnxQuantizer(codebook, directory / GRAPH_FILE))


def content_of(
    upload: VideoUploaded, settings: UploadSettings, *, frame_size: int = FRAME_SIZE
) -> Content:
    """Return what the encoders are given of an upload, its media decoded in this process.

    Blocks: while media are read and decoded, about `media_timeout_s` at most; what hangs within FFmpeg hangs here, as
    only `workers.decoders` has processes to kill.

    Raises:
        DecodeError: the media are none, lie outside the roots, or pass a limit.
        TransientError: the media are not there now.
    """
    if upload.media_uri is None:
        return content_from(upload, None, settings)
    media = load_media(upload.media_uri, settings, frame_size=frame_size)
    return content_from(upload, media, settings)


def content_from(upload: VideoUploaded, media: Media | None, settings: UploadSettings) -> Content:
    """Return what the encoders are given of an upload and its decoded media.

    The transcript is the event's, or else the media's subtitles.
    """
    if media is not None and not (upload.transcript or "").strip():
        upload = upload.model_copy(update={"transcript": media.subtitles})
    text = upload_text(upload, settings.max_text_chars)
    if media is None:
        return Content(text)
    return Content(text, media.frames, media.waveform)


def check_times(upload: Upload, append_time_ms: int, *, slack_s: float) -> None:
    """Refuse an upload or removal from the future.

    Raises:
        DecodeError: with reason `event_time_in_future`, one of its times is more than `slack_s` after its arrival.
    """
    times_ms = [upload.event_time_ms, getattr(upload, "upload_time_ms", None) or 0]
    if max(times_ms) > append_time_ms + slack_s * 1000:
        raise DecodeError(
            f"its times {times_ms} lie more than {slack_s} s after {append_time_ms}, when it arrived; "
            "is the producer's clock right?",
            "event_time_in_future",
        )


def upload_text(upload: VideoMetadata, max_chars: int) -> str:
    """Return the text that is embedded: the title first, as what is cut off is the end."""
    parts = (
        upload.title,
        ", ".join((upload.category, *upload.topics)).strip(", "),
        ", ".join(upload.tags),
        upload.channel,
        upload.description[:DESCRIPTION_HEAD_CHARS],
        getattr(upload, "transcript", None) or "",
        upload.description[DESCRIPTION_HEAD_CHARS:],
    )
    cleaned = (clean_text(part[: 2 * max_chars]) for part in parts)
    return "\n".join(part for part in cleaned if part)[:max_chars]


def clean_text(text: str) -> str:
    """Return a text without control and bidirectional characters, its white space as single spaces."""
    words = (
        word if word.isprintable() else "".join(filter(_is_kept, word)) for word in text.split()
    )
    return " ".join(filter(None, words))


def _is_kept(character: str) -> bool:
    if character in _JOINERS:
        return True
    # Cc: control, Cf: format (all bidirectional marks among them), Cs: lone surrogates, Co: private use.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")


def codes_computed(
    upload: VideoUploaded,
    quantized: QuantizedBatch,
    codebook: CodebookManifest,
    *,
    append_time_ms: int,
    position: int,
) -> CodesComputed:
    """Return the event that carries an upload's codes; `quantized` is a batch of one."""
    return CodesComputed(
        **upload.model_dump(include=set(VideoMetadata.model_fields)),
        video_id=upload.video_id,
        codes=tuple(quantized.codes_BL[0].tolist()),
        cluster_id=int(quantized.cluster_id_B[0]),
        codebook_version=codebook.codebook_version,
        embedding_f16=encode_embedding(quantized.embedding_BD[0]),
        upload_time_ms=upload.upload_time_ms or upload.event_time_ms,
        upload_append_time_ms=append_time_ms,
        upload_position=position,
        featurized_time_ms=now_ms(),
    )
