"""The codes of errors on the machine, in training, and in runs and their checkpoints."""

from __future__ import annotations

from llmft.commands.recipe_codes import Code

RUN_CODES: dict[str, Code] = {
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
}
