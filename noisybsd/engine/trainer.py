"""The trainer: the parts of one run, its step, and what is measured at the end of an epoch.

Everything random in a step is a function of (seed, rank, step) and the order of an epoch one of
(seed, epoch), so a checkpoint needs no random-number state and a run continues bit for bit at any step.

On many processes (distributed.py) each has its share of the images, and everything after the network's
forward pass is done by all of them alike, for the batches of all.

Dimensions: N training samples, K classes, B batch, V views, D embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisybsd import distributed
from noisybsd.config import Config
from noisybsd.data.dataset import Dataset, Split
from noisybsd.data.loader import Loader, build_loader, eval_batches
from noisybsd.data.residence import keep_resident
from noisybsd.data.views import EmbeddedViews, Views
from noisybsd.engine.calibration import ENOUGH, fit_temperature, temperature_of, transition
from noisybsd.engine.frozen import FrozenBackbone, check_weights, encoder_size
from noisybsd.engine.metrics import label_metrics, prediction_metrics, reliability
from noisybsd.engine.monitor import EpochSums, SampleMonitor
from noisybsd.engine.predict import channels_last, evaluation_batch, predict
from noisybsd.errors import UserError
from noisybsd.methods.contrastive import CONTRASTIVE
from noisybsd.methods.parts import Batch, Mixup, Task
from noisybsd.methods.registry import LOSSES, build_loss, build_rule
from noisybsd.models.bank import FeatureBank, knn_accuracy, vote
from noisybsd.models.networks import (
    FastResNet,
    FrozenFeatures,
    Network,
    build_network,
    uncounted,
    with_heads,
)
from noisybsd.models.optim import WeightEma, build_optimizer, learning_rate, set_learning_rate
from noisybsd.runs.signals import Stopped, StopSignal
from noisybsd.runs.tracking import Tracker
from noisybsd.settings import DataConfig

# steps between looks at whether the loss is finite; each look waits for the device
CHECK_EVERY = 50


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


class Trainer:
    """One run in memory: data, network, per-sample state, and the loop over them."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device):
        self.image_views = Views(
            config.augment.name, dataset.size, dataset.mean, dataset.std, config.augment.flip
        ).to(device)
        self.frozen = None  # the backbone, if only what follows it learns
        if config.network.frozen and config.data.embeddings is None:
            with distributed.one_first("features"):  # weights are downloaded, features computed
                self.frozen = FrozenBackbone(config, dataset, self.image_views, device)
                dataset = self.frozen.embedded(dataset)
        self.config, self.dataset, self.device = config, dataset, device
        self.num_classes = len(dataset.class_names)
        train = dataset.train
        self.labels = torch.as_tensor(train.labels, device=device)  # (N,)
        self.test = self._share(dataset.test)
        self.views: Views | EmbeddedViews = self.image_views
        features = None  # their width, where they are what the network is given
        if train.embeddings is not None:
            features = train.embeddings.shape[2]
            self.views = EmbeddedViews()
        self.mirrored_first = None  # (N,) bool, with alternating flips: mirrored in the first epoch
        if config.augment.flip == "alternating":
            bits = np.random.Philox(key=config.seed).random_raw(len(train)) & 1
            self.mirrored_first = torch.as_tensor(bits == 1, device=device)
        torch.manual_seed(config.seed)
        with distributed.one_first("network"):  # pretrained weights are downloaded
            network = build_run_network(config, self.num_classes, dataset.channels, features)
        # as the images are; weights in another order are copied at every step
        self.network = uncounted(network.to(device).to(memory_format=torch.channels_last))
        distributed.joint_batch_norm(self.network)
        forward: torch.nn.Module = self.network
        self.draw_views: Callable[..., Tensor] = self.views
        if config.compile:
            forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
            # torch's random numbers, not the compiler's: the views are those without compile
            options: dict[str, Any] = {"fallback_random": True}
            self.draw_views = torch.compile(self.views, dynamic=False, options=options)
        self.forward = distributed.parallel(forward)
        self.ema = WeightEma(self.network, config.ema.decay) if config.ema.decay > 0 else None
        votes = None if train.votes is None else torch.as_tensor(train.votes, device=device)
        task = build_task(config, self.labels, self.num_classes, votes)
        self.rule = build_rule(config.targets, task, config.options).to(device)
        self.loss = uncounted(build_loss(config.loss, task, config.options).to(device))
        self.parameters = [*self.network.parameters(), *self.loss.parameters()]
        self.optimizer = build_optimizer([self.network, self.loss], config.optimizer)
        self.contrastive = CONTRASTIVE.get(config.contrastive.name)
        self.monitor = SampleMonitor(self.labels)
        self.sums = EpochSums(device)
        self.amp = autocast_dtype(config, device)
        self.bank = None
        if config.neighbours.k > 0:
            width, dtype = self.network.embedding_dim, torch.float16 if self.amp else torch.float32
            self.bank = FeatureBank(len(train), width, dtype).to(device)

        self.step_number = 0  # steps taken since the start of the run
        self.seconds = 0.0  # spent training and evaluating, over all parts of the run
        self.images_seen = 0
        self.network_passes = 0  # of single images through the network, a backward one counted 2
        self.train_seconds = 0.0
        self.history: list[dict[str, Any]] = []

    def _share(self, split: Split, what: str = "evaluation") -> Split:
        """This process's share of a split to predict, on the device if it fits there."""
        if distributed.world_size() > 1:
            split = split.take(np.r_[distributed.share(len(split))])
        data = self.config.data
        return keep_resident(split, self.device, data.storage, data.on_error, what)

    @cached_property
    def never_learned(self) -> Split | None:
        """The images to calibrate on: those held out for it, or else the target rule's probes, if enough."""
        split, probes = self.dataset.calibration, self.rule.never_learned()
        if split is None and probes is not None and int(probes.sum()) >= ENOUGH:
            split = self.dataset.train.take(probes.cpu().numpy())
        return split

    @cached_property
    def calibration(self) -> Split | None:
        """This process's share of the images to calibrate on, decoded when first asked for."""
        split = self.never_learned
        return None if split is None else self._share(split, "calibration")

    @cached_property
    def loader(self) -> Loader:
        """The training images, decoded or opened when first asked for: an evaluation needs none."""
        config = self.config
        loader = build_loader(
            self.dataset.train,
            config.batch_size // distributed.world_size(),
            config.seed,
            self.device,
            storage=config.data.storage,
            workers=config.data.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            on_error=config.data.on_error,
            balanced=config.data.balanced,
        )
        loader.skipped += self.dataset.train.skipped + self.dataset.test.skipped
        return loader

    def close(self) -> None:
        """Stop what loads images, if anything does."""
        if "loader" in vars(self):
            self.loader.close()

    @property
    def precision(self) -> str:
        """Of the forward pass, as `precision=auto` has it on this device."""
        return "fp32" if self.amp is None else "bf16"

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epochs completed, the evaluation included."""
        return len(self.history)

    def lr(self, step: int) -> float:
        warmup = self.config.optimizer.warmup_epochs * self.loader.steps_per_epoch
        return learning_rate(step, self.total_steps, warmup, self.config.optimizer)

    def mirrored(self, index: Tensor) -> Tensor | None:
        """Which of the samples `index` (B,) the weak view mirrors in this epoch; None: it draws that."""
        if self.mirrored_first is None:
            return None
        return self.mirrored_first[index] ^ (self.epoch % 2 == 1)

    @torch.no_grad()
    def prepare(self) -> None:
        """Before the first step: set what an encoder takes from the training images, as their whitening."""
        if not isinstance(self.network.encoder, FastResNet | FrozenFeatures):
            return
        train = self.dataset.train
        sample = train.take(np.linspace(0, len(train) - 1, min(len(train), 5000)).astype(int))
        data = self.config.data
        batches = eval_batches(
            sample, 500, self.device, workers=data.workers, on_error=data.on_error
        )
        images = torch.cat([self.views.plain(images) for images, _ in batches])
        for network in self.networks().values():
            assert isinstance(network.encoder, FastResNet | FrozenFeatures)
            network.encoder.fit(images)
            for fitted in network.encoder.state_dict().values():
                distributed.copy_first_(fitted)

    def step(self, index: Tensor, images: Tensor) -> None:
        """One step on the samples `index` (B,) with `images` (B,C,H,W) uint8.

        Never waits for the GPU; on several, torch's SyncBatchNorm does, once a layer.
        """
        step = self.step_number
        seed_generators(step_seed(self.config.seed, distributed.rank(), step), self.device)
        set_learning_rate(self.optimizer, self.lr(step))
        passed = self.learn(index, images, step)
        self.step_number += 1
        self.images_seen += distributed.world_size() * len(index)
        self.network_passes += 3 * passed

    def learn(self, index: Tensor, images: Tensor, step: int) -> int:
        """The part of a step that the device does; the host has seeded it and set the learning rate.

        Returns:
            how many images have passed the network, of all processes.
        """
        num_views = len(self.config.augment.views)
        views = self.draw_views(images, self.config.augment.views, self.mirrored(index))
        mixup, alpha = None, self.config.augment.mixup
        if alpha > 0:
            mixup = Mixup.draw(len(index), alpha, self.device)
            distributed.copy_first_(mixup.weight)
            mixed = torch.stack([mixup(view) for view in views])
            views = torch.cat((views, mixed)) if self.loss.mixup == "beside" else mixed
        inputs = channels_last(views.flatten(0, 1))
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits, z = self.forward(inputs)
        logits = logits.float().view(len(views), len(index), self.num_classes)  # (V,B,K)
        index, logits, z, mixup = joint_batch(index, logits, z, mixup)

        targets = self.rule.visit(index, logits[:num_views])  # (B,K)
        if mixup is not None and self.loss.mixup == "instead":
            targets = mixup(targets)

        batch = Batch(index, self.labels[index], logits, z, targets, mixup)
        classification = self.loss(batch)
        contrast = logits.new_zeros(())
        if self.contrastive is not None:
            contrast = self.contrastive(
                z[: 2 * len(index)], targets, self.config.contrastive.temperature
            )
        loss = classification + self.config.contrastive.weight * contrast

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients_(self.loss.parameters())
        if self.config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                self.parameters, self.config.optimizer.clip_norm, foreach=True
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(step)

        if self.bank is not None:
            self.bank.write(index, z.detach()[: len(index)])
        self.monitor.record(index, logits.detach()[0])
        correct = (logits.detach()[0].argmax(dim=1) == self.labels[index]).float().mean()
        self.sums.add(step, loss, classification, contrast, correct)
        return len(views) * len(index)

    def train_epoch(self, tracker: Tracker, stop: StopSignal) -> None:
        """The rest of the present epoch.

        Raises:
            NonFiniteLoss: some step's loss was NaN or infinite.
            Stopped: a signal asked to stop; the step under way is complete.
        """
        self.network.train()
        for network in self.networks().values():
            network.temperature = 1.0  # a run made longer goes on from calibrated networks
        done = self.step_number - self.epoch * self.loader.steps_per_epoch
        if done == 0:
            self.sums.reset()
        self.rule.start_epoch(self.epoch)
        self.loss.start_epoch(self.epoch)
        begin = time.perf_counter()
        if self.step_number == 0 and self.config.run.init is None:
            self.prepare()
        try:
            for index, images in self.loader.epoch(self.epoch, start=done):
                self.step(index, images)
                tracker.step()
                received = distributed.largest(stop.received)
                if self.step_number % CHECK_EVERY == 0 or received:
                    self.check_finite()
                if received:
                    raise Stopped(received)
            self.check_finite()  # waits for the device, so that the time below is the whole time
        finally:
            self.train_seconds += time.perf_counter() - begin

    def check_finite(self) -> None:
        """Look at every loss so far and at the weights as they are. Waits for the device.

        Raises:
            NonFiniteLoss: some of them are NaN or infinite.
        """
        what, step = "the loss is not finite at", self.sums.first_bad_step()
        if step is None:
            state = [*self.network.state_dict().values(), *self.loss.state_dict().values()]
            largest = torch._foreach_norm([t for t in state if t.is_floating_point()], math.inf)
            if torch.stack(largest).isfinite().all():
                return
            what, step = "the weights are not finite after", self.step_number - 1
        raise NonFiniteLoss(
            f"{what} step {step} (epoch {step // self.loader.steps_per_epoch + 1}), "
            f"learning rate {self.lr(step):.3g}. Try a lower optimizer.lr, optimizer.clip_norm=1, "
            "or precision=fp32"
        )

    @torch.no_grad()
    def end_epoch(self) -> dict[str, Any]:
        """Neighbours, evaluation and metrics of the epoch just trained."""
        metrics: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.step_number,
            "lr": self.lr(self.step_number - 1),
            **self.sums.means(),
        }
        suggested, of_given = self.suggested(), self.rule.probability(self.labels)
        if of_given is None:
            of_given = self.monitor.given_prob
        self.monitor.record_belief(suggested, self.epoch)
        if (memorisation := self.rule.memorisation()) is not None:
            metrics["memorisation"] = memorisation.item()

        near = self.config.neighbours
        if self.bank is not None and near.weight > 0 and self.epoch + 1 >= near.start_epoch:
            ballots = self.rule.ballots()
            assert ballots is not None
            found = self.bank.search(near.k, engine=near.engine)
            self.rule.observe_neighbours(vote(ballots, found, math.inf))  # the plain mean

        if self.epoch + 1 == self.config.epochs and self.calibration is not None:
            metrics |= self.calibrate(self.calibration)
        metrics |= self.evaluate()
        if self.dataset.train.clean_labels is not None:
            clean = torch.as_tensor(self.dataset.train.clean_labels)  # these metrics are the host's
            of_given = of_given.masked_fill(self.monitor.visits == 0, torch.nan)  # dropped so far
            metrics |= label_metrics(
                of_given, suggested, self.monitor.predicted, self.labels, clean
            )
        return metrics

    def networks(self) -> dict[str, Network]:
        """The network and its moving average, if there is one, by what their metrics' names end in."""
        return {"": self.network} | ({} if self.ema is None else {"_ema": self.ema.network})

    @torch.no_grad()
    def calibrate(self, split: Split) -> dict[str, float]:
        """Give each of `networks` the temperature that suits the given labels of images not trained on.

        Args:
            split: this process's share of them.

        Returns:
            temperature, and uncalibrated_ece, the calibration error on the test images before; each with
            `_ema` too.
        """
        belief, seen = self.rule.belief(), self.monitor.visits > 0
        assert belief is not None  # or the configuration is refused
        noise = transition(belief[seen], self.labels[seen])
        found: dict[str, float] = {}
        for suffix, network in self.networks().items():
            before, _, right = self.predict_test(network)
            found[f"uncalibrated_ece{suffix}"] = prediction_metrics(before, right)["ece"]
            logits, _, given = map(distributed.gather_rows, self.predict(network, split))
            network.temperature = fit_temperature(logits, given, noise)
            found[f"temperature{suffix}"] = network.temperature
        if self.dataset.calibration is not None:  # probes are training images, which count already
            self.loader.skipped += split.skipped
        return found

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Test metrics of the network, and of its moving average under names that end in `_ema`."""
        near = self.config.neighbours
        metrics: dict[str, float] = {}
        for suffix, network in self.networks().items():
            logits, z, labels = self.predict_test(network)
            found = prediction_metrics(logits, labels)
            metrics |= {f"test_{name}{suffix}": value for name, value in found.items()}
            if self.bank is not None and network is self.network:
                nearest = self.bank.search(near.k, queries=z, engine=near.engine)
                metrics["test_knn_accuracy"] = knn_accuracy(self.suggested(), nearest, labels)
        return metrics

    def predict(
        self, network: Network, split: Split, data: DataConfig | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, embeddings and labels of `split`, whose files are read as `data` says, or the run's."""
        data = data or self.config.data
        if self.config.network.frozen and split.embeddings is None:
            if self.frozen is None:
                raise UserError(
                    "data.embeddings=FILE is missing: the run was trained on embeddings"
                )
            split = self.frozen.with_embeddings(split, "images")
        return predict(
            network,
            split,
            self.views,
            self.device,
            self.amp,
            batch_size=evaluation_batch(
                self.config.batch_size // distributed.world_size(), self.dataset.size, self.device
            ),
            workers=data.workers,
            on_error=data.on_error,
        )

    def predict_test(self, network: Network) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (M,K), embeddings (M,D) and labels (M,) of the test set.

        Raises:
            NonFiniteLoss: the network's weights are beyond use.
        """
        outputs = self.predict(network, self.test)
        logits, z, labels = map(distributed.gather_rows, outputs)
        if not logits.isfinite().all():
            raise NonFiniteLoss(
                f"the network's test predictions are not finite after step {self.step_number}, "
                f"learning rate {self.lr(max(self.step_number - 1, 0)):.3g}"
            )
        return logits, z, labels

    def suggested(self) -> Tensor:
        """The most probable class of each training sample, (N,): by belief, or by prediction."""
        suggested = self.rule.suggested()
        return self.monitor.predicted if suggested is None else suggested

    def modules(self) -> dict[str, torch.nn.Module]:
        """Everything with state, by its name in the checkpoint."""
        parts = {
            "network": self.network,
            "ema": self.ema,
            "rule": self.rule,
            "loss": self.loss,
            "bank": self.bank,
            "monitor": self.monitor,
            "sums": self.sums,
        }
        return {name: module for name, module in parts.items() if module is not None}

    def input(self) -> dict[str, Any]:
        """What the network takes and says, as `records.Input` has it: for its use without the data."""
        mean, std = (
            values.flatten().cpu().numpy()
            for values in (self.image_views.mean, self.image_views.std)
        )
        return {
            "class_names": list(self.dataset.class_names),
            "channels": len(mean),
            "size": self.image_views.size,
            "stored_size": self.dataset.train.images.shape[-1],
            # as decimal fractions, 0.485, and yet the same number in float32
            "mean": [float(str(value)) for value in mean],
            "std": [float(str(value)) for value in std],
            "backbone_sha256": None if self.frozen is None else self.frozen.weights_sha256,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: the same on however many processes."""
        return {
            "world_size": distributed.world_size(),
            "precision": self.precision,
            "config": self.config.model_dump(mode="json"),
            "data_sha256": self.dataset.sha256,
            "input": self.input(),
            "modules": {name: module.state_dict() for name, module in self.modules().items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_number,
            "seconds": self.seconds,
            "images_seen": self.images_seen,
            "network_passes": self.network_passes,
            "train_seconds": self.train_seconds,
            "history": self.history,
        }

    def check_backbone(self, state: Mapping[str, Any], what: object) -> None:
        """Refuse a state whose heads were trained on another frozen backbone; see `check_weights`."""
        if self.frozen is not None:
            there = (state.get("input") or {}).get("backbone_sha256")
            check_weights(self.config, self.frozen.weights_sha256, there, what)

    def load_state(self, state: dict[str, Any], where: object = "the checkpoint") -> None:
        """Continue from `state`.

        Args:
            where: the file, for errors.

        Raises:
            UserError: the state belongs to other data, or another version wrote it.
        """
        if not self.dataset.is_of(state["data_sha256"]):
            raise UserError(
                f"data.root={self.config.data.root}: the images or labels are not those this run was "
                f"started with ({self.dataset.other_than(state['data_sha256'])}); put those back, or train "
                "on these in another folder, run.dir=NEW"
            )
        self.check_backbone(state, where)
        name = ""
        try:
            for name, module in self.modules().items():
                module.load_state_dict(state["modules"][name])
            name = "optimizer"
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}: damaged, or of another version of noisybsd, whose {name} was another: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        if not ((self.monitor.predicted >= 0) & (self.monitor.predicted < self.num_classes)).all():
            classes = f"0 to {self.num_classes - 1}"
            raise UserError(f"{where}: damaged: monitor.predicted holds no classes, {classes}")
        self.step_number = state["step"]
        self.seconds = state["seconds"]
        self.images_seen = state["images_seen"]
        self.network_passes = state["network_passes"]
        self.train_seconds = state["train_seconds"]
        self.history = state["history"]
        for suffix, network in self.networks().items():
            network.temperature = temperature_of(state, suffix)

    def begin_epoch_anew(self) -> None:
        """Forget an interrupted epoch's steps, where its samples would be in another order now."""
        self.step_number = self.epoch * self.loader.steps_per_epoch

    def reliability_diagrams(self) -> dict[str, Any]:
        """On the test images, of each of `networks`. All processes take part."""
        diagrams = {}
        for suffix, network in self.networks().items():
            logits, _, labels = self.predict_test(network)
            diagrams[suffix] = reliability(logits, labels)
        return diagrams


def joint_batch(
    index: Tensor, logits: Tensor, z: Tensor, mixup: Mixup | None
) -> tuple[Tensor, Tensor, Tensor, Mixup | None]:
    """The batches (b) of all processes as one (B), process by process, with gradients; alone, as it is.

    Args:
        index: (b,) to (B,).
        logits: (V,b,K) to (V,B,K).
        z: (V*b,D) to (V*B,D), view by view.
        mixup: within each process's batch; of the same weight on all.
    """
    if distributed.world_size() == 1:
        return index, logits, z, mixup
    z = distributed.gather(z.unflatten(0, (len(logits), -1)), dim=1).flatten(0, 1)
    if mixup is not None:
        partner = mixup.partner + distributed.rank() * len(index)
        mixup = Mixup(mixup.weight, distributed.gather(partner))
    return distributed.gather(index), distributed.gather(logits, dim=1), z, mixup


def step_seed(seed: int, rank: int, step: int) -> int:
    """A well-mixed 63-bit seed from (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


def build_task(
    config: Config, labels: Tensor, num_classes: int, votes: Tensor | None = None
) -> Task:
    """What the configuration's target rule and loss are told, with the given labels (N,), votes (N,K)."""
    return Task(
        labels,
        num_classes,
        epochs=config.epochs,
        views=len(config.augment.views),
        embedding_dim=config.network.embedding_dim,
        balanced=config.data.balanced,
        neighbours=config.neighbours,
        votes=votes,
    )


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what a step on `device` draws from. The numbers are those that follow torch.manual_seed.

    torch.manual_seed seeds every generator of every device, and notes the call stack for a GPU that is
    not in use. In a step of a GPU that is a noticeable part of the host's time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[number].manual_seed(seed)


def build_run_network(
    config: Config, num_classes: int, channels: int, features: int | None = None
) -> Network:
    """The run's network, with a projection head where something trains it.

    Args:
        features: width of the features of a frozen backbone, which stand in the images' place.
    """
    net = config.network
    projects = config.contrastive.name != "none" or LOSSES[config.loss].uses_embedding
    projection = "mlp" if projects else "identity"
    if features is not None:
        encoder = FrozenFeatures(features, net.width)
        width = net.width or features
        return with_heads(encoder, width, num_classes, net.embedding_dim, projection)
    return build_network(
        net.name,
        num_classes,
        channels,
        width=net.width,
        embedding_dim=net.embedding_dim,
        projection=projection,
        pretrained=net.pretrained,
        weights=net.weights,
        size=encoder_size(config),
    )


def autocast_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """The dtype of the forward pass under autocast, or None for plain fp32."""
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else None
