"""Every way in which a plugin can be broken: named in one line, and no harm to the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.api.errors import PluginError
from llmft.registry import safe_import
from llmft.registry.registry import Registry
from tests.registry.made_up import HOOK, Install, adapter_source

GOOD = adapter_source("bad")
CLASS = adapter_source("bad", hook="")


def spoilt(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def hooked(hook: str) -> str:
    return CLASS + hook


BROKEN = {
    "import error": ("from llmft.api import NoSuchThing", "E501", "NoSuchThing"),
    "missing module": ("import no_such_module_anywhere", "E501", "needs 'no_such_module_anywhere'"),
    "syntax error": ("def f(:\n", "E501", "SyntaxError"),
    "null byte": ("x = '\0'", "E501", "SyntaxError"),
    "system exit": ("import sys\nsys.exit(3)", "E501", "sys.exit(3)"),
    "raises": ("raise RuntimeError('it rains\\nhere')", "E501", "RuntimeError: it rains here"),
    "raises an odd one": (
        "class Odd(BaseException):\n    def __str__(self): raise ValueError\nraise Odd",
        "E501", "Odd",
    ),
    "leaves": ("import os\nos._exit(0)", "E501", "it calls os._exit(0)"),
    "leaves in the hook": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    import os\n    os._exit(3)"),
        "E502", "it calls os._exit(3)",
    ),
    "changes the working folder": (
        GOOD + "\nimport os\nos.chdir('/')", "E501", "it changes the working folder",
    ),
    "hangs": ("while True: pass", "E501", "it does not end within 0.5 seconds"),
    "hangs in a call": (
        "import time\ntry:\n    time.sleep(99)\nexcept Exception: pass", "E501",
        "it does not end within 0.5 seconds",
    ),
    "recursion": ("def f(): return f()\nf()", "E501", "RecursionError"),
    "exit in the hook": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    raise SystemExit('no')"),
        "E502", "sys.exit",
    ),
    "raises in the hook": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    return [1 / 0]"),
        "E502", "ZeroDivisionError",
    ),
    "wrong hook arguments": (
        hooked("\n@hookimpl\ndef llmft_adapters(registry):\n    return []"), "E502", "'registry'",
    ),
    "unknown hook": (
        GOOD + "\n@hookimpl\ndef llmft_adaptors():\n    return []", "E502",
        "unknown hook 'llmft_adaptors'; did you mean 'llmft_adapters'",
    ),
    "hook of another kind only": (
        hooked("\n@hookimpl\ndef llmft_trackers():\n    return []"), "E502",
        "implements no hook 'llmft_adapters'",
    ),
    "forgotten marker": (
        hooked("\ndef llmft_adapters():\n    return [Made]"), "E502", "not marked with",
    ),
    "returns a dict": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    return {'bad': Made}"), "E502", "a 'dict'",
    ),
    "returns a class, not a list": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    return Made"), "E502", "the class 'Made'",
    ),
    "returns an instance": (
        hooked("\n@hookimpl\ndef llmft_adapters():\n    return [object()]"), "E502", "a 'object'",
    ),
    "class of another kind": (
        hooked(
            "\nfrom llmft.api import Tracker\nclass T(Tracker):\n    method = 'bad'\n"
            "@hookimpl\ndef llmft_adapters():\n    return [T]"
        ), "E502", "not a class derived from 'llmft.api.Adapter'",
    ),
    "another name": (spoilt('method = "bad"', 'method = "worse"'), "E502", "returns: 'worse'"),
    "no name": (spoilt('    method = "bad"\n', ""), "E502", "has the method 'bad'"),
    "the same name twice": (
        CLASS + HOOK.replace("[{cls}]", "[Made, Made]"), "E502", "2 classes",
    ),
    "no class at all": (CLASS + HOOK.replace("[{cls}]", "[]"), "E502", "no class at all"),
    "no Config": (spoilt("    Config = Config\n", ""), "E502", "has no 'Config'"),
    "Config of another kind": (
        GOOD.replace("AdapterConfig", "TrackerConfig").replace("Adapter[Config]", "Adapter"),
        "E502",
        "not derived from 'llmft.api.AdapterConfig'",
    ),
    "Config that changes": (
        spoilt('"""Settings."""', 'model_config = {"frozen": False}'), "E502", "frozen",
    ),
    "Config that lets keys pass": (
        spoilt('"""Settings."""', 'model_config = {"extra": "ignore"}'), "E502", "unknown keys",
    ),
    "abstract methods left": (
        spoilt("    def load(self, model, folder):\n        return model\n", ""), "E502",
        "lacks 'load'",
    ),
    "a method that wants more": (
        spoilt("def load(self, model, folder)", "def load(self, model, folder, device)"), "E502",
        "'load' is called as load(self, model: 'Any', folder: 'Path')",
    ),
    "a method that takes less": (
        spoilt("def load(self, model, folder)", "def load(self, model)"), "E502",
        "and takes (self, model): too many positional arguments",
    ),
    "a method that is none": (
        spoilt("mergeable = True", "mergeable = True\n    merge = None"), "E502",
        "'merge' is no method",
    ),
    "a flag of text": (spoilt("mergeable = True", 'mergeable = "yes"'), "E502", "mergeable"),
    "newer contract": ("LLMFT_API_VERSION = 99\n" + GOOD, "E505", "version 99"),
    "older contract": ("LLMFT_API_VERSION = 0\n" + GOOD, "E505", "version 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_p1_p2_a_broken_plugin_is_named_and_stops_no_other(
    case: str, install_adapter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, code, reason = BROKEN[case]
    if case.startswith("hangs"):
        monkeypatch.setattr(safe_import, "HANG_SECONDS", 0.5)
    install_adapter("bad", source)
    install_adapter("good")
    registry = Registry.discover()

    with pytest.raises(PluginError) as caught:
        registry.method("adapter", "bad")

    fault = caught.value.faults[0]
    assert fault.code == code
    assert reason in fault.what
    assert "'llmft-bad' 1.0" in fault.what
    assert "pip uninstall llmft-bad" in fault.fix
    assert "\n" not in fault.line()
    assert len(fault.what) < 420
    assert caught.value.exit_code == 7
    assert caught.value.__cause__ is not None
    assert reason in registry.broken("adapter")["bad"]
    assert registry.method("adapter", "good").method == "good"
    rows = {record.method: record for record in registry.records()}
    assert (rows["bad"].state, rows["good"].state) == ("broken", "ok")
    assert reason in rows["bad"].reason


def test_a_way_out_names_the_newer_side(install_adapter: Install) -> None:
    install_adapter("newer", "LLMFT_API_VERSION = 99\n")
    install_adapter("older", "LLMFT_API_VERSION = 0\n")
    registry = Registry.discover()
    for method, package in {"newer": "llmft", "older": "llmft-older"}.items():
        with pytest.raises(PluginError, match=f"pip install -U {package},"):
            registry.method("adapter", method)


def test_ctrl_c_during_an_import_passes(install_adapter: Install) -> None:
    source = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)"
    install_adapter("stopped", source)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            Registry.discover().method("adapter", "stopped")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "MemoryError", "RecursionError"])
def test_what_an_import_raises_as_if_the_user_or_the_machine_had_is_the_plugins(
    install_adapter: Install, kind: str
) -> None:
    install_adapter("pretends", f"raise {kind}")
    registry = Registry.discover()
    with pytest.raises(PluginError, match=kind):
        registry.method("adapter", "pretends")


def test_p1_a_slow_import_works_and_is_remarked_on(
    install_adapter: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_import, "SLOW_SECONDS", 0.05)
    install_adapter("slow", "import time\ntime.sleep(0.1)\n" + adapter_source("slow"))
    registry = Registry.discover()
    record = next(row for row in registry.records() if row.method == "slow")
    assert record.state == "ok"
    assert record.seconds >= 0.1
    assert record.remarks == ("takes 0.1 s to import",)


def test_p1_what_a_plugin_prints_at_import_stays_off_stdout(
    install_adapter: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = "import sys\nprint('hello')\nsys.stdout.buffer.write(b'raw')\n"
    install_adapter("loud", noise + adapter_source("loud"))
    record = next(row for row in Registry.discover().records() if row.method == "loud")
    assert capfd.readouterr().out == ""
    assert record.state == "ok"
    assert record.remarks == ("prints at import: 'hello raw'",)


def test_a_broken_module_is_run_once_for_all_its_methods(install: Install, tmp_path: Path) -> None:
    source = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\nraise RuntimeError"
    methods = {"one": "twice_run", "two": "twice_run"}
    install("llmft-twice", {"twice_run": source}, {"llmft.adapters": methods})
    assert [r.state for r in Registry.discover().records() if r.module == "twice_run"] == [
        "broken", "broken",
    ]  # fmt: skip
    assert (tmp_path / "runs").read_text() == "x"


@pytest.mark.parametrize(
    ("needs", "command"),
    [
        ("no_such_module_anywhere; extra == 'fast'", "pip install 'llmft-bad[fast]'"),
        ("no-such-module-anywhere>=2", "pip install no-such-module-anywhere"),
        ("something-else", "pip install -U llmft-bad"),
    ],
)
def test_e1_a_missing_module_is_answered_with_the_command(
    needs: str, command: str, install_adapter: Install
) -> None:
    install_adapter("bad", "import no_such_module_anywhere.deep", requires=(needs,))
    with pytest.raises(PluginError) as caught:
        Registry.discover().method("adapter", "bad")
    assert caught.value.faults[0].fix == f"{command}, or pip uninstall llmft-bad"


@pytest.mark.parametrize("value", ["not a module!", "", "no_such_module_x:thing", "json:nothing"])
def test_an_entry_point_to_nowhere_is_named(value: str, install: Install) -> None:
    install("llmft-lost", {}, {"llmft.adapters": {"lost": value}})
    with pytest.raises(PluginError, match=r"'llmft-lost' 1\.0"):
        Registry.discover().method("adapter", "lost")


def test_unreadable_metadata_is_a_remark_and_stops_no_other(install_adapter: Install) -> None:
    bad = install_adapter("garbled")
    next(bad.glob("*.dist-info/entry_points.txt")).write_bytes(b"[llmft.adapters]\n\xff\xfe = x\n")
    nameless = install_adapter("nameless")
    next(nameless.glob("*.dist-info/METADATA")).write_text("")
    install_adapter("good")
    registry = Registry.discover()
    assert "good" in registry.names("adapter")
    assert len(registry.remarks) == 2


def test_a_class_may_fail_when_asked_for_its_capabilities(install_adapter: Install) -> None:
    method = "    @classmethod\n    def capabilities(cls):\n        raise KeyError('oh')\n"
    install_adapter("odd", adapter_source("odd", hook=method + HOOK))
    record = next(row for row in Registry.discover().records() if row.method == "odd")
    assert record.state == "broken"
    assert "oh" in record.reason


def test_nothing_of_a_whole_broken_set_reaches_the_terminal(install_adapter: Install) -> None:
    roots = [
        install_adapter(f"bad{number}", "print('noise')\n" + source, dist=f"llmft-bad{number}")
        for number, (source, _, _) in enumerate(BROKEN.values())
    ]
    program = (
        "import json, sys\nfrom llmft.registry import safe_import\n"
        "from llmft.registry.registry import Registry\n"
        "safe_import.HANG_SECONDS = 0.5\n"
        "rows = Registry.discover().records()\n"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules]\n"
        "print(json.dumps([sum(r.state == 'broken' for r in rows), heavy]))"
    )
    path = os.pathsep.join([str(root) for root in roots] + sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    broken, heavy = json.loads(done.stdout)
    assert broken >= len(BROKEN)
    assert heavy == []
    assert done.stderr == ""


def test_p6_what_a_plugin_changes_at_import_is_put_back(install_adapter: Install, capfd):
    import random
    import signal

    source = (
        GOOD + "\nimport os, random, signal, sys\n"
        "os.write(1, b'raw words')\nprint('more words')\nrandom.seed(1)\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "sys.stdout = sys.stderr\n"
    )
    install_adapter("bad", source)
    here, stream, dice = os.getcwd(), sys.stdout, random.getstate()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    record = next(r for r in Registry.discover().records() if r.method == "bad")
    assert record.state == "ok"
    assert "words" in record.remarks[0]
    assert (os.getcwd(), random.getstate()) == (here, dice)
    assert sys.stdout is stream
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert after == handlers
    assert capfd.readouterr().out == ""
