"""Look at everything that a run would touch: `python -m vlmft.validate dataset=A+B model=...`, the words of the run.

Every sample is examined, on all cores, by the code that training reads it with; each problem is listed with file, line
and the way to mend it. Nothing is trained, and no weight is loaded. Exit code 0: a run would start, and not stop for
its data; 2: it would not.
"""

import sys
from pathlib import Path
from typing import NoReturn

from pydantic import Field

from vlmft.config.app import Composition, run_app
from vlmft.errors import DataError
from vlmft.train import TrainConfig, number_of_ranks, refuse_packing


class ValidateConfig(TrainConfig):
    """Every choice of a run, and how it is looked at; conf/validate.yaml holds the values."""

    out: Path = Field(description="folder for problems.jsonl and summary.json; those of an earlier scan are replaced")
    show: int | None = Field(ge=0, description="problems on the screen, at most; null: all")
    tokens: bool = Field(description="count tokens with the model's processor; false: structure and media alone")
    decode: bool = Field(description="decode every medium in full; false: headers alone")
    num_workers: int | None = Field(ge=1, description="processes that examine samples; null: one for each core")


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("validate", ValidateConfig, validate))


def validate(config: ValidateConfig, composition: Composition) -> int:
    """Carry out one scan; return its exit code.

    Raises:
        ConfigError: a choice cannot be carried out.
        DataError: a file cannot be used, or a run would stop for its data.
    """
    from vlmft.checking.report import Report
    from vlmft.checking.scan import Scan
    from vlmft.data.run_data import open_run_data
    from vlmft.tasks import task_of
    from vlmft.training.step_plan import refuse_uneven_shares

    refuse_packing(config)
    task = task_of(config)
    task.check()
    ranks = number_of_ranks(config.strategy)
    refuse_uneven_shares(config.global_batch_size, ranks)
    config.model.refuse_missing_folder()
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)
    folder = config.out if composition.sweep_job is None else composition.run_dir
    scan = Scan(config, data)
    with Report(folder.expanduser().absolute(), config.show) as report:
        report.found(scan.overlap())
        for done, problems in scan.run():
            report.found(problems)
            report.progress(done, scan.num_samples)
        DataError.raise_if(report.finish(config, scan, ranks))
        task.prepare(data)
        report.screen.print("a run would start, and not stop for its data")
    return 0


if __name__ == "__main__":
    main()
