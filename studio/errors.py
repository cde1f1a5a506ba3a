"""The errors a user can meet; each message says where, what was expected, what came and what to do."""


class StudioError(Exception):
    """Root of the project's errors; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(StudioError, ValueError):
    """A recipe, an override or a command-line argument is wrong."""

    exit_code = 2


class NeedsError(ConfigError):
    """An objective needs something that the policy does not provide."""


class ShapeError(StudioError, ValueError):
    """A tensor has another shape than the formula it enters."""


class RunError(StudioError, RuntimeError):
    """A run folder cannot be created, resumed or read."""

    exit_code = 2


class MissingError(StudioError, RuntimeError):
    """An optional package, a model or a permission is missing."""

    exit_code = 3


class ExportError(StudioError, RuntimeError):
    """A file made for other programs, or by them, does not load as what it should be."""

    exit_code = 2


class RewardError(StudioError, RuntimeError):
    """A reward failed, or failed for too many rows."""

    exit_code = 4


class DivergedError(StudioError, RuntimeError):
    """The loss, the ratio or the weights are no longer usable numbers."""
