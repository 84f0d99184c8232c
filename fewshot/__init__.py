"""Few-shot evaluation on cached features: stored episodes, batched classifiers, honest intervals, and a map per answer.

episodes = sample_episodes(labels, n_way=5, n_shot=1, names=paths, seed=0)
result = evaluate(features, episodes, Prototypes("cosine"))
print(result.table())
"""

from ..lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
