"""What several seeds say: the mean of their differences, and how far off it may be."""

from jaxtyping import Float
from torch import Tensor

# Student's t: 95 % of it lies within ± this, for so many values (one degree of freedom fewer).
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def interval(differences: Float[Tensor, "seeds"]) -> tuple[float, float]:
    """The mean of paired differences, and the half width of its 95 % interval (Student's t).

    Args:
        differences: One for each seed, between two networks that share all but what is compared.

    Raises:
        ValueError: There are fewer than 2, or more than 10.
    """
    count = len(differences)
    if count not in T95:
        raise ValueError(f"differences must be 2 to 10 numbers, got {count}")
    return differences.mean().item(), T95[count] * differences.std().item() / count**0.5
