"""Ways to change a model that Python and torch offer, for `test_recognition.py`."""

import contextlib
import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastnca import reference
from tests.helpers import excite

CHANGES = {}
"""By name: a function that changes a model, or returns the changed one; perhaps a context."""

HARMLESS = set()
"""Names of changes after which a fast backend still computes the model."""


def change(function):
    CHANGES[function.__name__.replace("_", " ")] = function
    return function


def harmless(function):
    HARMLESS.add(function.__name__.replace("_", " "))
    return change(function)


@change
def alive_mask_on_the_object(model):
    model.get_alive_mask = lambda state, threshold=0.1: torch.ones_like(state[:, :1])


@change
def step_on_the_object(model):
    step = type(model)._step
    model._step = lambda state, mask: step(model, state, mask) * 0.9


@change
def forward_on_the_object(model):
    forward = model.forward
    model.forward = lambda state, update_rate=0.5: forward(state, update_rate) * 0.9


@change
def call_on_the_object(model):
    call = model.update_net._call_impl
    model.update_net._call_impl = lambda x: call(x) * 0.5


@change
def class_of_the_object(model):
    class Half(type(model)):
        def get_alive_mask(self, state, threshold=0.1):
            return super().get_alive_mask(state, 0.5)

    model.__class__ = Half


@change
def sequential_with_its_own_forward(model):
    class Twice(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    model.update_net = Twice(*model.update_net)


@change
def forward_of_the_activation(model):
    model.update_net[1].forward = torch.tanh


@change
def forward_of_the_perception(model):
    perceive = model.perception.forward
    model.perception.forward = lambda x: perceive(x) * 2


@change
def forward_of_the_network(model):
    model.update_net.forward = lambda x: x[:, : model.num_channels] * 0.1


@change
def inner_function_of_a_convolution(model):
    model.update_net[0]._conv_forward = lambda x, w, b: F.conv2d(x, 2 * w, b)


@change
def another_activation(model):
    model.update_net[1] = nn.Tanh()


@change
def an_activation_of_a_subclass(model):
    class Capped(nn.ReLU):
        def forward(self, x):
            return x.clamp(0, 0.1)

    model.update_net[1] = Capped()


@change
def another_layer(model):
    model.update_net.append(nn.Tanh())


@change
def a_layer_removed(model):
    model.update_net = nn.Sequential(nn.Conv2d(24, 8, 1))
    excite_last(model.update_net[0])


def excite_last(layer):
    with torch.no_grad():
        layer.weight.fill_(0.05)


@change
def a_last_layer_that_is_broadcast(model):
    model.update_net[2] = nn.Conv2d(12, 1, 1)
    excite_last(model.update_net[2])


@change
def a_first_layer_with_another_width(model):
    model.update_net[0] = nn.Conv2d(24, 16, 1)


@change
def a_last_layer_with_too_many_channels(model):
    model.update_net[2] = nn.Conv2d(12, 20, 1)


@change
def a_first_layer_with_too_few_inputs(model):
    model.update_net[0] = nn.Conv2d(16, 12, 1)


@change
def a_kernel_of_three(model):
    model.update_net[0] = nn.Conv2d(24, 12, 3, padding=1)


@change
def a_stride(model):
    model.update_net[0].stride = (2, 2)


@change
def padding_of_a_convolution(model):
    model.update_net[0].padding = (1, 1)


@change
def groups(model):
    model.update_net[2] = nn.Conv2d(12, 8, 1, groups=4)
    excite_last(model.update_net[2])


@change
def no_bias(model):
    model.update_net[2] = nn.Conv2d(12, 8, 1, bias=False)
    excite_last(model.update_net[2])


@change
def data_of_another_shape(model):
    model.update_net[2].weight.data = torch.full((1, 12, 1, 1), 0.03)


@change
def another_dtype_in_one_layer(model):
    model.update_net[2].double()


@change
def circular_perception(model):
    class Circular(reference.PerceptionModule):
        def forward(self, x):
            return F.conv2d(F.pad(x, (1,) * 4, "circular"), self.filters, groups=self.num_channels)

    model.perception = Circular(8)


@change
def other_filters(model):
    with torch.no_grad():
        model.perception.filters[1] *= 3


@change
def filters_in_data(model):
    model.perception.filters.data = model.perception.filters * 2


@change
def trained_filters(model):
    model.perception.filters.requires_grad_(True)


@change
def filters_as_a_buffer(model):
    filters = model.perception.filters.detach() * 2
    del model.perception.filters
    model.perception.register_buffer("filters", filters)


@change
def filters_of_another_number_of_groups(model):
    model.perception.num_channels = 1


@change
def perception_as_a_function(model):
    filters = model.perception.filters * 2
    del model.perception
    model.perception = lambda x: F.conv2d(x, filters, padding=1, groups=8)


@change
def a_parameter_hidden_by_an_attribute(model):
    model.update_net[2].__dict__["bias"] = torch.full((8,), 0.02)


@change
def forward_hook(model):
    model.register_forward_hook(lambda module, args, output: output * 0.9)


@change
def forward_pre_hook(model):
    model.register_forward_pre_hook(lambda module, args: (args[0] * 0.9, *args[1:]))


@change
def hook_of_a_submodule(model):
    model.update_net[1].register_forward_hook(lambda module, args, output: output * 0.9)


@change
def pre_hook_of_a_submodule(model):
    model.perception.register_forward_pre_hook(lambda module, args: (args[0] * 0.9,))


@change
def backward_hook_of_a_submodule(model):
    model.update_net[2].register_full_backward_hook(lambda module, ins, outs: (ins[0] * 2,))


@change
def global_forward_hook(model):
    def hook(module, args, output):
        return output * 0.9 if isinstance(module, nn.ReLU) else None

    return contextlib.closing(_Handle(nn.modules.module.register_module_forward_hook(hook)))


@change
def global_pre_hook(model):
    def hook(module, args):
        return (args[0] * 0.9,) if isinstance(module, nn.ReLU) else None

    return contextlib.closing(_Handle(nn.modules.module.register_module_forward_pre_hook(hook)))


class _Handle:
    def __init__(self, handle):
        self.close = handle.remove


@change
def method_of_the_class(model):
    patch = pytest.MonkeyPatch()
    mask = reference.NeuralCA.get_alive_mask
    replaced = lambda self, state, threshold=0.1: mask(self, state, 0.4)  # noqa: E731
    patch.setattr(reference.NeuralCA, "get_alive_mask", replaced)
    return contextlib.closing(_Undo(patch))


@change
def method_of_torchs_class(model):
    patch = pytest.MonkeyPatch()
    patch.setattr(nn.ReLU, "forward", lambda self, x: torch.tanh(x))
    return contextlib.closing(_Undo(patch))


class _Undo:
    def __init__(self, patch):
        self.close = patch.undo


@change
def a_function_mode(model):
    class Softer(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            function = torch.tanh if function is F.relu else function
            kwargs = {} if function is torch.tanh else kwargs or {}
            return function(*args[:1] if function is torch.tanh else args, **kwargs)

    return Softer()


@change
def a_dispatch_mode(model):
    class Softer(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            return found * 0.9 if function is torch.ops.aten.convolution.default else found

    return Softer()


@harmless
def a_default_device(model):
    return torch.device("cpu")


@change
def parametrization(model):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(model.update_net[0], "weight", Twice())


@change
def weight_norm(model):
    parametrizations.weight_norm(model.update_net[0])
    with torch.no_grad():
        model.update_net[0].parametrizations.weight.original0.mul_(2)


@change
def spectral_norm(model):
    torch.manual_seed(7)
    parametrizations.spectral_norm(model.update_net[2])
    model.eval()


@change
def pruning_of_a_bias(model):
    prune.l1_unstructured(model.update_net[2], "bias", 4)


@change
def pruning_of_a_weight(model):
    prune.l1_unstructured(model.update_net[0], "weight", 0.5)


@harmless
def pruning_made_permanent(model):
    prune.l1_unstructured(model.update_net[0], "weight", 0.5)
    prune.remove(model.update_net[0], "weight")


@change
def a_replica_of_data_parallel(model):
    replica = model._replicate_for_data_parallel()
    for name, module in [(n, m) for n, m in model.named_modules() if n]:
        twin = module._replicate_for_data_parallel()
        for key, parameter in module._parameters.items():
            twin._parameters.pop(key, None)
            setattr(twin, key, parameter.detach().clone())
        owner, _, last = name.rpartition(".")
        replica.get_submodule(owner)._modules[last] = twin
    return replica


@harmless
def parameters_from_one_vector(model):
    vector = torch.linspace(-0.1, 0.1, sum(p.numel() for p in model.update_net.parameters()))
    vector_to_parameters(vector, model.update_net.parameters())


@harmless
def a_buffer_and_a_module_of_ones_own(model):
    model.register_buffer("note", torch.zeros(3))
    model.extra = nn.Linear(2, 2)
    model.name = "mine"


@harmless
def a_copy(model):
    return copy.deepcopy(model)


@harmless
def shared_memory(model):
    model.share_memory()


@harmless
def channels_last(model):
    model.to(memory_format=torch.channels_last)


@harmless
def new_parameters_in_place(model):
    with torch.no_grad():
        model.update_net[0].weight.mul_(0.5)


@harmless
def frozen_parameters(model):
    model.requires_grad_(False)


@harmless
def a_parameter_that_negates_lazily(model):
    bias = torch.complex(torch.zeros(8), torch.linspace(-0.1, 0.1, 8)).conj().imag
    assert bias.is_neg()
    model.update_net[2].bias = nn.Parameter(bias)


@harmless
def averaging(model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    return averaged.module


def make(kind):
    torch.manual_seed(3)
    model = kind(8, 12)
    return excite(model, 0.2)


def changed(kind, name):
    """Return a changed model and the context in which it has changed."""
    model = make(kind)
    found = CHANGES[name](model)
    if isinstance(found, nn.Module):
        return found, contextlib.nullcontext()
    return model, found or contextlib.nullcontext()
