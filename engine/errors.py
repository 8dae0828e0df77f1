"""The few exception types that users meet. A message says what, where, why, and what to do."""


class UserError(ValueError):
    """Something that the user can put right: the command ends with this one message and exit code 2."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or out of range."""


class DatasetError(UserError):
    """A dataset folder, an annotation file or an image cannot be used."""


class ModelError(UserError):
    """A diffusion model or checkpoint is missing, unsafe, broken, or does not fit the others in use."""


class RunConflict(UserError):
    """A run folder holds another run's plan, or another live process owns it."""


class RunFailed(RuntimeError):
    """Work was started and did not succeed: exit code 1. What was finished before stays."""
