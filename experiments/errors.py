"""The exceptions that mean: the input is wrong, not the program."""


class UserError(ValueError):
    """Something the user can put right: a path, a key, a file. One line that names the thing and what was expected.

    The `memcomp` command prints it without a traceback and leaves with exit code 2.
    """


class CannotWrite(UserError):
    """A file or folder that the system does not let us write: a full disk, a folder of somebody else."""


class Incomplete(UserError):
    """What was asked for is written, but not all of it. One line that names the file and both numbers.

    The `memcomp` command prints it and leaves with exit code 3.
    """
