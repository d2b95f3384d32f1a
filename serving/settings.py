"""How the endpoint is run: typed, frozen; a misspelt key is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.canary import Canary
from serving.engine.settings import EngineSettings
from serving.probation import RollbackRule
from serving.shadow import Shadow
from serving.storage.mirror import REGISTRIES, open_mirror
from serving.storage.remote import absolute, is_uri

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RequestLimits(BaseModel):
    """What one request may ask for; more is refused with 400."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_answer_tokens: Count | None = None
    """Tokens of one answer; None: what the context holds."""
    max_choices: Count = 8
    """Answers to one request: `n` times the number of prompts."""
    max_stops: Count = 16
    """Stop strings."""
    max_stop_characters: Count = 256
    max_logit_biases: Count = 512
    max_top_logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    max_messages: Count = 1024
    max_parts: Count = 4096
    """Parts of contents, and calls, of all messages together."""
    max_tools: Count = 64
    max_schema_bytes: Count = 16384
    """Length of a JSON schema as JSON text."""
    max_schema_depth: Count = 16


class ServingSettings(BaseModel):
    """The endpoint. Every field has a default that works on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str = Field(default_factory=lambda: os.environ.get("SERVING_REGISTRY", "registry"))
    """Folder or URI (s3://…) with champion.json; default: SERVING_REGISTRY, else ./registry."""
    engine: EngineSettings | None = None
    """Each replica's engine; None: all cores of this machine."""
    replicas: Count = 1
    """Engine replicas, or the fewest of them where `max_replicas` is higher."""
    max_replicas: Count | None = None
    """The most replicas that load may start; None: no autoscaling."""
    scaling_delay_s: Seconds = 30.0
    """How long load must last before it starts a replica; one is stopped after 20 times as long without."""
    ingress_replicas: Count = 1
    """Processes that speak HTTP, check requests and stream."""
    max_queued: Count = 64
    """Answers that may wait for a slot, per engine replica; more are refused with 429."""
    request_timeout_s: Seconds = 300.0
    """After this a request is ended by the server, whatever its client asks for."""
    watch_s: Seconds = 1.0
    """How often a replica looks at champion.json."""
    max_loaded_models: Annotated[int, Field(ge=2)] = 2
    """Models that a replica holds in memory: the champion, and those that were last asked for by name, as
    canary or as shadow; one more where champion, canary and shadow are three."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the endpoint. On a cluster SERVING_CORS_ORIGINS names them too."""
    requests_per_minute: Count | None = None
    """Most requests of one API key in a minute; a key's own limit in the key file goes first."""
    limits: RequestLimits = RequestLimits()
    canary: Canary | None = None
    """A share of the users gets another model. A deployed file has it in the `user_config` of the deployment
    `engine` instead: a change there restarts nothing."""

    shadow: Shadow | None = None
    """A share of the chats is answered by a second model too, unseen; in deployed files as `canary`."""
    rollback: RollbackRule | None = None
    """When a new champion is taken back without being asked; None: never."""

    @model_validator(mode="before")
    @classmethod
    def _texts_are_json(cls, values: object) -> object:
        """On the command line every value is a text: that of a field with parts of its own is JSON."""
        if not isinstance(values, dict):
            return values
        return {
            name: _from_json(name, value) if name != "registry" and _is_json(value) else value
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) must not be below replicas ({self.replicas})"
            )
        return self

    @property
    def registry_address(self) -> str:
        """For any node, whatever its working directory is."""
        return absolute(self.registry)

    @property
    def registry_path(self) -> Path:
        """The registry, or this node's mirror of one in an object store."""
        return (
            open_mirror(self.registry, REGISTRIES) if is_uri(self.registry) else Path(self.registry_address)
        )


def _is_json(value: object) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] in ("{", "[")


def _from_json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


class GateSettings(BaseModel):
    """What is checked before a request reaches the application; read in Serve's proxies too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys_file: str | None = None
    """SERVING_API_KEYS_FILE: hashed keys, see `serving.keys`; None: only clients on this machine."""
    max_body_bytes: Count = 1 << 20
    """SERVING_MAX_BODY_BYTES: a longer request body is refused with 413."""
    max_header_bytes: Count = 32 << 10
    max_inside: Count | None = None
    """SERVING_MAX_INSIDE: requests to /v1/ that may be under way; more are refused with 429 right here, which
    costs a small part of refusing them behind Serve's proxy. None: only the application itself refuses."""
    read_timeout_s: Seconds = 20.0
    """SERVING_READ_TIMEOUT_S: a client that takes longer to send its request gets 408."""
    write_timeout_s: Seconds = 30.0
    """SERVING_WRITE_TIMEOUT_S: a client that reads nothing for so long is cut off."""
    cors_origins: tuple[str, ...] = ()
    """SERVING_CORS_ORIGINS, with commas between: the endpoint's `cors_origins` for Serve's proxies, so that
    pages can read the errors of these too."""

    @classmethod
    def from_env(cls) -> Self:
        names = {"api_keys_file", "max_body_bytes", "max_inside", "read_timeout_s", "write_timeout_s"}
        found: dict[str, Any] = {name: os.environ.get(f"SERVING_{name.upper()}") for name in names}
        found["cors_origins"] = tuple(os.environ.get("SERVING_CORS_ORIGINS", "").replace(",", " ").split())
        return cls.model_validate({name: value for name, value in found.items() if value})
