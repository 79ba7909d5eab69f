"""The part of a source that keeps what was found in it: the matrices, and those not readable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable


class FoundMatrices:
    """Matrices by location.

    Attributes:
        name: the path as text, for messages.
        matrices: every matrix that may hold counts, by location.
        unreadable: matrices that are there but cannot be read, `{location: why}`.
    """

    name: str
    matrices: dict[str, Any]
    unreadable: dict[str, str]

    def matrix(self, location: str) -> Any:
        """Return a matrix by its location.

        Args:
            location: one of `matrices`, such as `X` or `layers/NAME`.

        Raises:
            UnknownNameError: there is no such matrix; the message lists those there are.
            InputDataError: it is there but cannot be read.
        """
        if location in self.unreadable:
            raise InputDataError(
                f"{location} of {self.name} cannot be read: {self.unreadable[location]}."
            )
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.name} has no matrix {location!r}."
                + nearest(location, [*self.matrices, *self.unreadable])
            )
        return self.matrices[location]

    def add_matrix(self, location: str, make: Callable[[], Any]) -> None:
        """Keep a matrix, or why it cannot be read.

        Args:
            location: of the matrix.
            make: opens it.
        """
        try:
            self.matrices[location] = make()
        except InputDataError as error:
            self.unreadable[location] = str(error)
