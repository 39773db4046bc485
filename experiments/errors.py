"""The one exception that means: the input is wrong, not the program."""


class UserError(ValueError):
    """Something the user can put right: a path, a key, a file. One line that names the thing and what was expected.

    The `memcomp` command prints it without a traceback and leaves with exit code 2.
    """
