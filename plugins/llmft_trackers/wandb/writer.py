"""The process that tells wandb: JSON lines in, remarks and the way to send files later out."""

from __future__ import annotations

import base64
import json
import os
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft_trackers.address import absolute_variables, host
from llmft_trackers.child import (
    FINISH_SECONDS,
    NoRedirects,
    as_typed,
    empty_folder,
    end_in,
    first_line,
    own_channels,
    say,
)
from llmft_trackers.wandb.server import saved_key

# What may name a file relative to the working folder, which is left.
_NAMED_FILES = (
    "NETRC", "WANDB_CONFIG_DIR", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
_REDIRECTS = (301, 302, 303, 307, 308)
_PROBE_SECONDS, _INIT_SECONDS = 3.0, 5.0


_WITHOUT_REDIRECTS = urllib.request.build_opener(NoRedirects)


def main() -> None:
    """Hand every line on to wandb, and finish when there are no more."""
    lines, answers = own_channels()
    here, code = Path.cwd(), 0
    # wandb lets `wandb/settings` of the working folder overrule the user's own file, so it works in
    # an empty folder; the files that the user's environment names stay those that were meant.
    absolute_variables(_NAMED_FILES)
    with empty_folder("wandb") as scratch:
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ[name] = scratch  # wandb leaves folders behind in all of these
        asked = json.loads(lines.readline())
        os.environ["WANDB_BASE_URL"] = asked["base_url"]
        why = _why_offline(asked["mode"], asked["base_url"])
        try:
            run = _start(asked, offline=why is not None)
        except Exception as error:  # wandb's own errors, of whatever kind: files are kept instead
            why = first_line(error, os.environ.get("WANDB_API_KEY"))
            # wandb holds on to the name of the run that it could not start.
            run = _start({**asked, "id": f"{asked['id']}-offline"}, offline=True)
        send = f"wandb sync {shlex.quote(as_typed(run.settings.sync_dir, here))}"
        if why is None:
            say(answers, {"left": send})
        else:
            say(answers, {"remark": f"wandb is offline ({why}); afterwards: {send}"})
        exit_code = 1  # where the run goes away without a word
        for line in lines:
            message = json.loads(line)
            exit_code = message.get("exit_code", exit_code)
            _hand_on(run, message)
        end_in(FINISH_SECONDS + 3)
        try:
            run.finish(exit_code=exit_code)
            say(answers, {"left": ""})
        except Exception:  # a timeout, or an error of wandb's: the files are there
            code = 1
    os._exit(code)  # wandb's exit handlers would wait once more


def _start(asked: Mapping[str, Any], offline: bool) -> Any:
    import wandb

    settings = wandb.Settings(
        base_url=asked["base_url"],
        root_dir=asked["folder"],
        run_id=asked["id"],
        mode="offline" if offline else "online",
        resume=None if offline else "allow",
        init_timeout=_INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        login_timeout=1,
        silent=True,
        quiet=True,
        # The recipe is what is told; nothing is collected from the machine or the environment.
        console="off",
        host="",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    named = {name: asked[name] for name in ("project", "entity", "name", "group", "config")}
    run = wandb.init(**named, tags=asked["tags"] or None, settings=settings)
    for stage in asked["stages"]:
        run.define_metric(f"{stage}/step", hidden=True)
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run


def _hand_on(run: Any, message: Mapping[str, Any]) -> None:
    if "log" in message:
        run.log({f"{message['stage']}/step": message["step"], **message["log"]})
    if "table" in message:
        import wandb

        table = wandb.Table(columns=message["columns"], data=message["rows"])
        run.log({message["table"]: table})
    if "config" in message:
        run.config.update(message["config"], allow_val_change=True)
    if "summary" in message:
        stage, numbers = message["stage"], message["summary"]
        run.summary.update({f"{stage}/{name}": value for name, value in numbers.items()})
    if "notes" in message:
        run.summary.update({"notes": message["notes"]})


def _why_offline(mode: str, base: str) -> str | None:
    """Return why nothing can be sent now, or None where it can; takes a few seconds at most."""
    if mode == "offline":
        return "as the recipe says"
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return "as WANDB_MODE says"
    key = os.environ.get("WANDB_API_KEY") or saved_key(base)
    if not key and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "there is no key: wandb login"
    if mode == "online" or not key:
        return None
    found = [f"{host(base)} does not answer"]
    asking = threading.Thread(target=lambda: found.insert(0, _refusal(base, key)), daemon=True)
    asking.start()
    asking.join(_PROBE_SECONDS + 1)  # looking up a name may hang, and knows no timeout
    return found[0] or None


def _refusal(base: str, key: str) -> str:
    """Return why the server would take nothing from this key; empty where it would."""
    login = base64.b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(
        f"{base}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    try:
        with _WITHOUT_REDIRECTS.open(request, timeout=_PROBE_SECONDS) as answer:
            viewer = json.load(answer).get("data", {}).get("viewer")
            return "" if viewer else f"{host(base)} does not know the key: wandb login --relogin"
    except urllib.error.HTTPError as error:
        if error.code in _REDIRECTS:
            return f"{host(base)} sends the key on to another address, which is not followed"
        refused = error.code in (401, 403)
        told = "refuses the key: wandb login --relogin" if refused else f"answers {error.code}"
        return f"{host(base)} {told}"
    except (OSError, ValueError, AttributeError):
        return f"{host(base)} cannot be reached"


if __name__ == "__main__":
    main()
