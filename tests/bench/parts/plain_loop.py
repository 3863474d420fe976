"""The loop that one would write without Freshet: confluent-kafka and torch, one upload at a time.

It reads an upload, embeds its text with the same MiniLM in torch eager, codes it with the same quantizer in torch,
writes codes, waits until they are durable, and commits. No batches, no dead letters, no disambiguation.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from confluent_kafka import TopicPartition

from infra.settings import KafkaSettings
from models.encoder_export import load_text_encoder
from models.encoders import Encoders
from models.quantizer import Quantizer
from streams.client import consumer, producer
from streams.codec import decode_upload
from streams.events import VideoUploaded
from streams.topics import COUNTS, UPLOADS
from tests.bench.parts.upload_sources import plain_tokenizer
from workers.featurize import upload_text

OUTPUT = COUNTS  # any topic that nobody else writes to here


def plain_loop_per_s(
    settings: KafkaSettings, encoders: Path, quantizer: Quantizer, *, uploads: int
) -> float:
    """Return how many of the first uploads in `video.uploads` it handles per second."""
    dimensions = Encoders(encoders).dimensions
    tokenizer = plain_tokenizer(encoders)
    encoder = load_text_encoder()
    reader = consumer(settings, group="plain-loop")
    topic = UPLOADS.in_cluster(settings)
    reader.assign([TopicPartition(topic, at, 0) for at in range(settings.partitions)])
    writer = producer(settings)
    absent = [torch.zeros(1, dimensions["frames"]), torch.zeros(1, dimensions["audio"])]
    present = torch.tensor([[True, False, False]])
    done, started = 0, 0.0
    while done < uploads:
        message = reader.poll(10)
        if message is None or message.error():
            continue
        started = started or time.monotonic()  # not what it takes to connect
        upload = decode_upload(message.value())
        if not isinstance(upload, VideoUploaded):
            continue
        tokens = tokenizer.encode(upload_text(upload, 20_000))
        with torch.inference_mode():
            text = encoder(torch.tensor([tokens.ids]), torch.tensor([tokens.attention_mask]))
            codes = quantizer(text, *absent, present)[0]
        writer.produce(
            OUTPUT.in_cluster(settings),
            key=upload.video_id.encode(),
            value=json.dumps(codes[0].tolist()).encode(),
        )
        writer.flush()
        reader.commit(message)
        done += 1
    per_s = done / (time.monotonic() - started)
    reader.close()
    return per_s
