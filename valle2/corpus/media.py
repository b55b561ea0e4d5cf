"""Audio that no later stage could read where it is: a member of a tar, a remote object, a format of ffmpeg's.

Later stages read files that libsndfile knows. Audio that is one stays where it is; other audio is fetched and, where
libsndfile does not know its format, decoded once, to FLAC of its first channel at its own rate.
"""

import errno
import hashlib
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO

import av
import av.error
import fsspec
import soundfile

from valle2.corpus.tars import TAR
from valle2.errors import StorageError
from valle2.storage import BLOCK, Patience

_MAX_RATE = 655_350
"""Hz, the most that FLAC holds (RFC 9639, section 9.1)."""
_SLACK = 0.1
"""Seconds by which a container's stated duration may be longer than what decodes."""


class MediaError(Exception):
    """Audio that cannot be decoded, and why."""


class TruncatedError(MediaError):
    """Audio that ends before its header says."""


def is_local(location: str) -> bool:
    """Whether a location is a file's path, not a URL or a tar's member."""
    return "://" not in location


class Fetcher:
    """Gets local files with the bytes of locations; safe for several threads. It keeps tars open, with their indexes.

    with Fetcher(folder) as fetcher, fetcher.fetched(location) as path:
        ...

    Args:
        folder: Where to put the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tars: dict[str, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._patience = Patience()

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @contextmanager
    def fetched(self, location: str) -> Iterator[Path]:
        """A file with a location's bytes; it is gone afterwards unless it was moved away.

        Args:
            location: URL that fsspec reads.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The storage does not answer, or refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = location.removeprefix(TAR).split("::")[0]
        path = self._folder / (hashlib.sha256(location.encode()).hexdigest()[:20] + PurePosixPath(name).suffix.lower())
        try:
            with path.open("wb") as file:
                self._patience(location, lambda: self._copy(location, file))
        except (FileNotFoundError, KeyError) as error:
            path.unlink(missing_ok=True)
            raise FileNotFoundError(f"nothing at {location}") from error
        except (OSError, StorageError):
            path.unlink(missing_ok=True)
            raise
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _copy(self, location: str, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        if not location.startswith(TAR):
            with fsspec.open(location, "rb") as remote:
                shutil.copyfileobj(remote, file, BLOCK)
            return
        name, place = location.removeprefix(TAR).split("::", 1)
        with self._lock:  # members of a tar share one open file
            tar, members = self._tar(place)
            member = tar.extractfile(members[name])
            assert member is not None
            shutil.copyfileobj(member, file, BLOCK)

    def _tar(self, place: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        if place not in self._tars:
            self._open.close()  # the one before: audio comes sorted by its tar
            self._tars.clear()
            file = self._open.enter_context(fsspec.open(place, "rb"))
            tar = self._open.enter_context(tarfile.open(fileobj=file))  # noqa: SIM115
            self._tars[place] = tar, {PurePosixPath(member.name).as_posix(): member for member in tar}
        return self._tars[place]


def decode(path: Path, target: Path) -> None:
    """Decode the first channel of a file that ffmpeg reads to FLAC.

    Raises:
        OSError: The disk is full.
        MediaError: It is no audio.
        TruncatedError: It ends before its header says.
    """
    try:
        with av.open(str(path)) as container:
            stream = next((stream for stream in container.streams.audio if stream.rate), None)
            if stream is None:
                raise MediaError("no audio track")
            if stream.rate > _MAX_RATE:
                raise MediaError(f"{stream.rate} Hz; at most {_MAX_RATE} Hz can be kept")
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
    except soundfile.LibsndfileError as error:
        target.unlink(missing_ok=True)  # of writing, and libsndfile does not say why
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
    if not decoded:
        target.unlink()
        raise MediaError("not one sample")
    if reliable and decoded < promised - _SLACK:
        target.unlink()
        raise TruncatedError(f"cut short: only {decoded:.2f} s of {promised:.2f} s decode")
