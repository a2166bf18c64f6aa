"""Pictures and videos behind http(s) addresses: fetched once, kept below the cache folder."""

import hashlib
import re
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlmft.cache import cache_dir, make_once
from vlmft.errors import DataError

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 200 * 1024 * 1024
"""What is larger is not kept: whoever wrote the address may have meant something else."""
TIMEOUT_S = 30.0
"""How long a server may be silent."""
TOTAL_S = 600.0
"""How long one medium may take."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 80
_FIX = "mend the address, or save the file below media_dir"


def fetch(url: str) -> Path:
    """Return the file that holds what `url` gave when it was first asked for: `<cache>/media/<hash of url>/<name>`.

    An address is asked once, whatever its server has by now; to ask anew, delete the folder. Redirects are followed
    to http(s) alone. Processes may do this at the same time.

    Raises:
        DataError: the server cannot be reached, is too slow, or answers with an error or too much.
        StorageError: the cache folder cannot be written.
    """
    try:
        path = urlsplit(url).path
    except ValueError as error:
        raise DataError(f"{url[:_LONGEST_NAME]} is no address: {error}; {_FIX}") from None
    folder = cache_dir() / "media" / hashlib.sha256(url.encode()).hexdigest()[:32]
    name = _UNSAFE.sub("_", path.rpartition("/")[2])[-_LONGEST_NAME:].lstrip(".") or "medium"
    return make_once(folder, lambda new: _download(url, new / name)) / name


def _download(url: str, file: Path) -> None:
    import httpx

    end = time.monotonic() + TOTAL_S
    size = 0
    try:
        with _client().stream("GET", url, timeout=TIMEOUT_S) as answer, file.open("wb") as kept:
            if answer.status_code != httpx.codes.OK:
                raise DataError(f"{_public(url)} answers {answer.status_code} {answer.reason_phrase}; {_FIX}")
            for block in answer.iter_bytes():
                size += len(block)
                if size > MAX_BYTES:
                    raise DataError(
                        f"{_public(url)} gives more than {MAX_BYTES} bytes; save it below media_dir instead"
                    )
                if time.monotonic() > end:
                    raise DataError(
                        f"{_public(url)} has given {size} bytes in {TOTAL_S:g} s; save it below media_dir instead"
                    )
                kept.write(block)
    except httpx.TimeoutException:
        raise DataError(f"{_public(url)} gives nothing for {TIMEOUT_S:g} s; {_FIX}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DataError(f"{_public(url)} cannot be fetched: {error}; {_FIX}") from error
    if not size:
        raise DataError(f"{_public(url)} gives no bytes; {_FIX}")


@cache
def _client() -> "httpx.Client":
    """One a process, as reading the certificates takes longer than a picture; it keeps no connection to be shared."""
    import httpx

    return httpx.Client(follow_redirects=True, max_redirects=5, limits=httpx.Limits(max_keepalive_connections=0))


def _public(url: str) -> str:
    """The address as a message may show it: without the password or signature that it may hold."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
