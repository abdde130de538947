"""What a Llama-family architecture is, as numbers. How many layers there are is not among them: the list says that."""

import dataclasses
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
  """Rotary position embedding: which frequencies, and how they are scaled beyond the trained length."""

  kind: RopeKind = "default"
  # Base of the geometric series of wavelengths.
  theta: float = 10_000.0
  # How much further positions reach (linear, dynamic, llama3, yarn).
  factor: float = 1.0
  # Length the model was trained at before scaling (llama3, yarn).
  original_max_positions: int | None = None
  # Wavelengths above original_max_positions / low_freq_factor are divided by factor (llama3).
  low_freq_factor: float = 1.0
  # Wavelengths below original_max_positions / high_freq_factor are left alone (llama3).
  high_freq_factor: float = 4.0
  # Rotations over the trained length above which a frequency is left alone (yarn).
  beta_fast: float = 32.0
  # Rotations over the trained length below which a frequency is divided by factor (yarn).
  beta_slow: float = 1.0
  # Scale of cos and sin; None derives it from factor and the two mscales (yarn).
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  # Whether the ramp's ends are rounded to whole frequencies (yarn).
  truncate: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
  """The shape of one decoder layer and of what surrounds the stack."""

  # Rows of the embedding, V.
  vocab_size: int
  # Width of the residual stream, D.
  width: int
  # Width of the MLP, F.
  mlp_width: int
  # Query heads, N.
  heads: int
  # Key and value heads, K; each serves heads / kv_heads query heads.
  kv_heads: int
  # Width of one head, H; not always width / heads.
  head_dim: int
  # Added to the mean square before its root.
  norm_eps: float
  # Longest position the model states it supports.
  max_positions: int
  rope: Rope = dataclasses.field(default_factory=Rope)
  # Whether the output head is the embedding, transposed: one parameter, used twice.
  tied: bool = False
  # Whether q, k, v and o have biases.
  attention_bias: bool = False
  # Whether gate, up and down have biases.
  mlp_bias: bool = False

  def __post_init__(self) -> None:
    for field in ("vocab_size", "width", "mlp_width", "heads", "kv_heads", "head_dim", "max_positions"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
    if self.head_dim % 2:
      raise ValueError(f"head_dim is {self.head_dim}; rotary embeddings need an even one")
