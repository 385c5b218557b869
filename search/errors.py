"""What can go wrong in the search; every message says what, got, allowed, fix."""


class SearchError(Exception):
    """Root of the search's errors."""


class ConfigError(SearchError):
    """A study file can't be used as it is; the message has one fault a line."""


class ContractError(SearchError):
    """The files at hand differ from what was frozen into the study."""


class StudyError(SearchError):
    """A study, or a trial of it, is not in the state that a command needs."""


class StudyFailedError(SearchError):
    """A study was stopped, because too many of its trials failed."""


class DashboardError(SearchError):
    """The dashboard can't be served as it should."""


class DashboardConfigError(DashboardError):
    """The dashboard must not, or can't, be served in the way that was asked for."""


class WorkerFailedError(SearchError):
    """A worker can't go on, and starting it again won't mend that."""


class GpuLostError(SearchError):
    """A worker's GPU can't be used any more; started again, the worker takes another one."""

    EXIT_CODE = 3


class ShortcutError(SearchError):
    """The labels of a data folder can be told without listening, and that was not to be."""
