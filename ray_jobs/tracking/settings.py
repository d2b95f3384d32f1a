"""Where a run is tracked, beside its folder."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_jobs.settings import Section

Name = Annotated[str, Field(min_length=1)]


class WandbSettings(Section):
    """Weights & Biases: a run for each run, and one for each trial in the same group."""

    project: Name
    """Project that gets the runs."""
    entity: Name | None = None
    """User or team that owns the project; null: the account's own default."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps the runs under `wandb/` of the run folder, for `wandb sync`; null: as `WANDB_MODE` says,
    else online."""
    registered_model: Name | None = None
    """Name of a model artifact; the winner becomes a version of it with the alias `champion`."""


class TrackingSettings(Section):
    """Trackers that are told what the run folder holds. One that fails is a warning, never a failed run.

    TensorBoard needs no setting: Ray Tune writes event files into `tune/experiment` of every run folder.
    """

    mlflow_uri: Name | None = None
    """MLflow's tracking URI, such as `http://host:5000` or `sqlite:///mlflow.db`; null: not used."""
    experiment: Name = "orpo-on-ray"
    """Experiment of MLflow that gets a run for each run, with a nested one for each trial."""
    registered_model: Name | None = None
    """Name in MLflow's model registry; the winner becomes a version of it with the alias `champion`."""
    wandb: WandbSettings | None = None

    @model_validator(mode="after")
    def _registry_needs_a_server(self) -> Self:
        if self.registered_model is not None and self.mlflow_uri is None:
            raise ValueError("registered_model: needs mlflow_uri")
        return self
