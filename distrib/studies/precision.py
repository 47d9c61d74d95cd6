"""The precision of all trials of a study, where its configuration leaves that to the machine.

Trials that measured for themselves might train in different precisions, and then differ in more than their settings.
"""

import json
from dataclasses import replace

from distrib.base.errors import UserError
from distrib.base.files import write_whole
from distrib.base.json import to_json
from distrib.ranks.machine import computes_in, resolve, use_all_cores
from distrib.ranks.printing import say, warn
from distrib.studies.definition import Study
from distrib.studies.folder import StudyFolder


def with_kept_precision(study: Study, folder: StudyFolder) -> Study:
    """The study with the precision that its folder keeps; as it is where the folder keeps none.

    Raises:
        UserError: if the file that keeps it cannot be read.
    """
    try:
        return replace(study, precision=str(json.loads(folder.precision.read_text(encoding="utf-8"))["precision"]))
    except FileNotFoundError:
        return study
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder.precision} cannot be read ({error}): remove it, and the study chooses its precision again"
        ) from None


def with_precision(study: Study, folder: StudyFolder, workers: int) -> Study:
    """The study with the precision of its trials; as it is where its configuration or its space names one.

    The first process to start the study decides, and the folder keeps the choice for all others. It is made again
    where this machine does not compute in it.

    Args:
        study: its definition.
        folder: of the study.
        workers: trials at a time on this machine, which share its cores.

    Raises:
        UserError: if the file that keeps the choice cannot be read, or the folder cannot be locked.
        OSError: if the choice cannot be written.
    """
    # Of a device that varies, each trial asks its own.
    if study.base.train.precision != "auto" or study.varied & {"train.precision", "run.device"}:
        return study
    config = resolve(study.base.replace("run", folder=None))
    with folder.lock():
        kept = with_kept_precision(study, folder)
        if kept.precision is not None:
            if computes_in(kept.precision, config.run.device):
                return kept
            warn(
                f"this study was trained in {kept.precision}, which this machine does not compute in: its precision is "
                "chosen anew"
            )
        from distrib.training.precision import Precision, choose_precision

        found = Precision(config.train.precision, {})
        if found.name == "auto":
            ranks = config.run.ranks or 1
            use_all_cores(local_ranks=workers * ranks)  # as many as a rank of a trial has
            found = choose_precision(config, ranks)
        write_whole(folder.precision, to_json({"precision": found.name, "seconds": found.seconds}) + "\n")
    say(f"precision {found.name}{found.reason}, for all trials")
    return replace(study, precision=found.name)
