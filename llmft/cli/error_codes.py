"""Every error code: what it is, why it is an error, and how to mend it. `llmft explain` prints it.

E0xx the recipe and the command line, E1xx data, E2xx the machine, E3xx training, E4xx runs and
checkpoints, E5xx plugins, E6xx trust, E9xx our own bugs.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A code's title, what it means, and how to mend it."""

    title: str
    meaning: str
    mend: str


CODES: dict[str, Code] = {
    # --- reading the recipe
    "E001": Code(
        "the recipe file cannot be read",
        "There is no such file, it may not be read, or the path is a folder, a pipe or a device."
        " A recipe is a plain file.",
        "Check the path and the permissions. `llmft list-recipes` shows the recipes that llmft"
        " brings along.",
    ),
    "E002": Code(
        "the file is too large for a recipe",
        "A recipe has at most 1 MiB, 20,000 lines of 16,384 characters, 10,000 values and 64"
        " blocks inside each other. Aliases count as if they were written out, so that a small"
        " file cannot unfold into gigabytes.",
        "Check that the path does not name a data file. Put training rows into a file of their"
        " own, and name it under data.",
    ),
    "E003": Code(
        "the file is not clean UTF-8 text",
        "A byte is not UTF-8, or a control character such as NUL stands in the text. A byte"
        " order mark at the beginning is fine.",
        "Save the file as UTF-8, and delete the character at the place that is named.",
    ),
    "E004": Code(
        "a tab stands where YAML wants spaces",
        "YAML measures depth in spaces, and a tab has no certain width.",
        "Replace the tab by spaces. Most editors can do so for a whole file.",
    ),
    "E005": Code(
        "the YAML is broken",
        "The file cannot be read as YAML 1.2 beyond the place that is named; often the cause is"
        " one line above: a bracket or a quote that is not closed, a missing space after a colon,"
        " or keys of one block at different depths.",
        "Mend the line, or the one above it. Quote text that contains ': ' or ' #', or that"
        " begins with one of @ ` % & * ! | > [ {.",
    ),
    "E006": Code(
        "a key is written twice",
        "A block has the same key two times. Other tools take the last one without a word, and"
        " the first is then a setting that seems to act and does not.",
        "Keep one of the two lines.",
    ),
    "E007": Code(
        "an alias leads nowhere or into itself",
        "`*name` repeats the value that was marked `&name` above it. Here nothing is marked so,"
        " or the alias stands inside the very value that it repeats.",
        "Write the value out.",
    ),
    "E008": Code(
        "merge keys are refused",
        "`<<` merges another block into this one. It is no part of YAML 1.2, and it hides which"
        " settings a stage trains with.",
        "Write the keys out.",
    ),
    "E009": Code(
        "tags are refused",
        "A tag such as `!!python/object` or `!include` asks the reader to build something other"
        " than plain data. A recipe is data, and nothing in it may run code or read other files.",
        "Drop the tag.",
    ),
    "E010": Code(
        "the file is not one block of keys",
        "A recipe is one YAML document whose outermost level is a block of keys. The file is"
        " empty, holds a list or a single value, or has a second document after `---`.",
        "Begin with `recipe: 1`, and make a file for each recipe.",
    ),
    "E011": Code(
        "a key is not a word",
        "A key is missing before a colon, or is a list, a block or an alias.",
        "Write the key as a word.",
    ),
    "E012": Code(
        "--set is not PATH=VALUE",
        "An override names a setting by its path and gives a value, which is read as it would be"
        " in the file: numbers, true and false, text, or a list in brackets.",
        "Write for example `--set stages.sft.train.learning_rate=1e-4`. Quote brackets and"
        " braces for the shell.",
    ),
    "E013": Code(
        "the path of --set leads nowhere",
        "A part of the path names a stage or an item that the recipe does not have, or goes into"
        " a value that is no block.",
        "Name stages by their name or by their index, counted from 0.",
    ),
    # --- keys and values
    "E020": Code(
        "unknown key",
        "The block has no setting of this name. It may be misspelt, belong into another block,"
        " or be another tool's name for something that is called differently here. Unknown keys"
        " are never ignored: a setting that does nothing spoils a night of compute.",
        "Take the name that is suggested. `llmft show METHOD` lists a method's settings.",
    ),
    "E021": Code(
        "a required key is missing",
        "The block cannot do without this setting, and there is no default that is right for all.",
        "Add the key. `llmft show METHOD` lists a method's settings.",
    ),
    "E022": Code(
        "a value is of the wrong type",
        "Values are taken as YAML 1.2 reads them and never converted: `yes` and `no` are words"
        ' and not true and false, "3" in quotes is text and not a number, 8.5 is no whole number.',
        "Write a value of the type that is named.",
    ),
    "E023": Code(
        "a value is out of bounds",
        "Every number has bounds outside of which training cannot work, such as a learning rate"
        " of 0 or a dropout of 1.5. NaN and infinity are refused everywhere, as are empty texts.",
        "Give a value within the bounds that are printed.",
    ),
    "E024": Code(
        "unknown method or plugin",
        "No installed plugin offers a method of this name. The message lists what is installed,"
        " and what is installed but broken.",
        "Mend the name, or install the package that brings the method. `llmft list-plugins`"
        " shows all methods.",
    ),
    "E025": Code(
        "a value is not one of the choices",
        "The setting takes one of a few words.",
        "Take one of the words that are listed.",
    ),
    "E027": Code(
        "a key holds a character that looks like another",
        "The key has a letter from another alphabet that looks like a Latin one, or a character"
        " that cannot be seen at all. It often comes from copying out of a chat or a PDF.",
        "Type the key anew.",
    ),
    "E028": Code(
        "a text has the wrong form",
        "Names of recipes and stages become names of folders: letters, digits, '-' and '_', at"
        " most 64 characters, with a letter or a digit first. A plugin may ask for other forms.",
        "Write the text in the form that is named.",
    ),
    # --- references between stages
    "E030": Code(
        "a stage refers to a stage that is not there",
        "start_from, and settings such as reward_model, name an earlier stage of the same"
        " recipe, or a stage of an earlier run as run:<id>/<stage>.",
        "Take one of the names that are listed, or add the stage before this one.",
    ),
    "E031": Code(
        "a stage refers to itself or to a later one",
        "Stages run from top to bottom, so that a stage can use only what was made above it."
        " Where stages wait for each other, the whole circle is printed.",
        "Move the stage that is needed up, or drop the reference.",
    ),
    "E032": Code(
        "two stages have one name",
        "Other stages, folders and --set find a stage by its name.",
        "Give each stage its own name.",
    ),
    "E033": Code(
        "a stage does not produce what is needed",
        "Each alignment produces one kind of thing: a policy, which answers, or a reward model,"
        " which scores. The stage that is named here produces another kind.",
        "Name a stage that produces what is needed, or add one before this stage.",
    ),
    "E034": Code(
        "no adapter, or one that differs from the stage it starts from",
        "A stage either attaches a fresh adapter or goes on training that of an earlier stage,"
        " whose shape cannot change.",
        "Add an adapter block, or name a stage in start_from; where both are given, they must"
        " agree.",
    ),
    "E035": Code(
        "a reference to an earlier run is not well formed",
        "A stage of a run that has finished is named run:<id>/<stage>.",
        "Write for example `start_from: run:20250101-120000-1a2b3c4d/sft`.",
    ),
    "E036": Code(
        "stages cannot be repeated like this",
        "`repeat` names stages that stand one after another in the recipe, in that order. In later"
        " rounds they are called <name>-2, <name>-3 and so on, which no other stage may be. Each"
        " round goes on with the policy of the last one, so a repeated stage makes a policy, and"
        " one starts from a policy that was there before: else all rounds were the same.",
        "Name the stages as they stand, give other stages other names, and let a repeated stage"
        " start_from the policy from before.",
    ),
    # --- contradictions
    "E040": Code(
        "two settings exclude each other",
        "Each is right by itself, and together they cannot both be obeyed. Nothing is changed"
        " silently, so one of them must go.",
        "Keep one of the two. Both lines are named.",
    ),
    "E041": Code(
        "a method cannot work with a setting",
        "The adapter or the alignment declares that it cannot work with gradient checkpointing,"
        " packing or a quantised base. Many such pairs crash deep inside training, or train"
        " something other than what was asked.",
        "Turn the setting off, or pick another method. `llmft show METHOD` lists what it can do.",
    ),
    "E042": Code(
        "the data gives other rows than the alignment reads",
        "Every alignment reads certain kinds of rows: text, completion, chat, preference or"
        " prompt; every dataset gives certain kinds.",
        "Pick a dataset that gives rows of a kind that is listed, or another alignment.",
    ),
    "E043": Code(
        "unknown metric",
        "evaluate.metrics takes loss, perplexity, and the metrics that the data's method brings.",
        "Take one of the metrics that are listed.",
    ),
    "E045": Code(
        "more tokens than the model can read",
        "A model has a fixed number of positions; a longer row cannot be fed to it, and an answer"
        " needs room after its prompt.",
        "Write at most the number that is printed, or leave max_length out.",
    ),
    "E046": Code(
        "a folder's name cannot be used",
        "The run folder is <output_dir>/<name>/...; it may not lead elsewhere by '..', be a name"
        " that some system reserves, or be longer than file systems allow.",
        "Write a plain folder such as `runs`, or an absolute one.",
    ),
    "E047": Code(
        "the adapter does not fit the model",
        "What the adapter asks for is not in this model: a name under target_modules that"
        " matches no layer, for example. It was found without loading the model's weights.",
        "Take names that the model has; the message lists them.",
    ),
    "E050": Code(
        "a secret stands in the recipe",
        "A value looks like a token, a key or a password. Recipes are shared, committed and"
        " copied into every run folder, so no secret may stand in one. The value is not printed.",
        "Delete it, and revoke it if the file was ever shared. Log in with `hf auth login` or"
        " `wandb login`, or set the variable in the environment.",
    ),
    "E051": Code(
        "variables are not replaced in a recipe",
        "`${NAME}` would make what is trained depend on the machine that it is trained on.",
        'Write the value, or let the shell fill it in: `--set PATH="$NAME"`.',
    ),
    "E090": Code(
        "the command line is wrong",
        "A command, an option or an argument is unknown, missing, or not what it should be.",
        "`llmft --help` lists the commands, `llmft COMMAND --help` its options.",
    ),
    "E091": Code(
        "a command line cannot be imported",
        "`llmft import` reads the command line of a training script. It was not found, a flag of it"
        " is unknown here or cannot be, or the recipe's file is there already.",
        "Mend or leave out the flag that is named, and set what it meant in the recipe.",
    ),
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
        "Tensors are missing, left over, or of another shape than config.json says, or hold numbers"
        " that are not finite. Such a model would start with random weights in their place, or have"
        " no loss at all.",
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
    "E211": Code(
        "a server's address cannot be taken",
        "What a key is sent to is named by your environment, or by your own configuration, as a"
        " plain address: https://host, perhaps with a port and a path. Programs disagree on which"
        " host an odder one means, so none is asked.",
        "Mend the variable or the file that is named.",
    ),
    "E212": Code(
        "a tokenizer cannot encode a text",
        "The tokenizer's code gives up, or its regular expression takes longer on this text than"
        " any should. An expression that is not one of the usual ones is run in a process of its"
        " own, which is ended then.",
        "Use the tokenizer that the model's authors published, or take the row out.",
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
    "E307": Code(
        "the policy does not start as its reference",
        "Before the first step, policy and reference are the same model: rewards are 0, the loss is"
        " its value at margin 0 (ln 2 for DPO's sigmoid), and PPO's ratio is 1. Measured with"
        " dropout off it is not so: a path of the computation is wrong for this model.",
        "Write model.attn_implementation: eager, which takes the plainest path; report the model's"
        " name and the message.",
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
        " than any template needs. It is run in a process of its own, which is ended then.",
        "Give another template as model.chat_template, or use rows with prompt and completion.",
    ),
    "E605": Code(
        "a link, a pipe or a device stands where a plain file belongs",
        "A run folder or a folder of ratings holds a link to another place, or a file that is no"
        " plain one. llmft appends to such files, cuts and locks them, so it would change what the"
        " link names. Links that lead to a folder, such as 'runs' on another disk, are fine.",
        "Take it away; or put a copy of what it names in its place, if that is meant.",
    ),
    "E606": Code(
        "an adapter stands where a base model belongs",
        "A folder with an adapter_config.json is an adapter's: transformers would load the base"
        " model that it names, wherever that is, with its regular expressions for module names.",
        "Name the base model's own folder under model.path. To go on from an adapter, name the"
        " stage that made it: start_from.",
    ),
    "E900": Code(
        "a bug in llmft",
        "Something happened that llmft does not understand. It is not your mistake.",
        "Please report it, with the file that the message names; it holds no secrets.",
    ),
}
