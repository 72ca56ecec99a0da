"""The exception for everything a user can mend, whose message is the whole explanation; and the end by SIGTERM."""

SAVED = 75  # exit status (EX_TEMPFAIL of sysexits.h): stopped by SIGTERM, the state saved
UNSAVED = 143  # 128 + SIGTERM: stopped by it before the state was saved


class UserError(Exception):
    """Bad input, a missing file, a refused setting. Programs print the message as one line and exit with status 1.

    Messages are sentences: what is wrong, where (file, row, field, path, shape), what was expected, what to do.
    """


class Preempted(Exception):
    """A run has stopped for SIGTERM, its state saved. Programs exit with status 75; the same command continues."""
