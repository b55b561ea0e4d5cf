"""Read what DVC stores by its md5: from the cache, a remote, or the working folder. Without DVC itself.

A lineage record names outputs by md5, and those of any past run must be readable when the working folder holds other
ones. The layout is DVC 3's: `files/md5/<2>/<30>`, and for a folder `<2>/<30>.dir`, a JSON list of its files.
"""

import configparser
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from valle2.errors import LineageError

CACHE = Path(".dvc/cache")
DIR_SUFFIX = ".dir"


_OPTIONS = {"access_key_id": "key", "secret_access_key": "secret", "profile": "profile", "endpointurl": "endpoint_url"}
"""DVC's names of S3 settings, and s3fs's."""


@dataclass(frozen=True)
class Place:
    """A folder or fsspec URL that holds `files/md5`, with fsspec's options for it."""

    url: str
    options: dict[str, str] = field(default_factory=dict)


def places(repository: Path = Path()) -> list[Place]:
    """Places of DVC objects as `.dvc/config` and `.dvc/config.local` name them: the cache, then the remotes."""
    config = configparser.ConfigParser(interpolation=None)
    # DVC writes section names in quotes, such as ['remote "storage"'].
    texts = [repository / ".dvc" / name for name in ("config", "config.local")]
    config.read(path for path in texts if path.is_file())
    base = repository / ".dvc"
    cache = config.get("cache", "dir", fallback="")
    found = [Place(str((base / cache if cache else repository / CACHE).resolve()))]
    for section in config.sections():
        settings = config[section]
        if section.strip("'").startswith("remote ") and (url := settings.get("url", "")):
            options = {theirs: settings[ours] for ours, theirs in _OPTIONS.items() if ours in settings}
            found.append(Place(url, options) if "://" in url else Place(str((base / url).resolve())))
    return found


class ObjectReader:
    """Objects by md5, each verified when it is read."""

    def __init__(self, places: list[Place], working: Path | None = None) -> None:
        """Take places to look in.

        Args:
            places: Where to look, in this order.
            working: A working folder whose files serve too, if their md5 is the wanted one.
        """
        self.places = places
        self._working = working
        self._listings: dict[str, dict[str, str]] = {}

    def read(self, outs: dict[str, str], path: str) -> bytes:
        """The bytes of a file among a stage's outputs.

        Args:
            outs: A stage record's outputs: a file's md5, or a folder's md5 with `.dir`.
            path: The file, relative to the repository root.

        Raises:
            LineageError: The record does not have it, or no place holds its bytes.
        """
        return self._fetch(self.md5(outs, path), path)

    def md5(self, outs: dict[str, str], path: str) -> str:
        """The md5 of a file among a stage's outputs."""
        if path in outs:
            return outs[path]
        for folder, md5 in outs.items():
            if md5.endswith(DIR_SUFFIX) and path.startswith(folder.rstrip("/") + "/"):
                listed = self._listing(md5, folder)
                name = path[len(folder.rstrip("/")) + 1 :]
                if name in listed:
                    return listed[name]
        raise LineageError(f"the lineage record has no output {path}; it has {', '.join(sorted(outs))}")

    def _listing(self, md5: str, folder: str) -> dict[str, str]:
        if md5 not in self._listings:
            rows = json.loads(self._fetch(md5, folder))
            self._listings[md5] = {row["relpath"]: row["md5"] for row in rows}
        return self._listings[md5]

    def _fetch(self, md5: str, path: str) -> bytes:
        wanted = md5.removesuffix(DIR_SUFFIX)
        for place in self.places:
            fs, base = fsspec.core.url_to_fs(place.url, **place.options)
            try:
                data: bytes = fs.cat_file(f"{base.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != wanted:
                raise LineageError(
                    f"object {md5} of {path} in {place.url} is damaged; remove it there and `dvc fetch` it"
                )
            return data
        local = self._working / path if self._working else None
        if local and local.is_file():
            data = local.read_bytes()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() == wanted:
                return data
        asked = ", ".join(place.url for place in self.places)
        raise LineageError(
            f"the object {md5} of {path} is in none of {asked}; name the remote that the run pushed to with "
            "`dvc remote add`, or run `dvc fetch` on the run's branch"
        )
