"""Every error a user can meet, on one page.

    Valle2Error
    ├── ConfigError        params.yaml or a command's arguments
    ├── SourceError        a declared source, its audio, licence or consent
    ├── CodecError         codec weights or codes
    ├── ShardError         a shard that is missing, short or altered
    ├── ShapeError         a tensor whose shape breaks a contract
    ├── TrainingError      data too small, loss not finite, wrong checkpoint
    ├── Preempted          asked to end, and ready to go on (exit code 75)
    ├── TrackingError      a run that is not there, or a tracking store that does not answer
    ├── ModelError         a voice model that cannot be loaded or used
    ├── EvaluationError    nothing to evaluate, or a metric model is missing
    ├── LineageError       a record that is missing or altered
    ├── StorageError       no space, a missing remote object
    ├── WorkerError        workers that die or cannot be had
    └── FlowError          workspace, git, DVC, server or port

Each message says what was found, what was expected, and the field or command that mends it. `valle2.cli` and
`flows` print it as one sentence and exit with 2; a traceback means a bug of ours.
"""


class Valle2Error(Exception):
    """Base of all errors that are the user's to mend."""

    exit_code = 2


class ConfigError(Valle2Error):
    """A wrong key or value in params.yaml or on the command line."""


class SourceError(Valle2Error):
    """A source that cannot be read, or lacks licence or consent."""


class CodecError(Valle2Error):
    """Codec weights that are missing or of another shape, or codes out of range."""


class ShardError(Valle2Error):
    """A shard that is missing, short, or not the bytes that its manifest names."""


class ShapeError(Valle2Error, ValueError):
    """A tensor whose shape breaks a documented contract."""


class TrainingError(Valle2Error):
    """Training that cannot start or go on."""


class Preempted(Valle2Error):
    """Work that was asked to end and goes on where it stopped when the same is run again."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again."""


class TrackingError(Valle2Error):
    """A run that is not there or not the only one, or a tracking store that does not answer."""


class ModelError(Valle2Error):
    """A voice model that cannot be found, loaded or used."""


class EvaluationError(Valle2Error):
    """Evaluation without cases, or without a metric's model."""


class LineageError(Valle2Error):
    """A lineage record that is missing, or not what its digest says."""


class StorageError(Valle2Error):
    """No space, or an object that should be in the store and is not."""


class WorkerError(Valle2Error):
    """Workers that die of the same work again and again, or a cluster that cannot be used."""


class FlowError(Valle2Error):
    """A flow that cannot start: no git, a busy port, a dirty state."""
