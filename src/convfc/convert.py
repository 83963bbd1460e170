"""The verbs on whole models: to_fc, to_conv, verify, inspect; and what an optimizer remembers.

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
    inplace: bool = False,
    where: Any = None,
    strict: bool = True,
    groups: str = "auto",
    example: Any = None,
    simplify: bool = False,
    max_pool: str = "keep",
    branches: str = "add",
    sparse: bool = False,
    memory: float | None = None,
) -> Any:
    """Return the model with its CONV layers as the FC layers that they equal (Section 4).

    Every ``Conv1d``, ``Conv2d``, ``Conv3d`` and their transposed kin, with every hyper-parameter.
    Nothing is converted wrongly or passed over in silence: what cannot be converted is refused by
    name. Hooks stay, shared layers stay shared, and state dicts of the original load into the
    patch and weight forms and the other way round.

    Parameters
    ----------
    model : torch.nn.Module
        A bare CONV layer counts as a model.
    form : {"patch", "weight", "unrolled"}
        ``"patch"``: the layer becomes a module whose child ``fc`` is exactly an ``nn.Linear``,
        called on the patch matrix ``(N, L, k)``: for tools that look for, hook or replace FC
        layers; with groups, see ``groups``. ``"weight"``: the layer stays and runs the native
        convolution, but its parameter is the FC matrix ``(f, k)``: for tools that look at weights
        only, such as the optimizer Muon.
        ``"unrolled"``: the layer becomes ``nn.Sequential(nn.Flatten, nn.Linear, nn.Unflatten)``,
        plain classes of PyTorch; the Linear's weight is the matrix of the whole layer
        (`convfc.conv_matrix`) for the one input size of the example: for tools that know nothing
        but FC layers. It is large, see Notes.
    inplace : bool
        Whether to change the given model instead of a copy.
    where : function, str or list of str, optional
        Which layers: a function of name and module, or names such as ``"layer4.*"``.
    strict : bool
        Whether to refuse a model with a convolution that cannot be converted. If False, such a
        convolution is left as it is, and all of them are listed in one `UnsupportedLayerWarning`.
    groups : {"auto", "separate", "batched"}
        How the FC layers of a layer with groups are held. ``"separate"``: apart, one ``nn.Linear``
        ``(k, f / groups)`` per group, which every tool knows. ``"batched"``: together, in one
        module with the weight ``(groups, f / groups, k)``, a
        `convfc.frameworks.torch.GroupedLinear`: faster to make and to call where groups are many.
        ``"auto"``: separate up to 32 groups, batched beyond. The other forms hold all groups of a
        layer in one matrix, and refuse ``"separate"``.
    example : Tensor, array, tuple or dict, optional
        For the unrolled form, which needs it: an input of the size that the model is to be unrolled
        for; a tuple holds several arguments, a dict keyword arguments; to be simplified, a model
        takes one tensor. The model is run on it once, in evaluation mode, and nothing in it
        changes.
    simplify : bool
        Of the unrolled form: make one plain network of FC layers of the whole model where that can
        be done. BatchNorm (in evaluation mode) is folded, average pooling becomes a matrix, Dropout
        and Identity go, and neighbouring affine maps are multiplied. `inplace`, ``where`` and
        ``strict`` are for a conversion layer by layer and do not go with it.
    max_pool : {"keep", "relu"}
        Of a simplified network: max-pooling as it is, or written with ReLU, exactly but for
        rounding: ``max(a, b) = a + relu(b - a)``.
    branches : {"add", "carry"}
        Of a simplified network with branches: ``"add"`` makes a `torch.fx.GraphModule` that adds
        them up. ``"carry"`` makes one `nn.Sequential` of Linear and ReLU; what crosses a layer is
        carried through it.
    sparse : bool
        Of the unrolled form: the Linear's weight in compressed sparse rows, since the matrix is
        almost all zeros. See Notes for what PyTorch can do with it.
    memory : int or float, optional
        Of the unrolled form: bytes that the matrices of all layers may take together, with what
        building them takes; by default what the machine has free.

    Returns
    -------
    torch.nn.Module
        Of the same class, but for a bare CONV layer and a simplified network.

    Raises
    ------
    UnsupportedModel
        If no framework owns the model.
    UnsupportedLayer
        If strict, for a layer with a forward of its own, an uninitialised one, a functional
        convolution, TorchScript, a layer that a function holds fast (see Notes); unrolled, for a
        layer that the model calls on inputs of two sizes, or if it calls none of them on the
        example. The message says where, and what to do.
    NothingToConvert
        If ``where`` selects no CONV layer.
    MemoryBudgetError
        If the unrolled layers do not fit, before any of them is built. A simplified network is
        refused by its layers' matrices, sparse and in float64, before any is built, and by what
        its dense weights take at least before they are multiplied.
    ShapeError
        If the model does not run on the example.
    ArgumentError
        If an option is not one of this form; the message names it.

    Notes
    -----
    That the layers are equal, and what `verify` proves of it, is said of finite numbers. In the
    patch form every weight is multiplied with every entry of its row of M, the zeros of the padding
    included: a weight that is infinite or NaN gives NaN wherever its tap reads padding. Of
    PyTorch's native kernels some do the same, and others leave the padding out (oneDNN's, which
    compute most layers in float32); so does the unrolled form. `verify` does not hold of such
    weights, in any form.

    Where attributes hold a layer as well (a list, a dict, a partial, a bound method, an object),
    they are given the new one. What is closed in cannot be given it, such as the layer that a
    lambda calls: a layer held so is refused.

    An unrolled layer takes inputs of its one size, in batches of any size or none; a simplified
    network in batches of any size. Any other shape is refused with a `ShapeError`, one of as many
    numbers (turned, channels last) as well; what `torch.jit` makes of the layer has no such check.
    The weight of an unrolled layer has ``f L`` times ``c`` times the input's size
    numbers: 4 MiB for the layer of the example below, 450 GiB for the first one of a ResNet at
    224 x 224. The state dict is that of the ``nn.Linear``, not the CONV layer's. Training moves the
    entries of the matrix one by one, so that it is no convolution any more. Two layers that share a
    parameter can be unrolled if they compute the same thing at the same size. A gradient that a
    parameter holds does not move over. Zeros are multiplied like other numbers: an infinity or a
    NaN in the input spreads to all outputs.

    What the model does not call on the example, such as GoogLeNet's auxiliary heads in evaluation
    mode, has no part in the function that is unrolled, and no size: it is no reason to refuse. It
    stays as it is, and is listed in an `UnsupportedLayerWarning`; a simplified network has nothing
    of it, and `to_conv` brings it back.

    With ``sparse=True`` PyTorch's CPU kernels run forward and backward in float32, float64,
    complex64 and complex128, batched or not; another dtype is refused. State dicts are saved and
    loaded, also with ``weights_only=True``, and so is the whole model with `torch.save`. What
    PyTorch 2.14 has not: `copy.deepcopy` of such a parameter (`to_conv` and `verify` do without),
    optimizers (the gradient of the weight is dense), a change of dtype with ``.to()``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> cnn = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Flatten())
    >>> fc = to_fc(cnn)
    >>> type(fc[0].fc) is nn.Linear, fc[0].fc.weight.shape
    (True, torch.Size([8, 16]))
    >>> images = torch.randint(-9, 10, (2, 1, 28, 28)).float()
    >>> bool(((fc(images) - cnn(images)).abs() < 1e-4).all())
    True

    A weight that is no finite number, and the padding:

    >>> padded = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    >>> _ = padded.weight.data.copy_(torch.tensor([[[torch.inf, 1.0, 1.0]]]))
    >>> to_fc(padded)(torch.ones(1, 1, 4)).tolist()
    [[[nan, inf, inf, inf]]]

    The whole layer as one matrix, for images of this size:

    >>> unrolled = to_fc(cnn, form="unrolled", example=images)
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
    return room_of(model).to_fc(
        model,
        form=form,
        inplace=inplace,
        where=where,
        strict=strict,
        groups=groups,
        example=example,
        simplify=simplify,
        max_pool=max_pool,
        branches=branches,
        sparse=sparse,
        memory=memory,
    )


def to_conv(
    model: Any,
    *,
    inplace: bool = False,
    where: Any = None,
    strict: bool = True,
    example: Any = None,
    project: bool = False,
) -> Any:
    """Return the model with its FC forms as CONV layers again; also plain FC layers as CONV layers.

    Takes back what `to_fc` made, in any form or simplified, to the original classes and bit for
    bit, also after a tool has worked on the FC part: changed weights, a LoRA merged or not, a
    factored ``Sequential(Linear, Linear)`` (two CONV layers), a quantised Linear (dequantised; a
    warning says where its input was quantised, too, which no CONV layer does).

    With ``example=``, plain ``nn.Linear`` layers that read a feature map become CONV layers too, a
    classifier's head behind ``Flatten`` included: a network trained on images of one size then runs
    on larger ones, and gives a map of scores. This is known from CS231n as "converting FC layers to
    CONV layers". Without padding (and without ``ceil_mode``) the map is the network slid over the
    image, at every position; with padding it is so away from the borders only.

    Parameters
    ----------
    model : torch.nn.Module
    inplace, where, strict
        As for `to_fc`.
    example : Tensor, array or tuple, optional
        An input of the size that the model was made for; a tuple holds several arguments.
    project : bool
        An unrolled layer goes back if its matrix is still that of a convolution: unchanged, scaled,
        or whatever keeps the pattern. If a tool has changed its entries one by one it is refused,
        unless this asks for the closest convolution (least squares); a warning says how far away
        it is.

    Returns
    -------
    torch.nn.Module
        A `PeftModel` is unloaded. A model whose own forward flattens the feature map becomes a
        `torch.fx.GraphModule` with the same parts and the same state dict keys.

    Raises
    ------
    UnsupportedModel, UnsupportedLayer
        If something cannot be taken back; the message names it. For an unrolled layer that is no
        convolution any more, the cause is a `NotAConvolution` that names the entry.
    NothingToConvert
        If the model holds no FC form and no example is given.

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
        model, inplace=inplace, where=where, strict=strict, example=example, project=project
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
    before, after : torch.nn.Module
        Of the same framework, for instance a model and `to_fc` of it.
    x : Tensor, array, tuple or dict
        An input; a tuple holds several arguments, a dict keyword arguments.
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
    model : torch.nn.Module
    x : Tensor, tuple or dict, optional
        An input, of tensors or arrays: with it, sizes, multiplications and bytes are known, and
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
