"""A method by name for a training loop of one's own: `build`.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from noisybsd.errors import UserError, brief, did_you_mean
from noisybsd.methods.beliefs import (
    OfLabels,
    checked_index,
    checked_logits,
    checked_rows,
    is_number,
    task_of,
    whole_number,
)
from noisybsd.methods.contrastive import CONTRASTIVE
from noisybsd.methods.parts import Batch, Mixup
from noisybsd.methods.presets import METHODS
from noisybsd.methods.registry import LOSSES, TARGET_RULES, build_loss, build_rule, options
from noisybsd.settings import ContrastiveConfig


class Method(OfLabels):
    """A target rule, a classification loss and perhaps a contrastive term: one of the methods by name.

    Its state is in buffers and, for `ctrr`, in parameters, which belong into the optimiser. It has the
    epoch, and a state of other labels is refused, as with `BSD`. `build` makes it.

    Attributes:
        name: of the method.
        views: V, how many views of each image the network is given in a step.
        mixup: alpha of the mixed images that the method needs; 0: none. See `draw_mixup`.
        uses_embedding: whether `step` needs the embeddings z.
        rule, loss: the parts, see noisybsd/methods/parts.py.
    """

    given: Tensor

    def __init__(self, name: str, labels: Any, num_classes: int, **settings: Any):
        super().__init__(labels)
        preset = METHODS[name]
        task = task_of(
            labels,
            num_classes,
            settings["epochs"],
            len(preset["augment"]["views"]),
            settings["embedding_dim"],
        )
        # neighbours are searched by the caller; their weight is the method's
        weight = float(preset["neighbours"]["weight"])
        task = replace(task, neighbours=task.neighbours.model_copy(update={"weight": weight}))
        self.name, self.views, self.mixup = name, task.views, float(preset["augment"]["mixup"])
        self.num_classes, self.embedding_dim = num_classes, settings["embedding_dim"]
        self.rule = build_rule(preset["targets"], task, settings["options"])
        self.loss = build_loss(preset["loss"], task, settings["options"])
        self.contrastive = preset["contrastive"]["name"]
        self.temperature = settings["temperature"]
        self.uses_embedding = self.loss.uses_embedding or self.contrastive in CONTRASTIVE
        self.register_buffer("given", task.labels, persistent=False)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Say that epoch number `epoch`, from 0, begins. Methods have schedules."""
        self.epoch = whole_number(epoch, "epoch", 0)
        self.rule.start_epoch(self.epoch)
        self.loss.start_epoch(self.epoch)

    def draw_mixup(self, batch_size: int, device: torch.device | str = "cpu") -> Mixup | None:
        """How to mix the images of a step, `mixup(images)`, or None for a method without mixed images."""
        whole_number(batch_size, "batch_size", 1)
        return Mixup.draw(batch_size, self.mixup, torch.device(device)) if self.mixup > 0 else None

    def step(
        self,
        index: Tensor,
        logits: Tensor,
        z: Tensor | None = None,
        mixup: Mixup | None = None,
    ) -> Tensor:
        """Observe the predictions for some samples, and return the loss to descend.

        Args:
            index: (B,) integers, the samples' positions among the labels; none twice.
            logits: (B,K) or (V,B,K) of any floating type, of the views; of `mixup` the logits of mixed views,
                and of `tcl` and `ssr` those of the plain views and then of the mixed ones.
            z: (V*B,D) unit-length embeddings of what the logits are of, view by view.
            mixup: what `draw_mixup` gave.

        Returns:
            () the loss, with a gradient to logits and z.

        Raises:
            ValueError: names the argument, the value and what is valid.
        """
        device = self.given.device
        views = checked_logits(logits, self.num_classes, device)  # (V,B,K), without gradient
        index = checked_index(index, views, len(self.given), device)
        expected = self.views * (2 if self.loss.mixup == "beside" else 1)
        if len(views) != expected:
            raise UserError(
                f"logits: got {len(views)} views; valid: {expected} for the method {self.name}"
            )
        count = len(views) * len(index)
        if self.uses_embedding and not (isinstance(z, Tensor) and z.ndim == 2 and len(z) == count):
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else brief(z, 40)
            raise UserError(
                f"z: got {got}; valid: ({count}, D), since {self.name} compares embeddings"
            )
        if self.loss.uses_embedding and z is not None and z.shape[1] != self.embedding_dim:
            raise UserError(
                f"z: got shape {tuple(z.shape)}; valid: ({count}, {self.embedding_dim}), or build the "
                f"method with embedding_dim={z.shape[1]}"
            )
        if len(index) == 1 and self.training and self._normalises():
            raise UserError(
                f"index: got one sample; valid: two or more, for {self.name} has a batch norm. A data loader "
                "leaves such a last batch out with drop_last=True"
            )
        if (mixup is None) != (self.mixup == 0):
            raise UserError(
                f"mixup: got {brief(mixup, 40)}; valid: what draw_mixup returns for the method {self.name}"
            )
        if mixup is not None and len(mixup.partner) != len(index):
            raise UserError(
                f"mixup: mixes {len(mixup.partner)} images; valid: draw_mixup({len(index)}), as many as in "
                "the index"
            )
        z = logits.new_zeros(0) if z is None else z.float()
        with torch.autocast(device.type, enabled=False):
            logits = logits.float().view_as(views)
            # a step that a GradScaler skips leaves no NaN behind; the loss still shows it
            targets = self.rule.visit(index, logits[: self.views].nan_to_num())
            if mixup is not None and self.loss.mixup == "instead":
                targets = mixup(targets)
            loss = self.loss(Batch(index, self.given[index], logits, z, targets, mixup))
            if self.contrastive in CONTRASTIVE:
                pair = z[: 2 * len(index)]
                loss = loss + CONTRASTIVE[self.contrastive](pair, targets, self.temperature)
        return loss

    def _normalises(self) -> bool:
        return any(isinstance(module, nn.BatchNorm1d) for module in self.modules())

    def targets(self, index: Tensor) -> Tensor:
        """The present targets (B,K) of the samples `index` (B,)."""
        return self.rule.targets(checked_rows(index, len(self.given)).to(self.given.device))

    def mean(self) -> Tensor | None:
        """The belief (N,K) over every sample's class, or None for a method that holds none."""
        return self.rule.belief()

    def suggested(self) -> Tensor | None:
        """The most probable class (N,) of every sample by belief, or None for a method that holds none."""
        return self.rule.suggested()


def build(
    name: str,
    labels: Any,
    num_classes: int,
    *,
    epochs: int,
    embedding_dim: int = 128,
    temperature: float | None = None,
    **options_: Any,
) -> Method:
    """A method by name, without a recipe. A step of it:

        method = noisybsd.methods.build("elr", labels, num_classes=10, epochs=90)
        for epoch in range(90):
            method.start_epoch(epoch)
            for index, images in loader:  # the index of each image among the labels
                loss = method.step(index, network(images))
                optimizer.zero_grad(); loss.backward(); optimizer.step()

    Where `method.views` is 2, the logits are (2,B,K), of a weak and a strong view. Where
    `method.uses_embedding`, give `z` too. Unlike `BSD`, it does not gather the batches of several processes.

    Args:
        name: one of `METHODS`, such as "elr" or "sop_plus".
        labels: (N,) integers, or votes (N,K).
        num_classes: K.
        epochs: how many epochs the whole training has, for schedules.
        embedding_dim: D, the width of z.
        temperature: of the contrastive term; None: 0.3.
        options_: options of the method, such as `beta=0.9`; the others are the preset's.

    Raises:
        ValueError: names the argument, the value and what is valid.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"name: {did_you_mean(name, METHODS)}")
    preset = METHODS[name]
    known = options(TARGET_RULES[preset["targets"]]) | options(LOSSES[preset["loss"]])
    for key, value in options_.items():
        if key not in known:
            takes = did_you_mean(key, known) if known else f"got {brief(key)}; valid: no options"
            raise UserError(f"option of {name}: {takes}")
        try:
            annotation: Any = Annotated[known[key].annotation, known[key]]
            TypeAdapter(annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(f"{key}: got {brief(value)}; {error.errors()[0]['msg']}") from None
    if temperature is None:
        temperature = ContrastiveConfig().temperature
    whole_number(embedding_dim, "embedding_dim", 1)
    if not is_number(temperature) or not temperature > 0:
        raise UserError(f"temperature: got {brief(temperature)}; valid: a number above 0")
    return Method(
        name,
        labels,
        num_classes,
        epochs=epochs,
        embedding_dim=embedding_dim,
        temperature=temperature,
        options={**preset.get("options", {}), **options_},
    )
