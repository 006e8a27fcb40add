"""The error codes of recipes and of the command line, E001 to E099."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A code's title, what it means, and how to mend it."""

    title: str
    meaning: str
    mend: str


RECIPE_CODES: dict[str, Code] = {
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
}
