"""Where a run's data comes from and how much of it is used."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ray_jobs.settings import Section

BUNDLED = ("bundled:pairs", "bundled:prompts", "bundled:judge-pairs")
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


Value = bool | int | float | str


def as_plain_text(value: Any) -> str:
    """A value as text, so that 1, 1.0 and "1" are the same, as tables have them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


class Winner(Section):
    """Says which of two answers is the better one, where that stands in a column of its own."""

    column: Annotated[str, Field(min_length=1)]
    """The column that says it."""
    chosen: tuple[Value, ...]
    """Its values, compared as text, where the answer in the column of `chosen` is the better one."""
    rejected: tuple[Value, ...]
    """Its values where the answer in the column of `rejected` is the better one: the two change places. Rows
    with any other value are left out and counted as `no_preference`."""

    @model_validator(mode="after")
    def _values_tell_them_apart(self) -> Self:
        chosen, rejected = (set(map(as_plain_text, values)) for values in (self.chosen, self.rejected))
        if both := chosen & rejected:
            raise ValueError(f"{min(both)!r} stands in both chosen and rejected")
        if not chosen and not rejected:
            raise ValueError("chosen and rejected are both empty")
        return self


class Columns(Section):
    """Names of the columns of a data set; null takes the usual names. `a.b.0` names what stands inside of a
    column."""

    prompt: str | None = None
    """The prompt, text or messages; else `prompt`, `instruction` or `question`."""
    input: str | None = None
    """Text that is put after the prompt; else `input` beside `instruction`, as Alpaca has them."""
    system: str | None = None
    """Text of the system turn, where a row's turns have none; else `system` or `system_prompt`."""
    chosen: str | None = None
    """The preferred answer, text or messages (with or without the prompt's turns); else `chosen`."""
    rejected: str | None = None
    """The other answer, like chosen; else `rejected`."""
    conversations: str | None = None
    """Turns as {from, value} or {role, content}; else `conversations` or `messages`."""
    answer: str | None = None
    """The data set's own answer to a plain prompt; null: it has none."""
    source: str | None = None
    """Which part of a mixture a row stems from; else `source`."""
    winner: Winner | None = None
    """For answers of which now the one, now the other is better; null: the chosen one always is."""

    @model_serializer(mode="wrap")
    def _as_runs_of_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a winner that is not set: runs that were begun before there was any go on."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "winner" or value is not None}

    def named(self) -> dict[str, str]:
        """Field -> the column that it names, without those that name none."""
        names = {name: value for name, value in self if isinstance(value, str)}
        return names | ({"winner.column": self.winner.column} if self.winner else {})


class Source(Section):
    """A data set."""

    source: Annotated[str, Field(min_length=1)]
    """bundled:pairs, bundled:prompts, bundled:judge-pairs, a hub id (owner/name), or a file, folder, glob or
    URI of .jsonl, .json, .csv or .parquet."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; pin a commit to make a run repeatable."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """Configuration (the hub calls it subset) of a hub data set that has several."""
    split: Annotated[str, Field(min_length=1)] = "train"
    """Split of a hub data set."""
    exclude_sources: tuple[str, ...] = ()
    """Rows whose `source` column has one of these values are left out."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many usable rows, a sample that the run's seed decides; null: all."""
    streaming: bool = False
    """Read a hub data set while it downloads and keep no copy of it on disk."""
    columns: Columns = Columns()
    """Names of the columns, where they are not the usual ones."""

    @field_validator("source")
    @classmethod
    def _bundled_names_exist(cls, source: str) -> str:
        if source.startswith("bundled:") and source not in BUNDLED:
            raise ValueError(f"{source!r} is not bundled; there are {', '.join(BUNDLED)}")
        return source

    @model_serializer(mode="wrap")
    def _as_runs_of_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a configuration that is not set: runs that were begun before there were any go on."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "config" or value is not None}

    @property
    def kind(self) -> Literal["bundled", "file", "hub"]:
        """What `source` names; anything that cannot be a hub id is a file."""
        import os

        if self.source.startswith("bundled:"):
            return "bundled"
        is_file = self.source.lower().endswith((*FILE_SUFFIXES, ".gz")) or os.path.exists(
            os.path.expanduser(self.source)
        )
        return "hub" if _HUB_ID.fullmatch(self.source) and not is_file else "file"


class DataSettings(Section):
    """Pairs to train, validate and test the judge on, and prompts to compare the models on."""

    preferences: Source = Source(source="bundled:pairs")
    """Preference pairs, in the schema of mlabonne/orpo-dpo-mix-40k or a TRL preference format."""
    prompts: Source = Source(source="bundled:prompts")
    """Evaluation prompts, in the schema of mlabonne/FineTome-100k, as messages or plain."""
    num_heldout_pairs: Annotated[int, Field(ge=1)] = 200
    """Pairs that measure each trial."""
    num_trust_pairs: Annotated[int, Field(ge=0)] = 200
    """Pairs that the judge is tested on."""
    num_prompts: Annotated[int, Field(ge=1)] = 500
    """Evaluation prompts that both models answer."""
    num_train_pairs: Annotated[int, Field(ge=1)] | None = None
    """Pairs to train on; null: all that are left."""
    overlap: Literal["refuse", "drop"] = "refuse"
    """What happens when evaluation prompts stand in the pairs too: an error, or they are left out."""
    near_overlap: Literal["off", "report", "drop", "refuse"] = "report"
    """What happens when evaluation prompts nearly stand in the pairs: they are not looked for, counted in
    the data report, left out, or an error."""
    near_similarity: Annotated[float, Field(ge=0.5, lt=1)] = 0.8
    """Share of words in a row (three each) that two prompts have in common, from which on they are near."""
