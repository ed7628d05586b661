"""Access: what the attacker may ask of a target."""

from enum import IntEnum


class Access(IntEnum):
    """Levels of access; each includes those below it."""

    DECISION = 0
    """Only whether the answer is right."""
    LABEL = 1
    """The predicted class."""
    SCORES = 2
    """One score per class."""
    GRADIENT = 3
    """Gradients of any loss of the scores."""
