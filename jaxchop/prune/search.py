"""Scores by any function of the model that a user brings: what is lost without each layer, and greedy removal.

The function is called with whole models, so it may run any task; higher values mean a better model.
"""

from collections.abc import Callable, Sequence

from jaxchop.errors import JaxchopError, UsageError
from jaxchop.layers import without
from jaxchop.model.llama import Llama
from jaxchop.progress import stage
from jaxchop.prune.surgery import keep_layers

Judge = Callable[[Llama], float]


def lost_without_each(model: Llama, judge: Judge) -> tuple[float, ...]:
  """Returns, for each layer, by how much the judged value falls when it is taken out; higher is more important."""
  layers = len(model.layers)
  with stage("Judging the model without each layer", layers + 1, "models") as bar:
    whole = _judged(judge, model, range(layers))
    bar.advance()
    lost = []
    for layer in range(layers):
      lost.append(whole - _judged(judge, model, without([layer], layers)))
      bar.advance()
  return tuple(lost)


def greedy_by(
  model: Llama, judge: Judge, count: int, *, candidates: Sequence[int] | None = None
) -> tuple[tuple[int, float], ...]:
  """Returns the `count` layers in the order of removal, each with the value of the model that is then left.

  Each round takes out the layer without which the judged value is highest; of equal ones the later goes (SLEB, arXiv
  2402.09025, with any measure, as the generative search of arXiv 2602.01997). Raises UsageError when fewer candidates
  are left than layers are to go.
  """
  layers = len(model.layers)
  left = list(range(layers) if candidates is None else candidates)
  if not 0 <= count <= min(len(left), layers - 1):
    raise UsageError(f"greedy_by: {count} layers are to go, {len(left)} of {layers} may; at least one must stay")
  gone: list[tuple[int, float]] = []
  with stage("Judging greedily", sum(len(left) - done for done in range(count)), "models") as bar:
    for _ in range(count):
      dropped = [layer for layer, _ in gone]
      found = {}
      for layer in left:
        found[layer] = _judged(judge, model, without([*dropped, layer], layers))
        bar.advance()
      best = max(left, key=lambda layer: (found[layer], layer))
      gone.append((best, found[best]))
      left.remove(best)
  return tuple(gone)


def _judged(judge: Judge, model: Llama, keep: Sequence[int]) -> float:
  value = float(judge(keep_layers(model, keep)))
  if value != value:
    raise JaxchopError(f"the judged value of the model with layers {list(keep)} is not a number")
  return value
