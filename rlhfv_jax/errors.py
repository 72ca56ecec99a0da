"""The one exception for everything a user can mend: its message is the whole explanation."""


class UserError(Exception):
    """Bad input, a missing file, a refused setting. Programs print the message as one line and exit with status 1.

    Messages are sentences: what is wrong, where (file, row, field, path, shape), what was expected, what to do.
    """
