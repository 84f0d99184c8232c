"""The price of 10,000 five-way one-shot episodes on cached features: distcam beside easyfsl.

    pip install easyfsl        # optional; without it only distcam is measured
    python benchmarks speed/fewshot

One process, one thread, 12,000 random 640-d vectors of 20 classes (the size of miniImageNet's test set), 15 queries per
class. easyfsl is measured twice: as shipped (its `evaluate` over its sampler, loader and collate function), and bare
(its classifier alone on vectors gathered from distcam's own episodes, so that the predictions can be compared). The
constructor of its sampler fails on recent torch and is replaced. A third time it classifies images (84×84, in memory,
Conv-4), as its tutorials do. Baseline++ is trained side by side and in a loop over torch's own modules. Trust CPU
seconds where others use the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe_machine

from distcam.encoders import Conv4, ResNet12
from distcam.fewshot import (
    BDCSPN,
    EpisodeManifest,
    FineTuned,
    NearestNeighbour,
    Prototypes,
    baseline_plus_plus,
    episode_maps,
    evaluate,
    sample_episodes,
    simple_shot,
)

N_IMAGES, N_CLASSES, DIMENSION = 12_000, 20, 640


def timed(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median wall and CPU seconds."""
    spent = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
    return statistics.median(s[0] for s in spent), statistics.median(s[1] for s in spent)


def peak_mib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_easyfsl(method: torch.nn.Module, features: torch.Tensor, episodes: EpisodeManifest) -> np.ndarray:
    """Predicted ways of easyfsl's classifier on these episodes, (E, M)."""
    support_labels = torch.arange(episodes.n_way).repeat_interleave(episodes.n_shot)
    predicted = []
    with torch.no_grad():
        for support, query in zip(episodes.support, episodes.query, strict=True):
            method.process_support_set(features[support.ravel()], support_labels)
            predicted.append(method(features[query]).argmax(1))
    return torch.stack(predicted).numpy()


def shipped_easyfsl(
    method: torch.nn.Module, features: torch.Tensor, labels: np.ndarray, n: int
) -> Callable[[], object]:
    """easyfsl's whole evaluation of n episodes on cached features."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate as easyfsl_evaluate

    class Repaired(TaskSampler):
        def __init__(self) -> None:
            self.n_way, self.n_shot, self.n_query, self.n_tasks = 5, 1, 15, n
            self.items_per_label = {label: np.flatnonzero(labels == label).tolist() for label in range(N_CLASSES)}

    dataset = FeaturesDataset(labels.tolist(), features, [str(i) for i in range(N_CLASSES)])
    sampler = Repaired()
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    return lambda: easyfsl_evaluate(method, loader, device="cpu", use_tqdm=False)


def easyfsl_on_images(method_type: type[torch.nn.Module], n: int) -> Callable[[], object]:
    """Its prototypes on n episodes of 80 images each: every image is encoded when its episode comes."""
    method = method_type(torch.nn.Sequential(Conv4().eval(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
    images, labels = torch.rand(80, 3, 84, 84), torch.arange(5)

    def run() -> None:
        with torch.no_grad():
            for _ in range(n):
                method.process_support_set(images[:5], labels)
                method(images[5:]).argmax(1)

    return run


def loop_of_baselines(features: torch.Tensor, episodes: EpisodeManifest, recipe: FineTuned) -> np.ndarray:
    """Baseline++ one episode after the other: nn.Linear with weight normalisation, SGD, the same order of batches."""
    predicted = []
    labels = torch.arange(episodes.n_way).repeat_interleave(episodes.n_shot)
    for support, query in zip(episodes.support, episodes.query, strict=True):
        generator = torch.Generator().manual_seed(recipe.seed)
        layer = torch.nn.Linear(features.shape[1], episodes.n_way, bias=False)
        weight = (2 * torch.rand(layer.weight.shape, generator=generator) - 1) / features.shape[1] ** 0.5
        layer.weight.data.copy_(weight)
        torch.nn.utils.parametrizations.weight_norm(layer)
        sgd = torch.optim.SGD(
            layer.parameters(), lr=recipe.learning_rate, momentum=0.9, dampening=0.9, weight_decay=recipe.weight_decay
        )
        vectors = recipe.scale * torch.nn.functional.normalize(features[support.ravel()], dim=-1)
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                sgd.zero_grad()
                torch.nn.functional.cross_entropy(layer(vectors[rows]), labels[rows]).backward()
                sgd.step()
        with torch.no_grad():
            predicted.append(layer(recipe.scale * torch.nn.functional.normalize(features[query], dim=-1)).argmax(1))
    return torch.stack(predicted).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--peer-episodes", type=int, default=500, help="for the loops, whose cost is linear")
    parser.add_argument("--fine-tuned-episodes", type=int, default=200, help="for Baseline++, side by side and looped")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine("torch", "easyfsl"), "- one thread")

    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(N_CLASSES), N_IMAGES // N_CLASSES)
    centres = 0.35 * torch.randn(N_CLASSES, DIMENSION, generator=generator)
    features = (centres[torch.from_numpy(labels)] + torch.randn(N_IMAGES, DIMENSION, generator=generator)).relu()
    mean = features.mean(0)
    episodes, few = (sample_episodes(labels, n_episodes=n) for n in (options.episodes, options.peer_episodes))

    rows: dict[str, tuple[int, float, float]] = {}
    before = peak_mib()

    def measure(name: str, n: int, run: Callable[[], object]) -> None:
        run()  # warm
        rows[name] = (n, *timed(run, options.rounds))

    measure(
        "distcam, episodes drawn, checked, hashed and evaluated (prototypes)",
        options.episodes,
        lambda: evaluate(features, sample_episodes(labels, n_episodes=options.episodes)).episodes.content_hash,
    )
    base, more = rows[next(iter(rows))], peak_mib() - before
    simple = simple_shot("CL2N", mean=mean)
    for classifier in (Prototypes(), Prototypes("cosine"), simple, NearestNeighbour(), BDCSPN()):
        measure(f"distcam, {classifier.name}", options.episodes, lambda c=classifier: evaluate(features, episodes, c))
    agreement = []
    try:
        from easyfsl.methods import BDCSPN as PeerBDCSPN
        from easyfsl.methods import PrototypicalNetworks, SimpleShot
    except ImportError:
        print("easyfsl is not installed: only distcam is measured")
    else:
        pairs = {
            "prototypes": (Prototypes(), PrototypicalNetworks()),
            "SimpleShot CL2N": (simple, SimpleShot(feature_centering=mean, feature_normalization=2.0)),
            "BD-CSPN (not the same method)": (BDCSPN(), PeerBDCSPN()),
        }
        for name, (ours, theirs) in pairs.items():
            measure(f"easyfsl, bare {name}", len(few.support), lambda t=theirs: bare_easyfsl(t, features, few))
            same = bare_easyfsl(theirs, features, few) == evaluate(features, few, ours).prediction
            agreement.append(f"{name}: {100 * same.mean():.3f} % of {same.size} predictions equal easyfsl's")
        measure("easyfsl on images, prototypes", 10, easyfsl_on_images(PrototypicalNetworks, 10))
        try:
            run = shipped_easyfsl(PrototypicalNetworks(), features, labels, options.peer_episodes)
            measure("easyfsl as shipped, prototypes", options.peer_episodes, run)
        except ImportError as error:
            print(f"easyfsl as shipped is not measured: {error}")

    tuned, plus_plus = sample_episodes(labels, n_episodes=options.fine_tuned_episodes), baseline_plus_plus()
    measure("distcam, baseline++", len(tuned.support), lambda: evaluate(features, tuned, plus_plus))
    rounds, options.rounds = options.rounds, 1
    looped: list[np.ndarray] = []
    measure(
        "baseline++ in a loop", len(tuned.support), lambda: looped.append(loop_of_baselines(features, tuned, plus_plus))
    )
    options.rounds = rounds
    same = looped[-1] == evaluate(features, tuned, plus_plus).prediction
    agreement.append(f"baseline++: {100 * same.mean():.3f} % of {same.size} predictions equal the loop's")

    print("\n| what | episodes | wall s | CPU s | CPU ms/episode | × first row |\n|---|---:|---:|---:|---:|---:|")
    for name, (n, wall, cpu) in rows.items():
        print(f"| {name} | {n} | {wall:.2f} | {cpu:.2f} | {1000 * cpu / n:.4f} | {cpu / n / (base[2] / base[0]):.1f} |")
    print(*agreement, sep="\n")

    maps = torch.rand(75, DIMENSION, 5, 5, generator=generator)
    prototypes = torch.rand(5, DIMENSION, generator=generator)
    wall, cpu = timed(lambda: episode_maps(maps, prototypes), 20)
    with torch.inference_mode():
        network, images = ResNet12().eval().to(memory_format=torch.channels_last), torch.rand(75, 3, 84, 84)
        forward, _ = timed(lambda: network(images), 1)
    print(
        f"Dist-CAM maps of 75 queries × 5 prototypes, {DIMENSION} channels, 5×5: {1000 * wall:.1f} ms wall, "
        f"{100 * wall / forward:.2f} % of ResNet-12's forward pass of the queries"
    )
    print(
        f"peak memory: {before:.0f} MiB with torch, features ({features.nbytes >> 20} MiB) and episodes, "
        f"{more:.0f} MiB more while distcam evaluates, {peak_mib():.0f} MiB at the end of everything"
    )
