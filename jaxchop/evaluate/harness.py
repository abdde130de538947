"""A model as lm-evaluation-harness asks it: log-likelihoods, rolling ones, and texts written until a stop string.

What comes out equals what lm-eval's own `hf` model gives for the same folder in the same type: tokens of context and
continuation, truncation, BOS, stop strings. Requests are sorted by length and run in a few fixed shapes.
"""

import copy
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from transformers import PreTrainedTokenizerFast

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.evaluate.answers import Answers, identity
from jaxchop.evaluate.scoring import Pair, batches, cut, rows_of, score
from jaxchop.evaluate.wishes import Wish, wish_of
from jaxchop.model.generate import generate
from jaxchop.model.llama import Llama
from jaxchop.parallel.mesh import make_mesh
from jaxchop.parallel.rows import Rows, mesh_under
from jaxchop.parallel.sharding import spread
from jaxchop.progress import stage
from jaxchop.training import MeshConfig

try:
  from lm_eval.api.model import TemplateLM
  from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
  raise JaxchopError(f"lm-evaluation-harness cannot be imported ({error}); pip install 'jaxchop[eval]'") from error

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HarnessConfig:
  """How requests are answered; the names are those of lm-eval's `hf` model where it has them."""

  # Rows that go through the model at once.
  batch_size: int = 16
  # What the model computes in.
  dtype: Dtype = "float32"
  # Tokens of a row at most; None takes the positions that the model supports.
  max_length: int | None = None
  # Whether texts begin with BOS; None leaves it to the tokenizer.
  add_bos_token: bool | None = None
  # Folder that keeps the answers, so that an interrupted evaluation goes on; None keeps none.
  answers: str | None = None

  def __post_init__(self) -> None:
    if self.batch_size < 1:
      raise UsageError(f"batch_size is {self.batch_size}; run at least one row at once")
    if self.dtype not in get_args(Dtype):
      raise UsageError(f"dtype is {self.dtype!r}; give {' or '.join(get_args(Dtype))}")
    if self.max_length is not None and self.max_length < 1:
      raise UsageError(f"max_length is {self.max_length}; give at least 1, or leave it out")


class JaxchopLM(TemplateLM):
  """What `lm_eval.simple_evaluate(model=…)` takes."""

  def __init__(
    self,
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    config: HarnessConfig | None = None,
    *,
    eos: Collection[int] = (),
    mesh: MeshConfig | None = None,
    answers: Answers | None = None,
  ):
    """`eos` are the ids that end a text beside the tokenizer's own, `answers` are those of this model so far.

    Where the model is spread over devices, rows are too. Any other model is spread as `mesh` says, or as in training
    over all there are. Several CPU devices of one process share its cores, so that spreading over them must be asked
    for. Raises UsageError when the tokenizer has neither BOS nor EOS, or there are several processes.
    """
    super().__init__()
    if jax.process_count() > 1:
      raise UsageError("lm-evaluation-harness asks one process; run it on one host")
    self.config, self.eos = config or HarnessConfig(), tuple(eos)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
      raise UsageError("the tokenizer has neither BOS nor EOS: nothing can stand before the first token of a text")
    # lm-eval, which asks it for the chat template, leaves open what this is.
    self.tokenizer: Any = copy.deepcopy(tokenizer)
    if self.config.add_bos_token is not None:
      self.tokenizer.add_bos_token = self.config.add_bos_token
    self.max_length = self.config.max_length or model.config.max_positions
    dtype = jnp.dtype(self.config.dtype)
    model = jax.tree.map(lambda leaf: leaf.astype(dtype), model)
    kept = self.config.answers
    self.answers = answers or (Answers(Path(kept), identity(model)) if kept else Answers())
    if mesh_under(model) is None:
      mesh = mesh or (MeshConfig(fsdp=1) if jax.default_backend() == "cpu" else MeshConfig())
      devices = make_mesh(mesh, model.config, self.config.batch_size, 1)
      model = model if devices is None else spread(model, devices)
    self.model, self._rows = model, Rows(model, self.config.batch_size)

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """What stands before the first token of a text that nothing stands before."""
    return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

  @property
  def tokenizer_name(self) -> str:
    return self.tokenizer.name_or_path.replace("/", "__")

  def get_model_info(self) -> dict[str, Any]:
    """Returns what lm-eval writes beside its results."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(self.model))
    return {"model_num_parameters": parameters, "model_dtype": self.config.dtype, "max_length": self.max_length}

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Returns a conversation as the tokenizer's template writes it, without the system's words where it takes none."""
    if not self.tokenizer.chat_template:
      raise JaxchopError("the tokenizer has no chat template; leave out --apply_chat_template")
    ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    try:
      return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends))
    except jinja2.exceptions.TemplateError:
      others = [message for message in chat_history if message["role"] != "system"]
      return str(self.tokenizer.apply_chat_template(others, tokenize=False, **ends))

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """Returns a text's ids; a text that begins with BOS gets no second one."""
    if add_special_tokens is None and string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
      add_special_tokens = False
    return self._encode(string, add_special_tokens)

  def _encode(self, string: str, special: bool | None) -> list[int]:
    special = self.config.add_bos_token if special is None else special
    return self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special}))

  def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
    found = self.score([(context, continuation) for _, context, continuation in requests])
    for request, answer in zip(requests, found, strict=True):
      self.cache_hook.add_partial("loglikelihood", request[0], answer)
    return found

  def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
    """Returns the log-likelihood of each whole text, each of its tokens predicted once, in rows as long as may be."""
    windows = [self._windows(request.args[0]) for request in requests]
    found = iter(self.score([*itertools.chain.from_iterable(windows)]))
    totals = [sum(answer for answer, _ in itertools.islice(found, len(part))) for part in windows]
    for request, total in zip(requests, totals, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  def _windows(self, text: str) -> list[Pair]:
    tokens, prefix = self.tok_encode(text), self.prefix_token_id
    return [*map(make_disjoint_window, get_rolling_token_windows(tokens, prefix, self.max_length, 1))]

  def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Returns of each continuation its log-likelihood in nats, and whether greedy decoding would write it."""
    asked = [cut(pair, self.max_length) for pair in pairs]
    keys = [self.answers.key("score", *pair) for pair in asked]
    left = {key: pair for key, pair in zip(keys, asked, strict=True) if self.answers.get(key) is None}
    rows, names = rows_of([*left.values()], self.max_length), [*left]
    with stage("Scoring continuations", len(left), "requests") as bar, self._rows.on_devices():
      for batch in batches(rows, self._rows.count, self.max_length):
        nll_BK, hit_BK = map(np.asarray, score(self.model, *self._rows.place((batch.ids, batch.place, batch.target))))
        done = {
          names[number]: [-float(nll_BK[index, numbers].sum()), bool(hit_BK[index, numbers].all())]
          for index, row in enumerate(batch.rows)
          for number, numbers in row.asked
        }
        self.answers.put(done)
        bar.advance(len(done))
    return [(likelihood, greedy) for likelihood, greedy in map(self.answers.get, keys)]

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """Returns what the model writes for each request, up to a stop string, the end of the text or enough tokens."""
    asked = [self._asked(request.args, number) for number, request in enumerate(requests)]
    keys = [self.answers.key("write", dataclasses.asdict(wish), prompt, stream) for prompt, wish, stream in asked]
    left = {key: one for key, one in zip(keys, asked, strict=True) if self.answers.get(key) is None}
    # The longest first: what takes most memory fails at once.
    order = sorted(left, key=lambda key: (left[key][1].group, -len(left[key][0])))
    with stage("Writing continuations", len(left), "requests") as bar, self._rows.on_devices():
      for _, same in itertools.groupby(order, key=lambda key: left[key][1].group):
        for names in _batches(same, self._rows.count):
          self.answers.put(dict(zip(names, self._write([left[name] for name in names]), strict=True)))
          bar.advance(len(names))
    texts = [self._text(wish, self.answers.get(key)) for key, (_, wish, _) in zip(keys, asked, strict=True)]
    for request, text in zip(requests, texts, strict=True):
      self.cache_hook.add_partial("generate_until", request.args, text)
    return texts

  def _asked(self, arguments: tuple[str, Mapping[str, Any]], number: int) -> tuple[list[int], Wish, int]:
    """Returns a request's tokens, cut off on the left, its wish, and the random stream that it draws from."""
    context, settings = arguments
    wish = wish_of(settings, self.tokenizer, self.eos)
    room = self.max_length - wish.new_tokens
    if room < 1:
      raise UsageError(
        f"max_gen_toks is {wish.new_tokens}, a row of the model has {self.max_length} tokens: nothing is left for the "
        "context; set max_gen_toks to less with --gen_kwargs"
      )
    bos = self.tokenizer.bos_token
    prompt = self._encode(context, False if bos and context.startswith(bos) else None)[-room:]
    # Repeats of a request draw anew; what is not drawn is the same wherever it stands.
    return prompt or [self.prefix_token_id], wish, number if wish.sampling.temperature else 0

  def _write(self, asked: Sequence[tuple[list[int], Wish, int]]) -> list[list[int]]:
    """Returns the new tokens of a batch of one group, filled up with its last request."""
    full = [*asked, *[asked[-1]] * (self._rows.count - len(asked))]
    wish = asked[0][1]
    new = generate(
      self.model,
      [prompt for prompt, _, _ in full],
      max_new_tokens=wish.new_tokens,
      eos=wish.eos,
      sampling=wish.sampling,
      streams=[stream for *_, stream in full],
      stopped=lambda row, tokens: full[row][1].stops(str(self.tokenizer.decode(tokens))),
      place=self._rows.place,
    )
    return new[: len(asked)]

  def _text(self, wish: Wish, tokens: list[int]) -> str:
    return wish.cut(str(self.tokenizer.decode(tokens, skip_special_tokens=True)))


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
  """Yields `size` names at a time; what `itertools.batched` does, which Python 3.11 lacks."""
  left = iter(names)
  while batch := [*itertools.islice(left, size)]:
    yield batch
