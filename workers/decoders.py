"""A pool of processes that decode media, so that what hangs or crashes FFmpeg costs one item and no worker.

Knows nothing of uploads and of what is made of the media.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Protocol

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from infra.clock import Deadline
from infra.errors import DecodeError, FreshetError, TransientError
from infra.settings import UploadSettings
from infra.tether import PR_SET_PDEATHSIG
from models.media import Media
from workers.media_roots import check_roots, shown
from workers.media_sources import load_media

FIRST_RETRY_S = 1.0  # doubled each time
# Decoding minds the time by itself; only what does not come back from FFmpeg or the kernel is killed.
KILL_GRACE_S = 1.0
# A decoder needs a second to start; a busy machine may need longer.
START_S = 60.0
# Beyond what the imports took. Seventeen 10-bit frames of the largest picture are 480 MB; a header that inflates to
# gigabytes fails here instead of waking the kernel's out-of-memory killer.
MEMORY_BYTES = 3 << 29


class Decode(Protocol):
    """What a decoder process runs."""

    def __call__(self, uri: str, settings: UploadSettings, *, frame_size: int) -> Media:
        """Return what was decoded, or raise a DecodeError or a TransientError."""


class MediaDecoders:
    """Decoder processes, started by the first `load`; a worker that only ever sees text has none.

    All calls come from one event loop, whose thread has to outlive the pool: the kernel kills the decoders when the
    thread that started them ends, which is how they die with a worker that was killed.
    """

    def __init__(
        self, settings: UploadSettings, *, frame_size: int = 224, decode: Decode = load_media
    ) -> None:
        """Start nothing yet; `decode` runs in the processes, so it has to be a module's function.

        Raises:
            ConfigError: a media root could never be read.
        """
        check_roots(settings.media_roots)
        self._settings = settings
        self._frame_size = frame_size
        self._decode = decode
        self._pool: ProcessPool | None = None
        self._tasks: dict[ProcessFuture[Media], ProcessPool] = {}
        self._closed = False

    async def load(self, uri: str, *, slots: asyncio.Semaphore | None = None) -> Media:
        """Return what was decoded of an allowed URI; the caller then holds one of the `slots`, and releases it.

        None is held between attempts: media that do not come keep no others waiting.

        Blocks: for `media_timeout_s` and a second per attempt, and until a process is free; no attempt starts later
        than `media_retry_s` after the first one.

        Raises:
            DecodeError: `reason` starts with `media_`: the media are bad, or (`media_unavailable`) did not come.
        """
        budget = Deadline(self._settings.media_retry_s)
        attempts = 0
        while True:
            attempts += 1
            if slots is not None:
                await slots.acquire()
            try:
                media = await self._attempt(uri)
            except BaseException as error:
                if slots is not None:
                    slots.release()
                if not isinstance(error, TransientError):
                    raise
                pause_s = FIRST_RETRY_S * 2 ** (attempts - 1)
                if attempts > self._settings.media_retries or pause_s > budget.remaining_s():
                    raise DecodeError(
                        f"{error}, after {attempts} attempts; send the upload again once it is there",
                        "media_unavailable",
                    ) from error
            else:
                return media
            await asyncio.sleep(pause_s)

    async def _attempt(self, uri: str) -> Media:
        if self._closed:
            raise asyncio.CancelledError
        pool = self._running_pool()
        timeout_s = self._settings.media_timeout_s
        try:
            task = pool.schedule(
                _decode_guarded,
                args=(self._decode, uri, self._settings, self._frame_size),
                timeout=timeout_s + KILL_GRACE_S,
            )
            return await self._result_of(task, pool)
        except TimeoutError as error:
            raise DecodeError(
                f"{shown(uri)!r} was still being decoded after {timeout_s} s", "media_timeout"
            ) from error
        except ProcessExpired as error:
            raise DecodeError(
                f"{shown(uri)!r} ended its decoder process, exit status {error.exitcode}",
                "media_decoder_died",
            ) from error
        except (BrokenProcessPool, RuntimeError) as error:
            self._give_up(pool)
            raise TransientError(f"the decoders of {shown(uri)!r} ended: {error}") from error

    def _running_pool(self) -> ProcessPool:
        """Return the pool, a new one if there is none or if a process died while it had nothing to do."""
        if self._pool is not None and not self._pool.active:
            self._give_up(self._pool)
        if self._pool is None:
            self._pool = ProcessPool(
                self._settings.decoders,
                initializer=_become_decoder,
                initargs=(os.getpid(), Path.cwd()),
                context=_Context(),
            )
        return self._pool

    async def _result_of(self, task: ProcessFuture[Media], pool: ProcessPool) -> Media:
        """Return what a task returns, as long as the pool makes progress.

        Raises:
            BrokenProcessPool: it does not: a process died with the pool's lock in its hands.
        """
        self._tasks[task] = pool
        rounds = len(self._tasks) // self._settings.decoders + 1
        waiting = asyncio.wrap_future(task)
        try:
            longest_s = START_S + rounds * (self._settings.media_timeout_s + KILL_GRACE_S)
            done, _ = await asyncio.wait({waiting}, timeout=longest_s)
            if not done:
                raise BrokenProcessPool(f"no answer for {longest_s} s")
            return waiting.result()
        finally:
            del self._tasks[task]
            waiting.cancel()

    def _give_up(self, pool: ProcessPool) -> None:
        """End a pool, and what waits in it; pebble forgets tasks that no process has taken."""
        if self._pool is not pool:  # another of its items was first to notice
            return
        self._pool = None
        pool.stop()  # type: ignore[no-untyped-call]  # as pebble has it
        pool.join()
        for task in [task for task, its_pool in self._tasks.items() if its_pool is pool]:
            if not task.done():
                task.set_exception(BrokenProcessPool("another item found the pool broken"))

    def close(self) -> None:
        """End the decoders, whatever they are doing; calls of `load` are cancelled, these and later ones.

        Delivery: an upload whose media were being loaded is not acknowledged, and comes again.
        Blocks: for some tenths of a second, while the pool's threads notice.
        """
        self._closed = True
        for task in self._tasks:
            task.cancel()  # type: ignore[no-untyped-call]  # as pebble has it
        if self._pool is not None:
            self._give_up(self._pool)


def _decode_guarded(decode: Decode, uri: str, settings: UploadSettings, frame_size: int) -> Media:
    try:
        return decode(uri, settings, frame_size=frame_size)
    except FreshetError:
        raise
    except Exception as error:  # this process's supervisor: what trips it up is refused alone
        raise DecodeError(
            f"{shown(uri)!r} tripped the decoder: {type(error).__name__}: {error}",
            "media_decoder_failed",
        ) from error


class _DecoderProcess(SpawnProcess):
    """A process that heeds no SIGTERM, as one may be meant for the whole group; so it is stopped by SIGKILL."""

    def terminate(self) -> None:
        """Kill the process."""
        self.kill()


class _Context(SpawnContext):
    Process = _DecoderProcess


def _become_decoder(parent_pid: int, directory: Path) -> None:
    """Tie this new process to its parent, make it ignore signals meant for that, and bound its memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the request
            os._exit(1)
        limit = _data_bytes() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir(directory)  # spawn starts in the directory that Python was started in


def _data_bytes() -> int:
    """Return the memory that counts towards RLIMIT_DATA so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
