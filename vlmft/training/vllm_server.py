"""A vLLM 0.33 server as `trainer/rollouts=vllm` uses it: its endpoints, and what their refusals mean.

    GET  /v1/models                       the checkpoint's name, and how long a text may be
    POST /inference/v1/generate           token ids and pictures in, token ids and log-probabilities out
    POST /v1/load_lora_adapter, /v1/unload_lora_adapter
    POST /collective_rpc                  method reload_weights, from a folder
    POST /reset_prefix_cache, /reset_mm_cache, /reset_encoder_cache
    POST /update_weight_version           a name for the weights, which each completion comes back with

docs/trainers.md says which flags and variables switch them on.
"""

import json
import time
from typing import Any

import httpx

from vlmft.errors import ConfigError, ServerError
from vlmft.training.rollouts_spec import VllmRollouts

GENERATE = "/inference/v1/generate"
_LONGEST = 300  # characters of what a server says
_PAUSE_S = 1.0
_RESETS = 5
_DOCS = "docs/trainers.md has the command that starts it"
_SWITCHES = {
    "/inference/": "start the server with --enable-scale-out",
    "/v1/load_lora_adapter": "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "/v1/unload_lora_adapter": "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "/v1/models": "trainer.rollouts.urls is what /v1/models stands behind: without /v1",
}
_DEV = "start the server with VLLM_SERVER_DEV_MODE=1"


class Server:
    """One server; any number of threads may ask it at a time."""

    def __init__(self, url: str, spec: VllmRollouts, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.spec = spec
        self._key = key
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=spec.concurrency + 1),
        )

    def wait(self, where: str) -> None:
        """Return once the server says that it is ready.

        Raises:
            ServerError: it does not within `wait_s`.
        """
        end = time.monotonic() + self.spec.wait_s
        while True:
            try:
                self.ask("GET", "/health", where, timeout_s=min(10.0, self.spec.timeout_s))
                return
            except ServerError as error:
                if time.monotonic() + _PAUSE_S > end:
                    raise ServerError(f"{error}; waited {self.spec.wait_s:g} s (trainer.rollouts.wait_s)") from None
            time.sleep(_PAUSE_S)

    def models(self, where: str) -> dict[str, Any]:
        """The names under which it answers, adapters included, each with its card."""
        found = self.ask("GET", "/v1/models", where)
        try:
            return {card["id"]: card for card in found["data"]}
        except (TypeError, LookupError):
            raise self.error("/v1/models", where, f"no models in the answer: {self._safe(found)}") from None

    def load_adapter(self, name: str, folder: str, where: str) -> None:
        """Take a LoRA adapter, under a name that is new."""
        body = {"lora_name": name, "lora_path": folder}
        self.ask("POST", "/v1/load_lora_adapter", where, body, self.spec.sync_timeout_s)

    def unload_adapter(self, name: str, where: str) -> None:
        """Forget an adapter, where the server, which may have been started again, knows it."""
        try:
            self.ask("POST", "/v1/unload_lora_adapter", where, {"lora_name": name}, self.spec.sync_timeout_s)
        except ServerError as error:
            if "cannot be found" not in str(error):
                raise

    def reload(self, folder: str, version: str, where: str) -> None:
        """Take all weights from a folder, forget what the old ones have computed, and call them `version`."""
        limit = self.spec.sync_timeout_s
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self.ask("POST", "/collective_rpc", where, body, limit)
        self._forget_prefixes(where)
        self.ask("POST", "/reset_mm_cache", where, timeout_s=limit)
        self.ask("POST", "/reset_encoder_cache", where, timeout_s=limit)
        self.ask("POST", "/update_weight_version", where, {"new_version": version}, limit)

    def _forget_prefixes(self, where: str) -> None:
        """Reset the prefix cache, which a request that has just ended may still hold."""
        for _ in range(_RESETS):
            found = self.ask("POST", "/reset_prefix_cache", where, timeout_s=self.spec.sync_timeout_s)
            if isinstance(found, dict) and found.get("success") is True:
                return
            time.sleep(_PAUSE_S)
        raise self.error(
            "/reset_prefix_cache",
            where,
            "what the old weights have computed is still in use: somebody else asks this server; give the run one of "
            "its own",
        )

    def ask(self, method: str, path: str, where: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """One request; returns the answer's JSON, or its text where it is none.

        Args:
            where: in the run, for the message.

        Raises:
            ServerError: no answer, or a refusal.
        """
        limit = self.spec.timeout_s if timeout_s is None else timeout_s
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            found = self._client.request(method, self.url + path, content=content, headers=headers, timeout=limit)
        except httpx.TimeoutException:
            said = f"no answer within {limit:g} s; raise trainer.rollouts.{self._limit_of(path)}, or see its log"
            raise self.error(path, where, said) from None
        except httpx.RequestError as error:
            said = self._safe(f"{type(error).__name__}: {error}")
            raise self.error(path, where, f"not reachable ({said}); start it, or start it again: {_DOCS}") from None
        if not found.is_success:
            raise self.error(path, where, f"{found.status_code}: {self._said(found)}{self._mend(found, path)}")
        try:
            return found.json()
        except ValueError:
            return found.text

    def error(self, path: str, where: str, said: str) -> ServerError:
        """What is wrong, with the URL and the place in the run."""
        return ServerError(f"{where}: {self.url}{path}: {said}")

    def _limit_of(self, path: str) -> str:
        return "timeout_s" if path.startswith(("/inference/", "/v1/models", "/health")) else "sync_timeout_s"

    def _mend(self, found: httpx.Response, path: str) -> str:
        if found.status_code == 401:
            return "; mend trainer.rollouts.api_key_env"
        disabled = found.status_code in (403, 404, 405) and "does not exist" not in found.text
        if not disabled:
            return ""
        return "; " + next((fix for start, fix in _SWITCHES.items() if path.startswith(start)), _DEV)

    def _said(self, found: httpx.Response) -> str:
        """The server's own words."""
        try:
            value = found.json()
            error = value.get("error", value.get("detail", value))
            said = error["message"] if isinstance(error, dict) and "message" in error else error
        except (ValueError, AttributeError):
            said = found.text
        return self._safe(said or found.reason_phrase)

    def _safe(self, said: Any) -> str:
        """A line of bounded length in which the key does not stand, should the server repeat it."""
        text = " ".join((said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)).split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def look_at(spec: VllmRollouts, longest: int) -> None:
    """Wait for the servers, and see whether they answer for the checkpoint; before any weight is loaded.

    Args:
        longest: tokens of a prompt with its completion.

    Raises:
        ConfigError: they do not.
    """
    key = spec.read_key()
    problems = []
    for url in spec.urls:
        try:
            server = Server(url, spec, key)
            server.wait("before training")
            cards = server.models("before training")
        except ServerError as error:
            problems.append(str(error))
            continue
        if spec.model not in cards:
            problems.append(
                f"{url}: answers for {', '.join(cards) or 'nothing'}, not for {spec.model!r}; mend "
                "trainer.rollouts.model, or start it with --served-model-name"
            )
        elif (room := cards[spec.model].get("max_model_len")) is not None and room < longest:
            problems.append(
                f"{url}: takes texts of {room} tokens, and this run has up to {longest} (batching.max_tokens); start "
                f"it with --max-model-len {longest}"
            )
    ConfigError.raise_if(problems)
