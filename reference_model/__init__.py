"""The reference experiment: PANNs ResNet-38 + BERT, trained with the losses of ``crossmodal_losses``.

Mei et al. 2022, "On Metric Learning for Audio-Text Cross-Modal Retrieval", sections 2.2 and 3.
"""

LONGEST_REASON = 300  # characters of a library's error in a message


class InputError(ValueError):
    """Wrong input from the user; the command line prints its text alone, without a traceback."""


def reason_of(error: BaseException) -> str:
    """Return an error of a library in one line for people: the beginning of its text, or its type."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    text = f"{type(error).__name__} {lines[0]}" if isinstance(error, LookupError) else lines[0]
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
