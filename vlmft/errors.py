"""What can go wrong, and the exit code each kind ends a command with.

A message says what was found, what was expected, where (file, key or sample) and how to mend it.
Where several things are wrong at once they are all listed: `problems` holds one line each.
"""

from collections.abc import Iterable


class VlmftError(Exception):
    """Base of every error that vlmft raises on purpose; `exit_code` is what the command ends with."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__("\n".join(problems))

    @classmethod
    def raise_if(cls, problems: Iterable[str]) -> None:
        """Raise one error that lists every problem; do nothing where there is none."""
        found = tuple(problems)
        if found:
            raise cls(*found)


class ConfigError(VlmftError):
    """A choice cannot be carried out: unknown name or key, wrong type, contradiction."""

    exit_code = 2


class UnprovenError(ConfigError):
    """`model=auto` does not take a checkpoint: something of it cannot be found out, or does not hold."""


class DataError(VlmftError):
    """A file or sample cannot be used; the message names it."""

    exit_code = 2


class NumericError(VlmftError):
    """A step has no loss, or its loss or gradients are no finite numbers; raised before the weights are updated.

    `step` and `samples` (the ids of what it was trained on) let a caller keep them for whoever looks for the cause.
    """

    exit_code = 3

    def __init__(self, problem: str, *, step: int, samples: Iterable[str]) -> None:
        super().__init__(problem)
        self.step = step
        self.samples = tuple(samples)


class ScoringError(VlmftError):
    """A metric raised, or gave no number in [0, 1]: a fault of its code, not of the answer; names metric and sample."""


class DifferentAnswersError(VlmftError):
    """A model that was written does not answer as the one that it was made from, by more than rounding can do."""

    exit_code = 3


class OutOfMemoryError(VlmftError):
    """The device's memory is used up; the message lists what to change, in order of effect."""

    exit_code = 4


class ServerError(VlmftError):
    """A server that makes completions does not answer, or not as it should; names its URL and the step."""


class StorageError(VlmftError):
    """A file of the run cannot be written."""

    exit_code = 5


class PreemptedError(VlmftError):
    """SIGTERM or SIGUSR1 asked the run to leave its machine."""

    exit_code = 75


class InterruptedRunError(VlmftError):
    """The user stopped the run (SIGINT)."""

    exit_code = 130
