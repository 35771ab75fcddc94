"""The one error this library raises for faults in what the user gave it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """A file, a row or a parameter that cannot be used.

    The message is one line: what is wrong, where (file, row, column) and what to do about it.
    Command lines print it without a traceback and exit with status 2.
    """


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # what pydantic calls an unknown key
_PLAIN = dict.fromkeys(("dict_type", "mapping_type", "model_type"), "`name: value` lines are needed") | {
    "list_type": "a list is needed", "tuple_type": "a list is needed", "string_type": "text is needed",
    "too_short": "at least one is needed", "string_pattern_mismatch": "a plain name is needed (no / or \\)"}


def one_line(error: ValidationError, where: object, known: Iterable[str] = ()) -> str:
    """The first fault that pydantic found in settings, as one line for an InputError.

    where: the file, and the part of it that was checked. known: the keys allowed there, listed for an unknown one.
    """
    fault = min(error.errors(include_url=False), key=lambda fault: fault["type"] not in _UNKNOWN)  # typing slips first
    place = [key for key in fault["loc"] if key != "[key]"]  # pydantic's mark of a key that is itself at fault
    in_list = len(place) == len(fault["loc"])
    *keys, last = ("", *(f"item {key + 1}" if in_list and isinstance(key, int) else str(key) for key in place))
    if fault["type"] in _UNKNOWN:
        listed = f": known are {', '.join(sorted(known))}" if known and len(place) == 1 else ""
        reason = f"unknown key {last!r}{listed}"
    elif fault["type"] == "missing":
        reason = f"{last!r} is missing"
    else:
        keys.append(last)
        reason = _PLAIN.get(fault["type"], fault["msg"]).removeprefix("Value error, ")
        reason += f", found {fault['input']!r:.60}" if fault["type"] != "value_error" else ""
    return ": ".join(filter(None, [str(where), *keys, " ".join(reason.split())]))
