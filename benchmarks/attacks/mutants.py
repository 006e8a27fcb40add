"""Random changes to what a stranger may hand over, by what each file is made of."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf"),
    "", "x", "x" * 5000, "../../outside/secret", "/dev/zero", "/etc/passwd", "\x1b]0;x\x07\u202e",
    "é漢🙂", "{{ x }}", "(a+)+$", "null", "1", [], [[]], {}, {"a": 1}, ["x"] * 50, [0] * 1000,
    {"": None}, "<script>x</script>", "\x00", "$(touch RAN)", "C:\\x", "a\nb", "-1", "1e999",
]  # fmt: skip
KEYS = (
    "auto_map", "num_attention_heads", "num_hidden_layers", "hidden_size", "eos_token_id",
    "model_type", "architectures", "quantization_config", "rope_scaling", "torch_dtype",
    "attn_implementation", "_attn_implementation", "pad_token_id", "target_modules", "r",
    "base_model_name_or_path", "chat_template", "added_tokens_decoder", "tokenizer_class",
)  # fmt: skip
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}", "{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m.content * 9999999 }}{% endfor %}", "{% if %}", "{{ 1 / 0 }}",
    "{{ cycler.__init__.__globals__.os.system('touch RAN') }}", "{% include '/etc/passwd' %}",
    "{{ messages | tojson(indent=99999999) }}", "{{ ''.join(range(9)) }}", "{% macro a() %}{{ a() "
    "}}{% endmacro %}{{ a() }}", "{{ lipsum.__globals__ }}", "{{ '%9999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}", "{{ 9 ** 9 ** 9 }}", "{{ [0] * 10 ** 10 }}", "\ud800",
)  # fmt: skip
YAML = (
    "!!python/object/apply:os.system ['touch RAN']", "!!python/name:os.system", "&a [*a, *a]",
    "&b {c: &d [1, 2], e: *d}", "!!binary aGk=", "!include /etc/passwd", "<<: {a: 1}", "? {a: b}",
    "!!set {a, b}", "0x7fffffffffffffffffff", "1_000", "1e400", ".nan", "2001-01-01", "~", "|\n  x",
    "[" * 600, "{a: " * 600, "!!float x", "%YAML 1.1", "--- a\n--- b", "*unknown", "@x", "`x`",
    "${HOME}", "$WANDB_API_KEY", "{{ env.HF_TOKEN }}", "'hf_" + "a" * 34 + "'", "'\\ud800'",
)  # fmt: skip
BESIDE = (
    "adapter_config.json", "pytorch_model.bin", "generation_config.json", "x.py", "lock",
    "chat_template.jinja", "waiting.json", "special_tokens_map.json", "log.txt",
)  # fmt: skip
PATTERNS = (
    "(x+x+)+y", "(a|a)*$", "a{1,999}{1,999}", "(?<=a+)b", "\\p{Foo}", "[", "(?R)", "x*x*x*x*x*y",
)  # fmt: skip


def nested(deep: int, opened: str = "[", closed: str = "]") -> str:
    """Return brackets inside brackets."""
    return opened * deep + closed * deep


def change_json(rng: Random, value: Any, depth: int = 0) -> Any:
    """Return plain data with one thing in it changed."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.25:
            return {**value, rng.choice(KEYS): rng.choice(NASTY)}
        if how < 0.3:
            return {**value, str(rng.choice(NASTY)): value[key]}
        return {**value, key: change_json(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        how = rng.random()
        if how < 0.2:
            return value[:at] + value[at + 1 :]
        if how < 0.4:
            return value + [value[at]] * rng.choice([1, 2, 500])
        return [*value[:at], change_json(rng, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, str) and "Regex" in value:
        return rng.choice(PATTERNS)
    return rng.choice(NASTY)


def change_text(rng: Random, data: bytes) -> bytes:
    """Return bytes with some of them changed, moved or gone."""
    how, at = rng.random(), rng.randrange(len(data) + 1)
    if how < 0.2:
        return data[:at]
    if how < 0.4:
        return (
            data[:at] + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 60]))) + data[at:]
        )
    if how < 0.6 and data:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 3, 20])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if how < 0.7:
        return data + data[:at]
    if how < 0.8:
        return nested(rng.choice([50, 5000, 200_000])).encode()
    if how < 0.9:
        return rng.choice(
            [b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"\n" * 99]
        )
    return data[:at] + data[rng.randrange(len(data) + 1) :]


def change_json_file(rng: Random, data: bytes) -> bytes:
    """Return a JSON file with a value changed; seldom only its bytes."""
    if rng.random() < 0.2:
        return change_text(rng, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_text(rng, data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        value = change_json(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.05 and text.startswith("{"):
        text = '{"a": ' + nested(rng.choice([900, 100_000])) + ", " + text[1:]
    return text.encode()


def change_yaml_file(rng: Random, data: bytes) -> bytes:
    """Return a YAML file with a value changed, at times with anchors and tags; or its bytes."""
    import yaml

    try:
        value = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        return change_text(rng, data)
    if rng.random() < 0.1 or not isinstance(value, dict):
        return change_text(rng, data)
    if rng.random() < 0.15:
        key = json.dumps(rng.choice(list(value) or ["a"]), default=str)
        return data + f"\n{key}: {rng.choice(YAML)}\n".encode()
    try:  # dates are texts in JSON
        return change_json_file(rng, json.dumps(value, default=str, skipkeys=True).encode())
    except ValueError:  # a value within itself, by an anchor
        return change_text(rng, data)


def change_words(rng: Random, data: bytes) -> bytes:
    """Return commands with a word in them changed, or their bytes."""
    words = data.split(b" ")
    if rng.random() < 0.3 or not words:
        return change_text(rng, data)
    at = rng.randrange(len(words))
    words[at] = rng.choice([
        *(str(nasty).encode("utf-8", "replace") for nasty in NASTY), b"$(touch RAN)", b"<(cat)",
        b"`touch RAN`", b"--", b"'", b'"', b"\\", b"--config=/dev/zero", b"&& touch RAN",
        b"--x" * 4000,
    ])  # fmt: skip
    return b" ".join(words)


def change_lines(rng: Random, data: bytes) -> bytes:
    """Return lines of JSON with one of them changed, or their bytes."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.6 and lines[at].strip():
        lines[at] = change_json_file(rng, lines[at]).replace(b"\n", b" ")
        return b"\n".join(lines)
    return change_text(rng, data)


def change_safetensors(rng: Random, data: bytes) -> bytes:
    """Return a safetensors file with its header changed, its length or its bytes."""
    how = rng.random()
    if how < 0.2 or len(data) < 8:
        return change_text(rng, data)
    if how < 0.3:
        return struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])) + data[8:]
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return change_text(rng, data)
    name = rng.choice([key for key in header if key != "__metadata__"] or ["x"])
    entry = dict(header.get(name, {}))
    match rng.randrange(7):
        case 0:
            entry["dtype"] = rng.choice(["F64", "I8", "BF16", "F8_E4M3", "X", "", 3, None, "U64"])
        case 1:
            entry["shape"] = rng.choice(
                [[], [0], [-1], [2**40], [2**32, 2**32], [1] * 99, "x", None]
            )
        case 2:
            entry["data_offsets"] = rng.choice(
                [[0, 0], [0, 2**60], [5, 1], [-1, 4], [0], "x", [0, 9]]
            )
        case 3:
            header["other"] = entry
        case 4:
            header["__metadata__"] = rng.choice(
                [{"a": 1}, "x", {"format": "x"}, {"a": "x" * 10**6}]
            )
        case 5:
            header.pop(name, None)
        case _:
            header = change_json(rng, header)
    if name in header:
        header[name] = entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def change_table(rng: Random, name: str, data: bytes) -> bytes:
    """Return a data file of any format changed, its packing too."""
    packed = name.endswith(".gz")
    if packed and rng.random() < 0.5:
        return change_text(rng, data)
    try:
        inside = gzip.decompress(data) if packed else data
    except (OSError, EOFError, zlib.error):  # changed before
        return change_text(rng, data)
    how = rng.random()
    if how < 0.05:
        inside = inside[:20] + b"x" * rng.choice([2**20, 80 * 2**20]) + inside[20:]
    elif name.removesuffix(".gz").endswith(".jsonl"):
        inside = change_lines(rng, inside)
    elif name.removesuffix(".gz").endswith(".json"):
        inside = change_json_file(rng, inside)
    else:
        inside = change_text(rng, inside)
    return gzip.compress(inside, 1) if packed else inside


def change_kind(rng: Random, path: Path, outside: Path) -> None:
    """Put something in a file's place that is no plain file of its folder."""
    path.unlink()
    match rng.randrange(8):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/dev/tty", "/dev/random"]))
        case 2:
            path.symlink_to(outside / "secret")
        case 3:
            path.symlink_to(outside / "new")
        case 4:
            path.mkdir()
        case 5:
            os.link(outside / "secret", path)
        case 6:
            path.touch()
            os.truncate(path, rng.choice([2**33, 2**40]))
        case _:
            path.symlink_to(path.name)


def _by_name(name: str) -> Callable[[Random, bytes], bytes]:
    if name.endswith(".safetensors"):
        return change_safetensors
    if name.endswith(".jinja"):
        return lambda rng, data: (
            rng.choice(TEMPLATES).encode("utf-8", "surrogatepass")
            if rng.random() < 0.6
            else change_text(rng, data)
        )
    if name.endswith(".jsonl"):
        return change_lines
    if name.endswith((".json", ".lock")) or name == "lock":
        return change_json_file
    if name.endswith(".yaml"):
        return change_yaml_file
    if name.endswith(".sh"):
        return change_words
    return change_text


HEADS = (
    b"Transfer-Encoding: chunked", b"Content-Length: 0", b"Content-Length: -1",
    b"Content-Length: 999999999999", b"Content-Length: 7", b"Expect: 100-continue", b"Host: a",
    b"Origin: http://evil.example", b"Authorization: Bearer \xff\x00", b"Connection: keep-alive",
    b"Content-Type: text/plain", b"Content-Encoding: gzip", b"Location: http://127.0.0.1:1/v1",
    b"Cookie: " + b"x" * 70_000, b": x", b"\x1b[2J: \xe2\x80\xae", b" folded", b"Upgrade: h2c",
)  # fmt: skip
STARTS = (
    b"GET /v1/models/%2e%2e%2f%00 HTTP/1.1", b"GET http://evil/v1/models HTTP/1.1", b"GET //x",
    b"POST /v1/completions HTTP/1.0", b"OPTIONS * HTTP/1.1", b"\x16\x03\x01\x02\x00",
    b"PRI * HTTP/2.0", b"GET /v1/models HTTP/9.9",
    b"POST /v1/chat/completions?x=1#y HTTP/1.1", b"HTTP/1.1 200",
    b"HTTP/1.1 302 Found", b"HTTP/1.1 401 No", b"HTTP/1.1 422 No", b"HTTP/1.1 500 No",
    b"HTTP/1.1 99 x", b"HTTP/1.1 " + b"2" * 5000, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No",
)  # fmt: skip


def change_http(rng: Random, data: bytes) -> bytes:
    """Return a request, or an answer, with its body changed, or its head, or its bytes."""
    how = rng.random()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if how < 0.6:
        body = change_json_file(rng, body)
    elif how < 0.7:
        lines[0] = rng.choice(STARTS)
    elif how < 0.85:
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(HEADS))
    elif how < 0.9:
        lines.pop(rng.randrange(len(lines)))
    else:
        return change_text(rng, data)
    if rng.random() < 0.9 and how < 0.6:
        lines = [line for line in lines if not line.lower().startswith(b"content-length")]
        lines.append(b"Content-Length: %d" % len(body))
    elif rng.random() < 0.05:
        return data + data
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def change_talk(rng: Random, folder: Path) -> str:
    """Change one to three of the messages of a talk between programs; return which."""
    files = sorted(folder.glob("*.http"))
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(files)
        path.write_bytes(change_http(rng, path.read_bytes()))
        done.append(f"changed: {path.name}")
    return ", ".join(done)


def mutate(rng: Random, folder: Path, outside: Path, only: str = "") -> str:
    """Change one to three files in a folder at random; return what was done, in words.

    only: an ending or a part of names that is to be changed.
    """
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = sorted(p for p in folder.rglob("*") if _is_small(p))
        files = [p for p in files if only in p.name] or files
        if not files:
            break
        path = rng.choice(files)
        where = str(path.relative_to(folder))
        how = rng.random()
        if how < 0.1:
            change_kind(rng, path, outside)
            done.append(f"another kind of file: {where}")
        elif how < 0.15:
            path.unlink()
            done.append(f"gone: {where}")
        elif how < 0.18:
            beside = path.with_name(rng.choice(BESIDE))
            if beside not in files and not beside.exists():
                beside.write_bytes(rng.choice(files).read_bytes())
            done.append(f"a file beside: {where}")
        else:
            data = path.read_bytes()
            table = path.suffix in (".csv", ".gz", ".parquet") or path.name.startswith("data.")
            made = change_table(rng, path.name, data) if table else _by_name(path.name)(rng, data)
            path.write_bytes(made)
            done.append(f"changed: {where}")
    if rng.random() < 0.6 and sign(folder):
        done.append("signed anew")
    return ", ".join(done)


def sign(folder: Path) -> bool:
    """Write the sums of changed files into their manifests, as who hands a run over can."""
    signed = False
    for path in sorted(folder.rglob("manifest.json")):
        try:
            manifest = json.loads(path.read_bytes()) if _is_small(path) else None
            sums = dict(manifest["sha256"])
            for name in sums:
                if _is_small(file := path.parent / str(name)):
                    sums[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        except (ValueError, RecursionError, LookupError, TypeError, OSError):
            continue
        if sums != manifest["sha256"]:
            path.write_text(json.dumps({**manifest, "sha256": sums}))
            signed = True
    return signed


def _is_small(path: Path) -> bool:
    """Return whether a path is a plain file that can be read to be changed."""
    return not path.is_symlink() and path.is_file() and path.stat().st_size < 2**28
