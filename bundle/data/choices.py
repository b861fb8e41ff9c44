"""What nothing could be drawn with is refused, in one set of words."""

from collections.abc import Sequence


def require_choice(**settings: float | Sequence[float]) -> None:
    """Refuse what nothing could be drawn with; a number is a probability, a sequence what one of is drawn.

    Raises:
        ValueError: when a probability is not between 0 and 1, or a sequence is empty or holds what is not above 0.
    """
    for name, value in settings.items():
        if not isinstance(value, Sequence):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        elif not value or min(value) <= 0:
            raise ValueError(f"{name} must be above 0, and there must be one, not {value}")
