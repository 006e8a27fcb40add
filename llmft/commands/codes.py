"""Every error code: what it is, why it is an error, and how to mend it. `llmft explain` prints it.

E0xx the recipe and the command line, E1xx data, E2xx the machine, E3xx training, E4xx runs and
checkpoints, E5xx plugins, E6xx trust, E9xx our own bugs.
"""

from __future__ import annotations

from llmft.commands.recipe_codes import RECIPE_CODES, Code
from llmft.commands.run_codes import RUN_CODES

CODES: dict[str, Code] = {
    **RECIPE_CODES,
    # --- data
    "E101": Code(
        "a row cannot be used",
        "A row lacks a column, or holds null, a number or a list where text is needed, or its"
        " messages do not form a conversation. The file, the line and the column are named.",
        "Mend the row, or write `on_bad_row: skip`, which counts what is skipped.",
    ),
    "E102": Code(
        "columns are missing in all rows",
        "No row has the columns that the dataset's method reads. The columns that were found are"
        " listed.",
        "Map the names under `columns:`, or pick the method that fits the data.",
    ),
    "E103": Code(
        "there are no rows",
        "The file or the split is empty, or nothing is left of it after filtering. What removed"
        " how many rows is printed.",
        "Check the path, the split and the limit.",
    ),
    "E104": Code(
        "too many rows are dropped",
        "A larger share of the rows than `train.max_dropped` is too long, or loses its answer"
        " when it is cut. Training on what is left would not be what was asked.",
        "Raise train.max_length, shorten the rows, or raise train.max_dropped knowingly.",
    ),
    "E105": Code(
        "there is nothing to learn",
        "A row, or all of them, has no token that is learnt: the completion is empty, or was cut"
        " off altogether.",
        "Give every row a completion, and raise train.max_length if answers are cut off.",
    ),
    "E106": Code(
        "a row is too long",
        "A row has more tokens than train.max_length, or than the model has positions, and"
        " `on_long_row: fail` was asked for.",
        "Shorten the row, raise train.max_length, or write on_long_row: truncate or drop.",
    ),
    "E107": Code(
        "a data file cannot be read",
        "The file is missing, is cut short, is not what its name says (JSON, CSV, parquet),"
        " holds bytes that are not UTF-8, or is a pipe or a device. The line and the byte are"
        " named.",
        "Mend or fetch the file again, and give it the ending of what it is.",
    ),
    "E108": Code(
        "there is no chat template",
        "The rows are conversations, and the model's tokenizer has no template that turns them"
        " into text, or its template refuses them.",
        "Give one under model.chat_template, use a model that has one, or rows with prompt and"
        " completion.",
    ),
    "E109": Code(
        "unknown split",
        "The data has no split of this name. Those that it has are listed.",
        "Take one of these under data.split or evaluate.split, or hold rows out by"
        " evaluate.holdout.",
    ),
    "E110": Code(
        "there is nothing to rank",
        "A samples file holds prompts with two answers or more each. This one is empty, or the"
        " answers to every prompt are the same.",
        "Collect answers first; where all are the same, collect at a higher temperature.",
    ),
    "E111": Code(
        "a rating cannot be used",
        "A rater's file has a line that is no decision, or one that ranks another number of"
        " answers than its sample has. A last line that a kill cut short is no such fault.",
        "Delete the line that is named, and rank that sample again with `llmft rank`.",
    ),
    "E112": Code(
        "a judge gave no number",
        "A reward function or a reward model that ranks or scores answers gave one of them NaN, or"
        " PPO an infinite reward. There is no ranking by that, and nothing to learn from it.",
        "Mend the function, or look at the reward model's report: its training may have failed.",
    ),
    "E113": Code(
        "processes read other rows",
        "Several processes train together, each takes its part of every step, and one of them reads"
        " other rows than the first one does.",
        "Give all machines of the run the same files, and the same versions of what reads them.",
    ),
    "E114": Code(
        "the tokenizer is not the model's",
        "A row holds a token that the model has no embedding for, so it cannot be read.",
        "Leave model.tokenizer out, or name the tokenizer that the model was trained with.",
    ),
    "E130": Code(
        "the run was interrupted",
        "A signal asked the run to stop, by Ctrl-C or from the machine. In training it finished"
        " its step and saved a checkpoint.",
        "Go on with the command that is printed, `llmft run RECIPE RUN_FOLDER --resume`.",
    ),
    **RUN_CODES,
    # --- plugins
    "E501": Code(
        "a plugin cannot be imported",
        "The plugin is installed, and its code fails when it is imported. Other plugins are not"
        " harmed; only recipes that name it are.",
        "Update or reinstall the distribution that is named; `llmft doctor` shows the reason.",
    ),
    "E502": Code(
        "a plugin breaks the contract",
        "It returns something of the wrong type, implements a hook that does not exist, takes"
        " other arguments than the hook gives, or fails when asked.",
        "Report it to the plugin's author; `llmft.testing` has the tests that it should pass.",
    ),
    "E503": Code(
        "two plugins offer one name",
        "Two installed distributions offer a method of the same name, and neither may shadow the"
        " other.",
        "Write `distribution:name` in the recipe, or uninstall one of them.",
    ),
    "E504": Code(
        "unknown method",
        "No installed plugin offers a method of this name.",
        "Mend the name, or install the package that brings it; `llmft list-plugins` shows all.",
    ),
    "E505": Code(
        "a plugin is made for another version of llmft",
        "The plugin states a version of the plugin API that this llmft does not have.",
        "Update the plugin or llmft, whichever is older.",
    ),
    "E506": Code(
        "a plugin failed in a run",
        "The code of an installed plugin raised an error that it should have handled, or foreseen."
        " Training stopped; the checkpoints before are intact.",
        "Report it to the plugin's author, with the file that the message names; go on with"
        " `llmft run RECIPE RUN_FOLDER --resume` once it is mended.",
    ),
    # --- trust
    "E601": Code(
        "a model folder asks for code of its own",
        "The model's files name Python code that would have to be run to load it. A recipe can"
        " never allow that.",
        "Use an architecture that transformers knows by itself.",
    ),
    "E602": Code(
        "weights in a format that can run code",
        "Files such as .bin, .pt and .pkl are pickles, and loading a pickle can run anything.",
        "Use a model with safetensors weights, or convert it where you trust it.",
    ),
    "E603": Code(
        "a write outside the run folder",
        "Something tried to write beyond the run folder, by '..' or through a link.",
        "Give a plain output_dir; report it if you did not ask for this.",
    ),
    "E604": Code(
        "a chat template runs away",
        "The chat template of the model or of the recipe did not end in time, or took more memory"
        " than any template needs. It was tried in a process of its own.",
        "Give another template as model.chat_template, or use rows with prompt and completion.",
    ),
    "E900": Code(
        "a bug in llmft",
        "Something happened that llmft does not understand. It is not your mistake.",
        "Please report it, with the file that the message names; it holds no secrets.",
    ),
}
