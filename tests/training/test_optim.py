"""Optimisers: which parameters decay, how fast each layer learns, and what one step does."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from distill.config.schema import OptimConfig
from distill.training.assemble import build_optimizers
from distill.training.optim import build_optimizer, layer_of, set_learning_rate
from distill.training.strategy import OneScale, end_step, scaler_of


@pytest.fixture
def learner(build):
    """A student of three blocks, one text layer, heads of two layers, with SigLIP's bias."""
    _, assembly, _ = build(**{"students.0.depth": 3, "heads.layers": 2, "objective.contrastive.loss": "sigmoid"})
    return assembly.distiller.students["student"]


def optimizer_of(learner, **keys) -> torch.optim.Optimizer:
    built = build_optimizer([learner], OptimConfig(**keys))
    assert built is not None
    return built


def by_name(optimizer, learner) -> dict[str, dict]:
    """The group of every parameter, by the parameter's name."""
    names = {id(p): name for name, p in learner.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_matrices_decay_and_nothing_else(learner):
    groups = by_name(optimizer_of(learner, weight_decay=0.3), learner)
    assert groups.keys() == dict(learner.named_parameters()).keys()
    assert {group["weight_decay"] for group in groups.values()} == {0.3, 0.0}
    block = [f"{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    expected = [
        "model.image.embed.proj.weight",
        *(f"model.image.trunk.blocks.{i}.{name}" for i in range(3) for name in block),
        "model.text.embedding.weight",
        *(f"model.text.blocks.0.{name}" for name in block),
        "heads.shared.mlp.0.weight",
        "heads.shared.mlp.2.weight",
        "heads.shared.prototypes",
    ]
    assert sorted(name for name, group in groups.items() if group["weight_decay"]) == sorted(expected)
    spared = {name for name, group in groups.items() if not group["weight_decay"]}
    tokens = {"embed.positions", "embed.mask_token", "trunk.cls_token", "trunk.reg_token", "trunk.norm.weight"}
    assert {f"model.image.{name}" for name in tokens} | {"model.log_temperature", "logit_bias"} <= spared


def test_every_parameter_has_its_layer(learner):
    """Embeddings 0, blocks from 1, and everything above or beside the trunk at the top."""
    found: dict[int, set[str]] = {}
    for name, _ in learner.named_parameters():
        found.setdefault(layer_of(name, 3), set()).add(name)
    image = "model.image"
    names = ("embed.proj.weight", "embed.proj.bias", "embed.mask_token", "embed.positions")
    tokens = ("trunk.cls_token", "trunk.reg_token")
    assert found[0] == {f"{image}.{name}" for name in (*names, *tokens)}
    for layer in (1, 2):
        assert found[layer] == {n for n, _ in learner.named_parameters() if f"{image}.trunk.blocks.{layer - 1}." in n}
        assert len(found[layer]) == 12
    last = {n for n, _ in learner.named_parameters() if f"{image}.trunk.blocks.2." in n}
    assert found[3] > last
    others = {"model.log_temperature", "logit_bias", f"{image}.trunk.norm.weight", f"{image}.trunk.norm.bias"}
    assert others < found[3] - last
    assert all(n in others or n.startswith(("model.text.", "heads.")) for n in found[3] - last)


def test_layer_decay_is_a_factor_per_block(learner):
    optimizer = optimizer_of(learner, layer_decay=0.5)
    set_learning_rate(optimizer, 8.0)
    rates = {name: group["lr"] for name, group in by_name(optimizer, learner).items()}
    assert rates["model.image.embed.positions"] == 1
    blocks = [f"model.image.trunk.blocks.{i}.norm1.weight" for i in range(3)]
    assert [rates[name] for name in blocks] == [2, 4, 8]
    above = ("model.image.trunk.norm.weight", "model.text.blocks.0.norm1.weight", "heads.shared.prototypes")
    assert [rates[name] for name in above] == [8, 8, 8]
    plain = optimizer_of(learner)
    set_learning_rate(plain, 8.0)
    assert {group["lr"] for group in plain.param_groups} == {8.0}


def test_weight_decay_alone_shrinks_what_decays(learner):
    optimizer = optimizer_of(learner, lr=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, group in by_name(optimizer, learner).items():
        factor = 1 - 0.1 * 0.5 if group["weight_decay"] else 1
        torch.testing.assert_close(dict(learner.named_parameters())[name].detach(), before[name] * factor)


def test_betas_are_those_of_adam(learner):
    """First step from gradients of 2: the averages, and after the second step with gradients of 0, the update."""
    optimizer = optimizer_of(learner, lr=0.1, weight_decay=0.0, betas=[0.6, 0.9])
    temperature = learner.model.log_temperature
    start = temperature.item()
    for gradient in (2.0, 0.0):
        for parameter in learner.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    state = optimizer.state[temperature]
    assert state["exp_avg"].item() == pytest.approx(0.6 * 0.4 * 2)
    assert state["exp_avg_sq"].item() == pytest.approx(0.9 * 0.1 * 4)
    second = (0.6 * 0.4 * 2 / (1 - 0.6**2)) / (0.9 * 0.1 * 4 / (1 - 0.9**2)) ** 0.5
    assert start - temperature.item() == pytest.approx(0.1 * (1 + second), rel=1e-5)


def test_names_are_optimisers(learner):
    adamw = optimizer_of(learner)
    adafactor = optimizer_of(learner, name="adafactor", weight_decay=0.2)
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(adafactor, torch.optim.Adafactor)
    assert by_name(adafactor, learner)["heads.shared.prototypes"]["weight_decay"] == 0.2
    for optimizer in (adamw, adafactor):
        for parameter in learner.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    weight = learner.heads.shared.prototypes  # [K, d]
    assert adamw.state[weight]["exp_avg_sq"].shape == weight.shape
    assert adafactor.state[weight]["row_var"].shape == (weight.shape[0], 1)  # rows and columns instead of entries


def test_adafactor_moves_a_weight_by_the_rate_times_its_root_mean_square(learner):
    """As the help of optim.name says: one rate is another step than AdamW's."""
    optimizer = optimizer_of(learner, name="adafactor", lr=0.01, weight_decay=0.0)
    weight = learner.heads.shared.prototypes
    start = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved = (start - weight.detach()).square().mean().sqrt()
    torch.testing.assert_close(moved, 0.01 * start.square().mean().sqrt(), rtol=1e-4, atol=0)


def test_nothing_to_train_gives_no_optimiser(learner):
    assert build_optimizer([learner.requires_grad_(False)], OptimConfig()) is None


@pytest.mark.parametrize(("precision", "fused"), [("fp16", False), ("bf16", True), ("fp32", True)])
def test_scaled_gradients_are_not_left_to_a_fused_step_which_could_not_clip_them(build, precision, fused):
    cfg, assembly, _ = build()
    cfg.train.precision = precision
    optimizer = build_optimizers(cfg, assembly.distiller)["students"]
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    assert getattr(optimizer, "_step_supports_amp_scaling", False) == fused  # what the engine goes by


@pytest.mark.parametrize("clip", [0.0, 1e3])
def test_two_optimisers_share_one_loss_scale(clip):
    """Both step along the true gradient in fp16, whose scale moves once a step, and only when all could step."""
    fabric = Fabric(accelerator="cpu", plugins=OneScale("cpu"))
    weights = [torch.nn.Parameter(torch.ones(())) for _ in range(2)]
    optimizers = [fabric.setup_optimizers(torch.optim.SGD([weight], lr=1.0)) for weight in weights]
    scaler = scaler_of(fabric)
    before = scaler.get_scale() or scaler._init_scale

    def step(slopes: list[float]) -> None:
        fabric.backward(sum(weight * slope for weight, slope in zip(weights, slopes)))
        for optimizer in optimizers if clip else []:
            fabric.clip_gradients(torch.nn.ParameterList(weights), optimizer, max_norm=clip, error_if_nonfinite=False)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        end_step(fabric)

    step([0.25, 0.5])
    assert [weight.item() for weight in weights] == [0.75, 0.5]
    assert scaler.get_scale() == before
    step([0.25, float("inf")])
    assert [weight.item() for weight in weights] == [0.5, 0.5]
    assert scaler.get_scale() == before / 2
