"""A share of the users gets another model: the engine deployment's `user_config`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serving.affinity import position
from serving.calls import Call
from serving.shadow import Shadow


class Canary(BaseModel):
    """Sticky by `user`, else by chat. Calls that name a model other than `champion` are left alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    """A name out of /v1/models."""
    share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    """Of the users."""

    def takes(self, call: Call) -> bool:
        return call.model in (None, "champion") and position(call) < self.share


class UserConfig(BaseModel):
    """What `user_config` may hold; an unknown key is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    canary: Canary | None = None
    shadow: Shadow | None = None

    @property
    def models(self) -> set[str]:
        """The names of the models that are in use all the time beside the champion."""
        return {each.model for each in (self.canary, self.shadow) if each is not None and each.share > 0}
