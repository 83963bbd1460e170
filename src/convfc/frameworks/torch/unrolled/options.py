"""What `convfc.to_fc` is asked for: options that do not go together are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from convfc.errors import ArgumentError
from convfc.frameworks.torch.simplify import simplify
from convfc.frameworks.torch.watch import call_arguments, check_has_numbers
from convfc.sizes import one_of

__all__ = ["Branches", "Form", "MaxPool", "Options"]

Form: TypeAlias = Literal["patch", "weight", "unrolled"]
MaxPool: TypeAlias = Literal["keep", "relu"]
Branches: TypeAlias = Literal["add", "carry"]

_CHOICES = {
    "form": (
        Form,
        "'patch' puts an nn.Linear in the layer's place, 'weight' keeps the layer and makes its "
        "parameter 2-D, 'unrolled' makes one nn.Linear of the layer's whole matrix",
    ),
    "max_pool": (MaxPool, "'keep' leaves max-pooling as it is, 'relu' writes it with ReLU"),
    "branches": (Branches, "'add' joins branches by additions, 'carry' carries them through"),
}
_DEFAULTS = {"example": None, "simplify": False, "sparse": False, "memory": None}
_OF_SIMPLIFY = {"max_pool": "keep", "branches": "add"}
_WHOLE = {"inplace": False, "where": None, "strict": True}


@dataclass(frozen=True)
class Options:
    """The options of `convfc.to_fc`, by the names that they have there.

    Examples
    --------
    >>> Options(form="weight", block_diagonal=True).check()
    Traceback (most recent call last):
    convfc.errors.ArgumentError: block_diagonal: only the patch form has a Linear that could be ...
    """

    form: Form = "patch"
    inplace: bool = False
    where: Any = None
    strict: bool = True
    block_diagonal: bool = False
    example: Any = None
    simplify: bool = False
    max_pool: MaxPool = "keep"
    branches: Branches = "add"
    sparse: bool = False
    memory: float | None = None

    def check(self) -> None:
        """Raise if an option has no such value, or is not one of this form.

        Raises
        ------
        ArgumentError
            The message names the option.
        """
        for name, (choices, remedy) in _CHOICES.items():
            one_of(
                name,
                getattr(self, name),
                get_args(choices),
                what=f"there is no such {name}",
                remedy=remedy,
            )
        if self.block_diagonal and self.form != "patch":
            raise ArgumentError(
                "only the patch form has a Linear that could be block-diagonal",
                where="block_diagonal",
                expected="form='patch'",
                got=f"form={self.form!r}",
                remedy="leave it out: the other forms hold the groups in one matrix already",
            )
        if self.form != "unrolled":
            self._only(
                "the unrolled form", _DEFAULTS | _OF_SIMPLIFY, "form='unrolled'", " and example=x"
            )
        elif self.example is None:
            raise ArgumentError(
                "the matrix of a layer is for one input size",
                where="example",
                expected="an input of the model, of the size that it is to be unrolled for",
                got=None,
                remedy="to_fc(model, form='unrolled', example=x); a tuple holds several arguments",
            )
        elif not self.simplify:
            self._only("a simplified network", _OF_SIMPLIFY, "simplify=True")
        else:
            self._only("a conversion layer by layer", _WHOLE, "simplify=False")

    def _only(self, what: str, defaults: dict[str, Any], expected: str, beside: str = "") -> None:
        """Raise for the first option that is not at its default."""
        for name, default in defaults.items():
            value = getattr(self, name)
            if value is not default and not (isinstance(value, str) and value == default):
                raise ArgumentError(
                    f"only {what} has this option",
                    where=name,
                    expected=expected,
                    got=f"form={self.form!r}, simplify={self.simplify}",
                    remedy=f"give {expected}{beside}, or leave {name} out",
                )

    def simplified(self, model: nn.Module) -> nn.Module:
        """Return the model as a plain network of FC layers; see `simplify`."""
        check_has_numbers(model, "model")
        given = self.example if isinstance(self.example, tuple) else (self.example,)
        example, _ = call_arguments(model, given)
        return simplify(
            model,
            example,
            max_pool=self.max_pool,
            branches=self.branches,
            sparse=self.sparse,
            memory=self.memory,
        )
