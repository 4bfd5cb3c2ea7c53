"""The losses in plain float64 loops, straight from their definitions: slow, and independent of the package."""

import math

import numpy as np


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def cosine(x, y):
    return float(np.dot(x, y) / math.sqrt(np.dot(x, x)) / math.sqrt(np.dot(y, y)))


def cross_entropy(student, directions, target, temperature):
    """One token: student [d], directions [K, d], target [K]."""
    logits = [float(np.dot(student, w)) / temperature for w in directions]
    return -sum(p * math.log(q) for p, q in zip(target, softmax(logits)))


def centred(bottleneck, directions, center, temperature):
    """One token's target: bottleneck [d], directions [K, d], center [K]."""
    return softmax([(float(np.dot(bottleneck, w)) - c) / temperature for w, c in zip(directions, center)])


def clip(images, texts, temperature):
    total = 0.0
    for k in range(len(images)):
        row = softmax([cosine(images[k], t) / temperature for t in texts])
        column = softmax([cosine(i, texts[k]) / temperature for i in images])
        total -= math.log(row[k]) + math.log(column[k])
    return total / (2 * len(images))


def siglip(images, texts, temperature, bias):
    total = 0.0
    for i in range(len(images)):
        for j in range(len(texts)):
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (cosine(images[i], texts[j]) / temperature + bias))))
    return total / len(images)


def regression(x, y):
    """One token: 1 - cosine, plus the mean over channels of smooth L1."""
    channels = [0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5 for a, b in zip(x, y)]
    return 1 - cosine(x, y) + sum(channels) / len(channels)


def sinkhorn(logits, temperature, iterations):
    """logits [T, K], as in its paper: alternately divide rows by (K row sum) and columns by (T column sum)."""
    q = np.exp(np.asarray(logits, dtype=np.float64) / temperature).T  # [K, T]
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T
