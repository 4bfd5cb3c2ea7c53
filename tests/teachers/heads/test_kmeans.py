"""Streaming spherical k-means against clusters that are known, and against a full-batch reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.heads import kmeans
from teachers.heads.kmeans import SphericalKMeans


def blobs(clusters: int, tokens: int, spread: float = 0.05, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors `[tokens, 8]` around `clusters` orthogonal directions, shuffled, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(clusters, (tokens,), generator=generator)
    x = torch.eye(8)[:clusters][of] + spread * torch.randn(tokens, 8, generator=generator)
    return F.normalize(x, dim=-1), of


def lloyd(x: torch.Tensor, seeds: torch.Tensor, rounds: int = 20) -> torch.Tensor:
    """Full-batch spherical k-means, written out."""
    centroids = seeds.clone()
    for _ in range(rounds):
        nearest = [max(range(len(centroids)), key=lambda k, v=v: float(v @ centroids[k])) for v in x]
        for k in range(len(centroids)):
            mine = [v for v, n in zip(x, nearest) if n == k]
            if mine:
                centroids[k] = F.normalize(torch.stack(mine).sum(0), dim=0)
    return centroids


def fit(x: torch.Tensor, prototypes: int, batch: int = 50, seed: int = 0) -> SphericalKMeans:
    clusters = SphericalKMeans(prototypes, x.shape[1], seed)
    for part in x.split(batch):
        clusters.add(part)
    return clusters


def test_separable_clusters_are_found_whatever_the_seeds():
    x, of = blobs(5, 2000)
    for seed in range(5):
        centroids = fit(x, 16, seed=seed).centroids()  # seeds at random: a few centroids for each cluster
        nearest = (centroids @ torch.eye(8)[:5].T).argmax(1)  # [K] the cluster of each centroid
        assert set(nearest.tolist()) == {0, 1, 2, 3, 4}
        assert torch.equal(nearest[(x @ centroids.T).argmax(1)], of)


def test_the_stream_ends_where_the_whole_batch_does():
    x, of = blobs(5, 400, spread=0.1)
    seeds = torch.stack([x[of == k][0] for k in range(5)])
    reference = lloyd(x, seeds)
    clusters = SphericalKMeans(5, 8, 0)
    for part in (seeds, *x.split(40)):
        clusters.add(part)
    cosines = reference @ clusters.centroids().T
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2, 3, 4]
    assert cosines.amax(1).min() > 0.998


def test_dead_centroids_start_again():
    x, _ = blobs(2, 1000)
    clusters = SphericalKMeans(2, 8, 0)
    clusters.add(x[:2])
    far = F.normalize(-torch.ones(8), dim=0)
    clusters.sums, clusters.counts = torch.stack([x[0], far]), torch.ones(2)
    for part in x[2:].split(20):
        clusters.add(part)
    assert clusters.reseeded == 1
    assert (clusters.centroids() @ far).max() < 0.5


def test_a_centroid_is_the_direction_of_what_it_won():
    clusters = SphericalKMeans(1, 2, 0)
    first, later = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    clusters.add(first)  # the seed counts for two: it is won as well
    clusters.add(later)
    torch.testing.assert_close(clusters.centroids()[0], F.normalize(2 * first[0] + later.sum(0), dim=0))


def test_old_vectors_are_forgotten(monkeypatch):
    monkeypatch.setattr(kmeans, "MEMORY", 10)
    clusters = SphericalKMeans(1, 2, 0)
    for angle in [0.0] * 50 + [1.0] * 50:
        clusters.add(torch.tensor([[angle, 1.0]]) / (1 + angle**2) ** 0.5)
    assert clusters.counts.item() == pytest.approx(10)
    assert clusters.centroids()[0, 0] > 0.7  # nearly all of the way from 0 to 0.707


def test_chunks_change_nothing(monkeypatch):
    x, _ = blobs(4, 300, spread=0.5)
    whole = fit(x, 7)
    monkeypatch.setattr(kmeans, "CHUNK_ELEMENTS", 21)
    torch.testing.assert_close(fit(x, 7).centroids(), whole.centroids())


def test_seeds_come_from_as_many_batches_as_it_takes():
    x, _ = blobs(5, 30)
    clusters = SphericalKMeans(25, 8, 0)
    clusters.add(x[:10])
    assert (clusters.ready, clusters.seeded) == (False, 10)
    clusters.add(x[10:20])
    clusters.add(x[20:])
    assert clusters.ready
    assert len(set(clusters.recent.tolist()) | {0.0}) > 1  # the last batch was assigned as well


@settings(max_examples=25, deadline=None)
@given(prototypes=st.integers(1, 12), batch=st.integers(1, 40), seed=st.integers(0, 1000))
def test_centroids_have_length_one_and_depend_on_the_seed_alone(prototypes, batch, seed):
    x, _ = blobs(3, 120, spread=0.3, seed=seed)
    one, two = fit(x, prototypes, batch, seed), fit(x, prototypes, batch, seed)
    assert one.ready
    torch.testing.assert_close(one.centroids().norm(dim=1), torch.ones(prototypes))
    assert torch.equal(one.centroids(), two.centroids())
