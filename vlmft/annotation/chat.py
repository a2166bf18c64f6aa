"""One request to an OpenAI-compatible server, made again while the server cannot answer."""

import asyncio
import json
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx

from vlmft.annotation.specs import OpenAI
from vlmft.errors import ConfigError

_AGAIN = (408, 425, 429)  # and all from 500 on
_MENDED_BY = {
    401: "annotator.api_key_env",
    403: "annotator.api_key_env",
    404: "annotator.base_url or annotator.model",
    405: "annotator.base_url",
} | dict.fromkeys((301, 302, 303, 307, 308), "annotator.base_url (redirects are not followed)")
"""Answers that any other medium would get, too, and the key that is to be mended."""

_LONGEST = 300  # characters of what a server says


class UnansweredError(Exception):
    """One medium gets no answer; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the model said. `was_cut`: at the most tokens that it may say. Token counts are 0 where nobody counts."""

    text: str
    was_cut: bool
    prompt_tokens: int
    completion_tokens: int


class Chat(AbstractAsyncContextManager["Chat"]):
    """The server, for any number of requests at a time."""

    def __init__(self, spec: OpenAI, key: str | None) -> None:
        self.spec = spec
        self._key = key
        self._url = f"{spec.base_url.rstrip('/')}/chat/completions"
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # `_post` limits the whole request; this would limit each read
            limits=httpx.Limits(max_connections=spec.concurrency),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, messages: list[dict[str, Any]], response_format: dict[str, Any] | None) -> Answer:
        """Return the model's next message.

        Raises:
            UnansweredError: the server refuses this request, or could not answer in `attempts` of them.
            ConfigError: it refuses any request.
        """
        body = self.spec.options | {"model": self.spec.model, "messages": messages}
        body |= {"response_format": response_format} if response_format else {}
        value = await self._post(json.dumps(body).encode())
        try:
            choice = value["choices"][0]
            message, usage = choice["message"], value.get("usage") or {}
            text = message["content"]
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UnansweredError(f"no choices[0].message.content in the answer: {self._safe(value)}") from None
        if not isinstance(text, str) or not text.strip():
            raise UnansweredError(f"the model said nothing: {self._safe(message)}")
        if self._key and self._key in text:
            raise UnansweredError("the answer repeats the API key, so it is not kept")
        return Answer(text, choice.get("finish_reason") == "length", *counts)

    async def _post(self, body: bytes) -> Any:
        for attempt in range(1, self.spec.attempts + 1):
            wait_s: float | None = None
            try:
                async with asyncio.timeout(self.spec.timeout_s):
                    response = await self._client.post(
                        self._url, content=body, headers={"Content-Type": "application/json"}
                    )
            except TimeoutError:
                reason = f"no answer within {self.spec.timeout_s:g} s"
            except httpx.RequestError as error:
                reason = self._safe(f"{type(error).__name__}: {error}")
            else:
                if response.is_success:
                    try:
                        return response.json()
                    except ValueError:
                        reason = f"the answer is no JSON: {self._safe(response.text)}"
                else:
                    reason = f"{response.status_code}: {self._said(response)}"
                    self._raise_for_good(response.status_code, reason)
                    wait_s = _retry_after(response.headers.get("Retry-After"))
            if attempt == self.spec.attempts:
                break
            if wait_s is not None and wait_s > self.spec.max_wait_s:
                raise UnansweredError(
                    f"{reason}; the server asks to wait {wait_s:.0f} s, more than "
                    f"annotator.max_wait_s={self.spec.max_wait_s:g}"
                )
            await asyncio.sleep(min(self.spec.max_wait_s, wait_s or self.spec.backoff_s * 2 ** (attempt - 1)))
        times = f" ({self.spec.attempts} attempts)" if self.spec.attempts > 1 else ""
        raise UnansweredError(f"{reason}{times}")

    def _raise_for_good(self, status: int, reason: str) -> None:
        if status in _MENDED_BY:
            raise ConfigError(f"{self._url} answers {reason}; mend {_MENDED_BY[status]}")
        if status not in _AGAIN and status < 500:
            raise UnansweredError(reason)

    def _said(self, response: httpx.Response) -> str:
        """The server's own words, from OpenAI's form of an error where it has that."""
        try:
            said = response.json()["error"]["message"]
        except (ValueError, LookupError, TypeError):
            said = response.text
        return self._safe(said or response.reason_phrase)

    def _safe(self, said: Any) -> str:
        """A line of bounded length in which the key does not stand, should the server repeat it."""
        text = " ".join((said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)).split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None where there is neither."""
    if value is None or re.fullmatch(r"\d+(\.\d+)?", value):
        return None if value is None else float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
