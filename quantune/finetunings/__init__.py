"""Fine-tuning methods: every module in this folder is loaded automatically.

A method module defines one or more `Finetuning` recipes. To add a method, add a module and its test. The training loop
itself (`quantune.finetunings.training.loop`) is the same for all.
"""

from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.errors import listed
from quantune.core.recipe import LARGEST_BATCH, LONGEST, MANY, Name, Recipe, subclasses
from quantune.core.workload import Training
from quantune.models.architecture import Architecture


def validation_column(dataset: str) -> str:
    """Return the column of the loss curves, and the recorded number, of a dataset of `also_validate`."""
    return f"{dataset}.validation_loss"


class Finetuning(Recipe):
    """How a checkpoint is trained: data, optimization and precision. Subclasses add `method` and trained parameters."""

    leaves: ClassVar[Literal["adapter", "model"]] = "adapter"
    """What training saves: an adapter, to be loaded on top of its base, or a whole model."""
    trains_on_quantized: ClassVar[bool] = True
    """Whether the base may be quantized."""
    reads_original: ClassVar[bool] = False
    """Whether `prepare` reads the weights that the base had before it was quantized; the base must be quantized."""
    reads_dense: ClassVar[bool] = False
    """Whether each step reads the dense weights of the base's layers."""
    unmergeable: ClassVar[str | None] = None
    """Why the trained parameters cannot be merged into the base's weights, after the step's name; None: they can."""
    trains_head: ClassVar[bool] = False
    """Whether the output embedding is trained: then the model computes its loss from all logits at once."""
    taken_positions: ClassVar[int] = 0
    """Positions of the model that the method takes before every text."""
    version: ClassVar[int] = 4
    seeded: ClassVar[bool] = True
    settings: ClassVar[frozenset[str]] = frozenset({"save_every"})
    neutral: ClassVar[frozenset[str]] = frozenset(
        {"max_validation", "packing", "loss_on", "end_of_text", "group_by_length", "warmup_ratio", "log_every"}
        | {"keep", "keep_checkpoints", "optimizer", "attention", "max_samples", "mix", "mix_until"}
        | {"learning_rate_floor", "embedding_noise", "label_smoothing", "patience", "also_validate", "best_on"}
    )

    dataset: str
    """Name of the dataset to train on."""
    train_split: str = "train"
    """Split of the dataset to train on."""
    max_samples: int | None = Field(default=None, gt=0, le=MANY)
    """Documents, conversations or clips to train on, from the first of `train_split`, of each dataset; null: all."""
    mix: dict[Name, Annotated[float, Field(gt=0, lt=1)]] = {}
    """Other datasets to train on, too: dataset -> its share of the examples (sequences with packing); `dataset` has the
    rest. {general: 0.3}: three of ten examples are of `general`. Each has the split `train_split`."""
    mix_until: Literal["first", "all"] | Annotated[int, Field(gt=0, le=MANY, strict=True)] = "first"
    """End of an epoch of `mix`. first: when one dataset is exhausted, none is repeated; all: when all are, the others
    are repeated; or a number of examples."""
    validation_split: str | None = "validation"
    """Split of the dataset for the validation loss during training; null: no validation loss."""
    also_validate: dict[Name, Name] = {}
    """Other datasets with a validation loss of their own: dataset -> its split, such as {general: test}. Each has its
    own curve."""
    max_validation: int | None = Field(default=None, gt=0, le=MANY)
    """Number of validation examples of each dataset, from the first; null: all."""
    steps: int | None = Field(default=None, gt=0, le=MANY)
    """Optimizer steps; give either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Passes over the training split; give either this or `steps`."""
    batch_size: int = Field(default=8, gt=0, le=LARGEST_BATCH)
    """Sequences in one forward and backward pass."""
    gradient_accumulation: int = Field(default=1, gt=0, le=LARGEST_BATCH)
    """Forward and backward passes for each optimizer step; the effective batch is this times `batch_size`."""
    length: int = Field(default=512, gt=1, le=LONGEST)
    """Tokens in one training sequence; documents are joined by the end-of-text token and cut at this length. Speech has
    the length of its transcripts."""
    packing: bool | Literal["separate"] = True
    """true: join documents of text and cut them into sequences of `length` tokens. separate, and for conversations true
    as well: put whole ones into sequences of at most `length` tokens; no token attends to another one. false: each
    document or conversation is one example; a batch is padded to its longest, and the loss ignores the padding. What is
    longer than `length` is cut. Memory is estimated for `length`."""
    loss_on: Literal["everything", "responses", "last-response"] | None = None
    """Tokens that the loss counts; for conversations. null: their responses, and all tokens of texts."""
    end_of_text: bool = True
    """With `packing: false`: append the end-of-text token to each document, so that the model learns to end."""
    group_by_length: bool = True
    """Put examples of similar length into a batch, so that there is little padding; false: in random order."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """For speech models: write a transcript, or an English translation if the data has one."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"] = "adamw"
    """AdamW. 8bit: its two means have 8 bits, in blocks of 256 values (tensors below 4,096 values keep 32 bits). paged:
    they move to main memory when the GPU is full (tensors below 100,000 values do not). Both are bitsandbytes'.
    adafactor keeps the means of rows and columns only, with the learning rate given here."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up."""
    learning_rate_floor: float = Field(default=0.0, ge=0, lt=1)
    """With `schedule: cosine`: the learning rate falls to this share of its peak."""
    warmup_steps: int = Field(default=0, ge=0, le=MANY)
    """Optimizer steps over which the learning rate rises from zero."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """The same as a share of all steps, rounded up; give either this or `warmup_steps`."""
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1e9)
    """Gradients are scaled down to at most this L2 norm."""
    embedding_noise: float = Field(default=0.0, ge=0, le=1e4)
    """For text: strength of the uniform noise on the embeddings during training (NEFTune's alpha; 5 is usual)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the training loss spreads evenly over all tokens; the validation loss is without."""
    gradient_checkpointing: bool | Literal["offload"] = False
    """Recompute activations in the backward pass: less memory, about a third more time. offload: with a GPU, the inputs
    of the layers wait in main memory, too. The result is the same."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the frozen weights and the computation; adapters are always trained in float32. float16 is mixed
    precision: norms, and all weights of a quantized model that are not packed, stay float32; the loss is scaled so that
    small gradients do not vanish, and steps whose gradients overflow are skipped and counted."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Implementation of attention, of those in PyTorch; auto: PyTorch's choice. cudnn is the fastest on a Hopper GPU,
    and needs `deterministic: false`. math computes in plain matrix products and takes the most memory."""
    compile: bool = False
    """Compile the layers (torch.compile): faster on a GPU, after about a minute."""
    evaluate_every: Annotated[int, Field(gt=0, le=MANY, strict=True)] | Literal["epoch"] = 50
    """Optimizer steps between two points of the loss curves, or epoch: a point at the end of each epoch. The last step
    has one always."""
    log_every: int | None = Field(default=None, gt=0, le=MANY)
    """Optimizer steps between two points of the training loss; null: those of `evaluate_every`."""
    keep: Literal["last", "best"] = "last"
    """Which trained weights are the result: those of the last step, or those of the point after step 0 with the lowest
    validation loss."""
    best_on: Name | None = None
    """With `keep: best`: the dataset of `also_validate` whose validation loss decides, for `patience` too; null:
    `dataset`."""
    patience: int | None = Field(default=None, gt=0, le=MANY)
    """With `keep: best`: training ends after so many points without a lower validation loss; null: after all steps."""
    keep_checkpoints: int = Field(default=0, ge=0, le=1000)
    """Trained weights of so many points of the validation loss stay in folders `checkpoint-STEP` of the result, the
    newest; the last step is the result itself."""
    save_every: int = Field(default=50, gt=0, le=MANY)
    """Optimizer steps between two saved states; a killed job loses at most this many steps."""

    @model_validator(mode="after")
    def _one_length(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs', not both and not neither")
        return self

    @model_validator(mode="after")
    def _keys_fit(self):
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError("give either 'warmup_steps' or 'warmup_ratio', not both")
        if self.dataset in self.also_validate:
            raise ValueError(f"'also_validate' names other datasets; '{self.dataset}' has 'validation_split'")
        if self.best_on and self.best_on not in self.also_validate:
            allowed = f"allowed: {listed(self.also_validate)}" if self.also_validate else "leave it out"
            raise ValueError(f"'best_on: {self.best_on}' is not a dataset of 'also_validate'; {allowed}")
        if self.best_on and self.keep != "best":
            raise ValueError("'best_on' needs 'keep: best'")
        if self.keep == "best" and self.validation_split is None and not self.best_on:
            raise ValueError("'keep: best' needs a validation loss; give 'validation_split', or take 'keep: last'")
        if self.patience and self.keep != "best":
            raise ValueError("'patience' needs 'keep: best'")
        if self.learning_rate_floor and self.schedule != "cosine":
            raise ValueError(f"'learning_rate_floor' needs 'schedule: cosine', not '{self.schedule}'")
        if sum(self.mix.values()) >= 1:
            total = f"{sum(self.mix.values()):g}"
            raise ValueError(f"the shares of 'mix' add up to {total}; they must leave some for 'dataset'")
        if self.dataset in self.mix:
            raise ValueError(f"'mix' names other datasets; '{self.dataset}' is 'dataset' and has the rest")
        if "mix_until" in self.model_fields_set and not self.mix:
            raise ValueError("'mix_until' belongs to 'mix'; leave it out")
        if self.packing is True and not self.end_of_text:
            others = "'packing: false' or 'packing: separate'"
            raise ValueError(f"'end_of_text: false' needs {others}; joined documents are divided by this token")
        return self

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that its job records."""
        losses = ("train_loss", "validation_loss", *map(validation_column, sorted(self.also_validate)))
        return (
            *("parameters", "trainable_parameters", "total_parameters", "base_footprint_bytes", "steps", "epochs"),
            *("examples", "steps_per_second", "mean_train_loss", *losses, *(f"{name}.step*" for name in losses)),
        )

    @property
    def other_data(self) -> dict[str, dict[str, str]]:
        """Key -> dataset -> split of all that is read beside `dataset`."""
        return {"mix": dict.fromkeys(self.mix, self.train_split), "also_validate": self.also_validate}

    @property
    def deciding_loss(self) -> str:
        """The column of the loss curves that decides which weights are the best."""
        return validation_column(self.best_on) if self.best_on else "validation_loss"

    def total_steps(self, examples: int) -> int:
        """Return the optimizer steps of a training on this number of examples."""
        per_step = self.batch_size * self.gradient_accumulation
        return self.steps or max(1, ceil(self.epochs * examples / per_step))

    def warmup(self, steps: int) -> int:
        """Return the optimizer steps of the warm-up, of all steps."""
        return self.warmup_steps if self.warmup_ratio is None else ceil(self.warmup_ratio * steps)

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why this recipe cannot train a model with this config.json (".key: why", or ": why"), or None."""
        return None

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return the model; the parameters to train require gradients, all others are frozen.

        Args:
            model: the loaded base.
            seed: of the initialization.
            original: if `reads_original`: the checkpoint that the base was before it was quantized.
        """
        raise NotImplementedError

    def save(self, model, parent: Path, folder: Path) -> None:
        """Save the adapter that was trained on the checkpoint in `parent`, in the format of PEFT."""
        from quantune.models import adapters, checkpoints

        adapters.save_adapter(model, folder)
        checkpoints.copy_tokenizer(parent, folder)

    def trained(self, shape: Architecture) -> int:
        """Return the number of parameters that are trained in a model of this shape."""
        raise NotImplementedError

    def stored(self, shape: Architecture) -> int:
        """Return the number of parameters that are saved; by default those that are trained."""
        return self.trained(shape)

    def rate(self, name: str) -> float:
        """Return the factor of the learning rate of a trained parameter, from its name."""
        return 1.0

    def hook(self, model, steps: int):
        """Return what runs after each optimizer step, or None: an object with `step(number)`, `state_dict()` and
        `load_state_dict(state)`.
        """
        return None

    def facts(self, model) -> dict[str, Any]:
        """Return what the provenance says of the trained model beside its losses."""
        return {}

    @property
    def mixed(self) -> bool:
        """Whether the model computes in mixed precision: matrix products in 16 bits, weights of norms in float32."""
        return self.precision == "float16"

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer with this name (`q_proj`) gets trained matrices beside the frozen ones."""
        return False

    @property
    def bottleneck(self) -> int:
        """Values for each token between the two matrices beside an adapted layer (the rank)."""
        return 0

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the input of the matrices beside an adapted layer."""
        return 0.0

    def optimizer_bytes(self, parameters: int) -> int:
        """Return the bytes of the optimizer's means. Paged ones count too: they leave the device only when it is full.

        Adafactor's depend on the shapes of the weights; they are small, and counted as those of matrices of rank 8.
        """
        if self.optimizer == "adafactor":
            return parameters // 8 * 4
        return int(2 * parameters * (1 + 4 / 256 if self.optimizer.endswith("8bit") else 4))

    def workload(self) -> Training:
        """Return the workload of training, for estimates of memory."""
        kept = {False: "activations", True: "inputs", "offload": "none"}[self.gradient_checkpointing]
        return Training(self.precision, self.batch_size, self.length, kept, self.mixed)


def methods() -> list[type[Finetuning]]:
    """Return every fine-tuning recipe."""
    return subclasses(__name__, Finetuning, "method")
