"""What a user can get wrong, and how a command ends.

Exit codes: 0 done · 1 a stage failed · 2 the user's input is wrong · 3 the run is owned by another process.
"""


class UserError(Exception):
    """Bad input: one line that names the file, the dotted field or the row. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A config file or a dotted field of it is wrong."""


class DataError(UserError):
    """A data file or a row of it is wrong."""


class ModelError(UserError):
    """A base model, template or judge cannot be used as configured."""


class RunConflict(UserError):
    """A run folder holds results of other inputs than the ones asked for."""


class RunBusy(UserError):
    """Another process owns the run folder."""

    exit_code = 3


class StageFailed(Exception):
    """A stage ended without its outputs; what it finished before is kept."""

    exit_code = 1
