"""In a peer's process: give the start by name, and write down each step's loss and first rows.

Python imports this file by itself where the folder is on PYTHONPATH. The peer is otherwise its own:
its data, its trainer, its optimiser. PEER_LOSSES names the file that
is written, in the folder that it trains in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any


def _install(trainer: Any) -> None:
    import torch
    from peer_start import give_start

    train, step, logging = trainer.train, trainer.training_step, trainer._maybe_log_save_evaluate
    told: dict[str, Any] = {"losses": [], "batches": []}

    def write() -> None:
        with open(os.environ["PEER_LOSSES"], "w", encoding="utf-8") as file:
            json.dump(told, file)

    def trained(self: Any, *rest: Any, **more: Any) -> Any:
        told["given"] = give_start(self.model)
        told["trainer"] = type(self).__name__
        return train(self, *rest, **more)

    def stepped(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if self.state.global_step == 0:
            held = {
                name: value.tolist() for name, value in inputs.items()
                if isinstance(value, torch.Tensor) and not value.is_floating_point()
            }  # fmt: skip
            told["batches"].append(held)
        return step(self, model, inputs, *rest, **more)

    def logged(self: Any, tr_loss: Any, *rest: Any, **more: Any) -> Any:
        # As a Trainer logs it, which may round it: the mean since the last log, of every step.
        done = self.state.global_step - self._globalstep_last_logged
        if self.control.should_log and done > 0:
            told["losses"].append(tr_loss.item() / done)
            write()
        return logging(self, tr_loss, *rest, **more)

    log = trainer.log

    def told_of(self: Any, logs: Any, *rest: Any, **more: Any) -> Any:
        # ms-swift has a method of its own, and Axolotl rewrites the source of transformers'.
        if type(self)._maybe_log_save_evaluate is not logged and "loss" in logs:
            told["losses"].append(float(logs["loss"]))
            write()
        return log(self, logs, *rest, **more)

    trainer.train, trainer.training_step, trainer.log = trained, stepped, told_of
    if os.environ["PEER"] != "axolotl":
        trainer._maybe_log_save_evaluate = logged


class _AfterImport(MetaPathFinder):
    """Acts once transformers.trainer is imported, so that what does not train starts as fast."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "transformers.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader  # type: ignore[union-attr]
        execute = loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            _install(module.Trainer)

        loader.exec_module = executed
        return spec


if os.environ.get("PEER_LOSSES"):
    sys.meta_path.insert(0, _AfterImport())
