"""A server with the endpoints of vLLM 0.33 that `trainer/rollouts=vllm` uses, with the tiny Qwen2.5-VL behind it.

It computes by transformers and loads adapters and weights from their folders, by PEFT and transformers. It refuses what
vLLM refuses: names that it does not know, adapters twice, endpoints whose flag or variable is missing.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, LogitsProcessor

from tests.support import CPU, tiny, tiny_processor


class RefusedError(Exception):
    """An answer that is none; `args` are status and message."""


@dataclass
class StandIn:
    """What the server has, and how it was started; a test changes these to bring about a fault."""

    name: str = "tiny"
    scale_out: bool = True
    lora: bool = True
    dev: bool = True
    key: str | None = None
    max_model_len: int = 8192
    logprobs_mode: str = "processed_logprobs"
    min_pixels: int | None = None
    takes_weights: bool = True
    """Whether weights that it is sent are really computed with."""
    busy: int = 0
    """Times that the prefix cache is still in use."""
    hangs_s: float = 0.0
    dies_after: int | None = None
    """Completions that it gives before it hangs up for good."""
    url: str = ""
    version: str = "default"
    asked: list[tuple[str, Any]] = field(default_factory=list)
    adapters: dict[str, Any] = field(default_factory=dict)
    model: Any = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.model = tiny().load_model(CPU).eval()

    def answer(self, method: str, path: str, body: Any) -> Any:
        """The JSON of an answer, or None for an empty one."""
        self.asked.append((path, body))
        match path:
            case "/health":
                return None
            case "/v1/models":
                cards = [{"id": self.name, "max_model_len": self.max_model_len}]
                return {"object": "list", "data": cards + [{"id": name, "parent": self.name} for name in self.adapters]}
            case "/inference/v1/generate":
                if not self.scale_out:
                    raise RefusedError(403, "Scale-out endpoints are disabled. Restart vllm serve with ...")
                return self.generate(body)
            case "/v1/load_lora_adapter" if self.lora:
                return self.load_adapter(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter" if self.lora:
                if body["lora_name"] not in self.adapters:
                    raise RefusedError(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
                del self.adapters[body["lora_name"]]
                return "Success"
            case "/collective_rpc" if self.dev:
                assert body["method"] == "reload_weights"
                return self.reload(Path(body["kwargs"]["weights_path"]))
            case "/reset_prefix_cache" if self.dev:
                self.busy -= 1
                return {"success": self.busy < 0}
            case "/reset_mm_cache" | "/reset_encoder_cache" if self.dev:
                return None
            case "/update_weight_version" if self.dev:
                self.version = body["new_version"]
                return {"success": True, "new_version": self.version}
        raise RefusedError(404, "Not Found")

    def load_adapter(self, name: str, folder: str) -> str:
        if name == self.name or name in self.adapters:
            raise RefusedError(400, f"The lora adapter '{name}' has already been loaded.")
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        if config["modules_to_save"] or config["use_dora"] or config["bias"] != "none":
            raise RefusedError(500, f"vLLM only supports modules_to_save being None: {config['modules_to_save']}")
        base = tiny().load_model(CPU)
        self.adapters[name] = PeftModel.from_pretrained(base, folder).eval() if self.takes_weights else base.eval()
        return "Success"

    def reload(self, folder: Path) -> dict[str, Any]:
        if self.takes_weights:
            found, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
            )
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            self.model = found.eval()
        return {"results": [None]}

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        assert not body.keys() - {
            *("model", "token_ids", "sampling_params", "return_token_ids", "cache_salt", "content_parts")
        }
        name, how = body["model"], body["sampling_params"]
        if name != self.name and name not in self.adapters:
            raise RefusedError(404, f"The model `{name}` does not exist. Valid aliases: {self.name}.")
        if self.dies_after is not None:
            if not self.dies_after:
                raise ConnectionError
            self.dies_after -= 1
        model = self.adapters.get(name, self.model)
        inputs = self.read(body["token_ids"], body.get("content_parts", []))
        ids = inputs["input_ids"][0].tolist()
        choices = [self.completion(model, inputs, how, index) for index in range(how["n"])]
        found = {"model": name, "choices": choices, "prompt_logprobs": None}
        if how.get("prompt_logprobs") is not None:
            with torch.no_grad():
                logps = model(**inputs).logits[0].float().log_softmax(-1)
            found["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": float(logps[place, token])}} for place, token in enumerate(ids[1:])
            ]
        return found | {"prompt_token_ids": ids if body["return_token_ids"] else None}

    def read(self, ids: list[int], parts: list[dict[str, Any]]) -> dict[str, Any]:
        """What the model takes: as vLLM does, pictures by the official processor, and their token repeated."""
        processor = tiny_processor()
        token, pictures, expanded = processor.image_token_id, [], list[int]()
        for part in parts:
            assert part["type"] == "image_url" and part["url"].startswith("data:image/png;base64,")
            pictures.append(PIL.Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))))
        assert ids.count(token) == len(pictures)
        inputs: dict[str, Any] = {}
        if pictures:
            options = {} if self.min_pixels is None else {"min_pixels": self.min_pixels}
            inputs = dict(processor.image_processor(images=pictures, return_tensors="pt", **options))
        repeats = iter(
            (inputs["image_grid_thw"].prod(1) // processor.image_processor.merge_size**2).tolist() if pictures else []
        )
        for one in ids:
            expanded += [one] * (next(repeats) if one == token else 1)
        inputs["input_ids"] = torch.tensor([expanded])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs | {"mm_token_type_ids": (inputs["input_ids"] == token).int()}

    @torch.no_grad()
    def completion(self, model: Any, inputs: dict[str, Any], how: dict[str, Any], index: int) -> dict[str, Any]:
        owner = model.get_base_model() if hasattr(model, "get_base_model") else model
        owner.generation_config.update(
            eos_token_id=how["stop_token_ids"], pad_token_id=tiny_processor().tokenizer.pad_token_id
        )
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        bias = _Bias({int(token): value for token, value in how["logit_bias"].items()})
        torch.manual_seed(how["seed"] + index)
        out = model.generate(
            **inputs,
            **{name: how[name] for name in names},
            do_sample=True,
            max_new_tokens=how["max_tokens"],
            logits_processor=[bias],
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = out.scores if self.logprobs_mode == "processed_logprobs" else out.logits
        content = []
        for token, row in zip(ids, rows, strict=True):
            logps = row[0].float().log_softmax(-1)
            best = logps.topk(how["logprobs"]).indices.tolist() if how["logprobs"] else []
            top = [
                {"token_id": one, "logprob": max(float(logps[one]), -9999.0)} for one in dict.fromkeys([token, *best])
            ]
            content.append(top[0] | {"top_logprobs": top})
        ended = ids[-1] in how["stop_token_ids"]
        return {
            "index": index,
            "token_ids": ids,
            "logprobs": {"content": content},
            "finish_reason": "stop" if ended else "length",
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }


class _Bias(LogitsProcessor):
    def __init__(self, bias: dict[int, float]) -> None:
        self.bias = bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, value in self.bias.items():
            scores[:, token] += value
        return scores


@contextmanager
def serving(**started: Any) -> Iterator[StandIn]:
    """A server on a free port of this machine, in threads of this process."""
    made = StandIn(**started)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (http.server's own name)
            self.reply(None)

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.reply(json.loads(body) if body else None)

        def reply(self, body: Any) -> None:
            if made.hangs_s:
                time.sleep(made.hangs_s)
                self.close_connection = True
                return
            path = self.path.partition("?")[0]
            try:
                asks_for_key = made.key and path.startswith(("/v1", "/inference"))
                if asks_for_key and self.headers.get("Authorization") != f"Bearer {made.key}":
                    self.send(401, {"error": "Unauthorized"})
                    return
                with made.lock:  # neither torch's random state nor transformers' loading is of a thread
                    found = made.answer(self.command, path, body)
                self.send(200, found)
            except RefusedError as refused:
                status, message = refused.args
                self.send(status, {"error": {"message": message, "type": "Error", "code": status}})
            except ConnectionError:
                self.close_connection = True

        def send(self, status: int, value: Any) -> None:
            content = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
