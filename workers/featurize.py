"""From an upload to its codes: what the encoders are given, which media may be read, and what is made of the result.

An upload is taken whole or not at all: one whose media cannot be used is refused even though its title could be coded,
so that its semantic ID never depends on luck. Knows nothing of Faust, consumer groups and disambiguation codes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.errors import DecodeError, TransientError, VersionMismatchError
from infra.settings import Settings, UploadSettings
from infra.storage import ObjectStore
from models.codebook import ENCODERS_KEY, GRAPH_FILE, CodebookManifest, current_codebook
from models.encoders import Content, Encoders
from models.media import Media, MediaLimits, decode_media
from models.onnx_quantizer import OnnxQuantizer, QuantizedBatch
from streams.codes import encode_embedding
from streams.events import CodesComputed, VideoMetadata, VideoUploaded

# Format characters that Persian, Hindi and emoji are spelt with.
_JOINERS = "\u200c\u200d"


class Featurizer:
    """A codebook and the encoders it was fitted on, ready to run; thread-safe.

    Raises:
        VersionMismatchError: the codebook was fitted on other encoders.
    """

    def __init__(self, encoders: Encoders, quantizer: OnnxQuantizer) -> None:
        self.codebook = quantizer.manifest
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


def content_of(upload: VideoUploaded, settings: UploadSettings) -> Content:
    """Return what the encoders are given of an upload, its media decoded.

    Blocks: while media is read and decoded, at most `media_max_s` seconds of it.

    Raises:
        DecodeError: the media is none, lies outside the roots, or passes a limit.
        TransientError: the media is not there now.
    """
    text = upload_text(upload, settings.max_text_chars)
    if upload.media_uri is None:
        return Content(text)
    media = _load_media(upload.media_uri, settings)
    return Content(text, media.frames, media.waveform)


def upload_text(upload: VideoMetadata, max_chars: int) -> str:
    """Return the text that is embedded: the title first, as what is cut off is the end."""
    parts = (
        upload.title,
        ", ".join((upload.category, *upload.topics)).strip(", "),
        ", ".join(upload.tags),
        upload.channel,
        upload.description,
        getattr(upload, "transcript", None) or "",
    )
    cleaned = (clean_text(part) for part in parts)
    return "\n".join(part for part in cleaned if part)[:max_chars]


def clean_text(text: str) -> str:
    """Return a text without control and bidirectional characters, its white space as single spaces."""
    return " ".join("".join(filter(_is_kept, text)).split())


def _is_kept(character: str) -> bool:
    if character.isspace() or character in _JOINERS:
        return True
    # Cc: control, Cf: format (all bidirectional marks among them), Cs: lone surrogates, Co: private use.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")


def resolve_media(uri: str, roots: Sequence[str]) -> Path:
    """Return the file that a `file://` URI or a plain path names, links followed, if it lies inside one of the roots.

    Relative paths, the roots' too, start at the working directory.

    Raises:
        DecodeError: with reason `media_uri` or `media_outside_roots`.
        TransientError: there is no such file (yet).
    """
    try:
        path = _path_in(uri).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, no URI
        raise DecodeError(f"media_uri {uri!r} cannot name a file: {error}", "media_uri") from error
    if not any(path.is_relative_to(Path(root).resolve()) for root in roots):
        raise DecodeError(
            f"media_uri {uri!r} leads outside the media roots; FRESHET_UPLOADS__MEDIA_ROOTS lists them",
            "media_outside_roots",
        )
    if not is_file:
        raise TransientError(f"media_uri {uri!r} names no file")
    return path


def _path_in(uri: str) -> Path:
    if "\0" in uri:
        raise ValueError("it holds a null character")
    parts = urlsplit(uri)
    if not parts.scheme:
        return Path(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError("expected a path or a file:// URI")
    return Path(unquote(parts.path))


def _load_media(uri: str, settings: UploadSettings) -> Media:
    limits = MediaLimits(bytes_max=settings.media_max_bytes, seconds_max=settings.media_max_s)
    try:
        return decode_media(resolve_media(uri, settings.media_roots), limits=limits)
    except DecodeError as error:
        reason = error.reason if error.reason.startswith("media_") else f"media_{error.reason}"
        raise DecodeError(str(error), reason) from error


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
        codebook_version=codebook.codebook_version,
        embedding_f16=encode_embedding(quantized.embedding_BD[0]),
        upload_time_ms=upload.upload_time_ms or upload.event_time_ms,
        upload_append_time_ms=append_time_ms,
        upload_position=position,
    )
