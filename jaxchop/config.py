"""Every setting of jaxchop: one frozen dataclass a room, one recipe that holds them all."""

from dataclasses import dataclass, field
from typing import Literal

Pattern = Literal["tail", "head", "middle", "alternate", "max_gap", "random"]
Criterion = Literal["block_influence", "perplexity"]
Bos = Literal["none", "first", "every"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
  """Which model to make smaller."""

  # A folder, a .gguf file, a hub id (org/name or org/name@revision), or `builtin`: SmolLM2-135M-Instruct.
  name: str = "builtin"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
  """Which text to score, train and evaluate on."""

  # Files (.txt .md .jsonl .parquet, .gz or .zst; globs), tfds://name/config, hf://name, or `builtin`.
  source: str = "builtin"
  # Field of a jsonl object, column of a parquet file or feature of a data set that holds the text.
  text_field: str = "text"
  # Text to measure on; unset, a share of the source's documents is held out.
  held_out: str | None = None
  # Text to score layers with; unset, a share of the source's documents is set aside.
  calibration: str | None = None
  # Share of the source held out for measuring, when held_out is unset.
  held_out_share: float = 0.1
  # Share of the source set aside for scoring, when calibration is unset.
  calibration_share: float = 0.1
  # Decides which document goes where.
  seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
  """How layers are scored."""

  # Criteria to compute: block_influence, perplexity.
  criteria: tuple[Criterion, ...] = ("block_influence",)
  # Calibration windows.
  windows: int = 16
  # Tokens a window.
  window: int = 256
  # Windows run at once.
  batch_size: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
  """Which layers go.

  One of drop, keep, pattern or criterion chooses; one of count, ratio, parameters or bytes says how many.
  """

  # Exactly these layers, as 21:29 (half-open) or 3,7,21:29.
  drop: str | None = None
  # All but these layers.
  keep: str | None = None
  # A fixed order: tail drops the last layers first, and so on.
  pattern: Pattern | None = None
  # The lowest scores go first.
  criterion: Criterion | None = None
  # Layers to drop.
  count: int | None = None
  # Share of the layers to drop, rounded to whole layers.
  ratio: float | None = None
  # Drop layers until at most this many parameters are left.
  parameters: int | None = None
  # Drop layers until the weights take at most this many bytes.
  bytes: int | None = None
  # First layers that a count never drops.
  protect_first: int = 0
  # Last layers that a count never drops.
  protect_last: int = 0
  # Seed of the random pattern.
  seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
  """AdamW with warm-up and cosine decay."""

  # Highest learning rate, reached after the warm-up.
  learning_rate: float = 3e-4
  # The cosine ends at this share of the highest rate.
  final_share: float = 0.1
  # Steps of linear warm-up from zero.
  warmup_steps: int = 10
  # Decay of the first moment.
  beta1: float = 0.9
  # Decay of the second moment.
  beta2: float = 0.95
  # Added to the root of the second moment.
  eps: float = 1e-8
  # Decoupled weight decay of matrices; norms and biases are not decayed.
  weight_decay: float = 0.1
  # Gradients are scaled down to at most this global norm.
  clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverConfig:
  """Continued pretraining of the pruned model."""

  # Optimizer steps.
  steps: int = 60
  # Sequences a step, over all micro-batches.
  batch_size: int = 4
  # Tokens a sequence.
  seq_len: int = 256
  # Micro-batches a step; their gradients are summed and weighted by tokens.
  accumulate: int = 1
  # Type of the forward and backward pass; master weights and optimizer are float32.
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  # How the step walks the layers: one compiled layer scanned, or each compiled by itself.
  layout: Literal["scan", "unrolled"] = "scan"
  # Recompute activations in the backward pass instead of keeping them.
  remat: bool = False
  # Steps between two checkpoints.
  checkpoint_every: int = 50
  # Checkpoints kept.
  keep_checkpoints: int = 2
  # Decides the order of the training records.
  seed: int = 0
  optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
  """How the loss of quality and the gain of speed are measured."""

  # Tokens a window of the perplexity.
  window: int = 512
  # Tokens between two windows' starts; less than window scores only what is new, with context.
  stride: int = 512
  # Beginning-of-sequence token: none, before the first window, or before every window.
  bos: Bos = "none"
  # At most this many windows are measured; unset, all.
  max_windows: int | None = None
  # Windows run at once.
  batch_size: int = 4
  # Prompt length of the speed measurement.
  prompt_tokens: int = 128
  # Tokens decoded in the speed measurement.
  new_tokens: int = 32
  # Prompts whose continuations by each model stand in the report.
  prompts: tuple[str, ...] = (
    "A list in Python is",
    "The capital of France is",
    "To open a file and read it line by line,",
  )
  # Tokens a continuation.
  sample_tokens: int = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
  """What the Hugging Face folder looks like."""

  # Type of the written weights; unset, the source's own (bfloat16 for a GGUF file).
  dtype: Literal["float32", "bfloat16", "float16"] | None = None
  # Largest size of one safetensors file, in bytes.
  max_shard_size: int = 5_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
  """One whole job: a model in, a smaller, recovered and proven one out."""

  # Run folder; everything the run writes is in it.
  out: str
  model: ModelConfig = field(default_factory=ModelConfig)
  data: DataConfig = field(default_factory=DataConfig)
  score: ScoreConfig = field(default_factory=ScoreConfig)
  prune: PruneConfig = field(default_factory=PruneConfig)
  recover: RecoverConfig = field(default_factory=RecoverConfig)
  evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
  export: ExportConfig = field(default_factory=ExportConfig)
