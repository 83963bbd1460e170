"""Models in files: what is broken or hostile is refused, what is written is whole or not there.

Numbers that stand in a file beside the model's stay on disk until they are asked for, and are
copied from file to file. They never come from outside the model's folder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, TypeAlias

import onnx
import onnx_ir as ir

from convfc.comparing import first_words, words
from convfc.errors import ArgumentError, DataError
from convfc.files import replacing
from convfc.frameworks.onnx import forms
from convfc.progress import Progress, telling

Place: TypeAlias = Callable[[Any], None]
"""Puts another tensor where one stood."""

_MOST_OF_A_FILE = 2**31 - 1
"""Bytes that a message of protobuf can have."""
_MOST_INSIDE = 2**30
"""Bytes of tensors up to which a model that has no file beside it gets none."""
_LEAST_OUTSIDE = 1024
"""Smaller tensors stay inside: readers look at them for shapes."""


def load(path: pathlib.Path) -> ir.Model:
    """Read a model from a file; a `DataError` says what is wrong with it."""
    path = path.absolute()  # without a folder, onnx_ir would not look where links lead
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), remedy="check its path")
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
    if size > _MOST_OF_A_FILE:
        expected = f"at most {_MOST_OF_A_FILE} bytes, and larger tensors beside it"
        raise _wrong(path, "it is too large for ONNX", expected, size)
    try:
        onnx.checker.check_model(path)
        proto = onnx.load(path, format="protobuf", load_external_data=False)
        model = ir.from_proto(proto)
    except Exception as error:  # of the checker, of protobuf, of onnx_ir, or of the system
        what, expected = "it is damaged, or no valid ONNX", "what onnx.checker and onnx_ir accept"
        raise _wrong(path, what, expected, _cause(error)) from error
    for lost in _not_read(proto):
        raise _wrong(path, "onnx_ir does not read all of it", "a model without it", lost)
    for tensor, _ in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = path.parent
        _check_size(tensor, path)
    for whole in (model.graph, *(function.graph for function in model.functions.values())):
        for node in whole.all_nodes():
            damage = forms.damage(node)
            if damage is not None:
                got = damage.cause and words(damage.cause)
                raise _wrong(path, damage.reason, "what this version of convfc writes", got)
    return model


def save(
    model: ir.Model,
    path: pathlib.Path,
    *,
    force: bool = False,
    progress: Progress | bool = False,
) -> None:
    """Write a model to a file that is not there yet, or, with ``force``, in place of one.

    A large model, and one that was read so, gets a second file for its tensors, of the same name
    and ``.data``. Of the two files either both are written or none. ``progress`` is told
    the tensors that are written, how many there are, and the name of the next.
    """
    check_free(path, force=force)
    places = list(_tensors(model))
    outside = any(isinstance(tensor, ir.ExternalTensor) for tensor, _ in places)
    if not outside and sum(_size(tensor) for tensor, _ in places) <= _MOST_INSIDE:
        with replacing(path) as whole:
            whole.write(_bytes(model, path))
        return
    beside = path.with_name(f"{path.name}.data")
    check_free(beside, force=force)
    for tensor, _ in places:
        if isinstance(tensor, ir.ExternalTensor) and _is_same(pathlib.Path(tensor.path), beside):
            raise ArgumentError(
                "the numbers of the model itself are in the file that this would replace",
                where=str(beside),
                remedy="write the model under another name",
            )
    moved = [(tensor, place) for tensor, place in places if _size(tensor) >= _LEAST_OUTSIDE]
    taken = False
    try:
        with replacing(path) as whole:
            with replacing(beside) as data, telling(progress) as tell:
                for done, (tensor, place) in enumerate(moved):
                    tell(done, len(moved), tensor.name or "")
                    place(_written(tensor, data, beside.name))
                whole.write(_bytes(model, path))
            taken = True
    except BaseException:
        if taken:
            beside.unlink()
        raise
    finally:
        for tensor, place in moved:
            place(tensor)


def check_free(path: pathlib.Path, *, force: bool) -> None:
    """Raise if there is a file that must not be replaced, or no folder for a new one."""
    if path.is_file() and not force:
        raise ArgumentError(
            "there is such a file already, and it is not overwritten",
            where=str(path),
            remedy="choose another name, or say that it may be replaced, with --force",
        )
    if not path.parent.is_dir():
        remedy = "make the folder, or choose another"
        raise ArgumentError("there is no such folder", where=str(path.parent), remedy=remedy)


def _tensors(model: ir.Model) -> Iterator[tuple[Any, Place]]:
    """Yield every tensor of a model, in graphs and functions, and how another gets its place."""
    for whole in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (whole, *whole.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value, partial(setattr, value, "const_value")
            for node in graph:
                for attribute in list(node.attributes.values()):
                    yield from _in_attribute(node, attribute)


def _in_attribute(node: ir.Node, attribute: ir.Attr) -> Iterator[tuple[Any, Place]]:
    if attribute.is_ref() or attribute.type not in (
        ir.AttributeType.TENSOR,
        ir.AttributeType.TENSORS,
    ):
        return
    one = attribute.type == ir.AttributeType.TENSOR
    held = [attribute.value] if one else list(attribute.value)

    def put(at: int, tensor: Any) -> None:
        held[at] = tensor
        made = held[0] if one else tuple(held)
        node.attributes.add(
            ir.Attr(attribute.name, attribute.type, made, doc_string=attribute.doc_string)
        )

    for at, tensor in enumerate(held):
        yield tensor, partial(put, at)


def _size(tensor: Any) -> int:
    """Return the bytes of a tensor that can stand in a file of numbers; texts cannot."""
    return 0 if tensor.dtype == ir.DataType.STRING else int(tensor.nbytes)


def _written(tensor: Any, data: IO[bytes], name: str) -> ir.ExternalTensor:
    """Append the bytes of a tensor to a file; return the tensor that stands there."""
    offset = data.seek(0, 2)
    tensor.tofile(data)
    return ir.ExternalTensor(
        name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model as onnx has it, without what onnx_ir says twice of initializers."""
    proto = ir.to_proto(model)
    for graph in _graphs(proto):
        if isinstance(graph, onnx.GraphProto):
            known = {tensor.name for tensor in graph.initializer}
            left = [value for value in graph.value_info if value.name not in known]
            if len(left) < len(graph.value_info):
                del graph.value_info[:]
                graph.value_info.extend(left)
    return proto


def _bytes(model: ir.Model, path: pathlib.Path) -> bytes:
    try:
        written: bytes = to_proto(model).SerializeToString()
    except Exception as error:  # of protobuf, for more than it can hold
        raise DataError(
            "the model cannot be written",
            where=str(path),
            got=_cause(error),
            remedy="keep large tensors as initializers or Constant nodes",
        ) from error
    return written


def _check_size(tensor: Any, path: pathlib.Path) -> None:
    """Raise if the numbers of a tensor are not there, or do not fit its shape."""
    what = f"the numbers of tensor {tensor.name or '(without a name)'} do not fit its shape"
    if not isinstance(tensor, ir.ExternalTensor):
        try:
            tensor.numpy()  # for the most part a view
        except Exception as error:  # whatever NumPy raises
            raise _wrong(path, what, list(tensor.shape), _cause(error)) from error
        return
    offset, needed = tensor.offset or 0, tensor.nbytes
    length = needed if tensor.length is None else tensor.length
    if length != needed:
        raise _wrong(path, what, f"{needed} bytes", length)
    size = pathlib.Path(tensor.path).stat().st_size
    if offset + length > size:
        expected = f"{length} bytes from {offset} on in {tensor.location}"
        raise _wrong(path, what, expected, f"a file of {size} bytes")


def _not_read(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what onnx_ir passes over in silence."""
    if proto.training_info:
        yield "training information"
    for graph in _graphs(proto):
        if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
            yield "sparse initializers"


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield all that holds nodes: the graph, functions, and graphs inside them."""
    todo: list[Any] = [proto.graph, *proto.functions]
    while todo:
        yield (graph := todo.pop())
        for node in graph.node:
            for attribute in node.attribute:
                todo += [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]


def _wrong(path: pathlib.Path, what: str, expected: object, got: object) -> DataError:
    remedy = "export the model once more"
    return DataError(what, where=str(path), expected=expected, got=got, remedy=remedy)


def _cause(error: BaseException) -> str:
    """Return what was said first: onnx_ir adds a line for everything it was doing."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return first_words(error).rstrip(".") if isinstance(error, Exception) else ""


def _is_same(path: pathlib.Path, other: pathlib.Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
