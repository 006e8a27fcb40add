"""The process that tells MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmft_trackers.address import absolute_variables, host, without_login
from llmft_trackers.child import (
    Message,
    Say,
    as_typed,
    first_line,
    flat,
    follow_no_redirects,
    is_reachable,
    serve,
)
from llmft_trackers.mlflow.store import is_server

_NAMED_FILES = (
    "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
_RUN_TAG = "llmft.run"
# What every server takes: names of 250 characters, values of 500, notes of 5000.
_NAME, _VALUE, _NOTES = 250, 500, 5_000
_MOST_METRICS, _MOST_PARAMETERS = 1_000, 100
_RETRY_SECONDS = 5.0


class MLflowRun:
    """A run in one store: what a server does not take is kept, and told again with what follows."""

    def __init__(self, store: str, asked: Message) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=store, registry_uri=store)
        self._metrics: list[Any] = []
        self._tags: dict[str, str] = {}
        self._parameters: dict[str, str] = {}
        self._failed = 0.0
        experiment = self._experiment(asked["experiment"])
        # A run that is resumed goes on here, under the name of its folder.
        found = self._client.search_runs(
            [experiment], f"tags.`{_RUN_TAG}` = '{_quoted(asked['id'])}'", max_results=1
        )
        self._given: dict[str, str] = dict(found[0].data.params) if found else {}
        if found:
            self._id = str(found[0].info.run_id)
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_RUN_TAG: _quoted(asked["id"]), "mlflow.source.name": "llmft"}
            name = asked["name"][:_VALUE]
            made = self._client.create_run(experiment, run_name=name, tags=tags)
            self._id = str(made.info.run_id)
        self.path = f"/#/experiments/{experiment}/runs/{self._id}"
        self._set(flat(asked["config"]))

    def tell(self, messages: Sequence[Message]) -> None:
        """Send what has come, and what an earlier try left."""
        for message in messages:
            self._take(message)
        if time.monotonic() - self._failed > _RETRY_SECONDS or not self._failed:
            self._send()

    def finish(self, done: bool) -> bool:
        """Send what is left, and end the run."""
        self._send()
        if not (self._metrics or self._tags or self._parameters):
            status = "FINISHED" if done else "FAILED"
            self._client.set_terminated(self._id, status=status)
            return True
        return False

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _take(self, message: Message) -> None:
        from mlflow.entities import Metric

        now = int(message.get("time", time.time()) * 1_000)
        numbers = dict(message.get("log", {}))
        for name, value in message.get("summary", {}).items():
            if isinstance(value, int | float):
                numbers[f"{message['stage']}/result/{name}"] = value
        for name, value in numbers.items():
            self._metrics.append(Metric(_named(name), float(value), now, message["step"]))
        if "notes" in message:
            self._tags["mlflow.note.content"] = message["notes"][-_NOTES:]
        self._set(message.get("config", {}))

    def _set(self, values: Message) -> None:
        """Take in parameters; MLflow lets none change, so what a resumed run has anew is a tag."""
        for name, value in values.items():
            key, text = _named(name), str(value)[:_VALUE]
            if key not in self._given:
                self._given[key] = self._parameters[key] = text
            elif self._given[key] != text:
                self._tags[key] = text

    def _send(self) -> None:
        from mlflow.entities import Param, RunTag

        try:
            while self._metrics or self._parameters or self._tags:
                metrics = self._metrics[:_MOST_METRICS]
                named = list(self._parameters.items())[:_MOST_PARAMETERS]
                tags = [RunTag(*item) for item in list(self._tags.items())[:_MOST_PARAMETERS]]
                params = [Param(*item) for item in named]
                self._client.log_batch(self._id, metrics=metrics, params=params, tags=tags)
                del self._metrics[: len(metrics)]
                self._parameters = dict(list(self._parameters.items())[len(params) :])
                self._tags = dict(list(self._tags.items())[len(tags) :])
            self._failed = 0.0
        except Exception:  # MLflow's own errors, and the network's: tried again
            self._failed = time.monotonic()


def begin(asked: Message, here: Path, say: Say) -> MLflowRun:
    """Start the run, or go on with it; in files where the server cannot be reached."""
    absolute_variables(_NAMED_FILES)
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "DO_NOT_TRACK": "true",
    }
    follow_no_redirects()
    store, why = asked["store"], ""
    if is_server(store) and not is_reachable(without_login(store)):
        why = f"{host(store)} cannot be reached"
    run = None
    if not why:
        try:
            run = MLflowRun(store, asked)
        except Exception as error:  # MLflow's own errors, of whatever kind: files are kept instead
            if store == asked["kept"]:
                raise
            why = first_line(error, *(os.environ.get(name) for name in _SECRETS))
            if "Max retries" in why:  # urllib3's words for whatever the network does
                why = f"{host(store)} does not answer"
    if run is None:
        run = MLflowRun(asked["kept"], asked)
        say({"remark": f"mlflow is offline ({why}); {_shown(asked['kept'], here)}"})
        return run
    if is_server(store):
        say({"remark": f"mlflow shows this run at {without_login(store)}{run.path}"})
    else:
        say({"remark": f"mlflow is told; {_shown(store, here)}"})
    return run


def _shown(store: str, here: Path) -> str:
    """Return how a person sees what a store holds."""
    place = store if "://" in store else as_typed(store, here)
    allowed = "" if "://" in store else "MLFLOW_ALLOW_FILE_STORE=true "
    return f"to see it: {allowed}mlflow ui --backend-store-uri '{place}'"


def _named(name: str) -> str:
    """Return a name that MLflow takes."""
    kept = "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
    return kept[:_NAME].strip("/.") or "_"


def _quoted(name: str) -> str:
    return name.replace("'", "_").replace("\\", "_")


if __name__ == "__main__":
    serve("mlflow", begin)
