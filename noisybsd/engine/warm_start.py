"""A new run that starts from another run's weights and, of the same samples, from its beliefs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.runs.directory import differences

log = logging.getLogger("noisybsd")

Tensors = Mapping[str, Tensor]


def start_from(trainer: Trainer, state: Mapping[str, Any], source: str) -> None:
    """Give a trainer that has taken no step what another run has learned, and log what that is.

    The encoder's weights are always taken. The classifier's are taken if the classes are the same, and the
    projection head's if it has the same shape. The target rule's state is taken if images and labels are the
    same and the rule is of the same kind. What a loss has learned itself, as SOP's of each label, is not.

    Args:
        state: a checkpoint of the other run.
        source: its file, for messages.

    Raises:
        UserError: the other run's encoder is another one, or its frozen network has other weights.
    """
    theirs: Tensors = state["modules"]["network"]
    parts = {name: _below(theirs, name) for name in ("encoder", "classifier", "projection")}
    network = trainer.network
    if (difference := _difference(network.encoder, parts["encoder"])) is not None:
        raise UserError(
            f"run.init={source}: its network is {_described(state['config'])}, and this run's is "
            f"{_described(trainer.config.model_dump())}: {difference}. Use the same network.* here"
        )
    trainer.check_backbone(state, f"run.init={source}")
    names = state["input"]["class_names"]
    taken, fresh = ["encoder"], list[str]()
    for name in ("classifier", "projection"):
        fits = _difference(getattr(network, name), parts[name]) is None
        same = fits and (name != "classifier" or tuple(names) == trainer.dataset.class_names)
        (taken if same else fresh).append(name)
    for name in taken:
        getattr(network, name).load_state_dict(parts[name])
    if trainer.ema is not None:
        trainer.ema.network.load_state_dict(network.state_dict())
    log.info("weights of %s, after epoch %d: %s", source, len(state["history"]), ", ".join(taken))
    for name in fresh:
        because = "its classes are others" if name == "classifier" else "it has another shape there"
        log.warning("the %s starts anew: %s", name, because)
    _take_beliefs(trainer, state)
    if trainer.loss.state_dict():
        log.warning("what loss=%s has learned itself starts anew", trainer.config.loss)


def _take_beliefs(trainer: Trainer, state: Mapping[str, Any]) -> None:
    rule: Tensors = state["modules"].get("rule", {})
    targets = state["config"].get("targets")
    if not trainer.rule.state_dict():
        return
    if not trainer.dataset.is_of(state["data_sha256"]):
        reason = "its images or labels are others"
    elif targets != trainer.config.targets:
        reason = (
            f"its targets={targets} have another state than targets={trainer.config.targets} here"
        )
    elif _difference(trainer.rule, rule) is not None:
        other = differences(state["config"], trainer.config)
        why = ", ".join(o for o in other if o.startswith(("options.", "neighbours.weight: ")))
        reason = f"its targets={targets} have another state; {why}"
    else:
        trainer.rule.load_state_dict(rule)
        log.info("beliefs: those of that run, whose images and labels are the same")
        return
    log.warning("beliefs start from the given labels: %s", reason)


def _below(tensors: Tensors, name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {k.removeprefix(start): value for k, value in tensors.items() if k.startswith(start)}


def _difference(module: nn.Module, tensors: Tensors) -> str | None:
    """The first tensor of `module` that `tensors` has not, or in another shape, in words."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    others = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in (*shapes, *others):
        if shapes.get(name) != others.get(name):
            there, here = (each.get(name, "missing") for each in (others, shapes))
            return f"{name} is {there} there and {here} here"
    return None


def _described(config: Mapping[str, Any]) -> str:
    network = config.get("network", {})
    width = "" if network.get("width") is None else f" of width {network['width']}"
    if (embeddings := config.get("data", {}).get("embeddings")) is not None:
        return f"one for data.embeddings={embeddings}{width}"
    frozen = ", frozen" * bool(network.get("frozen"))
    return f"{network.get('name')}{width}{frozen}"
