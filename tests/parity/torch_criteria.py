"""Every criterion once more, over transformers' torch model with hooks, in float64 and in the plainest loops.

Nothing here knows jaxchop. ids_NT are calibration windows, real_NT is false at padding (on the right).
"""

import math

import numpy as np
import torch

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def counted(layer):
  """The weights of seven projections and two norms, without biases."""
  names = dict(layer.named_parameters())
  return [
    p for n, p in names.items() if n.endswith("norm.weight") or (n.split(".")[-2] in LINEARS and n.endswith("weight"))
  ]


def magnitude(model, power, mean):
  found = []
  for layer in model.model.layers:
    weights = counted(layer)
    total = sum((w.detach().double().abs() ** power).sum().item() for w in weights)
    found.append(total / sum(w.numel() for w in weights) if mean else total)
  return found


def states(model, ids_T):
  """What enters each layer and what leaves the last, before the final norm [S, T, D], one window at a time."""
  seen = []
  layers = model.model.layers
  hooks = [
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double().numpy())) for layer in layers
  ]
  hooks.append(
    layers[-1].register_forward_hook(
      lambda _, __, out: seen.append(
        (out[0] if isinstance(out, tuple) else out).reshape(1, len(ids_T), -1)[0].double().numpy()
      )
    )
  )
  with torch.no_grad():
    model(torch.tensor(np.asarray(ids_T)[None], dtype=torch.long), use_cache=False)
  for hook in hooks:
    hook.remove()
  return np.stack(seen)


def window_states(model, ids_NT, real_NT, skip):
  """Per window the states of the tokens that count, and which of them is the last."""
  return [states(model, ids[: int(real.sum())])[:, skip:] for ids, real in zip(ids_NT, real_NT, strict=True)]


def cos(x, y):
  return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def activation_scores(model, ids_NT, real_NT, skip=0):
  """Every activation criterion; runs and pairs beside the score of each layer."""
  windows = window_states(model, ids_NT, real_NT, skip)
  count = len(windows[0]) - 1
  layers = range(count)

  def mean(of):
    return float(np.mean([of(x) for x in windows]))

  def angle(x, y):
    return np.arccos(np.clip(cos(x, y), -1, 1)) / math.pi

  def runs(of):
    return [[of(start, start + size) for start in range(count - size + 1)] for size in range(1, count + 1)]

  found = {
    "block_influence": [mean(lambda x, n=n: (1 - cos(x[n], x[n + 1])).mean()) for n in layers],
    "relative_magnitude": [
      mean(lambda x, n=n: (np.linalg.norm(x[n + 1] - x[n], axis=-1) / np.linalg.norm(x[n + 1], axis=-1)).mean())
      for n in layers
    ],
    "euclidean": [mean(lambda x, n=n: np.linalg.norm(x[n + 1] - x[n], axis=-1).mean()) for n in layers],
  }
  flat = [np.concatenate([x[n].ravel() for x in windows]) for n in range(count + 1)]
  found["block_influence_pooled"] = [1 - cos(flat[n], flat[n + 1]) for n in layers]
  tables = {
    "angular": runs(lambda a, b: mean(lambda x: angle(x[a, -1], x[b, -1]))),
    "angular_all": runs(lambda a, b: mean(lambda x: angle(x[a], x[b]).mean())),
    "cosine": runs(lambda a, b: mean(lambda x: (1 - (0.5 + 0.5 * cos(x[a], x[b]))).mean())),
  }
  found |= {name: table[0] for name, table in tables.items()}
  kernels = [[hsic(x[a], x[b]) for x in windows] for a in range(count + 1) for b in range(count + 1)]
  total = np.array(kernels).sum(axis=1).reshape(count + 1, count + 1)
  pairs = total / np.sqrt(np.outer(np.diag(total), np.diag(total)))
  found["cka"] = [1 - pairs[n, n + 1] for n in layers]
  return found, tables, {"cka": pairs}


def hsic(x, y):
  """The unbiased estimator as a sum over index tuples, written with matrices of ones (Song et al. 2012, eq. 5)."""
  n = len(x)
  k, m = x @ x.T, y @ y.T
  np.fill_diagonal(k, 0)
  np.fill_diagonal(m, 0)
  one = np.ones(n)
  first = np.trace(k @ m)
  second = (one @ k @ one) * (one @ m @ one) / (n - 1) / (n - 2)
  third = 2 / (n - 2) * (one @ k @ m @ one)
  return (first + second - third) / (n * (n - 3))


def taylor(model, ids_NT, real_NT):
  """The three forms: absolute value after summing, in each window, and none."""
  layers = [counted(layer) for layer in model.model.layers]
  summed = [[torch.zeros_like(w, dtype=torch.float64) for w in weights] for weights in layers]
  absolute, signed = np.zeros(len(layers)), np.zeros(len(layers))
  for ids, real in zip(ids_NT, real_NT, strict=True):
    model.zero_grad()
    window = torch.tensor(np.asarray(ids)[: int(real.sum())][None], dtype=torch.long)
    model(window, labels=window, use_cache=False).loss.backward()
    for n, weights in enumerate(layers):
      for place, w in enumerate(weights):
        product = (w.detach() * w.grad).double()
        summed[n][place] += product / len(ids_NT)
        absolute[n] += product.abs().sum().item() / len(ids_NT)
        signed[n] -= product.sum().item() / len(ids_NT)
  model.zero_grad()
  after = [sum(part.abs().sum().item() for part in parts) for parts in summed]
  return {"taylor": after, "taylor_batch": absolute, "taylor_signed": signed}


def perplexity_without(model, ids_NT, real_NT, removed):
  """Perplexity of the windows, each counting the same, by the model rebuilt without some layers."""
  whole = model.model.layers
  model.model.layers = torch.nn.ModuleList(layer for n, layer in enumerate(whole) if n not in removed)
  losses = []
  with torch.no_grad():
    for ids, real in zip(ids_NT, real_NT, strict=True):
      window = torch.tensor(np.asarray(ids)[: int(real.sum())][None], dtype=torch.long)
      losses.append(model(window, labels=window, use_cache=False).loss.double().item())
  model.model.layers = whole
  return math.exp(np.mean(losses))


def greedy_order(model, ids_NT, real_NT, candidates, rounds):
  """SLEB's rounds, each a fresh sweep over rebuilt models."""
  gone = []
  for _ in range(rounds):
    left = [n for n in candidates if n not in gone]
    found = {n: perplexity_without(model, ids_NT, real_NT, {*gone, n}) for n in left}
    gone.append(min(left, key=lambda n: (found[n], -n)))
  return gone
