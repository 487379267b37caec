"""Where to look for the curves that `report_to` asked for."""

import os
import shlex


def where_to_look(args) -> list[str]:
    """A line for each tracker in `args.report_to`: the command that shows what it has written, or where that is.

    TensorBoard and Trackio write to this machine alone, unless `trackio_space_id` names a Space. W&B sends to its server
    unless WANDB_MODE=offline.
    """
    lines = []
    for tracker in args.report_to or ():
        if tracker == "tensorboard":
            folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or args.output_dir
            lines.append(f"curves: tensorboard --logdir {shlex.quote(folder)}")
        elif tracker == "trackio" and args.trackio_space_id:
            lines.append(f"curves: https://huggingface.co/spaces/{args.trackio_space_id}")
        elif tracker == "trackio":
            lines.append(f"curves: trackio show --project {shlex.quote(args.project)}")
        elif tracker == "wandb" and os.environ.get("WANDB_MODE") == "offline":
            folder = os.environ.get("WANDB_DIR") or "."
            lines.append(f"curves: they are in {folder}/wandb; wandb sync sends them to its server")
        elif tracker == "wandb":
            lines.append("curves: at the address that wandb has printed above")
        else:
            lines.append(f"curves: in {tracker}")
    return lines
