"""Keep secrets out of what is written: a record and its report are made to be published."""

import os
import re

_SECRET_NAME = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}"  # a token of the Hugging Face hub
    r"|(?<=://)[^/\s@]+(?=@)"  # user and password in an address
)
_SHORTEST = 6  # characters; a shorter value of the environment, such as "1" or "true", is found everywhere


def without_secrets(text: str) -> str:
    """A text with hub tokens, passwords in addresses and the values of secret environment variables replaced by ***.

    A variable is taken for secret by its name: HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD ...
    """
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):  # one may hold another
        text = text.replace(value, "***")
    return _SECRET_TEXT.sub("***", text)
