"""Every error code: what it means, why it is an error, and how to fix it, for `llmft explain`.

E0xx the recipe and the command line, E1xx data, E2xx the machine, E3xx training, E4xx runs and
checkpoints, E5xx plugins, E6xx trust, E9xx our own bugs.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """A code's title, what it means, and how to fix it."""

    title: str
    meaning: str
    mend: str


CODES: dict[str, Code] = {
    # --- reading the recipe
    "E001": Code(
        "the recipe file cannot be read",
        "The file does not exist, cannot be read, or is a folder, a pipe or a device."
        " A recipe is a plain file.",
        "Check the path and the permissions. `llmft list-recipes` shows the recipes that ship"
        " with llmft.",
    ),
    "E002": Code(
        "the file is too large for a recipe",
        "A recipe has at most 1 MiB, 20,000 lines of 16,384 characters, 10,000 values and 64"
        " nested blocks. Aliases count as if they were written out, so that a small file cannot"
        " expand to gigabytes.",
        "Check that the path is not that of a data file. Put training rows into a separate file,"
        " and name it under data.",
    ),
    "E003": Code(
        "the file is not clean UTF-8 text",
        "The file has a byte that is not UTF-8, or a control character such as NUL. A byte order"
        " mark at the beginning is allowed.",
        "Save the file as UTF-8, and delete the character at the reported place.",
    ),
    "E004": Code(
        "a tab where YAML needs spaces",
        "YAML indents with spaces; a tab has no fixed width.",
        "Replace the tab by spaces. Most editors can do this for a whole file.",
    ),
    "E005": Code(
        "the YAML is not valid",
        "The file cannot be read as YAML 1.2 at the reported place. Often the cause is in the line"
        " above: a bracket or a quote that is not closed, a missing space after a colon, or keys of"
        " one block at different depths.",
        "Correct the line, or the one above it. Quote text that contains ': ' or ' #', or that"
        " begins with one of @ ` % & * ! | > [ {.",
    ),
    "E006": Code(
        "a key is written twice",
        "A block has the same key twice. Other tools silently use the last one, and the first"
        " then has no effect.",
        "Keep one of the two lines.",
    ),
    "E007": Code(
        "an alias has no anchor, or contains itself",
        "`*name` repeats the value that was marked `&name` above it. Here there is no such mark, or"
        " the alias is inside the value that it repeats.",
        "Write the value out.",
    ),
    "E008": Code(
        "merge keys are refused",
        "`<<` merges another block into this one. It is not part of YAML 1.2, and it hides which"
        " settings a stage trains with.",
        "Write the keys out.",
    ),
    "E009": Code(
        "tags are refused",
        "A tag such as `!!python/object` or `!include` asks the parser to build something other"
        " than plain data. A recipe is data, and nothing in it may run code or read other files.",
        "Remove the tag.",
    ),
    "E010": Code(
        "the file is not one block of keys",
        "A recipe is one YAML document whose outermost level is a block of keys. The file is"
        " empty, holds a list or a single value, or has a second document after `---`.",
        "Start with `recipe: 1`, and use one file for each recipe.",
    ),
    "E011": Code(
        "a key is not a word",
        "A key is missing before a colon, or is a list, a block or an alias.",
        "Write the key as a word.",
    ),
    "E012": Code(
        "--set is not PATH=VALUE",
        "An override names a setting by its path and gives a value, which is read as in the"
        " file: numbers, true and false, text, or a list in brackets.",
        "Write for example `--set stages.sft.train.learning_rate=1e-4`. Quote brackets and"
        " braces for the shell.",
    ),
    "E013": Code(
        "the path of --set does not exist",
        "A part of the path names a stage or an item that the recipe does not have, or something"
        " inside a value that is not a block.",
        "Name stages by their name or by their index, counted from 0.",
    ),
    # --- keys and values
    "E020": Code(
        "unknown key",
        "The block has no setting of this name. It may be misspelt, belong in another block, or be"
        " another tool's name for a setting that llmft calls differently. Unknown keys are never"
        " ignored: a setting without effect can waste hours of training.",
        "Use the suggested name. `llmft show METHOD` lists a method's settings.",
    ),
    "E021": Code(
        "a required key is missing",
        "The block needs this setting, and no default would be right for everyone.",
        "Add the key. `llmft show METHOD` lists a method's settings.",
    ),
    "E022": Code(
        "a value is of the wrong type",
        "Values are used as YAML 1.2 reads them and never converted: `yes` and `no` are text, not"
        ' true and false; "3" in quotes is text, not a number; 8.5 is not a whole number.',
        "Write a value of the type that the message names.",
    ),
    "E023": Code(
        "a value is out of bounds",
        "Every number has bounds outside which training cannot work: a learning rate of 0, for"
        " example, or a dropout of 1.5. NaN, infinity and empty texts are always refused.",
        "Write a value within the bounds in the message.",
    ),
    "E024": Code(
        "unknown method or plugin",
        "No installed plugin offers a method of this name. The message lists what is installed,"
        " and what is installed but broken.",
        "Correct the name, or install the package that provides the method. `llmft list-plugins`"
        " shows all methods.",
    ),
    "E025": Code(
        "a value is not one of the choices",
        "The setting takes one of a few words.",
        "Use one of the words in the message.",
    ),
    "E027": Code(
        "a key has a character that looks like another",
        "The key has a letter from another alphabet that looks like a Latin one, or an invisible"
        " character. It often comes from text copied from a chat or a PDF.",
        "Type the key again.",
    ),
    "E028": Code(
        "a text has the wrong form",
        "Names of recipes and stages become names of folders: letters, digits, '-' and '_', at"
        " most 64 characters, with a letter or a digit first. Plugins may require other forms.",
        "Write the text in the form that the message describes.",
    ),
    # --- references between stages
    "E030": Code(
        "a stage refers to a stage that does not exist",
        "start_from, and settings such as reward_model, name an earlier stage of the same"
        " recipe, or a stage of an earlier run as run:<id>/<stage>.",
        "Use one of the listed names, or add the stage before this one.",
    ),
    "E031": Code(
        "a stage refers to itself or to a later one",
        "Stages run from top to bottom, so a stage can use only the stages above it. If stages"
        " refer to each other, the message shows the whole cycle.",
        "Move the stage that is needed up, or remove the reference.",
    ),
    "E032": Code(
        "two stages have one name",
        "Other stages, folders and --set find a stage by its name.",
        "Give each stage its own name.",
    ),
    "E033": Code(
        "a stage does not produce what is needed",
        "A stage produces a policy, which answers, a reward model, which scores, a classifier,"
        " samples, preferences or scores. The one named here produces something other than what is"
        " needed.",
        "Name a stage that produces what is needed, or add one before this stage.",
    ),
    "E034": Code(
        "no adapter, or one that differs from the stage it starts from",
        "A stage either attaches a new adapter or continues to train the adapter of an earlier"
        " stage, or one that PEFT saved (start_from: peft:...), whose shape cannot change.",
        "Add an adapter block, or name a stage in start_from. If both are there, they must agree.",
    ),
    "E035": Code(
        "a reference to an earlier run is not well formed",
        "A stage of a finished run is named run:<id>/<stage>, and an adapter that PEFT saved"
        " peft:FOLDER, peft:ORG/NAME or peft:ORG/NAME@REVISION.",
        "Write for example `start_from: run:20250101-120000-1a2b3c4d/sft`.",
    ),
    "E036": Code(
        "stages cannot be repeated like this",
        "`repeat` names stages that follow one another in the recipe, in that order. In later"
        " rounds they are called <name>-2, <name>-3 and so on, and no other stage may have these"
        " names. Each round continues with the policy of the previous round. So one repeated stage"
        " must make a policy, and one must start from a policy that was made before the rounds;"
        " otherwise all rounds would be the same.",
        "List the stages in the recipe's order, rename other stages, and let a repeated stage"
        " start_from the policy that was made before.",
    ),
    # --- contradictions
    "E040": Code(
        "two settings exclude each other",
        "Each setting is valid by itself, but they cannot both take effect. llmft never changes a"
        " setting silently, so you have to choose.",
        "Keep one of the two; the message names both lines.",
    ),
    "E041": Code(
        "a method cannot work with a setting",
        "The adapter or the alignment declares that it cannot work with gradient checkpointing,"
        " packing, a budget of tokens or a quantised base. Without this check, such combinations"
        " would crash during training, or train something else than the recipe says.",
        "Turn the setting off, or choose another method. `llmft show METHOD` lists what it can do.",
    ),
    "E042": Code(
        "the rows are of a kind that the alignment, or a metric, does not read",
        "Every alignment reads certain kinds of rows: text, completion, chat, preference,"
        " unpaired, prompt or classification; every dataset gives certain kinds. The loss and the"
        " perplexity are of the tokens of right answers, which prompts alone do not have; other"
        " metrics score a generated answer, and plain text asks nothing.",
        "Choose a dataset that gives rows of a listed kind, or another alignment or metric.",
    ),
    "E043": Code(
        "unknown metric",
        "evaluate.metrics takes loss, perplexity, the metrics of the data's method, and installed"
        " ones (llmft list-plugins);"
        " evaluate.metric_for_best_model one of those that the stage scores, with a direction:"
        " greater_is_better, where the metric does not say it itself.",
        "Use one of the listed metrics.",
    ),
    "E045": Code(
        "more tokens than the model can read",
        "A model has a fixed number of positions. It cannot read a longer row, and an answer needs"
        " room after its prompt.",
        "Write at most the number in the message, or leave max_length out.",
    ),
    "E046": Code(
        "a folder's name cannot be used",
        "The run folder is <output_dir>/<name>/... Its path cannot contain '..', use a name that"
        " some system reserves, or be longer than file systems allow.",
        "Write a plain folder such as `runs`, or an absolute path.",
    ),
    "E047": Code(
        "the adapter does not fit the model",
        "The adapter's settings name something that this model does not have, such as a name in"
        " target_modules that matches no layer. This is checked without loading the weights.",
        "Use names that the model has; the message lists them.",
    ),
    "E050": Code(
        "the recipe contains a secret",
        "A value looks like a token, a key or a password. Recipes are shared, committed and copied"
        " into every run folder, so they must not contain secrets. The value is not printed.",
        "Delete it, and revoke it if the file was ever shared. Log in with `hf auth login` or"
        " `wandb login`, or set the variable in the environment.",
    ),
    "E051": Code(
        "variables are not expanded in a recipe",
        "`${NAME}` would make the training depend on the environment of the machine.",
        'Write the value, or let the shell expand it: `--set PATH="$NAME"`.',
    ),
    "E090": Code(
        "the command line is wrong",
        "A command, an option or an argument is unknown, missing or not valid.",
        "`llmft --help` lists the commands, `llmft COMMAND --help` its options.",
    ),
    "E091": Code(
        "a command or a configuration cannot be imported",
        "`llmft import` reads the configuration of another tool, or the command line of a training"
        " script. There is no such command, nobody's keys fit, a flag of it is unknown or has no"
        " equivalent, or the recipe's file exists already.",
        "Correct or remove the flag in the message, and set what it meant in the recipe; or say"
        " with `--peer` and `--trainer` whose file it is.",
    ),
    "E092": Code(
        "an imported configuration needs your decision",
        "The key may change what is trained, and the file alone does not say what is meant here:"
        " it is unknown, it is read by a program that is not here, or it differs in a detail.",
        "Say it with the option in the message, or write the recipe with `--anyway` and look at"
        " each comment that begins with DECIDE.",
    ),
    "E093": Code(
        "an imported configuration says what cannot be imported yet",
        "The key changes what is trained. Either there is no setting or method for it here, or the"
        " import does not write it yet.",
        "Take the key out of the configuration and import it again; then write what it says into"
        " the recipe, where the recipe reference has such a setting, or do without it.",
    ),
    "E094": Code(
        "a stage has no counterpart in TRL",
        "`llmft verify losses` holds a stage against TRL's trainer of the same alignment, and there"
        " is none, or it cannot train on such rows, weights or settings.",
        "Compare another stage (--stage), or leave out with --set what TRL does not have.",
    ),
    # --- data
    "E101": Code(
        "a row cannot be used",
        "A column is missing, or holds null, a number or a list where text is needed, or the"
        " messages do not form a conversation. The message names the file, line and column.",
        "Correct the row, or write `on_bad_row: skip`, which skips such rows and counts them.",
    ),
    "E102": Code(
        "columns are missing in all rows",
        "No row has the columns that the dataset's method reads. The message lists the columns"
        " that the data has.",
        "Map the names under `columns:`, or choose the method that fits the data.",
    ),
    "E103": Code(
        "there are no rows",
        "The file or the split is empty, or no row is left after filtering. The message says how"
        " many rows each filter removed.",
        "Check the path, the split and the limit.",
    ),
    "E104": Code(
        "too many rows are dropped",
        "More than `train.max_dropped` of the rows are too long, or lose their answer when they are"
        " truncated. The remaining rows would not represent the data.",
        "Raise train.max_length or shorten the rows; or accept it by raising train.max_dropped.",
    ),
    "E105": Code(
        "there is nothing to train on",
        "A row, or every row, has no trained-on token: its completion is empty, or was truncated"
        " completely. Or a model is to write the answers, and no row has a prompt.",
        "Give every row a completion, and raise train.max_length if answers are truncated.",
    ),
    "E106": Code(
        "a row is too long",
        "A row has more tokens than train.max_length, or than the model has positions, and the"
        " recipe says `on_long_row: fail`.",
        "Shorten the row, raise train.max_length, or write on_long_row: truncate or drop.",
    ),
    "E107": Code(
        "a data file cannot be read",
        "The file is missing or incomplete, is not of the type that its name says (JSON, CSV,"
        " parquet), has bytes that are not UTF-8, or is a pipe or a device. The message names the"
        " line or the byte.",
        "Repair the file or download it again, and give it the ending of its type. Where the rest"
        " can be read, `on_bad_row: skip` skips such lines, and counts them.",
    ),
    "E108": Code(
        "a row cannot be written by the chat template as it is meant",
        "The rows are conversations, and the model's tokenizer has no template to format them; or"
        " its template refuses a row, leaves out text of it, or writes an answered turn in another"
        " way than it asks for it. The message names the row and the turn.",
        "Do what the message suggests: template arguments (model.chat_template_kwargs), another"
        " model.chat_template, model.lost_text: note, or data.on_bad_row: skip to leave such rows"
        " out.",
    ),
    "E109": Code(
        "unknown split",
        "The data has no split of this name. The message lists those that it has.",
        "Use one of these in data.split or evaluate.split, or hold out rows with evaluate.holdout.",
    ),
    "E110": Code(
        "there is nothing to rank",
        "A samples file has prompts with two or more answers each. This one is empty, or all"
        " answers to each prompt are the same.",
        "Collect answers first; if they are all the same, collect at a higher temperature.",
    ),
    "E111": Code(
        "a rating cannot be used",
        "A rater's file has a line that is not a decision, or one whose number of answers is not"
        " that of its sample. An incomplete last line, as a kill leaves it, is not an error.",
        "Delete the reported line, and rank that sample again with `llmft rank`.",
    ),
    "E112": Code(
        "a judge's score is not finite",
        "A reward function or a reward model gave an answer NaN, or, in training, an infinite one."
        " Such a score cannot rank answers or train a policy.",
        "Correct the function, or look at the reward model's report: its training may have failed.",
    ),
    "E113": Code(
        "processes read different rows",
        "Several processes train together, each on its part of every step, and the rows of one"
        " differ from those of rank 0.",
        "Give all machines of the run the same files and the same package versions.",
    ),
    "E114": Code(
        "the tokenizer is not the model's",
        "A row has a token id for which the model has no embedding.",
        "Leave model.tokenizer out, or name the tokenizer that the model was trained with.",
    ),
    "E119": Code(
        "a reward takes too long",
        "A reward function has not scored the answers of a step within reward_timeout_seconds."
        " Nothing was learnt from these answers, and the last checkpoint is as it was.",
        "Correct the function, or raise reward_timeout_seconds.",
    ),
    "E120": Code(
        "a mixture would repeat its rows without end",
        "Rows are drawn from several sources by their weights until every row of every source was"
        " drawn. A large source of a tiny weight would take hundreds of millions of draws.",
        "Raise the source's weight, or write stopping_strategy: first_exhausted.",
    ),
    "E121": Code(
        "your own code failed",
        "A Python file that the recipe names, and that --trust lets run, raised an error, has no"
        " such function, or gave something else than is wanted.",
        "Correct the line that is named.",
    ),
    "E130": Code(
        "the run was interrupted",
        "A signal stopped the run: Ctrl-C, or SIGTERM from the system. During training, the run"
        " finished its step and saved a checkpoint.",
        "Resume with the printed command, `llmft run RECIPE RUN_FOLDER --resume`.",
    ),
    # --- the machine
    "E201": Code(
        "a model or a data set is not found",
        "There is no such folder, and nothing of this name is in the local cache or can be"
        " downloaded from the hub.",
        "Check the name. On a machine with a network, `llmft fetch RECIPE` or `hf download NAME`"
        " brings it into the cache; log in with `hf auth login` if access is restricted.",
    ),
    "E202": Code(
        "the disk is full or failed",
        "A file could not be written. What was saved before is intact; incomplete files are"
        " removed.",
        "Free disk space, or set output_dir to a folder on another disk.",
    ),
    "E203": Code(
        "a folder cannot be used",
        "The output folder is a file, or you have no permission to write there.",
        "Set another output_dir, or change the permissions.",
    ),
    "E204": Code(
        "the folder is in use",
        "Another process is running in this folder. Two runs in one folder would destroy each"
        " other's files.",
        "Wait for it, stop it, or set another output_dir.",
    ),
    "E205": Code(
        "out of memory",
        "The step did not fit into the memory of the machine or the device. What was saved"
        " before is intact.",
        "Lower train.per_device_train_batch_size and raise gradient_accumulation_steps by the same"
        " factor; then turn train.gradient_checkpointing on, and on a GPU"
        " train.activation_offloading; then store the base in 4 bits (model.quantization); then"
        " lower train.max_length. `llmft plan RECIPE` predicts the memory of each.",
    ),
    "E206": Code(
        "a package is missing",
        "A setting of the recipe needs a package that is not installed, or not available on this"
        " platform.",
        "Install it with the printed command, or choose another setting.",
    ),
    "E207": Code(
        "the model's weights do not match its config",
        "Tensors are missing, unexpected, of another shape than config.json says, or hold numbers"
        " that are not finite. Such a model would start with random weights in their place, or have"
        " no loss at all.",
        "Fetch the model again, and check that config.json and the weights belong together.",
    ),
    "E208": Code(
        "an adapter or a model was not uploaded to the hub",
        "The hub cannot be reached, does not answer in time, or refuses the upload: you are not"
        " logged in, have no write access, or the repository is public although the recipe asks"
        " for a private one; or the repository has an adapter already, and a whole model was to be"
        " added. Nothing is lost: the adapter is in the run folder.",
        "Log in with `hf auth login`, and upload again with `llmft push RUN`.",
    ),
    "E209": Code(
        "the address or the port cannot be served on",
        "`llmft rank` serves a page on the local address 127.0.0.1, and `llmft serve` an endpoint"
        " on --host. The port is in use, or needs permissions that you do not have, or the address"
        " is not one of this machine.",
        "Use --port 0 for any free port, or rank with --terminal.",
    ),
    "E210": Code(
        "processes cannot train together",
        "A launcher (torchrun, accelerate launch) started several processes, but there is no GPU"
        " for each, or no run folder that all can read; or the launcher has a setting that belongs"
        " in the recipe, such as mixed precision.",
        "Follow the message; docs/processes.md shows how to launch several processes.",
    ),
    "E211": Code(
        "a server's address cannot be taken",
        "What a key is sent to is named by your environment, or by your own configuration, as a"
        " plain address: https://host, perhaps with a port and a path. Programs disagree on which"
        " host an odder one means, so none is asked.",
        "Correct the variable or the file that is named.",
    ),
    "E212": Code(
        "a tokenizer cannot encode a text",
        "The tokenizer's code gives up, or its regular expression takes longer on this text than"
        " any should. An expression that is not one of the usual ones is run in a process of its"
        " own, which is ended then.",
        "Use the tokenizer that the model's authors published, or take the row out.",
    ),
    "E213": Code(
        "an endpoint cannot be asked",
        "`llmft verify export RUN URL` and `llmft evaluate RUN --judge URL` ask a running server"
        " with OpenAI's paths. It cannot be reached, refuses the key, sends on to another address"
        " (which no key follows), fails, answers in another form than OpenAI's, or takes longer for"
        " all its answers than --timeout allows.",
        "Check the address and that the server runs: `curl URL/models`. Its key is read from the"
        " environment variable LLMFT_API_KEY. Ask a slow one less, or give it longer.",
    ),
    "E214": Code(
        "a token cannot be added to the tokenizer",
        "`model.add_tokens` or `model.add_special_tokens` names a text that is one token of this"
        " tokenizer already, or of which it makes no token at all.",
        "Leave the text out. The row of a token that is there is trained by the adapter's"
        " trainable_token_indices.",
    ),
    "E215": Code(
        "a file in the cache is damaged",
        "`llmft fetch` compares each file that it brings with the sum by which the hub names it:"
        " SHA-256 of large files, Git's hash of others. This one is another file.",
        "Delete the printed file, and fetch again.",
    ),
    "E216": Code(
        "a program for an export is missing, or failed",
        "`llmft export --to gguf` and `--to ollama` run llama.cpp's own converter and quantiser."
        " One is neither in the folder that --llama-cpp names nor on PATH, or ended with an error:"
        " of an architecture that it does not know, for example.",
        "Get llama.cpp (`git clone https://github.com/ggml-org/llama.cpp`) and name its folder:"
        " --llama-cpp PATH/TO/llama.cpp.",
    ),
    "E217": Code(
        "no step of the recipe could be measured",
        "`llmft plan --measure` runs the recipe's first steps in a process of its own and throws"
        " them away. It was stopped by its time limit, or by what the message names, before the"
        " first stage had told anything.",
        "Measure longer, correct what is named, or plan without --measure.",
    ),
    "E220": Code(
        "a package of FlashAttention cannot run here",
        "model.attn_implementation names a package whose kernels run on an NVIDIA GPU of the"
        " compute capability 8.0 or above, compiled for the installed torch. Before weights are"
        " loaded it computes a small case, which has to give torch's numbers.",
        "Install the package that the message names, or write auto: torch has a kernel of its own"
        " for such GPUs. `llmft run --smoke` takes auto on a machine without a GPU.",
    ),
    "E221": Code(
        "a package of FlashAttention would compute nothing",
        "flash_attention_2 and flash_attention_3 compute the attention of padding-free passes, in"
        " 16 bits, with heads of up to 256 numbers. The stage's passes are padded, its numbers are"
        " float32, or its model has other heads.",
        "Write model.attn_implementation: auto.",
    ),
    "E223": Code(
        "a version of lm-evaluation-harness that is not known",
        "llmft lets the harness run no code but its own and what --trust names, and holds its"
        " templates in a sandbox. How that is done depends on how the harness reads tasks, which"
        " older versions do in another way.",
        "Install lm-eval 0.4.13 or later.",
    ),
    "E224": Code(
        "a task of lm-evaluation-harness cannot be scored",
        "The harness failed while it loaded a task, or scored it: its rows are on the hub and the"
        " machine is offline, its settings do not fit its rows, or it needs a package of its own.",
        "The message has the harness's own words. Try the task alone: `llmft evaluate MODEL"
        " --lm-eval TASK --limit 2`.",
    ),
    "E228": Code(
        "an address for copies of a run cannot be used",
        "`--checkpoints-to` and `--resume-from` take the address of a folder: a private repository"
        " of models on the hub (hf://user/repository), or whatever fsspec has a client for (s3://,"
        " gs://, file://, ...). It is no such address, holds a key, holds another run, cannot be"
        " reached, or refuses to be written to.",
        "Check the address and the network. Credentials are read from the environment, as the"
        " client of such addresses does.",
    ),
    "E229": Code(
        "the copy of a run cannot be used",
        "There is no copy at the address, it is of another recipe, a file of it is damaged, or"
        " another process copies to the same address.",
        "Check the address, and give each run one of its own.",
    ),
    "E230": Code(
        "the copy of a finished run is not complete",
        "The run is finished, and all of it is in its folder. Its last state could not be copied"
        " to the address that --checkpoints-to gives.",
        "Copy it again with the printed command.",
    ),
    "E231": Code(
        "the base's weights are stored in a form that is not trained on, or not as the recipe says",
        "The config.json of the model names a quantisation. Weights stored by GPTQ, AWQ, FP8, HQQ,"
        " MXFP4, torchao and others are refused before they are loaded: the adapters here stand on"
        " plain layers and on those of bitsandbytes. What bitsandbytes has stored is trained on"
        " where model.quantization says the same.",
        "Give the model with plain weights, or write model.quantization as the message has it.",
    ),
    "E233": Code(
        "the model cannot be divided by its layers",
        "train.shard_base divides a model by its layers, which transformers names in the code of an"
        " architecture (_no_split_modules), and gathers one when it is computed. This architecture"
        " names none, or writes to a layer's weights from outside of it.",
        "Remove train.shard_base.",
    ),
    # --- training
    "E236": Code(
        "an operation has no deterministic kernel",
        "train.full_determinism asks for the same bits each time, and torch has no such kernel for"
        " an operation of this model on this device. What was saved before is intact.",
        "Remove train.full_determinism, or train on a CPU, where the bits are the same anyway.",
    ),
    "E237": Code(
        "bf16: auto has another value here",
        "A run computes with one value of train.bf16 from its first step to its last. `auto` was"
        " decided on the machine that it began on, and gives the other value on this one.",
        "Write the value that the error names, or resume on a machine where auto gives it.",
    ),
    "E238": Code(
        "there is no TF32 here",
        "train.tf32: true rounds the factors of float32 products on an NVIDIA GPU of the compute"
        " capability 8.0 or above, and this machine has none or computes without it.",
        "Remove train.tf32, or run the recipe on such a GPU.",
    ),
    "E239": Code(
        "there is no memory to put activations in",
        "train.activation_offloading keeps the layers' inputs in the CPU's memory, which relieves"
        " a GPU's. This machine computes on the CPU, where they are already.",
        "Remove train.activation_offloading, or run the recipe on a GPU.",
    ),
    "E240": Code(
        "there are too few rows for a step",
        "train.drop_last leaves out the rows of an epoch that fill no whole step, and here none of"
        " the steps is whole: nothing would be trained.",
        "Make a step smaller (train.per_device_train_batch_size, gradient_accumulation_steps), or"
        " remove train.drop_last.",
    ),
    "E300": Code(
        "the method cannot work on this model or on these rows",
        "This could be checked only with the model and the rows loaded; nothing was trained.",
        "The message says what does not fit; choose another model, method or data set.",
    ),
    "E301": Code(
        "the loss or a gradient is not finite",
        "A loss, a gradient or a weight became NaN or infinite. Training stops before the update"
        " that would spoil the adapter. The message names the step and its rows.",
        "Lower train.learning_rate or train.max_grad_norm, use bf16 instead of float16, and look"
        " at the reported rows.",
    ),
    "E303": Code(
        "a ranking gives no preferences",
        "For every prompt, no answer was ranked above another: they are all the same, all tied, or"
        " all bad. Or the answers are too long for the reward model that ranks them.",
        "Collect more varied answers: raise num_return_sequences or temperature; or use another"
        " judge. If the answers are too long, lower max_new_tokens.",
    ),
    "E305": Code(
        "the run waits for people",
        "Nothing is wrong. A `rank` stage without a judge needs rankings by people. The run stopped"
        " with exit code 9 and keeps everything that it made.",
        "Rank with `llmft rank RUN`; then continue with the printed `llmft run ... --resume`.",
    ),
    "E306": Code(
        "a process of the run has ended, or hangs",
        "Several processes train together, and one has ended, cannot be reached, or has not been"
        " heard of for LLMFT_STALL_SECONDS (1800), so the others cannot finish their step. Where it"
        " hangs, the message has its rank and the last known place of its main thread. What was"
        " saved before is intact.",
        "Read the message of the process that ended first; then continue with --resume.",
    ),
    "E307": Code(
        "the policy does not start as its reference",
        "Before the first step, policy and reference are the same model: rewards are 0, the loss is"
        " its value at margin 0 (ln 2 for DPO's sigmoid), and PPO's ratio is 1. Measured with"
        " dropout off it is not so: a path of the computation is wrong for this model.",
        "Write model.attn_implementation: eager, which takes the plainest path; report the model's"
        " name and the message.",
    ),
    "E308": Code(
        "a plugin stopped the training",
        "A plugin of the stage, such as `loss_watchdog`, found that training is not to go on: its"
        " loss stays too high, has a spike, or no longer falls. Nothing of that step was saved, and"
        " the last checkpoint is from before.",
        "Lower train.learning_rate, or raise warmup_steps, and continue with --resume, from the"
        " last checkpoint. Limits that are too strict are changed in a new run.",
    ),
    "E309": Code(
        "the processes of a divided base are out of step",
        "With train.shard_base each layer is put together from all processes, so that all of them"
        " have to compute the same layers in the same order. They did not. Nothing was updated with"
        " what came of it, and the last checkpoint is intact.",
        "Continue with --resume and without train.shard_base; if the stage's methods are llmft's"
        " own, report it. A method whose processes compute for themselves declares"
        " supports_shard_base = False.",
    ),
    # --- runs and checkpoints
    "E401": Code(
        "a checkpoint, or another file of a run, is damaged",
        "A file is missing, incomplete or changed: it does not match the hash that was saved with"
        " it.",
        "Use an earlier checkpoint, run the stage again, or restore the file.",
    ),
    "E402": Code(
        "this is not a finished run",
        "The folder is not a run folder, or the stage has not finished.",
        "Give a folder that `llmft run` printed, and a stage that is listed as finished.",
    ),
    "E403": Code(
        "no checkpoint can be used",
        "The stage has checkpoints, but none of them matches the hashes that were saved with it."
        " Training never restarts from the beginning unless you ask for it.",
        "Restore an intact copy; or remove the stage's checkpoints folder to restart the stage; or"
        " start a new run.",
    ),
    "E404": Code(
        "the recipe differs from that of the run",
        "A setting was changed on which the progress of a stopped stage depends. The message names"
        " each such key with both values; docs/checkpoints.md lists which edits a resumed run takes"
        " over. A finished stage whose settings were edited runs again.",
        "Restore the old value, or start a new run without --resume.",
    ),
    "E405": Code(
        "the data, the model or the code differs from that of the run",
        "The rows, the base model's files, a method's code or a checkpoint's tensors are not those"
        " that the run started with. A resumed run would not give the result of an uninterrupted"
        " one.",
        "Restore what the run started with, or start a new run. Where `llmft run` takes them,"
        " --accept-data-change goes on with the new rows, and --accept-plugin-change with the new"
        " code; the run then says that it is not bit-exact.",
    ),
    "E406": Code(
        "a resumed run is not bit-identical",
        "`llmft verify resume` killed and resumed a run, and its result differs from that of an"
        " uninterrupted run.",
        "Look at the differences: docs/reliability.md says what is not promised. If none of that is"
        " the reason, please report it.",
    ),
    "E407": Code(
        "what was exported does not answer as the run does",
        "A merged model, an exported folder or a server was given the same prompts as the run's own"
        " model, and the token ids, the answers or the log-probabilities differ by more than the"
        " stated tolerance.",
        "Look at where they part: a chat template, a token at the start, a data type, or the merge;"
        " docs/after-training.md says what to do about each.",
    ),
    "E408": Code(
        "the first steps are not those of TRL's trainer",
        "`llmft verify losses` took the first steps of a stage by llmft and by TRL, from the same"
        " weights, and the token ids, the labels or the losses differ.",
        "Look at the first row that differs: a chat template, an end-of-text, or which tokens are"
        " trained on; docs/moving.md says what the tools do otherwise.",
    ),
    "E409": Code(
        "a run is not reproduced",
        "`llmft reproduce` ran a finished run again, and its losses, scores, answers or weights are"
        " not those of the run, or are further from them than --tolerance says.",
        "See what differs here: packages, processor, threads. docs/reliability.md says what gives"
        " the same bits. `--write-requirements` writes the packages that the run had.",
    ),
    # --- plugins
    "E501": Code(
        "a plugin cannot be imported",
        "The plugin is installed, but importing its code fails. This stops only the recipes that"
        " name it.",
        "Update or reinstall the distribution in the message; `llmft doctor` shows the reason.",
    ),
    "E502": Code(
        "a plugin breaks the contract",
        "It returns a value of the wrong type, implements a hook that does not exist, has the wrong"
        " arguments for a hook, or raises an error.",
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
        "Correct the name, or install the package that provides it. `llmft list-plugins` shows"
        " all methods.",
    ),
    "E505": Code(
        "a plugin is made for another version of llmft",
        "The plugin declares a version of the plugin API that this llmft does not support.",
        "Update the plugin or llmft, whichever is older.",
    ),
    "E506": Code(
        "a plugin failed in a run",
        "The code of an installed plugin raised an unexpected error. Training stopped; earlier"
        " checkpoints are intact.",
        "Report it to the plugin's author, with the file that the message names. Once it is fixed,"
        " continue with `llmft run RECIPE RUN_FOLDER --resume`.",
    ),
    # --- trust
    "E601": Code(
        "a model folder has its own code",
        "To load the model, Python code from its folder would have to run. A recipe can never"
        " allow that.",
        "Use an architecture that is part of transformers.",
    ),
    "E602": Code(
        "weights in a format that can run code",
        "Files such as .bin, .pt and .pkl are pickles, and loading a pickle can run any code.",
        "Use a model with safetensors weights, or convert it on an isolated machine.",
    ),
    "E603": Code(
        "a write outside the run folder",
        "Something tried to write outside the run folder, with '..' or through a link.",
        "Set a plain output_dir; report it if your recipe did not cause this.",
    ),
    "E604": Code(
        "a chat template takes too much time or memory",
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
    "E607": Code(
        "a recipe names code of its own",
        "The recipe, or a task of lm-evaluation-harness that it names, names a Python file, or code"
        " on the hub. A recipe may come from a stranger, so that it alone never runs code.",
        "Read the file. If it may run: --trust file:FILE, or --trust file:FILE@SHA256 for this"
        " very content only.",
    ),
    "E900": Code(
        "a bug in llmft",
        "llmft met an error that it does not handle. It is not your mistake.",
        "Please report it, with the file that the message names; secrets are removed from it.",
    ),
}
