"""Every setting of jaxchop: one frozen dataclass a room, one recipe that holds them all; training has its own file."""

from dataclasses import dataclass, field
from typing import Literal

from jaxchop.ranges import at_least
from jaxchop.training import RecoverConfig

Pattern = Literal["tail", "head", "middle", "alternate", "max_gap", "random"]
Criterion = Literal[
  "magnitude_l1",
  "magnitude_l2",
  "magnitude_l1_mean",
  "magnitude_l2_mean",
  "taylor",
  "taylor_batch",
  "taylor_signed",
  "block_influence",
  "block_influence_pooled",
  "angular",
  "angular_all",
  "cosine",
  "relative_magnitude",
  "euclidean",
  "cka",
  "perplexity",
  "perplexity_run",
  "perplexity_greedy",
]
Merging = Literal["laco", "slm", "mka", "streamline", "linear_map"]
Bos = Literal["none", "first", "every"]


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
  """How the unpruned model writes what a source named self:SOURCE stands for."""

  prompt_tokens: int = 64
  """Tokens that it goes on from, of each stretch of a text; of a conversation, all before the first answer."""
  new_tokens: int = 192
  """Most tokens that it writes."""
  temperature: float = 0.7
  """Divides the logits; 0 takes the most probable token."""
  top_p: float = 0.95
  """It draws among the fewest tokens that reach this probability."""
  documents: int | None = None
  """At most so many documents, the first; unset, all."""
  batch_size: int = 16
  """Documents written at once."""
  seed: int = 0
  """Decides the draw."""

  def __post_init__(self) -> None:
    at_least(1, self, "data.own", "prompt_tokens", "new_tokens", "documents", "batch_size")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Which text to score, train and evaluate on."""

  source: str = "builtin"
  """Files (.txt .md .jsonl .parquet, .gz or .zst; globs; also gs://), tfds://name/config, hf://name, or `builtin`; to
  train on, also the folder of a cache, and conversations: chat:SOURCE by the tokenizer's chat template, or
  alpaca:SOURCE. self:SOURCE, with any of these, is what the unpruned model makes of how they begin."""
  corpora: dict[str, str] = field(default_factory=dict)
  """Several texts or caches to train on side by side, by names of your own, in place of source."""
  weights: dict[int, dict[str, float]] = field(default_factory=dict)
  """Shares of the corpora from a step on, as {0: {web: 7, code: 3}, 1000: {web: 1, code: 1}}; unset, by their size."""
  workers: int = 0
  """Processes that read records ahead of the steps; 0 means threads."""
  text_field: str = "text"
  """Field of a jsonl object, column of a parquet file or feature of a data set that holds the text."""
  held_out: str | None = None
  """Text to measure on; unset, a share of the source's documents is held out."""
  calibration: str | None = None
  """Text to score layers with; unset, a share of the source's documents is set aside."""
  held_out_share: float = 0.1
  """Share of the source held out for measuring, when held_out is unset."""
  calibration_share: float = 0.1
  """Share of the source set aside for scoring, when calibration is unset."""
  seed: int = 0
  """Decides which document goes where."""
  own: OwnConfig = field(default_factory=OwnConfig)

  def __post_init__(self) -> None:
    at_least(0, self, "data", "workers")
    at_least(0, self, "data", "held_out_share", "calibration_share", below=1)


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
  """How text becomes a cache of token records."""

  seq_len: int = 2048
  """Tokens a record; a recovery's seq_len must be the same."""
  segments: bool = False
  """Keep documents apart: positions restart with each, attention and predictions do not cross."""
  text_field: str = "text"
  """Field of a jsonl object, column of a parquet file or feature of a data set that holds the text."""
  workers: int | None = None
  """Processes that tokenise; unset, one a core. The cache is the same for any number."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
  """How layers are scored."""

  criteria: tuple[Criterion, ...] | Literal["all"] = ("block_influence",)
  """Criteria to compute, or `all`."""
  windows: int = 16
  """Calibration windows."""
  window: int = 256
  """Tokens a window."""
  batch_size: int = 8
  """Windows run at once."""
  skip_first: bool = False
  """Leave the first token of every window out of the activation criteria: its norm is often a hundredfold."""
  removal_windows: int | None = None
  """Calibration windows for the criteria that run one model a candidate (perplexity…); unset, all."""
  longest_run: int | None = None
  """Most layers of a run that perplexity_run takes out; unset, all but one."""
  greedy_rounds: int | None = None
  """Layers that perplexity_greedy takes out one by one; unset, a third."""
  greedy_first: int = 1
  """First layers that perplexity_greedy never takes."""
  greedy_last: int = 1
  """Last layers that perplexity_greedy never takes."""

  def __post_init__(self) -> None:
    at_least(1, self, "score", "windows", "window", "batch_size", "removal_windows", "longest_run", "greedy_rounds")
    at_least(0, self, "score", "greedy_first", "greedy_last")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
  """Which layers go.

  One of drop, keep, pattern or criterion chooses; one of count, ratio, parameters, bytes or latency says how many.
  laco, slm and mka choose by themselves.
  """

  drop: str | None = None
  """Exactly these layers, as 21:29 (half-open) or 3,7,21:29."""
  keep: str | None = None
  """Only these layers stay."""
  pattern: Pattern | None = None
  """A fixed order: tail drops the last layers first, and so on."""
  criterion: Criterion | None = None
  """The lowest scores go first."""
  count: int | None = None
  """Layers to drop."""
  ratio: float | None = None
  """Share of the layers to drop, rounded to whole layers."""
  parameters: int | None = None
  """Drop layers until at most this many parameters are left."""
  bytes: int | None = None
  """Drop layers until the weights take at most this many bytes."""
  latency: float | None = None
  """Drop layers until a decoded token takes at most this share of its time by the whole model, measured here."""
  rounds: int = 1
  """Times that layers are scored, an equal share of them going after each; 1 is one-shot."""
  recover_between: int = 0
  """Recovery steps between two rounds, with the settings of recover; the next round scores and cuts what came of it."""
  fade: int = 0
  """Steps in which the layers to go fade out before they are cut, while every weight trains on the text; batches and
  optimizer are those of recover."""
  fade_penalty: float = 0.1
  """Weight, in those steps, of the squared change that these layers make to the residual stream, relative to it."""
  protect_first: int = 0
  """First layers that a count never drops; the `+` rule of Shortened LLaMA is 4 here and 2 below."""
  protect_last: int = 0
  """Last layers that a count never drops."""
  protect: str | None = None
  """More layers that a count never drops, as 3,7,21:29 (half-open)."""
  seed: int = 0
  """Seed of the random pattern."""
  merge: Merging | None = None
  """Merge layers (laco, slm, mka), train one in place of a run (streamline), or fold a map of a run into the layer
  before it (linear_map), instead of only dropping; see merging."""

  def __post_init__(self) -> None:
    at_least(0, self, "prune", "recover_between", "fade", "fade_penalty", "protect_first", "protect_last", "seed")
    at_least(0, self, "prune", "count", "ratio", "parameters", "bytes", "latency")


@dataclass(frozen=True, kw_only=True)
class MergingConfig:
  """How prune.merge merges layers or stands in for them; the defaults are those of the papers."""

  mode: Literal["telescope", "rdsc"] = "telescope"
  """laco, slm: the released code's merge, or the paper's (LaCo eq. 1)."""
  threshold: float | None = None
  """laco, slm: least similarity to the whole model; unset, 0.65 and 0.72, or what a target of prune needs (laco)."""
  layers_per_merge: int = 4
  """laco: layers that become one, C."""
  interval: int = 2
  """laco: layers that the search goes down after a merge, I."""
  lowest: int = 0
  """laco: lowest layer that may absorb others, L."""
  highest: int | None = None
  """laco: the search starts layers_per_merge below this layer, H; unset, the last."""
  order: Literal["similar", "last"] = "similar"
  """mka: merge the most similar neighbours, or always the last two as released."""
  beta: float = 1.0
  """mka: steepness of the weights' sigmoid."""
  sentences: int = 10
  """laco, slm, mka: calibration sentences, the first paragraphs of the calibration text."""
  sentence_tokens: int = 64
  """laco, slm, mka: a sentence is cut after so many tokens."""
  windows: int = 64
  """streamline, linear_map: windows of training text to fit on."""
  window: int = 256
  """streamline, linear_map: tokens a window."""
  batch_size: int = 8
  """Sentences or windows run at once; streamline: in a step."""
  epochs: int = 1
  """streamline: passes over the windows."""
  learning_rate: float = 2e-4
  """streamline: highest learning rate."""
  final_learning_rate: float = 5e-5
  """streamline: where its cosine ends."""
  weight_decay: float = 1e-3
  """streamline: decoupled weight decay."""
  ridge: float = 1e-8
  """linear_map: pull of the map towards plain dropping."""
  seed: int = 0
  """streamline: decides the order of the windows."""

  def __post_init__(self) -> None:
    at_least(
      1, self, "merging", "interval", "sentences", "sentence_tokens", "windows", "window", "batch_size", "epochs"
    )
    at_least(0, self, "merging", "learning_rate", "final_learning_rate", "weight_decay", "ridge")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
  """How the loss of quality and the gain of speed are measured."""

  suite: tuple[str, ...] = ("perplexity", "capability")
  """What is measured: perplexity; windows-2048 and windows-128, as papers report it; documents, for perplexity a word
  and a byte; capability; and any task or group of lm-evaluation-harness, as zeroshot7."""
  window: int = 512
  """Tokens a window of the perplexity."""
  stride: int = 512
  """Tokens between two windows' starts; less than window scores only what is new, with context."""
  bos: Bos = "none"
  """Beginning-of-sequence token: none, before the first window, or before every window."""
  max_windows: int | None = None
  """At most this many windows are measured; unset, all."""
  batch_size: int = 4
  """Windows run at once."""
  probe_items: int = 4
  """Items of each level of the capability probe, which has five tasks of four levels."""
  task_limit: int | None = None
  """At most this many documents of each lm-eval task are asked; unset, all."""
  task_folder: str | None = None
  """Folder with lm-eval's yaml files of tasks of your own."""
  prompt_tokens: int = 128
  """Prompt length of the speed measurement."""
  new_tokens: int = 32
  """Tokens decoded in the speed measurement."""
  prompts: tuple[str, ...] = (
    "A list in Python is",
    "The capital of France is",
    "To open a file and read it line by line,",
  )
  """Prompts whose continuations by each model stand in the report."""
  sample_tokens: int = 40
  """Tokens a continuation."""

  def __post_init__(self) -> None:
    at_least(1, self, "evaluate", "batch_size", "probe_items", "task_limit", "prompt_tokens")
    at_least(0, self, "evaluate", "new_tokens", "sample_tokens")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """What the Hugging Face folder looks like."""

  dtype: Literal["float32", "bfloat16", "float16"] | None = None
  """Type of the written weights; unset, the source's own (bfloat16 for a GGUF file)."""
  max_shard_size: int = 5_000_000_000
  """Largest size of one safetensors file, in bytes."""

  def __post_init__(self) -> None:
    at_least(1, self, "export", "max_shard_size")


@dataclass(frozen=True, kw_only=True)
class Recipe:
  """One whole job: a model in, a smaller, recovered and proven one out."""

  out: str
  """Run folder; everything the run writes is in it."""
  model: str = "builtin"
  """A folder, a .gguf file, a hub id (org/name or org/name@revision), or `builtin`: SmolLM2-135M-Instruct."""
  data: DataConfig = field(default_factory=DataConfig)
  score: ScoreConfig = field(default_factory=ScoreConfig)
  prune: PruneConfig = field(default_factory=PruneConfig)
  merging: MergingConfig = field(default_factory=MergingConfig)
  recover: RecoverConfig = field(default_factory=RecoverConfig)
  evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
  export: ExportConfig = field(default_factory=ExportConfig)
