"""How transformer blocks start: Xavier-uniform kernels and almost-zero biases, unless an image tower asks otherwise."""

from __future__ import annotations

from torch import nn

BIAS_STD = 1e-6


def init_linear(linear: nn.Linear, parts: int = 1) -> None:
    """Xavier-uniform weight, normal bias of std 1e-6.

    `parts` > 1 treats the weight as that many matrices stacked along its output (query, key and value), each with
    its own fan: initialising the stack as one matrix would make all three smaller.
    """
    for weight in linear.weight.chunk(parts, dim=0):
        nn.init.xavier_uniform_(weight)
    if linear.bias is not None:
        nn.init.normal_(linear.bias, std=BIAS_STD)


def init_block(block: nn.Module, kernels: str = "xavier") -> None:
    """Initialises every linear layer of one timm transformer block; its norms keep weight 1 and bias 0.

    `kernels`: "xavier" is the paper's; "fan_in" is uniform in +-1/sqrt(inputs), biases too. The latter is smaller, so
    that at the start blocks write less over what a patch token says of its patch.
    """
    for name, module in block.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if kernels == "fan_in":
            module.reset_parameters()
        else:
            init_linear(module, parts=3 if name == "attn.qkv" else 1)
