"""Commands about a finished run: ask it, score with it, rank its answers, publish it.

Each imports what it needs inside, so that the light ones answer before torch could be loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmft.api.errors import RecipeError
from llmft.cli.app import (
    AfterStep,
    Answer,
    AnswerTokens,
    ForceChat,
    Json,
    PolicyStage,
    RunFolder,
    Set,
    Trust,
    allow,
    app,
)


@app.command()
def generate(
    run: RunFolder,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Each in quotes.")],
    stage: Annotated[
        str | None,
        typer.Option(help="The stage that answers; default: the last that made a policy."),
    ] = None,
    step: AfterStep = None,
    max_new_tokens: AnswerTokens = 64,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="Let the base model answer, without the adapter.")
    ] = False,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="The system text, in place of the recipe's.")
    ] = "",
    turns: Annotated[
        bool, typer.Option("--turns", help="The questions are the turns of one conversation.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Ask them as they stand, with no prompt template.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Answer questions with a trained model."""
    from llmft.cli.commands.generate import answers

    found = answers(
        run, questions, stage, max_new_tokens, adapter=not no_adapter, step=step,
        system=system, turns=turns, raw=raw,
    )  # fmt: skip
    return {"answers": found} if json else "\n".join(item["answer"] for item in found)


@app.command()
def chat(
    run: RunFolder,
    stage: PolicyStage = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system prompt.")] = "",
    chat: ForceChat = False,
    message: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Say this and end; default: what you type. Repeatable."),
    ] = None,
    max_new_tokens: AnswerTokens = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, metavar="T", help="0: the likeliest answer.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1.0, metavar="P", help="1: all.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, metavar="K", help="0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the sampling.")] = 0,
    json: Json = False,
) -> Answer:
    """Talk with a trained model, and with the untrained one."""
    from llmft.api import SamplingParams
    from llmft.cli.commands.chat import as_json, talk

    said = talk(
        run, stage, SamplingParams(max_new_tokens, temperature, top_p, top_k),
        seed=seed, system=system, chat=chat, messages=message or [], quiet=json,
    )  # fmt: skip
    return as_json(said) if json else ""


@app.command()
def score(
    run: RunFolder,
    file: Annotated[
        str,
        typer.Argument(
            help="Records with text, or prompt and completion, or prompt, chosen and rejected; for"
            " a classifier as its data were (.jsonl, .json, .csv, .parquet, .txt)."
        ),
    ],
    stage: Annotated[
        str | None,
        typer.Option(help="The stage that scores; default: the last that can."),
    ] = None,
    step: AfterStep = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the records here; default: print them as JSON."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Score texts with a reward model, or classify them."""
    from llmft.cli.commands.score import as_text, scores

    found = scores(run, file, stage, output, step)
    return {"scores": found} if json else as_text(found, output)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="A run's folder, or a model's folder or hub id.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Other rows; default: those the run was scored on."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Such as loss,exact_match; default: the recipe's."),
    ] = None,
    stage: PolicyStage = None,
    step: AfterStep = None,
    base: Annotated[
        bool, typer.Option("--base", help="Score the base model, without the adapter.")
    ] = False,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="The data set's method, for a model without a run.")
    ] = "jsonl",
    split: Annotated[str | None, typer.Option(help="The data's split.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first rows only.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, metavar="N", help="Tokens of an answer at most."),
    ] = None,
    set: Set = None,
    trust: Trust = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write each row's answer and scores; for compare."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let a model behind this OpenAI-compatible endpoint judge the run's answers.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The judge; default: the endpoint's only model."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="The answers beside them: another run's; default: the base's."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=604_800.0,
            metavar="SECONDS",
            help="Of waiting for the judge, all its answers together; default: 3600.",
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Tasks of lm-evaluation-harness, instead of data and metrics."
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="Of --lm-eval: examples before each question; default: the task's.",
        ),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="Of --lm-eval: ask through the chat template."),
    ] = False,
    include_path: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Of --lm-eval: a folder with tasks of your own."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Score a run, its base or any model on any data."""
    from llmft.cli.commands.evaluate import (
        as_text,
        evaluated,
        refuse_without_harness,
        refuse_without_judge,
    )
    from llmft.inference.evaluating import Asked

    allow(trust)
    asked = Asked(
        target, stage, data, method, tuple(filter(None, (metrics or "").split(","))), split,
        limit, max_new_tokens, base, step, tuple(set or ()),
    )  # fmt: skip
    if judge is not None:
        from llmft.cli.commands.judge_answers import as_text as judged_as_text
        from llmft.cli.commands.judge_answers import judged, refuse_scoring

        refuse_scoring(metrics, base=base)
        if lm_eval is not None:
            raise RecipeError(
                "E090", "--judge and --lm-eval exclude each other", fix="leave one out"
            )
        told = judged(asked, against or "base", judge, judge_model, timeout, output)
        return told if json else judged_as_text(told)
    refuse_without_judge(judge_model, against, timeout)
    options = {"--num-fewshot": num_fewshot, "--apply-chat-template": apply_chat_template,
               "--include-path": include_path}  # fmt: skip
    if lm_eval is not None:
        from llmft.cli.commands.evaluate_on_harness import as_text as harness_as_text
        from llmft.cli.commands.evaluate_on_harness import evaluated_on_harness

        told = evaluated_on_harness(
            asked,
            lm_eval,
            num_fewshot,
            include_path,
            output,
            apply_chat_template=apply_chat_template,
        )
        return told if json else harness_as_text(told)
    refuse_without_harness(options)
    found = evaluated(asked, output)
    return found if json else as_text(found)


@app.command()
def report(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the curves here too, as CSV.")
    ] = None,
    png: Annotated[
        str | None, typer.Option(metavar="DIR", help="Draw them into this new folder, as PNG.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Write a run's report.html again: curves, scores, answers."""
    from llmft.cli.commands.report import as_text
    from llmft.cli.commands.report import report as write

    made = write(run, data, png)
    return made if json else as_text(made)


@app.command()
def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
    interval: Annotated[
        float,
        typer.Option(min=0.1, max=3600.0, metavar="SECONDS", help="Between two looks."),
    ] = 2.0,
    json: Json = False,
) -> Answer:
    """Watch a run while it trains: phase, time left, curves."""
    from llmft.cli.commands.watch import as_json, as_text
    from llmft.cli.commands.watch import watch as look

    seen = look(run, once=once, interval=interval, quiet=json)
    return as_json(seen) if json else as_text(seen)


@app.command()
def runs(
    folder: Annotated[str, typer.Argument(help="The folder that holds runs.")] = "runs",
    name: Annotated[
        str, typer.Option(metavar="PATTERN", help="Only recipes of such names, such as 'trivia*'.")
    ] = "*",
    state: Annotated[
        Literal["finished", "running", "stopped", "damaged"] | None,
        typer.Option(help="Only runs of this state."),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="BY", help="date, name, time, or a score such as exact_match.")
    ] = "date",
    json: Json = False,
) -> Answer:
    """List the runs in a folder, with state, time and scores."""
    from llmft.cli.commands.runs import as_text, listed

    found = listed(folder, name, state, sort)
    return {"runs": found} if json else as_text(found, folder)


@app.command()
def compare(
    places: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="Runs' folders, or files that evaluate wrote."),
    ],
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write an HTML page here too.")
    ] = None,
    json: Json = False,
) -> Answer:
    """Compare runs: settings, scores, paired tests, cost."""
    from llmft.cli.commands.compare import as_json, as_text, compared

    found = compared(places, output)
    return as_json(found) if json else as_text(found, output)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="A finished run's folder.")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SHARE",
            help="How far losses and scores may differ, on another machine; default: not at all.",
        ),
    ] = None,
    write_requirements: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the run's packages to this file; run nothing."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the second run.")] = False,
    trust: Trust = None,
    json: Json = False,
) -> Answer:
    """Run a finished run again, and compare it bit for bit."""
    from llmft.cli.commands import reproduce as command

    if write_requirements is not None:
        made = command.write_requirements(run, write_requirements)
        return made if json else f"{write_requirements}: {made['packages']} packages"
    allow(trust)
    found = command.reproduce(run, tolerance=tolerance, keep=keep, as_json=json)
    return command.as_data(found, keep) if json else command.as_text(found, tolerance)


@app.command()
def rank(
    target: Annotated[str, typer.Argument(help="A run's folder, or a file of samples.")],
    rater: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who ranks; default: your user name.")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port of the page; 0: any that is free."
        ),
    ] = 0,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Rank in the terminal, not on a page.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Samples to rank this time at most.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Show who has ranked how much, and their agreement.")
    ] = False,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the preferences to this file.")
    ] = None,
    pairs: Annotated[
        Literal["all", "best_worst"], typer.Option(help="Which pairs each ranking gives.")
    ] = "all",
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Let a reward function, or the reward model of a stage, rank."
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Rank a model's answers, on a page or in the terminal."""
    from llmft.cli.commands import rank as ranking

    if judge:
        from llmft.cli.commands.judge import judge as let_judge

        let_judge(target, judge)
    if export:
        written = ranking.export(target, export, pairs)
        return written if json else ranking.export_as_text(written)
    if status or judge:
        told = ranking.status(target, pairs)
    else:
        told = ranking.rank(
            target, rater, port=port, terminal=terminal, open_page=not no_open, limit=limit,
            as_json=json,
        )  # fmt: skip
    return told if json else ranking.as_text(told)


@app.command()
def push(
    run: RunFolder,
    stage: Annotated[
        str | None,
        typer.Option(help="The stage to send; default: the recipe's, else the last that trains."),
    ] = None,
    repo_id: Annotated[
        str | None,
        typer.Option(help="The repository, such as my-name/my-adapter; default: the recipe's."),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Make a new repository public; default: as the recipe says."),
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Send the whole model, the adapter merged into it.")
    ] = False,
    gguf: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Send the whole model for llama.cpp, of a type by its name, such as Q4_K_M.",
        ),
    ] = None,
    llama_cpp: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="llama.cpp's folder, for --gguf; default: on PATH."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=86_400.0,
            metavar="SECONDS",
            help="Of the upload; default: the recipe's, else 600.",
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Send an adapter or its model, with a model card, to the hub."""
    from llmft.cli.commands.push import Asked, as_text, pushed

    sent = pushed(run, Asked(stage, repo_id, public, merged, gguf, llama_cpp, timeout))
    return sent if json else as_text(sent)


@app.command()
def merge(
    run: RunFolder,
    output: Annotated[
        str, typer.Option(metavar="DIR", help="The model's folder; must not be there yet.")
    ],
    stage: PolicyStage = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights that are written; default: as the base's files."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one file of weights at most.")
    ] = "5GB",
    json: Json = False,
) -> Answer:
    """Write a run's adapter and its base as one complete model."""
    from llmft.cli.commands.merge import as_text, merged

    made = merged(run, output, stage, dtype, max_shard_size)
    return made if json else as_text(made)


@app.command()
def export(
    run: RunFolder,
    to: Annotated[
        Literal["peft", "hf", "vllm", "mlx", "gguf", "ollama"],
        typer.Option(
            help="peft: the adapter; hf: merged, for transformers; vllm: an adapter vLLM takes;"
            " mlx: merged, for mlx-lm; gguf: merged, for llama.cpp; ollama: that with a Modelfile."
        ),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="Must not be there yet.")],
    stage: PolicyStage = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Of a GGUF file, by llama.cpp's name, such as Q4_K_M; default: as the base's.",
        ),
    ] = None,
    llama_cpp: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="llama.cpp's folder, with its converter; default: on PATH."
        ),
    ] = None,
    json: Json = False,
) -> Answer:
    """Write a run for PEFT, vLLM, llama.cpp, Ollama or MLX."""
    from llmft.cli.commands.export import as_text, exported

    made = exported(run, to, output, stage, llama_cpp, quantization)
    return made if json else as_text(made)


@app.command()
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs' folders, or NAME=RUN to name the model."),
    ],
    stage: PolicyStage = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; off this machine a key is needed."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="0: any that is free.")
    ] = 8000,
    base: Annotated[
        bool, typer.Option("--base", help="Serve the untrained model too, as 'base'.")
    ] = False,
    chat: ForceChat = False,
    json: Json = False,
) -> Answer:
    """Serve runs as models behind an OpenAI-compatible endpoint."""
    from llmft.cli.commands.serve import serve as start

    start(runs, stage, host=host, port=port, chat=chat, base=base, as_json=json)
    return ""
