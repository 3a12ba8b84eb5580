"""What ends a run that is nobody's fault."""


class NotPossible(Exception):
    """This machine can't make the fault; it is reported as not run, with the cause."""
