"""Texts to tokens, in order, by several processes at once.

A process of its own loads the tokenizer and nothing else: neither JAX nor transformers.
"""

import collections
import itertools
import multiprocessing
import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

import numpy as np
import tokenizers

from jaxchop.data.workers import serve_parent
from jaxchop.errors import JaxchopError

Item = TypeVar("Item")
# Batches that wait for each process, so that none of them ever does.
_WAITING = 3


# A text in parts that are tokenised one by one, each with whether it is to be predicted.
Parts = Sequence[tuple[str, bool]]


class Tokens(NamedTuple):
  """The tokens of several texts in a row."""

  ids: np.ndarray
  # Whether a token is to be predicted.
  targets: np.ndarray
  # Tokens of each text.
  lengths: np.ndarray


def tokenised(
  batches: Iterable[tuple[Item, list[Parts]]], tokenizer: str, eos: int | None, dtype: np.dtype, workers: int
) -> Generator[tuple[Item, Tokens], None, None]:
  """Yields each batch's tokens in the order of the batches, beside what came with it.

  `tokenizer` is the content of a tokenizer.json. An EOS that is not None ends every text. One worker is this process,
  with the tokenizer's own threads; more are processes of one thread each. Raises JaxchopError when one of them dies.
  """
  if workers == 1:
    loaded = _loaded(tokenizer)
    for item, texts in batches:
      yield item, _tokens(loaded, texts, eos, dtype)
    return
  pool = ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tokenizer,)
  )
  running: collections.deque[tuple[Item, Future[Tokens]]] = collections.deque()
  try:
    for item, texts in batches:
      running.append((item, pool.submit(_work, texts, eos, dtype)))
      if len(running) > _WAITING * workers:
        done, future = running.popleft()
        yield done, future.result()
    while running:
      done, future = running.popleft()
      yield done, future.result()
  except BrokenProcessPool as error:
    raise JaxchopError(
      "a process that tokenises died: for want of memory (run the same command again with fewer --workers), or because "
      "the program that called has no `if __name__ == '__main__'`"
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


# Of a process of the pool: what its initialiser leaves for its work.
_mine: list[tokenizers.Tokenizer] = []


def _begin(tokenizer: str) -> None:
  """Sets up a process of the pool."""
  serve_parent()
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  _mine.append(_loaded(tokenizer))


def _loaded(tokenizer: str) -> tokenizers.Tokenizer:
  """Returns the tokenizer without what its last use may have left in it."""
  loaded = tokenizers.Tokenizer.from_str(tokenizer)
  loaded.no_padding()
  loaded.no_truncation()
  return loaded


def _work(texts: list[Parts], eos: int | None, dtype: np.dtype) -> Tokens:
  return _tokens(_mine[0], texts, eos, dtype)


def _tokens(tokenizer: tokenizers.Tokenizer, texts: list[Parts], eos: int | None, dtype: np.dtype) -> Tokens:
  found = tokenizer.encode_batch_fast([part for parts in texts for part, _ in parts], add_special_tokens=False)
  encoded, ids, wanted, lengths = iter(found), [], [], []
  for parts in texts:
    of_parts = [next(encoded).ids for _ in parts]
    ids += [*of_parts, [eos]] if eos is not None else of_parts
    wanted += [(target, len(part)) for (_, target), part in zip(parts, of_parts, strict=True)]
    wanted += [(True, 1)] if eos is not None else []
    lengths.append(sum(map(len, of_parts)) + (eos is not None))
  targets, counts = zip(*wanted, strict=True)
  joined = np.fromiter(itertools.chain.from_iterable(ids), dtype)
  return Tokens(joined, np.repeat(targets, counts), np.array(lengths, np.int64))
