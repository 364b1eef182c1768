"""Rays of one direction from many points through surfaces of triangles: where they cross which.

The triangles are sorted once into a binary tree of boxes: each box is halved at the median of its
triangles along its longest side. For each direction all vertices are sheared, so that the rays run
along the third axis (Woop, Benthin & Wald, J. Comput. Graph. Techn. 2 (2013) 65), and the tree gets
the rectangles that hold the sheared triangles. A ray is a point among these rectangles. On an edge
the sign of its function is that of a point which is shifted by an infinitesimal amount, the same
for all triangles (Edelsbrunner & Muecke, ACM Trans. Graph. 9 (1990) 66). Neighbours compute the
same function of their edge with opposite sign. Therefore no ray passes between two triangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from anacor_dials.sample.frames import FloatArray

LEAF = 4  # triangles of a node that is not divided; 2 and 8 are slower
MOST_CROSSINGS = 512  # of one ray


@dataclass(frozen=True, eq=False)
class TriangleTree:
    """Triangles in the order of a binary tree of boxes.

    Attributes
    ----------
    vertices : array (n, 3)
        um.
    triangles : array (m, 3) of int
    owner : array (m,) of int
        The label that each triangle is the surface of, >= 1.
    first, count : array (k,) of int
        The triangles of each leaf; count is 0 for nodes that are divided. Nodes are in preorder.
    skip : array (k,) of int
        The node that follows when a node with all below it is left out.
    """

    vertices: FloatArray
    triangles: NDArray[np.int64]
    owner: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    skip: NDArray[np.int64]

    @classmethod
    def of(
        cls, vertices: FloatArray, triangles: NDArray[np.int64], owner: NDArray[np.int64]
    ) -> TriangleTree:
        """The tree of triangles.

        Parameters
        ----------
        vertices : array (n, 3)
            um.
        triangles : array (m, 3) of int
        owner : array (m,) of int
            The label that each triangle is the surface of, >= 1.
        """
        middles = vertices[triangles].mean(axis=1)
        order, first, count, skip = _divided(middles)
        return cls(
            np.ascontiguousarray(vertices),
            np.ascontiguousarray(triangles[order]),
            np.ascontiguousarray(owner[order]),
            first,
            count,
            skip,
        )

    @property
    def arrays(self) -> tuple[Any, ...]:
        """Everything, as the compiled functions take it."""
        return self.vertices, self.triangles, self.owner, self.first, self.count, self.skip


@njit(cache=True)
def _divided(middles):  # type: ignore[no-untyped-def]
    """(order, first, count, skip) of the tree over the middles (m, 3) of triangles."""
    m = middles.shape[0]
    most = 2 * m + 1
    order = np.arange(m)
    first = np.zeros(most, np.int64)
    count = np.zeros(most, np.int64)
    depth = np.zeros(most, np.int64)
    starts = np.zeros(200, np.int64)
    stops = np.zeros(200, np.int64)
    depths = np.zeros(200, np.int64)
    stops[0] = m
    waiting = 1
    n = 0
    while waiting:
        waiting -= 1
        start, stop, level = starts[waiting], stops[waiting], depths[waiting]
        depth[n] = level
        if stop - start <= LEAF:
            first[n] = start
            count[n] = stop - start
        else:
            longest = -1.0
            axis = 0
            for k in range(3):
                low = np.inf
                high = -np.inf
                for a in range(start, stop):
                    low = min(low, middles[order[a], k])
                    high = max(high, middles[order[a], k])
                if high - low > longest:
                    longest = high - low
                    axis = k
            keys = np.empty(stop - start)
            for a in range(start, stop):
                keys[a - start] = middles[order[a], axis]
            part = order[start:stop].copy()
            order[start:stop] = part[np.argsort(keys)]
            half = (start + stop) // 2
            # the nearer half comes next, the other one after all of it
            starts[waiting], stops[waiting], depths[waiting] = half, stop, level + 1
            starts[waiting + 1], stops[waiting + 1], depths[waiting + 1] = start, half, level + 1
            waiting += 2
        n += 1
    skip = np.full(n, n, np.int64)
    opened = np.zeros(n, np.int64)
    n_open = 0
    for i in range(n):
        while n_open and depth[opened[n_open - 1]] >= depth[i]:
            n_open -= 1
            skip[opened[n_open]] = i
        opened[n_open] = i
        n_open += 1
    return order, first[:n].copy(), count[:n].copy(), skip


@njit(cache=True)
def _shear(points, g, out):  # type: ignore[no-untyped-def]
    """Writes (u, v, w) of points: u and v are constant along g, and w grows as the length does."""
    k = 0
    for axis in range(1, 3):
        if abs(g[axis]) > abs(g[k]):
            k = axis
    i = (k + 1) % 3
    j = (k + 2) % 3
    if g[k] < 0:  # keeps the frame right-handed
        i, j = j, i
    along_i = g[i] / g[k]
    along_j = g[j] / g[k]
    for a in range(points.shape[0]):
        out[a, 0] = points[a, i] - along_i * points[a, k]
        out[a, 1] = points[a, j] - along_j * points[a, k]
        out[a, 2] = points[a, k] / g[k]


@njit(cache=True)
def _rectangles(sheared, triangles, first, count, skip, bounds):  # type: ignore[no-untyped-def]
    """Writes the lowest and highest u, the lowest and highest v, the highest w of each node."""
    for node in range(count.shape[0] - 1, -1, -1):
        if count[node]:
            u0 = v0 = np.inf
            u1 = v1 = w1 = -np.inf
            for t in range(first[node], first[node] + count[node]):
                for corner in range(3):
                    p = triangles[t, corner]
                    u0 = min(u0, sheared[p, 0])
                    u1 = max(u1, sheared[p, 0])
                    v0 = min(v0, sheared[p, 1])
                    v1 = max(v1, sheared[p, 1])
                    w1 = max(w1, sheared[p, 2])
            bounds[node, 0] = u0
            bounds[node, 1] = u1
            bounds[node, 2] = v0
            bounds[node, 3] = v1
            bounds[node, 4] = w1
        else:
            one = node + 1
            other = skip[one]
            bounds[node, 0] = min(bounds[one, 0], bounds[other, 0])
            bounds[node, 1] = max(bounds[one, 1], bounds[other, 1])
            bounds[node, 2] = min(bounds[one, 2], bounds[other, 2])
            bounds[node, 3] = max(bounds[one, 3], bounds[other, 3])
            bounds[node, 4] = max(bounds[one, 4], bounds[other, 4])


@njit(cache=True)
def _along(tree, points, direction):  # type: ignore[no-untyped-def]
    """(sheared vertices, sheared points, bounds of the nodes) of rays in one direction."""
    vertices, triangles, _, first, count, skip = tree
    sheared = np.empty_like(vertices)
    _shear(vertices, direction, sheared)
    start = np.empty_like(points)
    _shear(points, direction, start)
    bounds = np.empty((count.shape[0], 5))
    _rectangles(sheared, triangles, first, count, skip, bounds)
    return sheared, start, bounds


@njit(inline="always")
def _missed(bounds, node, u, v, w):  # type: ignore[no-untyped-def]
    """Whether the ray from (u, v, w) meets nothing below a node."""
    return (
        u < bounds[node, 0]
        or u > bounds[node, 1]
        or v < bounds[node, 2]
        or v > bounds[node, 3]
        or w >= bounds[node, 4]
    )


@njit(inline="always")
def _edge(bu, bv, cu, cv):  # type: ignore[no-untyped-def]
    """b x c: twice the area between the origin and the edge from b to c; its sign is never lost."""
    area = bu * cv - bv * cu
    if area == 0.0:  # the origin is shifted by an infinitesimal amount along u, and a smaller one
        if cv != bv:  # along v
            return -1e-300 if cv > bv else 1e-300
        return 1e-300 if cu > bu else -1e-300
    return area


@njit(inline="always")
def _crossing(sheared, triangles, t, u, v):  # type: ignore[no-untyped-def]
    """(w, sign) where the ray at (u, v) crosses a triangle: +1 outward, -1 inward, 0 not at all."""
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    au, av = sheared[a, 0] - u, sheared[a, 1] - v
    bu, bv = sheared[b, 0] - u, sheared[b, 1] - v
    cu, cv = sheared[c, 0] - u, sheared[c, 1] - v
    of_a = _edge(bu, bv, cu, cv)
    of_b = _edge(cu, cv, au, av)
    if (of_a > 0) != (of_b > 0):
        return 0.0, 0
    of_c = _edge(au, av, bu, bv)
    if (of_a > 0) != (of_c > 0):
        return 0.0, 0
    w = (of_a * sheared[a, 2] + of_b * sheared[b, 2] + of_c * sheared[c, 2]) / (of_a + of_b + of_c)
    return w, 1 if of_a > 0 else -1


@njit(cache=True)
def _length_of_one(tree, sheared, bounds, u, v, w):  # type: ignore[no-untyped-def]
    """The length of a ray from (u, v, w) within a single solid: outward less inward crossings."""
    _, triangles, _, first, count, skip = tree
    total = 0.0
    node = 0
    while node < count.shape[0]:
        if _missed(bounds, node, u, v, w):
            node = skip[node]
            continue
        for t in range(first[node], first[node] + count[node]):
            place, sign = _crossing(sheared, triangles, t, u, v)
            if sign != 0 and place > w:
                total += sign * (place - w)
        node += 1
    return total


@njit(cache=True)
def _crossings(tree, sheared, bounds, u, v, w, places, signs):  # type: ignore[no-untyped-def]
    """Writes the crossings beyond w, the farthest first, and returns their number.

    signs: the label of the surface, positive outward and negative inward. MOST_CROSSINGS + 1 is
    returned if there are more.
    """
    _, triangles, owner, first, count, skip = tree
    n = 0
    node = 0
    while node < count.shape[0]:
        if _missed(bounds, node, u, v, w):
            node = skip[node]
            continue
        for t in range(first[node], first[node] + count[node]):
            place, sign = _crossing(sheared, triangles, t, u, v)
            if sign == 0 or place <= w:
                continue
            if n == places.shape[0]:
                return MOST_CROSSINGS + 1
            at = n
            while at > 0 and places[at - 1] < place:
                places[at] = places[at - 1]
                signs[at] = signs[at - 1]
                at -= 1
            places[at] = place
            signs[at] = sign * owner[t]
            n += 1
        node += 1
    return n


@njit(cache=True)
def _lengths(places, signs, n, w, windings, lengths):  # type: ignore[no-untyped-def]
    """Writes the length (n_labels,) of a ray in each label, from its sorted crossings.

    From the far end inward: a ray is in a solid whose surface it leaves more often than it enters
    it, or less often where the surface is inside out. The lowest of these labels counts.
    """
    windings[:] = 0
    lengths[:] = 0.0
    label = 0
    for k in range(n + 1):
        here = places[k] if k < n else w
        if label:
            lengths[label] += places[k - 1] - here
        if k == n:
            break
        windings[abs(signs[k])] += 1 if signs[k] > 0 else -1
        label = 0
        for one in range(1, windings.shape[0]):
            if windings[one] != 0:
                label = one
                break


@njit(cache=True)
def _depths(tree, mu, points, direction, depths, lengths):  # type: ignore[no-untyped-def]
    """Writes the optical depths (m,) of rays from points (m, 3) in one direction.

    lengths: array (m, n_labels) for the lengths, um, or (0, n_labels) where they are not wanted.
    """
    sheared, start, bounds = _along(tree, points, direction)
    n_labels = mu.shape[0]
    wanted = lengths.shape[0] > 0
    places = np.empty(MOST_CROSSINGS)
    signs = np.empty(MOST_CROSSINGS, np.int64)
    windings = np.empty(n_labels, np.int64)
    of_labels = np.empty(n_labels)
    for i in range(points.shape[0]):
        u, v, w = start[i, 0], start[i, 1], start[i, 2]
        if n_labels == 2:
            length = _length_of_one(tree, sheared, bounds, u, v, w)
            depths[i] = mu[1] * length
            if wanted:
                lengths[i, 0] = 0.0
                lengths[i, 1] = length
            continue
        n = _crossings(tree, sheared, bounds, u, v, w, places, signs)
        if n > MOST_CROSSINGS:
            depths[i] = np.nan
            continue
        _lengths(places, signs, n, w, windings, of_labels)
        depths[i] = 0.0
        for label in range(1, n_labels):
            depths[i] += mu[label] * of_labels[label]
        if wanted:
            lengths[i] = of_labels


@njit(parallel=True, cache=True)
def transmissions(tree, mu, points, directions, result):  # type: ignore[no-untyped-def]
    """Writes exp(-integral of mu) (k, m) of rays from points (m, 3) in directions (k, 3)."""
    for k in prange(directions.shape[0]):
        depths = np.empty(points.shape[0])
        _depths(tree, mu, points, directions[k], depths, np.empty((0, mu.shape[0])))
        for i in range(depths.shape[0]):
            result[k, i] = np.exp(-depths[i])


@njit(parallel=True, cache=True)
def depths_and_lengths(tree, mu, points, directions, depths, lengths):  # type: ignore[no-untyped-def]
    """Writes optical depths (k, m) and lengths (k, m, n_labels), um."""
    for k in prange(directions.shape[0]):
        _depths(tree, mu, points, directions[k], depths[k], lengths[k])


@njit(parallel=True, cache=True)
def exact_sums(tree, mu, points, to_source, exits, weights, sums):  # type: ignore[no-untyped-def]
    """Writes sum f, sum w, and the sums over pairs of d_f^2, d_f d_w, d_w^2 for each reflection."""
    for h in prange(to_source.shape[0]):
        depths_in = np.empty(points.shape[0])
        depths_out = np.empty(points.shape[0])
        none = np.empty((0, mu.shape[0]))
        _depths(tree, mu, points, to_source[h], depths_in, none)
        _depths(tree, mu, points, exits[h], depths_out, none)
        before = 0.0
        weight_before = 0.0
        for i in range(points.shape[0]):
            w = weights[h % weights.shape[0], i]
            value = w * np.exp(-depths_in[i] - depths_out[i])
            sums[h, 0] += value
            sums[h, 1] += w
            if i % 2 == 1:
                sums[h, 2] += (value - before) ** 2
                sums[h, 3] += (value - before) * (w - weight_before)
                sums[h, 4] += (w - weight_before) ** 2
            before = value
            weight_before = w


@njit(cache=True)
def inside(tree, points, direction, label, found):  # type: ignore[no-untyped-def]
    """Writes whether points (m, 3) lie in the solid of a label, by the crossings of one ray."""
    _, triangles, owner, first, count, skip = tree
    sheared, start, bounds = _along(tree, points, direction)
    for i in range(points.shape[0]):
        u, v, w = start[i, 0], start[i, 1], start[i, 2]
        winding = 0
        node = 0
        while node < count.shape[0]:
            if _missed(bounds, node, u, v, w):
                node = skip[node]
                continue
            for t in range(first[node], first[node] + count[node]):
                if owner[t] == label:
                    place, sign = _crossing(sheared, triangles, t, u, v)
                    if sign != 0 and place > w:
                        winding += sign
            node += 1
        found[i] = winding != 0
