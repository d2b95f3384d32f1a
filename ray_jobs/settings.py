"""The base of every config section: typed, frozen, and strict about what it is given."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One block of a config file. Unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
