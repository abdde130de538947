"""Every setting of recovery: what trains, on what beside the text, by which optimizer, on which devices."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxchop.errors import UsageError
from jaxchop.ranges import at_least

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
  """Parameters that the optimizer treats otherwise than the rest."""

  match: str
  """A regular expression; the group is the trained parameters whose whole dotted name fits it."""
  learning_rate: float | None = None
  """Their highest learning rate; it warms up and falls as the others'."""
  weight_decay: float | None = None
  """Their weight decay; norms and biases have none either way."""

  def __post_init__(self) -> None:
    at_least(0, self, "recover.optimizer.groups", "learning_rate", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """How gradients become updates."""

  kind: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
  """muon is for the kernels of the layers; embedding, head, norms and biases go by adamw beside it."""
  learning_rate: float = 3e-4
  """Highest learning rate, reached after the warm-up."""
  schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
  """How the rate falls; wsd stays at the highest rate and falls linearly at the end."""
  final_share: float = 0.1
  """The rate ends at this share of the highest one; constant does not fall."""
  decay_share: float = 0.2
  """Share of the steps in which wsd falls."""
  warmup_steps: int = 10
  """Steps of linear warm-up from zero."""
  beta1: float = 0.9
  """Decay of the first moment; adafactor has none. Of lion and muon, the momentum in the update."""
  beta2: float = 0.95
  """Decay of the second moment. Of lion, decay of the momentum; adafactor goes by its own rule."""
  eps: float = 1e-8
  """Added to the root of the second moment of adamw."""
  weight_decay: float = 0.1
  """Decoupled weight decay of matrices; norms and biases are not decayed."""
  clip_norm: float = 1.0
  """Gradients are scaled down to at most this global norm."""
  groups: tuple[GroupConfig, ...] = ()
  """Parameters with a learning rate or weight decay of their own; one is of the first group that it fits."""

  def __post_init__(self) -> None:
    group = "recover.optimizer"
    at_least(0, self, group, "learning_rate", "final_share", "warmup_steps", "eps", "weight_decay")
    at_least(0, self, group, "beta1", "beta2", below=1)
    # It may be infinite.
    if not self.clip_norm > 0:
      raise UsageError(f"{group}.clip_norm is {self.clip_norm}; it is above 0")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """How devices share the work of a step. One axis may be -1: the devices that are left."""

  data: int = 1
  """Copies of the model, each with rows of the batch of its own."""
  fsdp: int = -1
  """Parts that weights and optimizer are cut into; each has rows of its own too."""
  context: int = 1
  """Parts that long sequences are cut into; weights and optimizer are cut over these devices too."""
  tensor: int = 1
  """Parts that heads, MLP columns and vocabulary are cut into."""
  wait: float = 300.0
  """Seconds that the processes of a run wait for each other at the start."""

  def __post_init__(self) -> None:
    at_least(0, self, "recover.mesh", "wait")


@dataclass(frozen=True, kw_only=True)
class PartialConfig:
  """Which parameters `partial` trains; the defaults are those of Reassessing Layer Pruning (arXiv 2411.15558)."""

  last: int = 3
  """Last layers that train."""
  layers: str | None = None
  """Layers of the pruned model that train instead, as 3,7,21:24 (half-open)."""
  norm: bool = True
  """The final norm trains."""
  head: bool = True
  """The output head trains; one tied to the embedding becomes a parameter of its own."""
  match: tuple[str, ...] = ()
  """Regular expressions; parameters whose whole dotted name fits one train too, as 'layers\\.[0-9]+\\.mlp\\..*'."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
  """The adapters of lora, dora and qlora; the defaults are those of Shortened LLaMA and Reassessing."""

  rank: int = 8
  """Columns of the first thin matrix, rows of the second."""
  alpha: float = 16.0
  """The product of both is scaled by alpha / rank."""
  dropout: float = 0.05
  """Share of an adapter's inputs that a training step leaves out."""
  targets: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")
  """Projections that get an adapter, in every layer."""

  def __post_init__(self) -> None:
    at_least(1, self, "recover.adapter", "rank")
    at_least(0, self, "recover.adapter", "dropout", below=1)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
  """What the model learns from a teacher beside the text."""

  weight: float = 0.0
  """Weight of the divergence between the next-token distributions; the cross-entropy has the rest of 1."""
  divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
  """Of teacher against student, of student against teacher, or of both against their mean."""
  temperature: float = 1.0
  """Logits of both are divided by it."""
  hidden: float = 0.0
  """Weight of the relative squared error of the states behind each layer against those behind its original."""
  cache_top: int = 0
  """So many most likely tokens of the teacher are computed once for each prediction and kept on disk, at eight bytes
  each; all others count as one. 0 runs the whole teacher beside the model in every step."""
  teacher: str | None = None
  """A folder, a .gguf file or a hub id with the same tokenizer; unset, the unpruned model."""

  def __post_init__(self) -> None:
    group = "recover.distill"
    at_least(0, self, group, "hidden", "cache_top")
    if not 0 <= self.weight <= 1:
      raise UsageError(f"{group}.weight is {self.weight}; it is at least 0 and at most 1")
    if not 0 < self.temperature < math.inf:
      raise UsageError(f"{group}.temperature is {self.temperature}; it is above 0")
    if self.cache_top and (self.hidden or not self.weight):
      raise UsageError(
        f"{group}.cache_top is {self.cache_top}: it keeps what a teacher expects next, not its states; set "
        f"{group}.weight above 0 and hidden to 0, or leave it out"
      )


@dataclass(frozen=True, kw_only=True)
class RecoverConfig:
  """Training of the pruned model, which gives it its quality back."""

  steps: int = 60
  """Optimizer steps; 0 leaves a recipe's pruned model as it is; of a fork, those of its decay."""
  fork: str | None = None
  """A wsd run whose stable phase this run takes over, as runs/x or runs/x@STEP; its rate only falls, over steps."""
  trainable: Literal["all", "partial", "replacement", "lora", "dora", "qlora"] = "all"
  """What trains: every weight, those that partial names, only the layers that prune.merge made, or adapters beside the
  weights, which qlora holds in four bits."""
  batch_size: int = 4
  """Sequences a step, over all micro-batches."""
  seq_len: int = 256
  """Tokens a sequence."""
  accumulate: int = 1
  """Micro-batches a step; their gradients are summed and weighted by tokens."""
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  """Type of the forward and backward pass; master weights and optimizer are float32."""
  z_loss: float = 0.0
  """Weight of the mean squared logsumexp of the logits, which keeps them from drifting; PaLM took 1e-4."""
  loss_chunk: int = 1024
  """Tokens whose logits a device holds at once; fewer take less memory, and more passes over the head's gradient."""
  layout: Literal["scan", "unrolled"] = "scan"
  """How the step walks the layers: one compiled layer scanned, or each compiled by itself."""
  remat: Literal["none", "dots", "full", "offload"] = "dots"
  """What the backward pass keeps of a layer: all, results of products, only its input, or products in host memory."""
  deterministic: bool = True
  """A restart is the same run to the last bit on a GPU too; without, its steps are a quarter faster on an H100."""
  program: str | None = None
  """File of the compiled step that `preflight --save` wrote; where versions or settings differ it compiles anew."""
  checkpoint_every: int = 50
  """Steps between two checkpoints."""
  keep_checkpoints: int = 2
  """Newest checkpoints kept."""
  keep_every: int = 0
  """Checkpoints of steps that this number divides are kept for good; 0 keeps none so."""
  keep_best: int = 0
  """Checkpoints kept for the lowest held-out loss; needs evaluate_every."""
  evaluate_every: int = 0
  """Steps between two measurements of the held-out loss, each of which is a checkpoint too; 0 measures none."""
  evaluate_suite: tuple[str, ...] = ()
  """What is measured then beside it, as [capability]: names as in evaluate.suite, with the settings under evaluate."""
  evaluate_windows: int = 32
  """Held-out windows of seq_len tokens to measure on, from the beginning of the held-out text."""
  skip_nonfinite: int = 0
  """Steps in a row that are skipped when loss or gradient is not finite; one more stops the run before its update."""
  spike: Literal["warn", "skip"] = "warn"
  """A loss above mean + 6 standard deviations of the 128 steps before is told of, or its update is skipped too."""
  track: tuple[Tracker, ...] = ()
  """Who else shows the curve of metrics.jsonl, as [tensorboard,wandb]; needs pip install 'jaxchop[track]'."""
  profile_steps: int = 0
  """Steps that JAX's profiler records into the run folder's `profile`, after three to warm up."""
  seed: int = 0
  """Decides the order of the training records."""
  partial: PartialConfig = field(default_factory=PartialConfig)
  adapter: AdapterConfig = field(default_factory=AdapterConfig)
  distill: DistillConfig = field(default_factory=DistillConfig)
  mesh: MeshConfig = field(default_factory=MeshConfig)
  optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

  def __post_init__(self) -> None:
    at_least(1, self, "recover", "batch_size", "seq_len", "accumulate", "loss_chunk", "evaluate_windows")
    at_least(1, self, "recover", "checkpoint_every", "keep_checkpoints")
    at_least(0, self, "recover", "steps", "z_loss", "skip_nonfinite", "profile_steps")
    at_least(0, self, "recover", "keep_every", "keep_best", "evaluate_every")
    at_least(0, self, "recover", "seed", below=2**63)
