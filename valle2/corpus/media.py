"""Audio that no later stage could read where it is: a member of a tar, a remote object, a format of ffmpeg's.

Later stages read files that libsndfile knows. Audio that is one stays where it is; other audio is fetched and, where
libsndfile does not know its format, decoded once, to FLAC of its first channel at its own rate.
"""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path, PurePosixPath

import aiohttp
import av
import av.error
import fsspec
import soundfile
from botocore.exceptions import BotoCoreError, ClientError

from valle2.corpus.tars import TAR
from valle2.errors import StorageError

NETWORK_ERRORS = (OSError, TimeoutError, aiohttp.ClientError, BotoCoreError, ClientError)
"""What fsspec raises where a storage does not answer or refuses."""
_ONE_AT_A_TIME = threading.Lock()
_BLOCK = 2**20
_SLACK = 0.1
"""Seconds by which a container's stated duration may be longer than what decodes."""


class MediaError(Exception):
    """Audio that cannot be decoded, and why."""


def is_local(location: str) -> bool:
    """Whether a location is a file's path, not a URL or a tar's member."""
    return "://" not in location


@contextmanager
def fetched(location: str, folder: Path) -> Iterator[Path]:
    """A local file with a location's bytes; it is gone afterwards unless it was moved away.

    Args:
        location: URL that fsspec reads.
        folder: Where to put it.

    Raises:
        FileNotFoundError: There is no such object.
        StorageError: The storage does not answer, or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = location.removeprefix(TAR).split("::")[0]
    path = folder / (hashlib.sha256(location.encode()).hexdigest()[:20] + PurePosixPath(name).suffix.lower())
    try:
        # Members of a tar share one open file.
        turn = _ONE_AT_A_TIME if location.startswith(TAR) else nullcontext()
        with turn, fsspec.open(location, "rb") as remote, path.open("wb") as file:
            shutil.copyfileobj(remote, file, _BLOCK)
    except (FileNotFoundError, KeyError) as error:
        path.unlink(missing_ok=True)
        raise FileNotFoundError(f"nothing at {location}") from error
    except NETWORK_ERRORS as error:
        path.unlink(missing_ok=True)
        raise unreachable(location, error) from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def unreachable(location: str, error: Exception) -> StorageError:
    """The sentence for a network error."""
    return StorageError(
        f"cannot read {location} ({' '.join(str(error).split())[:200]}); check the address, the key and the network, "
        "and run the same command again: it goes on where it stopped"
    )


def decode(path: Path, target: Path) -> None:
    """Decode the first channel of a file that ffmpeg reads to FLAC.

    Raises:
        MediaError: It is no audio, or ends before its header says.
    """
    try:
        with av.open(str(path)) as container:
            stream = next((stream for stream in container.streams.audio if stream.rate), None)
            if stream is None:
                raise MediaError("no audio track")
            promised = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            resampler = av.AudioResampler(format="s16p", layout=stream.layout, rate=stream.rate)
            with soundfile.SoundFile(target, "w", stream.rate, 1, "PCM_16", format="FLAC") as file:
                for frame in chain(container.decode(stream), [None]):
                    for block in resampler.resample(frame):
                        file.write(block.to_ndarray()[0])
                decoded = file.frames / stream.rate
            reliable = "mp4" in container.format.name or "matroska" in container.format.name
    except av.error.FFmpegError as error:
        target.unlink(missing_ok=True)
        raise MediaError(f"ffmpeg: {error.strerror}") from error
    if not decoded:
        target.unlink()
        raise MediaError("not one sample")
    if reliable and decoded < promised - _SLACK:
        target.unlink()
        raise MediaError(f"only {decoded:.2f} s of {promised:.2f} s decode")
