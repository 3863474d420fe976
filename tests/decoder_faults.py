"""What a decoder process may do wrong, by URI; a module of its own, as those processes import it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from infra.errors import DecodeError, TransientError
from infra.settings import UploadSettings
from models.media import Media

HEAVY = ("torch", "faust", "ray", "onnxruntime", "aiohttp", "pytest")


def faulty(uri: str, settings: UploadSettings, *, frame_size: int) -> Media:
    """Do what the URI says; anything else returns facts about this process as subtitles."""
    kind, _, argument = uri.partition(":")
    if kind == "hang":
        Path(argument).write_text(str(os.getpid()))
        while True:
            signal.pause()
    if kind == "slow":
        Path(argument).write_text(str(os.getpid()))
        time.sleep(1.0)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(0)
    if kind == "bug":
        raise ZeroDivisionError("by time_base")
    if kind == "bad":
        raise DecodeError("no film", "media_undecodable")
    if kind == "late":
        with Path(argument).open("a") as tries:
            tries.write(".")
        if len(Path(argument).read_text()) < 3:
            raise TransientError("not there yet")
    facts = {
        "pid": os.getpid(),
        "heavy": [name for name in HEAVY if name in sys.modules],
        "directory": str(Path.cwd()),
        "frame_size": frame_size,
    }
    return Media(None, np.zeros(1, np.float32), json.dumps(facts))
