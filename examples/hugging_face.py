"""Bayesian self-distillation with Hugging Face's Trainer: pip install transformers accelerate

python examples/hugging_face.py

A small vision transformer from nothing; `AutoModelForImageClassification.from_pretrained` serves as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig
from transformers import ViTForImageClassification as Transformer

import noisybsd


class Indexed(Dataset):
    """Images with their index among the labels. The labels themselves are with the beliefs."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[i], "index": torch.tensor(i)}


class SelfDistillation(Trainer):
    """Trains on the beliefs about labels."""

    def __init__(self, beliefs: noisybsd.BSD, **arguments: Any) -> None:
        super().__init__(callbacks=[Epochs(beliefs)], **arguments)
        self.beliefs = beliefs.to(self.args.device)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        targets = self.beliefs.step(inputs["index"], outputs.logits)
        loss = noisybsd.cross_entropy(outputs.logits.float(), targets)
        return (loss, outputs) if return_outputs else loss


class Epochs(TrainerCallback):
    def __init__(self, beliefs: noisybsd.BSD) -> None:
        self.beliefs = beliefs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.beliefs.start_epoch(int(state.epoch))


def main(epochs: int = 20, folder: str = "hugging_face_run") -> dict[str, float]:
    digits = noisybsd.load_dataset("digits")
    clean = digits.train.labels
    given = noisybsd.inject_noise(clean, "symmetric", 0.4, seed=0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "intermediate_size": 128}
    torch.manual_seed(0)
    model = Transformer(ViTConfig(**sizes, **shape, num_labels=10))
    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=2e-3,
        save_strategy="no", report_to=[], remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    beliefs = noisybsd.BSD(given, 10, epochs=epochs)
    data = Indexed(digits.train.images / 255)
    SelfDistillation(beliefs, model=model, args=arguments, train_dataset=data).train()
    after = beliefs.suggested().cpu().numpy() == clean
    return {"labels right before": float((given == clean).mean()), "after": float(after.mean())}


if __name__ == "__main__":
    print(main())
