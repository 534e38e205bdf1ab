"""One question to a server, and what its failure means: try again, or try elsewhere."""

from __future__ import annotations

import email.utils
import http
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from mmbench.data.fetch.web import Web

BLOCK = 2**17
_TRY_AGAIN = {408, 425, 429}
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<!--")


class NoAnswer(Exception):  # noqa: N818 - it never leaves this folder
    """A server did not give what was asked for.

    Attributes:
        reason: what happened, for the message.
        again: whether the same address may do better a little later.
        wait_s: how long the server asks to wait first.
        code: the code of the message it becomes part of.
        status: the HTTP status, None if there was no answer at all.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = False,
        wait_s: float = 0.0,
        code: str = "E104",
        status: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s = reason, again, wait_s
        self.code, self.status = code, status


def new_session() -> requests.Session:
    """A session for one thread; to be closed."""
    session = requests.Session()
    session.headers["User-Agent"] = "mmbench"
    # Files are wanted as they are: a compressed transfer has no length and no ranges.
    session.headers["Accept-Encoding"] = "identity"
    session.max_redirects = 10
    return session


@contextmanager
def ask(
    session: requests.Session,
    method: str,
    address: str,
    web: Web,
    headers: Mapping[str, str] | None = None,
) -> Iterator[requests.Response]:
    """The answer to one request, its body not read yet; 206 and 416 are the caller's to judge.

    Raises:
        NoAnswer: no answer, a bad one, or the connection failed inside the block.
    """
    if not host_of(address):
        raise NoAnswer("not an address with http or https")
    try:
        with session.request(
            method, address, headers=headers, stream=True, timeout=web.timeout_s,
            allow_redirects=True,
        ) as response:  # fmt: skip
            if response.status_code not in (200, 206, 416):
                raise _bad_status(response)
            yield response
    except requests.exceptions.InvalidSchema as error:
        raise NoAnswer(f"it leads to another scheme than http and https: {error}") from error
    except requests.exceptions.TooManyRedirects as error:
        raise NoAnswer("it leads in a circle of redirects") from error
    except requests.exceptions.SSLError as error:
        raise NoAnswer(f"its certificate is not valid ({_root(error)})") from error
    except requests.exceptions.Timeout as error:
        raise NoAnswer(f"no answer within {web.timeout_s:g} s", again=True) from error
    except requests.exceptions.ConnectionError as error:
        raise NoAnswer(f"no connection ({_root(error)})", again=True) from error
    except (requests.RequestException, UnicodeError) as error:
        raise NoAnswer(f"not an address that can be asked ({error})") from error
    except HTTPError as error:
        silent = isinstance(_innermost(error), TimeoutError)
        reason = f"silent for {web.timeout_s:g} s" if silent else "the connection was cut"
        raise NoAnswer(reason, again=True) from error


def host_of(address: str) -> str:
    """Host and port of a web address, "" for anything else."""
    try:
        parts = urlsplit(address)
        is_web = parts.scheme.lower() in ("http", "https") and parts.hostname
        return f"{parts.hostname}:{parts.port or ''}" if is_web else ""
    except ValueError:  # for example a port that is no number
        return ""


def blocks(response: requests.Response, *, decoded: bool = False) -> Iterator[bytes]:
    """The body in blocks, as it was sent or with its Content-Encoding undone; within `ask`."""
    # read1 hands over what has come; read would lose its last block when the connection is cut.
    read = getattr(response.raw, "read1", response.raw.read)
    while block := read(BLOCK, decode_content=decoded):
        yield block


def length_of(response: requests.Response) -> int | None:
    """What Content-Length says, None if nothing."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else None


def total_of(response: requests.Response) -> int | None:
    """Bytes of the whole file, from the header of a part or of the whole; None if not told."""
    if "Content-Range" in response.headers:
        total = response.headers["Content-Range"].rpartition("/")[2].strip()
        return int(total) if total.isdecimal() else None
    return length_of(response)


def says_page(response: requests.Response) -> bool:
    """Whether a body is announced as a web page."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def looks_like_page(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower().startswith(_PAGE_STARTS)


def _bad_status(response: requests.Response) -> NoAnswer:
    status = response.status_code
    try:
        name = http.HTTPStatus(status).phrase
    except ValueError:
        name = response.reason or ""
    again = status in _TRY_AGAIN or status >= 500
    wait_s = _retry_after(response.headers.get("Retry-After", "")) if again else 0.0
    return NoAnswer(f"{status} {name}".strip(), again=again, wait_s=wait_s, status=status)


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def patience(failure: NoAnswer, n_failed: int, web: Web) -> float | None:
    """Seconds to wait before the next try, None when there is to be none."""
    if not failure.again or n_failed >= web.attempts or failure.wait_s > web.longest_pause_s:
        return None
    return max(web.pause(n_failed), failure.wait_s)


def told(failure: NoAnswer, n_failed: int) -> str:
    """What a message says about an address that was given up."""
    asked = f", asks to wait {failure.wait_s:.0f} s" if failure.wait_s else ""
    return failure.reason + asked + (f" ({n_failed} attempts)" if n_failed > 1 else "")


def _innermost(error: BaseException) -> BaseException:
    """The error that the libraries wrapped, often twice."""
    for _ in range(10):
        held = (getattr(error, "reason", None), *error.args, error.__cause__, error.__context__)
        inner = next((part for part in held if isinstance(part, BaseException)), None)
        if inner is None:
            break
        error = inner
    return error


def _root(error: BaseException) -> str:
    inner = _innermost(error)
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
