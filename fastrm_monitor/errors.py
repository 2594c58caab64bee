"""The errors that a user meets; every message is one sentence that says what to do.

Set-up mistakes raise one of these at once. At run time nothing is raised into serving: failures are counted by reason.
"""


class FastRMError(Exception):
    """Any mistake that the user can mend; the command line prints the message and exits with 2."""


class ProxyError(FastRMError):
    """The proxy folder is missing, corrupt, or was distilled from another model."""


class ModelError(FastRMError):
    """The model, its processor or its layout cannot be monitored."""


class StoreError(FastRMError):
    """The database cannot be opened, or its schema is not the one that this version reads."""


class DataError(FastRMError):
    """A questions file, an annotations file or a picture cannot be read."""


class MissingExtraError(FastRMError):
    """An optional library is not installed; the message names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs more libraries: pip install 'fastrm-monitor[{extra}]'.")
