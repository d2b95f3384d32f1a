"""What the Hugging Face hub refuses, in one line that says what to do about it."""


def gated() -> str:
    """For a repository whose terms have to be accepted."""
    if _has_token():
        return "is gated: accept its terms on its hub page, with the account of the token that is set"
    return "is gated: accept its licence on the hub and log in with `hf auth login` or HF_TOKEN"


def refused(status: int) -> str:
    """For any other answer than the one that was asked for."""
    if status == 401:
        known = "the hub does not take the token that is set" if _has_token() else "needs a login"
        return f"{known}: `hf auth login`, or HF_TOKEN on every node"
    if status == 403:
        return "the account of the token that is set may not read it"
    if status == 429:
        return "the hub asks to wait, it was asked too often; a login raises the limit"
    return f"the hub answers {status}"


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or one that it follows from, was raised for."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def connection_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What the hub's client raises where no answer came: the base of its HTTP library's errors, and the
    system's; and `more`."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"), OSError, *more)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
