"""Keep secrets out of what is written: records and reports are meant to be published."""

import os
import re
from typing import Any

_SECRET_NAME = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}"  # a token of the Hugging Face hub
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password in an address
)
_SHORTEST = 6  # characters; a shorter value, such as "1" or "true", would be found everywhere


def without_secrets(content: Any) -> Any:
    """Plain JSON without hub tokens, passwords in addresses and the values of secret environment variables.

    They are replaced by ***; keys are kept. A variable counts as secret by its name: HF_TOKEN, AWS_SECRET_ACCESS_KEY,
    DB_PASSWORD ...
    """
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return _masked(content, sorted(values, key=len, reverse=True))  # one may contain another


def _masked(content: Any, secrets: list[str]) -> Any:
    if isinstance(content, dict):
        return {key: _masked(value, secrets) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_masked(value, secrets) for value in content]
    if not isinstance(content, str):
        return content
    for secret in secrets:
        content = content.replace(secret, "***")
    return _SECRET_TEXT.sub("***", content)
