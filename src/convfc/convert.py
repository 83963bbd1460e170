"""The verbs on whole models: to_fc, unroll, simplify and back, verify, inspect; optimizers' states.

Each finds the framework that owns the model and hands over to that framework's room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convfc.registry import room_of

if TYPE_CHECKING:
    from convfc.certificate import Certificate
    from convfc.inspection import Inspection


def to_fc(
    model: Any,
    *,
    form: str = "patch",
    where: Any = None,
    strict: bool = True,
    inplace: bool = False,
    groups: str = "auto",
    product: str = "auto",
) -> Any:
    """Return the model with its CONV layers as the FC layers that they equal (Section 4).

    Of PyTorch and of Keras: CONV layers of one to three axes and their transposed kin, with every
    hyper-parameter, for inputs of every size; of Keras depthwise and separable ones, too. Of
    PyTorch, in the patch form, also their subclasses with a forward of their own, and layers whose
    weight is computed before every call (weight norm, pruning). Of ONNX, CONV nodes become standard
    operators around one MatMul, in the patch form only. What cannot be converted is refused by
    name. Hooks stay, shared layers stay shared, and state dicts (weight files) of the original
    load into the result and the other way round.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or onnx.ModelProto
        A bare CONV layer counts as a model. CONV layers in another form are taken back first, as
        `to_conv` does it.
    form : {"patch", "weight"}
        ``"patch"``: the layer becomes a module whose child ``fc`` is exactly an ``nn.Linear`` (of
        Keras's layers, a ``keras.layers.Dense``), called on the patch matrix ``(N, L, k)``: for
        tools that look for, hook or replace FC layers; with groups, see ``groups``. ``"weight"``:
        the layer stays and runs the native convolution, but its parameter is the FC matrix ``(f,
        k)``, Keras's ``(k, f)``: for tools that look at weights only, such as the optimizer Muon.
    where : function, str or list of str, optional
        Which layers: a function of name and module, or names such as ``"layer4.*"``.
    strict : bool
        Whether to refuse a model with a convolution that cannot be converted. If False, such a
        convolution is left as it is, and all of them are listed in one `UnsupportedLayerWarning`.
    inplace : bool
        Whether to change the given model instead of a copy.
    groups : {"auto", "separate", "batched"}
        How the FC layers of a layer with groups are held. ``"separate"``: apart, one ``nn.Linear``
        ``(k, f / groups)`` per group, which every tool knows. ``"batched"``: together, in one
        module with the weight ``(groups, f / groups, k)``, a
        `convfc.frameworks.torch.GroupedLinear`: faster to make and to call where groups are many.
        ``"auto"``: separate up to 32 groups, batched beyond. The weight form holds all groups of a
        layer in one matrix, and refuses ``"separate"``.
    product : {"auto", "matrix"}
        How the patch form computes the product of M and K. ``"auto"``: with the framework's native
        convolution while nothing has touched the FC layer, so that outputs and gradients are those
        of the CONV layer, bit for bit and as fast; by calling the FC layer on M as soon as it has
        hooks, is replaced, or is traced, compiled or transformed. ``"matrix"``: always on M.

    Returns
    -------
    torch.nn.Module, keras.Model or onnx.ModelProto
        Of the same class, but for a bare CONV layer.

    Raises
    ------
    UnsupportedModel
        If no framework owns the model.
    UnsupportedLayer
        If strict, for an uninitialised layer, TorchScript, a quantised layer, one that a function's
        closure holds (see Notes), one whose very type a forward asks for (``isinstance`` is
        answered as by the CONV layer); of Keras, and in the weight form, for a layer with a forward
        of its own or a computed weight. The message says where, and what to do.
    NothingToConvert
        If the model, or what ``where`` selects of it, has no CONV layer that is not in this form.
    ArgumentError
        If there is no such form; the message names the argument.

    Notes
    -----
    The layers are equal, and `verify` proves it, for finite numbers. In the patch form every weight
    is multiplied with every entry of its row of M, the zeros of the padding included: a weight that
    is infinite or NaN gives NaN wherever its tap reads padding. Of PyTorch's native kernels some do
    the same, and others leave the padding out (oneDNN's, which compute most layers in float32).
    `verify` does not hold for such weights, in any form.

    A convolution that no layer computes (``F.conv2d`` with a parameter or a fixed filter of the
    model's own) stays as it is; ``convfc.inspect(model, x)`` lists it. One that is given a layer's
    weight, wherever it is called, is computed by that layer's FC layer.

    Where attributes hold a layer as well (a list, a dict, a partial, a bound method, an object),
    they are given the new one. A closure, such as that of a lambda that calls the layer, cannot be
    given it: a layer held so is refused.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Flatten())
    >>> fc = to_fc(cnn)
    >>> type(fc[0].fc) is nn.Linear, fc[0].fc.weight.shape
    (True, torch.Size([8, 16]))
    >>> images = torch.randint(-9, 10, (2, 1, 28, 28)).float()
    >>> bool((fc(images) == cnn(images)).all())
    True

    A weight that is not finite, and the padding:

    >>> padded = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    >>> _ = padded.weight.data.copy_(torch.tensor([[[torch.inf, 1.0, 1.0]]]))
    >>> to_fc(padded, product="matrix")(torch.ones(1, 1, 4)).tolist()
    [[[nan, inf, inf, inf]]]
    """
    return room_of(model).to_fc(
        model,
        form=form,
        where=where,
        strict=strict,
        inplace=inplace,
        groups=groups,
        product=product,
    )


def unroll(
    model: Any,
    example: Any,
    *,
    where: Any = None,
    strict: bool = True,
    memory: float | None = None,
) -> Any:
    """Return the model with each CONV layer as one ``nn.Linear`` on its flattened input.

    The layer becomes ``nn.Sequential(nn.Flatten, nn.Linear, nn.Unflatten)``, plain classes of
    PyTorch; the Linear's weight is the matrix of the whole layer (`convfc.conv_matrix`) for the one
    input size of the example: for tools that know nothing but FC layers. It is large, see Notes.
    In ONNX a CONV node becomes ``Flatten``, ``Gemm`` and ``Reshape``.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or onnx.ModelProto
        A bare CONV layer counts as a model. CONV layers in another form are taken back first, as
        `to_conv` does it. Keras's is Sequential or Functional.
    example : Tensor, array, tuple or dict
        An input of the size that the model is to be unrolled for; a tuple holds several arguments,
        a dict keyword arguments. The model is run on it once, in evaluation mode, and nothing in it
        changes.
    where, strict
        As for `to_fc`.
    memory : int or float, optional
        Bytes that the matrices of all layers may take together, with what building them takes; by
        default what the machine has free.

    Returns
    -------
    torch.nn.Module, keras.Model or onnx.ModelProto
        Of the same class, but for a bare CONV layer.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer, NothingToConvert
        As for `to_fc`; also for a layer that the model calls on inputs of two sizes, for one whose
        class a forward asks for, or if it calls none of them on the example.
    MemoryBudgetError
        If the matrices do not fit, before any of them is built.
    ShapeError
        If the model does not run on the example.

    Notes
    -----
    An unrolled layer takes inputs of its one size, in batches of any size or none. Any other shape
    is refused with a `ShapeError`, one of as many numbers (turned, channels last) as well; what
    `torch.jit` makes of the layer has no such check. The weight has ``f L`` times ``c`` times the
    input's size numbers: 4 MiB for the layer of the example below, 450 GiB for the first one of a
    ResNet at 224 x 224. The state dict is that of the ``nn.Linear``, not the CONV layer's. Training
    moves the entries of the matrix one by one, so that it is not a convolution any more. Two layers
    that share a parameter can be unrolled if they compute the same thing at the same size. A
    gradient that a parameter holds does not move over. Zeros are multiplied like other numbers: an
    infinity or a NaN in the input spreads to all outputs.

    What the model does not call on the example, such as GoogLeNet's auxiliary heads in evaluation
    mode, has no part in the function that is unrolled, and no size: it stays as it is, and is
    listed in an `UnsupportedLayerWarning`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Flatten())
    >>> unrolled = unroll(cnn, torch.zeros(1, 1, 28, 28))
    >>> unrolled[0]
    Sequential(
      (0): Flatten(start_dim=-3, end_dim=-1)
      (1): Linear(in_features=784, out_features=1352, bias=True)
      (2): Unflatten(dim=-1, unflattened_size=(8, 13, 13))
    )
    >>> back = to_conv(unrolled)
    >>> type(back[0]) is nn.Conv2d, torch.equal(back[0].weight, cnn[0].weight)
    (True, True)
    """
    return room_of(model).unroll(model, example, where=where, strict=strict, memory=memory)


def simplify(
    model: Any,
    example: Any,
    *,
    max_pool: str = "keep",
    sequential: bool = False,
    memory: float | None = None,
) -> Any:
    """Return a whole CONV network as a plain network of ``nn.Linear`` and ``nn.ReLU``.

    CONV layers (all of them), ``nn.Linear``, BatchNorm (in evaluation mode), average and global
    pooling, upsampling, padding, flattening, permuting, concatenation, slicing, sums and products
    with constants are matrices; neighbouring ones are multiplied. ReLU stays; ReLU6, Hardtanh,
    LeakyReLU, PReLU, Hardsigmoid, ``clamp``, ``abs`` and ``maximum`` are written with ReLU. Dropout
    and Identity are gone. Sigmoid, Tanh, GELU and their like stay as modules. For tools that read
    nothing else: verification, optimisation, encrypted inference.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
        It is not changed. Its forward may be written in any way as long as it does not ask what is
        in a tensor. A part of a network, such as ``nn.Sequential(conv, nn.Flatten(), fc)``, is a
        model, too.
    example : Tensor, array, tuple or dict
        One input ``(n, *shape)``, n >= 1. The result is for this shape, and any n.
    max_pool : {"keep", "relu"}
        Whether max-pooling stays a module, between ``Unflatten`` and ``Flatten``, or is written
        with ReLU, exactly but for rounding: max(a, b) = a + relu(b - a), for each window as a tree
        of pairs.
    sequential : bool
        A network with branches becomes a `torch.fx.GraphModule` that adds them up. If True, it
        becomes one ``nn.Sequential`` all the same, for tools that read nothing else (pyscipopt-ml):
        what is needed after a ReLU is carried through it, unchanged if it cannot be negative, else
        as relu(v) - relu(-v).
    memory : int or float, optional
        Bytes that the weights may take, and in float64 the sparse matrices of all layers that they
        are made of; by default what the machine has free.

    Returns
    -------
    torch.nn.Module
        Its FC layers are exactly ``nn.Linear``, its ReLUs ``nn.ReLU``. It takes what the model
        takes: it begins with an ``nn.Flatten`` unless the example is ``(n, features)``, and ends
        with an ``nn.Unflatten`` unless the output is. A tool that reads ``Linear`` and ``ReLU``
        only is given a model for flat inputs, ``nn.Sequential(nn.Unflatten(1, shape), model)``.

    Raises
    ------
    UnsupportedLayer, UnsupportedModel
        If a part is neither affine nor an activation, or is in training mode where that makes a
        difference; the message names it.
    NothingToConvert
        If the network is simplified already, or has nothing but ``nn.Linear`` and ReLU.
    MemoryBudgetError
        If the matrices do not fit: told before the first is made, by the layers' sizes, and before
        neighbours are multiplied, by what the weights take at least.
    ShapeError
        If the model does not run on the example.

    Notes
    -----
    An infinity or a NaN in the input spreads further than in the original, since 0 * inf is NaN.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    >>> mlp = simplify(nn.Sequential(*cnn, nn.Linear(16, 10)), torch.zeros(1, 1, 6, 6))
    >>> [type(part).__name__ for part in mlp]
    ['Flatten', 'Linear', 'ReLU', 'Linear']
    >>> mlp[1].weight.shape, mlp[3].weight.shape
    (torch.Size([64, 36]), torch.Size([10, 64]))

    A CONV layer and the FC layer after it become one ``nn.Linear``; the rest of the network stays:

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 10), nn.Softmax(-1))
    >>> both = simplify(net[:3], torch.zeros(1, 1, 6, 6))
    >>> nn.Sequential(*both, net[3])
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=36, out_features=10, bias=True)
      (2): Softmax(dim=-1)
    )
    """
    return room_of(model).simplify(
        model, example, max_pool=max_pool, sequential=sequential, memory=memory
    )


def to_conv(
    model: Any,
    *,
    where: Any = None,
    strict: bool = True,
    inplace: bool = False,
    project: bool = False,
) -> Any:
    """Return the model with its FC forms as CONV layers again.

    Takes back what `to_fc`, `unroll` and `simplify` made, to the original classes and bit for bit.
    What `to_fc` and `unroll` made goes back also after a tool has worked on the FC part: changed
    weights, a LoRA merged or not, a factored ``Sequential(Linear, Linear)`` (two CONV layers), a
    quantised Linear (dequantised; a warning says where its input was quantised, too, which no CONV
    layer does).

    A model of ONNX that has no FC forms, in all or in what ``where`` selects, gets 1x1 ``Conv``
    nodes for its own ``MatMul`` and ``Gemm`` nodes with a constant matrix; `to_fc` takes them back.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or onnx.ModelProto
    where, strict, inplace
        As for `to_fc`. A simplified network goes back as a whole.
    project : bool
        An unrolled layer goes back if its matrix is still that of a convolution: unchanged, scaled,
        or whatever keeps the pattern. If a tool has changed its entries one by one it is refused,
        unless this asks for the closest convolution (least squares); a warning says how far away
        it is. Layers in other forms always are convolutions.

    Returns
    -------
    torch.nn.Module, keras.Model or onnx.ModelProto
        A `PeftModel` is unloaded.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If something cannot be taken back; the message names it. For an unrolled layer that is not a
        convolution any more, the cause is a `NotAConvolution` that names the entry. A simplified
        network whose numbers have changed is refused: its layers are products of layers.
    NothingToConvert
        If the model, or what ``where`` selects of it, has no FC form.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU())
    >>> back = to_conv(to_fc(cnn))
    >>> type(back[0]) is nn.Conv2d, torch.equal(back[0].weight, cnn[0].weight)
    (True, True)
    """
    return room_of(model).to_conv(
        model, where=where, strict=strict, inplace=inplace, project=project
    )


def to_fully_convolutional(
    model: Any, example: Any, *, where: Any = None, strict: bool = True, inplace: bool = False
) -> Any:
    """Return the model with the FC layers of its head as CONV layers: it runs on larger images.

    Plain ``nn.Linear`` layers that read a feature map, such as a classifier's head after
    ``Flatten``, become CONV layers: a network trained on images of one size then runs on larger
    ones, and gives a map of scores (Long, Shelhamer & Darrell, *Fully Convolutional Networks for
    Semantic Segmentation*, 2015; CS231n, "Converting FC layers to CONV layers"). Without padding
    (and without ``ceil_mode``) the map is the network slid over the image, at every position; with
    padding it is so away from the borders only.

    Parameters
    ----------
    model : torch.nn.Module
    example : Tensor, array, tuple or dict
        An input of the size that the model was made for; a tuple holds several arguments, a dict
        keyword arguments.
    where, strict, inplace
        As for `to_fc`, of ``nn.Linear`` layers. Layers in patch or weight form stay as they are.

    Returns
    -------
    torch.nn.Module
        A model whose own forward flattens the feature map becomes a `torch.fx.GraphModule` with the
        same parts and the same state dict keys.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If an ``nn.Linear`` layer does not read a feature map, or the model is unrolled or
        simplified; the message names it.
    NothingToConvert
        If the model, or what ``where`` selects of it, has no ``nn.Linear`` layer.
    ShapeError
        If the model does not run on the example.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> slides = to_fully_convolutional(cnn, torch.zeros(1, 1, 8, 8))
    >>> slides(torch.zeros(1, 1, 20, 20)).shape
    torch.Size([1, 10, 13, 13])
    """
    return room_of(model).to_fully_convolutional(
        model, example, where=where, strict=strict, inplace=inplace
    )


def convert_optimizer_state(optimizer: Any, before: Any, after: Any) -> dict[str, Any]:
    """Return an optimizer's state for the same model in another form, to go on training there.

    A checkpoint is a model and its optimizer. The state dict of the model loads into both forms as
    it is; that of the optimizer holds moments in the layout of the parameters, which `to_fc` and
    `to_conv` change. Here the moments follow: one number per weight moves with its weight, what is
    kept once per parameter (a count of steps) stays.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer or dict
        Of the first model; or its state dict, if that has one group of all ``before.parameters()``,
        or names (of an optimizer that was given ``named_parameters()``).
    before : torch.nn.Module
        The model that the optimizer was built for.
    after : torch.nn.Module
        What `to_fc` or `to_conv` made of it, in patch or weight form or of CONV layers.

    Returns
    -------
    dict
        For ``load_state_dict`` of an optimizer for the second model, with the same groups; in each
        of them the parameters stand in the order of ``after.parameters()``. Nothing in it is shared
        with the first optimizer.

    Raises
    ------
    UnsupportedOptimizer
        If a state is neither a number nor of the shape of its parameter (factored moments, L-BFGS);
        if the two models are not one model in two forms; for the unrolled form. The message names
        what it is about.
    UnsupportedModel
        If no framework owns one of the models.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU())
    >>> optimizer = torch.optim.Adam(cnn.parameters())
    >>> cnn(torch.randn(2, 1, 9, 9)).sum().backward()
    >>> optimizer.step()
    >>> fc = to_fc(cnn)
    >>> goes_on = torch.optim.Adam(fc.parameters())
    >>> goes_on.load_state_dict(convert_optimizer_state(optimizer, cnn, fc))
    >>> goes_on.state[fc[0].fc.weight]["exp_avg"].shape
    torch.Size([8, 9])
    """
    room = room_of(before, "before")
    room_of(after, "after")
    state: dict[str, Any] = room.convert_optimizer_state(optimizer, before, after)
    return state


def verify(before: Any, after: Any, x: Any, *, seed: int = 0) -> Certificate:
    """Prove that two models compute the same function: measure, and compare with theory.

    For every converted layer, on the input that it really receives: the differences of outputs and
    of gradients against the a-priori rounding bound (Higham, *Accuracy and Stability*, chapter 3),
    the same in float64, and a test on integers that must agree to the bit; and their geometries,
    since one input may not show another stride. For the whole network: the difference in its own
    dtype and in float64.

    In the unrolled form every entry of the matrix is compared with the weight that belongs there,
    and its gradient is folded to that of the weights. A simplified network, whose layers are
    products of layers, is compared stage by stage, against the bound of these products, and with
    what the first network is simplified to once more; the notes say what that proves.

    Parameters
    ----------
    before, after : torch.nn.Module, keras.Model or onnx.ModelProto
        Of the same framework, for instance a model and `to_fc` of it.
    x : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments. Of Keras, what the
        model is called with: an array, or a list or dict of its inputs. Of ONNX, arrays by the
        names of the inputs, or one array.
    seed : int
        Of the random cotangents.

    Returns
    -------
    Certificate
        With ``.holds``, ``.layers``, ``.to_dict()``; printed, it is a table. Networks that differ
        raise nothing: the certificate says no.

    Raises
    ------
    UnsupportedModel
        If no framework owns one of the models, or it is on PyTorch's meta device.
    ShapeError
        If the first model does not run on ``x``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU())
    >>> verify(cnn, to_fc(cnn), torch.randn(2, 1, 28, 28)).holds
    True
    """
    room = room_of(before, "before")
    room_of(after, "after")
    certificate: Certificate = room.verify(before, after, x, seed=seed)
    return certificate


def inspect(model: Any, x: Any = None) -> Inspection:
    """List every CONV layer of a model and the FC layer that it equals.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or onnx.ModelProto
    x : Tensor, array, tuple or dict, optional
        An input, as for `verify`: with it, sizes, multiplications and bytes are known, and
        functional convolutions are found where they are called.

    Returns
    -------
    Inspection
        Printed, it is a table; ``.rows``, ``.totals`` and ``.to_dict()`` are the data.

    Raises
    ------
    UnsupportedModel
        If no framework owns the model.
    UnsupportedLayer
        If it is to be run, and holds layers that have not been initialised.
    ShapeError
        If it cannot be run on ``x``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> found = inspect(nn.Sequential(nn.Conv2d(1, 8, 4, stride=2)), torch.zeros(1, 1, 28, 28))
    >>> len(found.rows)
    1
    """
    inspection: Inspection = room_of(model).inspect(model, x)
    return inspection
