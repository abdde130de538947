"""What a generation request of lm-evaluation-harness asks for, in our terms: stop strings, length, sampling."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from jaxchop.errors import UsageError
from jaxchop.model.generate import Sampling

# What lm-eval's `hf` model writes at most where a task names no length.
_MOST = 256
# transformers draws among this many where nothing else is said.
_TOP_K = 50
# Names that tasks give the number of new tokens, the first of them wins.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings that change nothing as long as they have this value.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
  """How one request is to be continued; requests with the same `group` go through one program together."""

  new_tokens: int
  sampling: Sampling
  # Tokens that end the text: the model's own, and stop strings that are a special token.
  eos: tuple[int, ...]
  # The text is cut before the first of these.
  until: tuple[str, ...]

  @property
  def group(self) -> tuple[Any, ...]:
    return self.new_tokens, self.sampling.temperature, self.sampling.top_k, self.sampling.top_p, self.eos

  def stops(self, text: str) -> bool:
    """Returns whether a stop string stands in the text."""
    return any(stop in text for stop in self.until)

  def cut(self, text: str) -> str:
    """Returns the text before the first stop string."""
    for stop in self.until:
      text = text.partition(stop)[0]
    return text


def wish_of(settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, eos: Collection[int]) -> Wish:
  """Returns what a request's generation_kwargs ask for; raises UsageError, naming it, on what we cannot do."""
  left = dict(settings)
  until = left.pop("until", None) or []
  until = [until] if isinstance(until, str) else [str(stop) for stop in until]
  lengths = [value for name in _LENGTHS if (value := left.pop(name, None)) is not None]
  sampling = _sampling(left)
  for name, value in left.items():
    if value is not None and (name not in _NEUTRAL or value != _NEUTRAL[name]):
      raise UsageError(f"generation_kwargs: {name}={value!r} is not something that jaxchop can do; leave it out")
  special = _special(tokenizer, until)
  ends = sorted({*eos, *special, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
  # As text, too: a tokenizer may write the end of a text in other tokens than the special one.
  text = [] if tokenizer.eos_token_id is None else [str(tokenizer.decode([tokenizer.eos_token_id]))]
  stops = tuple(dict.fromkeys(stop for stop in [*until, *text] if stop))
  return Wish(int(lengths[0] if lengths else _MOST), sampling, tuple(ends), stops)


def _sampling(left: dict[str, Any]) -> Sampling:
  """Takes what is said about sampling out of the settings and returns it."""
  temperature = float(left.pop("temperature", None) or 0.0)
  top_k, top_p, wanted = left.pop("top_k", None), left.pop("top_p", None), left.pop("do_sample", None)
  if wanted is False or (wanted is None and not temperature):
    return Sampling()
  if not temperature:
    raise UsageError("generation_kwargs: do_sample without a temperature; give one above 0, or leave out do_sample")
  return Sampling(
    temperature=temperature,
    top_k=_TOP_K if top_k is None else int(top_k),
    top_p=1.0 if top_p is None else float(top_p),
  )


def _special(tokenizer: PreTrainedTokenizerFast, until: Sequence[str]) -> list[int]:
  """Returns the stop strings that are one special token: they are left out of the text, and are not seen there."""
  ids = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
  return [ids[stop] for stop in until if stop in ids]
