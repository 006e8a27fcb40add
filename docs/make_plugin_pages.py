"""Writes docs/plugins/*.md: the texts here, around the files that `llmft new-plugin` writes."""

from __future__ import annotations

from pathlib import Path

from llmft.cli.commands.new_plugin import EXAMPLES, plugin_files
from llmft.registry.contract import Kind

PAGES = Path(__file__).parent / "plugins"

TEXTS: dict[Kind, tuple[str, str, str]] = {
    "adapter": (
        "Adapter",
        """\
An adapter is what is trained: a small set of parameters attached to a frozen base model. It need
not be one of PEFT's types. The engine calls `attach` under the recipe's seed, trains what requires
grad, and saves and loads by `save` and `load`; `disabled` lets the base answer alone, for DPO's
reference and for scores before training. What a class declares (`mergeable`, `supports_packing`
and so on) is trusted by the engine, and tested by the kit. `check` reports settings that cannot
fit a model, before a weight is loaded.

The example puts two small layers after each block of the decoder (Houlsby et al. 2019,
[arXiv:1902.00751](https://arxiv.org/abs/1902.00751)). It is made of plain torch modules.""",
        """\
The kit attaches, trains, saves, loads and merges the adapter on tiny models built in memory, and
fails if a capability that the class declares is missing.""",
    ),
    "alignment": (
        "Alignment",
        """\
An alignment is what is optimised: it says which rows it reads (`rows`), turns them into items, and
gives the engine's training loop their loss. A loss is a *sum* over a batch, with the weight by
which the sums of an optimiser step are divided; so the gradient is that of the mean over the whole
step, whatever the batches. `llmft.toolkit` has the forward passes: `label_nll`,
`token_stats`, `last_hidden`, and heads for reward and value models. `extend`, `save` and `load`
add what is trained beside the adapter; `evaluate` adds metrics of the method's own.

The example is supervised fine-tuning with a confidence penalty (Pereyra et al. 2017,
[arXiv:1701.06548](https://arxiv.org/abs/1701.06548)).""",
        """\
The kit takes a step on rows of each kind that the class declares, checks that the loss is a sum
and the weight its weight, and that rows of other kinds are refused.""",
    ),
    "task": (
        "Task",
        """\
A task is a stage that trains nothing. It reads rows, or what an earlier stage made, and writes
`rows.jsonl` into the stage's folder. Its model is that of the stage named in `start_from`, frozen,
or the base. A setting that names an earlier stage is marked with `StageRef`, so that a wrong name
is found when the recipe is read.

A task that scores rows by metrics derives its settings from `ScoredTaskConfig` and asks
`context.row_scores()`. `reads`, `contacts` and `check` say what it reads beside rows, which hosts
it contacts, and what cannot work, before a run starts. `context.planned` says that `llmft plan`
runs it.

The example samples answers to each question and keeps the right ones, as rows for supervised
fine-tuning (rejection sampling: Yuan et al. 2023,
[arXiv:2308.01825](https://arxiv.org/abs/2308.01825)). A later recipe reads them with `data:
{method: jsonl, path: <run>/stages/<stage>/rows.jsonl}`.""",
        """\
The kit runs the task in a stage whose model answers with made-up words: twice, with the same
result; on each kind of rows that it declares, and on no other.""",
    ),
    "reward": (
        "Reward function",
        """\
A reward function scores an answer by a rule; higher is better. `rank` takes one as `judge`,
`ppo` as `reward`, `grpo` and `rloo` a list of them as `rewards`; an alignment or a task of your
own holds one in a setting of the type `RewardConfig`, and asks `context.reward_function` for it.
It is called thousands of times, so it must not use the network.

The example gives 1 to an answer that names a right one, and less to one that
adds more text.""",
        """\
The kit scores ordinary, empty, very long and odd answers: each has a finite number, the same each
time, whatever else was asked.""",
    ),
    "dataset": (
        "Data set",
        """\
A data set turns raw records into rows: text, completion, chat, preference, unpaired,
classification or prompt. `TableDataset` of `llmft.toolkit` reads the records from `.jsonl`,
`.json`, `.csv`, `.parquet` and `.txt` files, folders and the hub; derive from
`llmft.api.Dataset` and write `records` yourself for any other source. A record that cannot be
used is a `DataError` that names its origin, `file:line`. `metrics` score a model's answers; with
`example_records`, `llmft run --smoke` can try a recipe whose data is not there.

The example reads instructions in Alpaca's columns.""",
        """\
The kit reads the files that `write` makes: each row is of the declared kind and names its origin,
a second reading gives the same, bad records are refused with their place, and metrics are fair.""",
    ),
    "optimizer": (
        "Optimiser",
        """\
An optimiser moves the parameters along their gradients. `make` gets the groups of parameters, as
torch.optim takes them, and the recipe's `train` settings, and returns a `torch.optim.Optimizer` of
exactly these parameters. Its rate is that of its groups, which the schedule sets before each step.
What checkpoints hold is the optimiser's `state`, tensors and numbers, and those entries of its
groups that `group_state` names, such as a count of steps; from that a resumed training goes on to
the bit. Tensors of its own classes, such as quantised ones, need a method `init_state` that sets
them up; what is saved is copied into them. An optimiser that trains other weights than those to be
used, as schedule-free ones do, has methods `train` and `eval`: llmft calls them, and scores, saves
and returns the weights after `eval`. `llmft plan` runs the optimiser on fake tensors, or asks
`state_bytes`. Builtin optimisers have names; any is chosen by a block. With `train.shard_base` and
`full` each process makes an optimiser of the weights that it owns, each of them whole: one that
goes by a number of all weights at once, such as a common step size, has to sum that over the
processes itself.

The example steps by the sign of a momentum (Bernstein et al. 2018,
[arXiv:1802.04434](https://arxiv.org/abs/1802.04434)).""",
        """\
The kit trains two small matrices: the loss falls, the groups' own rates and decays are kept, and a
training that is resumed from what a checkpoint holds is the same to the bit.""",
    ),
    "schedule": (
        "Learning-rate schedule",
        """\
A schedule says how the learning rate moves: `factor` gives what the peak is multiplied by in an
optimiser step, from the step and the `TrainingSpan` (all steps, the warm-up, the peak). It may
follow the scores of held-out rows too: with `follows_scores` it is told each evaluation (`scored`),
and keeps what it has come to in `state`, as JSON, which a resumed training restores. Where
parameters have rates of their own, as in LoRA+, `rates` may treat each group apart. A rate below 0,
or NaN, stops the run before the update, with an error that names the plugin. Builtin schedules have
names, with `lr_scheduler_kwargs`; any schedule is chosen by a block.

The example falls in steps. The builtin `reduce_lr_on_plateau` follows scores.""",
        """\
The kit asks for the rates of short and of long trainings: they are finite, the peak is the highest,
a warm-up rises, and a training that is resumed at any step has the same rates.""",
    ),
    "callback": (
        "Callback",
        """\
A callback acts during a stage's training, after each optimiser step, whatever the alignment is. It
is told the step, the trained parameters and the metrics (`on_step_end`), and the scores of held-out
rows where there are some (`on_evaluate`); it changes none of them. It may end the training
(`should_continue`): the stage then ends as it would with its last step, with scores and a result. A
StageError ends the run instead, before anything of the step is saved. With `gives_weights` it gives
other weights (`weights`) to be used in place of the trained ones: by the evaluations, by the best
checkpoint, and as the stage's result, or by some of these. What it keeps in `state`, tensors and
plain data, is in each checkpoint, and a resumed training restores it. Random numbers are put back
after each call. In a distributed training each process has one, which sees the same numbers; with
`train.shard_base` and `full`, the parameters that it is told are those that its process owns.
`llmft plan` counts what `state_bytes` says.

The example ends a training at a target. The builtin `ema` gives weights, and `loss_watchdog` fails
or ends a training; both are written with this contract alone. So could be early stopping
(`on_evaluate`, `should_continue`) and the best checkpoint as the result (copies in `state`, which
`weights` gives for the result): builtin `evaluate.early_stopping_patience` and
`load_best_model_at_end` are part of the loop, as they choose which checkpoints are kept.""",
        """\
The kit trains two small matrices: every update is what it would be without the callback; a resumed
training ends at the same step with the same weights and state; and the given weights fit.""",
    ),
    "metric": (
        "Metric",
        """\
A metric scores the model's answers to held-out rows, of any data set: in `evaluate` before, during
and after training, in `llmft evaluate --metrics`, and as `metric_for_best_model`. A class writes
one of two methods. `score` gets one answer, with its prompt, the right answers (`references`) and
its row, and returns a number, or several by the names that `values` lists; llmft takes the mean
over rows. `score_corpus` gets all answers, for what is no mean over rows, such as BLEU; llmft asks
it again without some rows, for the 95 % interval. `greater_is_better`, `value_range` and
`needs_references` say what holds for its values; a value outside the range, or NaN, stops the run
with an error that names the plugin.

A recipe writes a metric's name, or a block with its settings; `name` in the block says what its
score is called. A name that the data set has a metric of means that one.

The example gives two values of one answer. The builtin `distinct` scores all answers together.""",
        """\
The kit scores ordinary, empty, very long and odd answers: each has values in the range that the
class declares, the same each time and in any order; and nonsense is not preferred to a right
answer.""",
    ),
    "tracker": (
        "Tracker",
        """\
A tracker receives what happens in a run: progress, scores, remarks, results. One that fails is
reported once and dropped, and never ends a run. `contacts` names the network host it talks to, or
is `""`; `plan` and `run` show it to the user. A tracker writes only below the run's folder.

The example writes every number into a CSV file.""",
        """\
The kit sends the tracker complete and interrupted runs, with odd numbers and names, and fails if
it writes outside the run's folder.""",
    ),
}

PAGE = """\
# Plugins: {title}

{intro}

In a recipe:

```text
{use}
```

This package is complete. The same files, as a start for your own:

```bash
llmft new-plugin {name} --kind {kind}
```

{files}
Install it with `pip install -e '.[test]'`, and run its tests with `pytest`. `llmft list-plugins`
then shows the method, or the reason why it cannot be used; `llmft show {name}` prints its settings.
[Writing a plugin](../writing-a-plugin.md) says what holds for all kinds.
"""

HEADS = {
    "pyproject.toml": "The entry point's name is the method's name. llmft reads it from the"
    " metadata, and imports the\nmodule only when a recipe names the method.",
    "steps.py": "Apart, because it imports torch: listing methods must stay quick.",
    "layers.py": "Apart, because it imports torch: listing methods must stay quick.",
}


def page(kind: Kind) -> str:
    """Return the text of a kind's page."""
    title, intro, kit = TEXTS[kind]
    name = EXAMPLES[kind]
    parts = []
    files = plugin_files(name, kind)
    for path, text in files.items():
        if path == "README.md":
            continue
        said = kit if path.startswith("tests/") else HEADS.get(Path(path).name, "")
        language = "toml" if path.endswith(".toml") else "python"
        parts.append(f"## `{path}`\n" + (f"\n{said}\n" if said else ""))
        parts.append(f"```{language}\n{text}```\n")
    use = files["README.md"].partition("```yaml\n")[2].partition("\n```")[0]
    return PAGE.format(
        title=title, intro=intro, use=use, name=name, kind=kind, files="\n".join(parts)
    )


if __name__ == "__main__":
    for each in EXAMPLES:
        (PAGES / f"{each}.md").write_text(page(each), "utf-8")
