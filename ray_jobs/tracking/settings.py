"""Where a run is tracked, beside its folder."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from ray_jobs.settings import Section


class TrackingSettings(Section):
    """Trackers that are told what the run folder holds. One that fails is a warning, never a failed run.

    TensorBoard needs no setting: Ray Tune writes event files into `tune/experiment` of every run folder.
    """

    mlflow_uri: Annotated[str, Field(min_length=1)] | None = None
    """MLflow's tracking URI, such as `http://host:5000` or `sqlite:///mlflow.db`; null: not used."""
    experiment: Annotated[str, Field(min_length=1)] = "orpo-on-ray"
    """Experiment that gets a run for each run, with a nested one for each trial."""
    registered_model: Annotated[str, Field(min_length=1)] | None = None
    """Name in MLflow's model registry; the winner becomes a version of it with the alias `champion`."""

    @model_validator(mode="after")
    def _registry_needs_a_server(self) -> Self:
        if self.registered_model is not None and self.mlflow_uri is None:
            raise ValueError("registered_model: needs mlflow_uri")
        return self
