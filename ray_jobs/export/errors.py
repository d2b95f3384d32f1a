"""What can go wrong with a model file."""

from ray_jobs.errors import ModelError, StageFailed


class ModelMismatch(ModelError):
    """Sound files that do not belong together: an adapter, a template or a tokenizer of another base."""


class ExportError(StageFailed):
    """The exported file does not compute what was trained, or could not be written."""
