"""Every error code: what it is, why it is an error, and how to mend it. `llmft explain` prints it.

E0xx the recipe and the command line, E1xx data, E2xx the machine, E3xx training, E4xx runs and
checkpoints, E5xx plugins, E6xx trust, E9xx our own bugs.
"""

from __future__ import annotations

from llmft.commands.recipe_codes import RECIPE_CODES, Code

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
    # --- the machine
    "E201": Code(
        "a model or a data set is not found",
        "The path is no folder here, and nothing of this name is in the local cache or can be"
        " fetched from the hub.",
        "Check the name. Fetch it first with `hf download NAME`, and log in with `hf auth login`"
        " where access is restricted.",
    ),
    "E202": Code(
        "the disk is full or failed",
        "Something could not be written. What was saved before is intact; half-written files are"
        " taken away.",
        "Make room, or give an output_dir on another disk.",
    ),
    "E203": Code(
        "a folder cannot be used",
        "The output folder is a file, may not be written to, or is not ours to write in.",
        "Give another output_dir, or mend the permissions.",
    ),
    "E204": Code(
        "the folder is in use",
        "Another process is running in this folder. Two runs in one folder would destroy each"
        " other's files.",
        "Wait for it, stop it, or give another output_dir.",
    ),
    "E205": Code(
        "out of memory",
        "The step did not fit into the memory of the machine or the device. What was saved"
        " before is intact.",
        "Lower train.per_device_train_batch_size and raise gradient_accumulation_steps by as"
        " much; then lower train.max_length; then turn train.gradient_checkpointing on.",
    ),
    "E206": Code(
        "a package is missing",
        "What the recipe asks for needs a package that is not installed, or not on this platform.",
        "Install it with the command that is printed, or pick another setting.",
    ),
    "E207": Code(
        "the model's weights do not fit its description",
        "Tensors are missing, left over, or of another shape than config.json says. Such a model"
        " would start with random weights in their place.",
        "Fetch the model again, and check that config.json and the weights belong together.",
    ),
    "E208": Code(
        "an adapter was not sent to the hub",
        "The hub cannot be reached, does not answer in time, or does not take it: nobody is logged"
        " in, the login may not write there, or the repository is public and shall be private."
        " Nothing is lost: the adapter is in the run folder.",
        "Log in with `hf auth login`, and repeat it with `llmft push RUN`.",
    ),
    "E209": Code(
        "the page cannot be served",
        "`llmft rank` serves a page on this machine's own address, 127.0.0.1. The port is in use,"
        " or may not be taken.",
        "Leave --port out: any free port does. Or rank with --terminal.",
    ),
    "E210": Code(
        "processes cannot train together",
        "A launcher (torchrun, accelerate launch) has started several processes, and they lack a"
        " GPU each, or a run folder that all can read; or the launcher has set something that the"
        " recipe does not say, such as mixed precision.",
        "Do what the message says; docs/processes.md shows how several processes are launched.",
    ),
    # --- training
    "E300": Code(
        "the method cannot work on this model or on these rows",
        "It was found out only when the model and the rows were there; nothing was trained.",
        "The message says what does not fit; pick another model, method or data set.",
    ),
    "E301": Code(
        "the loss or a gradient is not finite",
        "A loss, a gradient or a weight became NaN or infinite. Training stops before the update"
        " that would spoil the adapter, and the step and its rows are named.",
        "Lower train.learning_rate or train.max_grad_norm, use bf16 in place of float16, and"
        " look at the rows that are named.",
    ),
    "E303": Code(
        "a ranking makes no preferences",
        "No answer of any prompt came out better than another: they are all the same, all tied, or"
        " all bad. Or an answer is too long for the reward model that is to judge it.",
        "Collect more varied answers: raise num_return_sequences or temperature; or take a judge"
        " that tells them apart. Where they are too long, lower max_new_tokens.",
    ),
    "E305": Code(
        "the run waits for people",
        "Nothing is wrong. A `rank` stage without a judge needs people's rankings, and the run has"
        " stopped, with exit code 9, until they are there. All that was made is kept.",
        "Rank with `llmft rank RUN`; then go on with the `llmft run ... --resume` that is printed.",
    ),
    "E306": Code(
        "a process of the run is gone",
        "Several processes train together, and one has ended or cannot be reached, so the others"
        " cannot finish their step. What was saved before is intact.",
        "Look for the message of the process that ended first; then go on with --resume.",
    ),
    # --- runs and checkpoints
    "E401": Code(
        "a checkpoint, or another file of a run, is damaged",
        "A file of it is missing, cut short or altered: it does not match the hash that was"
        " written with it.",
        "Use an earlier checkpoint, run the stage again, or put the file back.",
    ),
    "E402": Code(
        "this is not a finished run",
        "The folder is no run's, or the stage that is asked for has not finished.",
        "Name a folder that `llmft run` printed, and a stage that is listed as finished.",
    ),
    "E403": Code(
        "no checkpoint can be used",
        "The stage has checkpoints, and none of them matches the hashes that were written with"
        " it. Training does not start from the beginning without being asked to.",
        "Bring back an intact copy; or remove the stage's checkpoints folder to start the stage"
        " again, or begin a new run.",
    ),
    "E404": Code(
        "the recipe is not the run's",
        "A run that is resumed has another value where what a stopped stage has trained so far"
        " depends on it. Each such key is named, with both values; docs/checkpoints.md lists which"
        " edits a resumed run takes over. A finished stage that was edited runs again.",
        "Put the key back as it was, or begin a new run without --resume.",
    ),
    "E405": Code(
        "the data, the model or the code is not the run's",
        "The rows, the base model's files, a method's code or a checkpoint's tensors are not those"
        " that the run began with, so going on would not give what the whole run would have given.",
        "Put back what the run began with, or begin a new run.",
    ),
    "E406": Code(
        "a run did not resume to the bit",
        "`llmft verify resume` killed a run and went on with it, and it ended otherwise than the"
        " one that nothing stopped.",
        "Look at what differs: docs/reliability.md says what is not promised. Report it where none"
        " of that is the reason.",
    ),
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
