"""An endpoint of somebody else: plain transformers behind OpenAI's paths, as able as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Able:
    """What an endpoint can do, and what is wrong with it.

    before: put before each text's ids. change: of the logits (V) and the ids before them, when
    answers are generated. counts_end: whether the token that ends an answer is told. shift: added
    to the log-probabilities that are told. hangs_after: answers none after so many.
    """

    ids_in: bool = True
    tells_ids: bool = True
    echo: bool = True
    logprobs: bool = True
    strict: bool = False
    chat_form: bool = False
    counts_end: bool = True
    before: tuple[int, ...] = ()
    template: str | None = None
    dtype: torch.dtype = torch.float32
    change: Callable[[torch.Tensor, list[int]], None] | None = None
    shift: float = 0.0
    hangs_after: int | None = None
    name: str = "theirs"
    seen: list[Any] = field(default_factory=list)


class OtherEndpoint:
    """Serves a merged folder until it is closed."""

    def __init__(self, folder: Path, able: Able) -> None:
        self.able = able
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=able.dtype).eval()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.closed = threading.Event()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def told(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        able = self.able
        able.seen.append(body)
        if able.hangs_after is not None and len(able.seen) > able.hangs_after:
            self.closed.wait(60)
        wants_ids = body.pop("return_token_ids", None)
        if able.strict and wants_ids is not None:
            return 400, {"error": {"message": "unrecognized argument: return_token_ids"}}
        chat = path.endswith("/chat/completions")
        prompt = body.get("prompt")
        if chat:
            template = {"chat_template": able.template} if able.template else {}
            text = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=False, **template
            )
            prompt = [*able.before, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        elif isinstance(prompt, str):
            prompt = [*able.before, *self.tokenizer(prompt)["input_ids"]]
        elif not able.ids_in:
            return 422, {"detail": "prompt must be a string."}
        if body.get("echo") and not able.echo:
            return 400, {"error": {"message": "no echo here"}}
        return 200, self._answer(chat, prompt, body, bool(wants_ids))

    @torch.no_grad()
    def _answer(self, chat: bool, prompt: list[int], body: dict[str, Any], ids: bool) -> Any:
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        row, ended = list(prompt), False
        for _ in range(body["max_tokens"]):
            logits = self.model(torch.tensor([row])).logits[0, -1].float()
            if self.able.change:
                self.able.change(logits, row)
            row.append(int(logits.argmax()))
            ended = row[-1] in ends
            if ended:
                break
        logps = self.model(torch.tensor([row])).logits[0].float().log_softmax(-1)
        logps += self.able.shift
        own: list[Any] = [None, *(float(logps[t, row[t + 1]]) for t in range(len(row) - 1))]
        start = 0 if body.get("echo") else len(prompt)
        stop = len(row) - int(ended and not self.able.counts_end)
        words = [self.tokenizer.decode([i]) for i in row[start:stop]]
        found: Any = {"tokens": words, "token_logprobs": own[start:stop]}
        if chat or self.able.chat_form:
            pairs = zip(words, own[start:stop], strict=True)
            found = {"content": [{"token": w, "logprob": logp} for w, logp in pairs]}
        text = self.tokenizer.decode(row[start:], skip_special_tokens=True)
        choice: dict[str, Any] = {
            "index": 0, "finish_reason": "stop" if ended else "length",
            "logprobs": found if self.able.logprobs else None,
        }  # fmt: skip
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        told = {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}
        if ids and self.able.tells_ids:
            choice["token_ids"] = row[len(prompt) : stop]
            (told if chat else choice)["prompt_token_ids"] = list(prompt)
        return told


def _handler(endpoint: OtherEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": endpoint.able.name}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(*endpoint.told(self.path, body))

        def send(self, status: int, told: Any) -> None:
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
